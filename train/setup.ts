import { ConfigError, FeatureError } from "../engine/errors.js";
import { type Engine, Key } from "../engine/index.js";
import type { ModelContent } from "../model/checkpoint.js";
import { type Codec, PCACodec, PixelCodec } from "../model/codec.js";
import type { STDiTConfig } from "../model/config.js";
import { Flow } from "../model/diffusion/flow.js";
import { Iddpm } from "../model/diffusion/iddpm.js";
import type { Objective } from "../model/diffusion/objective.js";
import { Velocity } from "../model/diffusion/velocity.js";
import type { ImportReport } from "../model/foreign/report.js";
import type { Pipeline } from "../model/pipeline.js";
import { STDiT } from "../model/stdit.js";
import { captionsSaid } from "../model/text/captions.js";
import type { Encoded, TextEncoder } from "../model/text/encoder.js";
import { formPrompts } from "../model/text/form.js";
import { MemoEncoder } from "../model/text/memo.js";
import { RuleRecaptioner } from "../model/text/recaption.js";
import { type OpenEncoder, openEncoder } from "../model/text/spec.js";
import type { WordEncoder } from "../model/text/words.js";
import { ExternalVae } from "../model/vae/external.js";
import { assetsOf } from "./cache/encoder.js";
import type { Checkpoint } from "./checkpoint.js";
import type { Config } from "./config.js";
import { chooseTrained, continuedSetup, openSetup, placesOf } from "./continued.js";
import { wordEncoder } from "./data/assets.js";
import type { Dataset } from "./data/dataset.js";
import { fitPatches } from "./data/pca.js";
import { openSource, type Source } from "./source.js";

/** Clips that the linear codec is fitted to; more change nothing that one can see. */
const FIT = 192;

/** What is trained, and all that turns its outputs into clips. */
export interface Setup extends Pipeline {
  /** What the model's files say of its encoders, and the vocabulary that travels with it. */
  about: Pick<ModelContent, "text" | "vectors">;
  /** Of a model file that others made: what was taken from it. */
  report?: ImportReport;
  dispose(): void;
}

/** What a setup's language model makes of captions; undefined for models that read none. */
export function languageReader({ language, promptForm = "S", recaptioner }: Setup) {
  if (!language) return undefined;
  const long = recaptioner ?? new RuleRecaptioner();
  return async (captions: string[]): Promise<Encoded> => language.encode(await formPrompts(captions, promptForm, long));
}

/** The objective that a configuration names. */
export function objectiveOf(config: Config): Objective {
  const { kind, flowShift, variational } = config.objective;
  if (kind === "flow") return new Flow({ shift: flowShift });
  return kind === "v" ? new Velocity() : new Iddpm({ loss: variational ? "mse+vb" : "mse" });
}

async function codecOf(engine: Engine, config: Config, dataset: Dataset): Promise<Codec> {
  if (config.codec.kind === "pixels") return new PixelCodec();
  if (config.codec.kind === "vae") return ExternalVae.find(engine, config.codec.vae!);
  const videos: Float32Array[] = [];
  const add = async (from: Dataset) => {
    for (let i = 0; i < Math.min(FIT, from.size); i++) videos.push((await from.sample(i)).video);
  };
  await add(dataset);
  if (config.codec.alsoFit) {
    const other = config.codec.alsoFit;
    await add((await openSource({ ...config, data: { ...config.data, kind: "world", world: other } })).dataset);
  }
  return new PCACodec(engine, fitPatches(videos, dataset, config.codec.patch, config.codec.channels));
}

/** The transformer's configuration: sizes of latents follow from the data and the codec, widths from the encoder. */
export function modelConfig(config: Config, codec: Codec, text: TextEncoder): Partial<STDiTConfig> {
  const { model, data, objective } = config;
  const [, channels, frames, rows, columns] = codec.latentShape([1, 3, data.frames, data.size, data.size]);
  return {
    inChannels: channels,
    predSigma: objective.learnSigma,
    hidden: model.hidden,
    depth: model.depth,
    heads: model.heads,
    mlpRatio: model.mlpRatio,
    patch: model.patch,
    frames,
    latent: [rows, columns],
    captionChannels: text.dim,
    maxLength: model.maxLength,
    spaceScale: model.spaceScale,
    timeScale: model.timeScale,
  };
}

/** The encoder of a new model's captions, what its file is to say of it, and how to give its memory back. */
async function textOf(engine: Engine, config: Config) {
  const { t5 } = placesOf(config);
  if (!t5) {
    const words = wordsOf(config);
    return { text: words, said: wordsInfo(words), dispose: () => {} };
  }
  const spec = { ...t5, maxLength: config.model.maxLength };
  const encoder: OpenEncoder & { fingerprint?: string } = await openEncoder(engine, spec, assetsOf(config.data.cache));
  return {
    text: new MemoEncoder(encoder),
    said: captionsSaid(spec, { fingerprint: encoder.fingerprint }),
    dispose: () => encoder.dispose?.(),
  };
}

function wordsOf(config: Config): WordEncoder {
  const text = wordEncoder({ maxLength: config.model.maxLength });
  if (text.dim !== config.model.captionChannels)
    throw new ConfigError(
      `config: model.captionChannels must be ${text.dim}, the width of the word vectors: got ${config.model.captionChannels}`,
    );
  return text;
}

/** What a checkpoint says of word vectors, so that other vectors are not mistaken for these. */
const wordsInfo = (text: WordEncoder) => ({
  type: "words",
  dim: text.dim,
  max_length: text.maxLength,
  mix: text.mix,
  fingerprint: text.fingerprint,
});

/** @throws FeatureError where the adapter cannot compute as `train.precision` says */
function checkPrecision(engine: Engine, { train }: Config): void {
  if (train.precision === "mixed" && !engine.has("shader-f16"))
    throw new FeatureError(
      `train.precision: mixed needs f16 (feature shader-f16), which ${engine.info.name} does not offer; leave it at f32, or choose another adapter with --adapter.`,
    );
}

/** Lets a setup's model compute as the configuration says. */
function prepared(setup: Setup, { train }: Config): Setup {
  setup.model.checkpointBlocks = train.checkpointBlocks;
  setup.model.compute = train.precision === "mixed" ? "f16" : undefined;
  return setup;
}

/** A new model by the configuration and its seed: a fresh one, or `model.from` grown as the configuration says. */
export async function newSetup(engine: Engine, config: Config, source: Source): Promise<Setup> {
  checkPrecision(engine, config);
  const setup = config.model.from === undefined ? freshSetup(engine, config, source) : continuedSetup(engine, config);
  return prepared(await setup, config);
}

async function freshSetup(engine: Engine, config: Config, source: Source): Promise<Setup> {
  const codec = await codecOf(engine, config, source.dataset);
  const { patchBias, captionInit, gateBias } = config.model;
  const captions = await textOf(engine, config);
  const { text } = captions;
  const model = new STDiT(engine, modelConfig(config, codec, text), {
    key: Key.from(config.run.seed).fold(0),
    patchBias,
    captionInit,
    gateBias,
  });
  return {
    model,
    codec,
    objective: objectiveOf(config),
    text,
    about: { text: captions.said },
    dispose: () => {
      model.dispose();
      codec.dispose();
      captions.dispose();
    },
  };
}

/** The model of a checkpoint: averaged weights, which `restore` then replaces by those in training. */
export async function savedSetup(engine: Engine, config: Config, checkpoint: Checkpoint): Promise<Setup> {
  checkPrecision(engine, config);
  const setup = await openSetup(engine, checkpoint.file, {}, placesOf(config));
  chooseTrained(setup.model, config);
  return prepared(setup, config);
}
