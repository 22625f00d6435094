import { ConfigError, cat, type Engine, Key, nearest, normal, type Tensor } from "../engine/index.js";
import type { Codec } from "./codec.js";
import { ddim } from "./diffusion/ddim.js";
import { ddpm } from "./diffusion/ddpm.js";
import { dpmSolver } from "./diffusion/dpm.js";
import type { Flow } from "./diffusion/flow.js";
import { guided } from "./diffusion/guidance.js";
import type { Objective } from "./diffusion/objective.js";
import { euler, heun } from "./diffusion/ode.js";
import type { Predict, Step } from "./diffusion/walk.js";
import type { STDiT } from "./stdit.js";
import type { TextEncoder } from "./text/encoder.js";

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
  const known = samplersOf(objective);
  if (!known.includes(name)) {
    const guess = nearest(name, known);
    throw new ConfigError(
      `sample: sampler "${name}" does not fit a model trained with ${objective.kind}; ${guess ? `did you mean "${guess}"?` : "take"} (${known.join(", ")})`,
    );
  }
  if (eta !== 0 && name !== "ddim")
    throw new ConfigError(`sample: eta has no use with sampler "${name}"; only ddim adds noise by it.`);
  if (objective.kind === "flow")
    return (name === "euler" ? euler : heun)(predict, noise, { steps, shift: (objective as Flow).shift, signal });
  const predicts = objective.kind === "v" ? "v" : "eps";
  if (name === "ddim") return ddim(predict, noise, { steps, predicts, eta, key, signal });
  if (name === "ddpm") return ddpm(predict, noise, { steps, predicts, key, signal });
  return dpmSolver(predict, noise, { steps, predicts, signal });
}

/**
 * Samples clips, step by step: prompts are encoded, noise is walked to data under guidance, and each step can be looked
 * at as a video.
 * @param signal stops before the next step with AbortedError
 * @throws ConfigError for prompts or options that cannot be, ShapeError for sizes that do not fit
 */
export async function* sampleClips(
  pipeline: Pipeline,
  request: SampleRequest,
  signal?: AbortSignal,
): AsyncGenerator<Progress, void> {
  const { model, codec, objective, text } = pipeline;
  const { engine } = model;
  const { guidance = 1.5, cfgChannels, seed = 0, sampler = samplersOf(objective)[0] } = request;
  const encoded = await text.encode(request.prompts);
  const shape = codec.latentShape(videoShape(pipeline, request));
  const key = Key.from(seed);
  const held: Tensor[] = [];
  const hold = <T extends Tensor>(t: T): T => {
    held.push(t.keep());
    return t;
  };
  try {
    const y = hold(engine.tensor(encoded.embeddings, encoded.shape)); // [B, L, D]
    const mask = hold(engine.tensor(encoded.mask, encoded.shape.slice(0, 2))); // [B, L]
    const noise = hold(engine.noGrad(() => noiseOf(engine, key, shape))); // [B, C, T, H, W]
    const predict = guided(model, y, mask, { scale: guidance, cfgChannels });
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
