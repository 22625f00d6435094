import { ConfigError, cat, type Engine, Key, nearest, normal, type Tensor } from "../engine/index.js";
import type { Codec } from "./codec.js";
import { ddim } from "./diffusion/ddim.js";
import { ddpm } from "./diffusion/ddpm.js";
import { dpmSolver } from "./diffusion/dpm.js";
import type { Flow } from "./diffusion/flow.js";
import { checkScale, type GuidanceParts, guided } from "./diffusion/guidance.js";
import type { Objective } from "./diffusion/objective.js";
import { euler, heun } from "./diffusion/ode.js";
import type { Predict, Step } from "./diffusion/walk.js";
import type { STDiT } from "./stdit.js";
import { checkPrompts, type Encoded, type TextEncoder } from "./text/encoder.js";
import { formPrompts, inForm, type PromptForm, promptForm } from "./text/form.js";
import { type Recaptioner, RuleRecaptioner } from "./text/recaption.js";

export type SamplerName = "ddpm" | "ddim" | "dpm-solver++" | "euler" | "heun";

/** Which samplers walk the paths that an objective trains, the usual one first. */
export const samplersOf = (objective: Objective): readonly SamplerName[] =>
  objective.kind === "flow" ? ["euler", "heun"] : ["ddim", "dpm-solver++", "ddpm"];

/** Everything that turns prompts into clips. */
export interface Pipeline {
  model: STDiT;
  codec: Codec;
  objective: Objective;
  text: TextEncoder;
  /** What a model's language branch reads. */
  language?: TextEncoder;
  /** In which form it reads prompts, as it did in training. Default "S": as they are. */
  promptForm?: PromptForm;
  /** Makes the long captions that the other forms need, where a request brings none. Default: by rules. */
  recaptioner?: Recaptioner;
}

/** One request for clips; with the same checkpoint it describes them completely. */
export interface SampleRequest {
  prompts: string[];
  /** Default: the objective's usual one. */
  sampler?: SamplerName;
  /** Default 16. */
  steps?: number;
  /** Weight of the caption; 1 guides nothing. Default 1.5. */
  guidance?: number;
  /** Weight of what the language model read, for models with a language branch. Default 2. */
  languageGuidance?: number;
  /** What the language model reads of each prompt: it, a long one, or both. Default: the pipeline's, "L" with `longPrompts`. */
  promptForm?: PromptForm;
  /** The long prompt of each prompt; default: the recaptioner's. */
  longPrompts?: string[];
  /** How the outputs of a guided step are run. Default "auto": in one batch as long as memory allows. */
  parts?: GuidanceParts;
  /** How many latent channels are guided. Default "all". */
  cfgChannels?: number | "all";
  /** Noise added at each step by ddim, 0 … 1. Default 0. */
  eta?: number;
  /** Decides the noise: clip i of a seed is the same whatever else is sampled with it. Default 0. */
  seed?: number;
  /** Pixels of the clip; default: what the model was trained on. */
  frames?: number;
  height?: number;
  width?: number;
}

/** What a request's clips look like after one step. */
export interface Progress {
  /** From 1 to `steps`. */
  step: number;
  steps: number;
  /** The time at which the model was asked, on the 0 … 999 scale. */
  t: number;
  /** [B, 3, T, H, W] in [-1, 1]: what the model believes the clips are; after the last step, the clips. */
  video(): Promise<Float32Array>;
}

/** Shape of a request's clips: [B, 3, T, H, W]. */
export function videoShape(
  { model, codec }: Pick<Pipeline, "model" | "codec">,
  request: SampleRequest,
): [number, number, number, number, number] {
  const { latent, frames } = model.config;
  const [, , , h, w] = codec.latentShape([1, 3, 1, SCALE, SCALE]);
  const [ph, pw] = [SCALE / h, SCALE / w];
  return [
    request.prompts.length,
    3,
    request.frames ?? frames,
    request.height ?? latent[0] * ph,
    request.width ?? latent[1] * pw,
  ];
}
/** A side that every codec's patch divides. */
const SCALE = 5040;

/** @throws ConfigError for a sampler that does not fit the objective, or an eta that it has no use for */
export function checkSampler(name: SamplerName, objective: Objective, eta: number): void {
  const known = samplersOf(objective);
  if (!known.includes(name)) {
    const guess = nearest(name, known);
    throw new ConfigError(
      `sample: sampler "${name}" does not fit a model trained with ${objective.kind}; ${guess ? `did you mean "${guess}"?` : "take"} (${known.join(", ")})`,
    );
  }
  if (eta !== 0 && name !== "ddim")
    throw new ConfigError(`sample: eta has no use with sampler "${name}"; only ddim adds noise by it.`);
}

/** The sampler of a name, over a predictor. */
function walk(
  name: SamplerName,
  predict: Predict,
  noise: Tensor,
  objective: Objective,
  request: SampleRequest,
  key: Key,
  signal?: AbortSignal,
): AsyncGenerator<Step, void> {
  const { steps = 16, eta = 0 } = request;
  if (objective.kind === "flow")
    return (name === "euler" ? euler : heun)(predict, noise, { steps, shift: (objective as Flow).shift, signal });
  const predicts = objective.kind === "v" ? "v" : "eps";
  if (name === "ddim") return ddim(predict, noise, { steps, predicts, eta, key, signal });
  if (name === "ddpm") return ddpm(predict, noise, { steps, predicts, key, signal });
  return dpmSolver(predict, noise, { steps, predicts, signal });
}

/** Options of a request that only a language branch has a use for. */
const LANGUAGE_OPTIONS = ["languageGuidance", "promptForm", "longPrompts"] as const;

/** How much of each prompt the language model reads. */
const formOf = (pipeline: Pick<Pipeline, "promptForm">, { promptForm: asked, longPrompts }: SampleRequest) => {
  if (asked !== undefined) return promptForm(asked);
  const usual = pipeline.promptForm ?? "S";
  return usual === "S" && longPrompts !== undefined ? "L" : usual;
};

/**
 * Refuses a request before anything is encoded.
 * @throws ConfigError saying what cannot be
 */
function checkRequest(pipeline: Pipeline, request: SampleRequest): void {
  const { model, objective, text, language } = pipeline;
  const { prompts, sampler = samplersOf(objective)[0], eta = 0, longPrompts } = request;
  checkPrompts(prompts, true);
  checkSampler(sampler, objective, eta);
  checkScale("scale", request.guidance ?? GUIDANCE);
  const { captionChannels, maxLength, languageChannels, languageLength } = model.config;
  checkWidth("captions", text, captionChannels, maxLength);
  if (!languageChannels) {
    const given = LANGUAGE_OPTIONS.find((name) => request[name] !== undefined);
    if (given)
      throw new ConfigError(
        `sample: ${given} has no use: the model has no language branch; leave it out, or add the branch with addLanguage.`,
      );
    return;
  }
  if (!language)
    throw new ConfigError(
      "sample: the model has a language branch: the pipeline has no language model for it to read; give one as language, such as openLanguage's.",
    );
  checkWidth("language captions", language, languageChannels, languageLength);
  checkScale("language scale", request.languageGuidance ?? LANGUAGE_GUIDANCE);
  const form = formOf(pipeline, request);
  if (longPrompts === undefined) return;
  checkPrompts(longPrompts, true);
  if (longPrompts.length !== prompts.length)
    throw new ConfigError(
      `sample: there must be a long prompt for each prompt: got ${longPrompts.length} for ${prompts.length}.`,
    );
  if (form === "S")
    throw new ConfigError(
      'sample: long prompts have no use with prompt form "S", which is the short prompt alone; take "L" or "SL".',
    );
}
const GUIDANCE = 1.5;
const LANGUAGE_GUIDANCE = 2;

function checkWidth(what: string, { dim, maxLength }: TextEncoder, channels: number, most: number): void {
  if (dim !== channels)
    throw new ConfigError(
      `sample: the model's ${what} are ${channels} wide: those of the encoder given are ${dim}; give the encoder that it was trained with.`,
    );
  if (maxLength > most)
    throw new ConfigError(
      `sample: the model's ${what} have at most ${most} vectors: the encoder given makes ${maxLength}; open it with maxLength ${most}.`,
    );
}

/**
 * What the language model of a pipeline is to read of a request: each prompt in the form that is asked for.
 * @throws ConfigError for a form that is none, or what the recaptioner throws
 */
export async function languagePrompts(
  pipeline: Pick<Pipeline, "promptForm" | "recaptioner">,
  request: SampleRequest,
  signal?: AbortSignal,
): Promise<string[]> {
  const { prompts, longPrompts } = request;
  const form = formOf(pipeline, request);
  if (longPrompts) return prompts.map((short, i) => inForm(form, short, longPrompts[i]));
  return formPrompts(prompts, form, pipeline.recaptioner ?? new RuleRecaptioner(), signal);
}

/**
 * Samples clips, step by step: prompts are encoded, noise is walked to data under guidance, and each step can be looked
 * at as a video. Models with a language branch are guided by two scales, one for each caption.
 * @param signal stops before the next step with AbortedError
 * @throws ConfigError for prompts or options that cannot be, ShapeError for sizes that do not fit
 */
export async function* sampleClips(
  pipeline: Pipeline,
  request: SampleRequest,
  signal?: AbortSignal,
): AsyncGenerator<Progress, void> {
  const { model, codec, objective, text, language } = pipeline;
  const { engine } = model;
  const { cfgChannels, parts, seed = 0, sampler = samplersOf(objective)[0] } = request;
  checkRequest(pipeline, request);
  const shape = codec.latentShape(videoShape(pipeline, request));
  const key = Key.from(seed);
  const first = await text.encode(request.prompts);
  const branched = model.config.languageChannels > 0;
  const second = branched ? await language!.encode(await languagePrompts(pipeline, request, signal)) : undefined;
  const held: Tensor[] = [];
  const hold = <T extends Tensor>(t: T): T => {
    held.push(t.keep());
    return t;
  };
  const upload = ({ embeddings, mask, shape }: Encoded) => ({
    y: hold(engine.tensor(embeddings, shape)), // [B, L, D]
    mask: hold(engine.tensor(mask, shape.slice(0, 2))), // [B, L]
  });
  try {
    const { y, mask } = upload(first);
    const noise = hold(engine.noGrad(() => engine.scope(() => noiseOf(engine, key, shape)))); // [B, C, T, H, W]
    const predict = guided(model, y, mask, {
      scale: request.guidance ?? GUIDANCE,
      cfgChannels,
      parts,
      ...(second && { language: upload(second), languageScale: request.languageGuidance ?? LANGUAGE_GUIDANCE }),
    });
    for await (const step of walk(sampler, predict, noise, objective, request, key.fold(2), signal)) {
      const last = step.i === step.steps - 1;
      const believed = last ? step.x : step.x0;
      // The last latent is ours to free, also when the caller leaves at this step.
      if (last) held.push(step.x);
      yield {
        step: step.i + 1,
        steps: step.steps,
        t: step.t,
        video: async () => {
          await codec.open?.();
          const video = engine.noGrad(() => engine.scope(() => codec.decode(believed))); // [B, 3, T, H, W]
          try {
            return (await video.data()) as Float32Array;
          } finally {
            video.dispose();
          }
        },
      };
    }
  } finally {
    for (const t of held) t.dispose();
  }
}

/** Standard normal noise in which clip i depends on the key and i alone. */
function noiseOf(engine: Engine, key: Key, [B, ...rest]: readonly number[]): Tensor {
  const clips = Array.from({ length: B }, (_, i) => normal(engine, key.fold(0).fold(i), [1, ...rest]));
  return cat(clips, 0);
}

/** Runs a request to its end: the clips, [B, 3, T, H, W] in [-1, 1] row by row. */
export async function sample(
  pipeline: Pipeline,
  request: SampleRequest,
  options: { signal?: AbortSignal; onStep?: (p: Progress) => void } = {},
): Promise<{ video: Float32Array; shape: readonly number[] }> {
  let video: Float32Array | undefined;
  for await (const progress of sampleClips(pipeline, request, options.signal)) {
    options.onStep?.(progress);
    if (progress.step === progress.steps) video = await progress.video();
  }
  return { video: video!, shape: videoShape(pipeline, request) };
}
