import { ConfigError, checkOptions, type DType, type Engine, Tensor } from "../engine/index.js";
import { type Codec, PCACodec, PixelCodec } from "./codec.js";
import { decodeConfig, encodeConfig, type STDiTConfig } from "./config.js";
import { Flow } from "./diffusion/flow.js";
import { Iddpm, type IddpmLoss } from "./diffusion/iddpm.js";
import type { Objective } from "./diffusion/objective.js";
import { Velocity } from "./diffusion/velocity.js";
import { type ByteSink, FileError } from "./files/source.js";
import { jsonBeside, type OpenCheckpoint, openCheckpoint } from "./foreign/open.js";
import { type ForeignOptions, foreignKind, foreignOrigin } from "./foreign/origin.js";
import type { ImportReport } from "./foreign/report.js";
import { decodeGrowth, encodeGrowth, type GrowthOptions, growOrigin } from "./growth.js";
import { decodeLanguage, encodeLanguage, type LanguageOptions, languageOrigin } from "./language.js";
import { baseState, isMerged, loraConfig } from "./lora.js";
import { buildModel, needPlain, type Origin } from "./origin.js";
import { decodeLora, encodeLora } from "./peft/config.js";
import { QuantizedLinear } from "./quantize.js";
import {
  encodeFloat32,
  openSafetensors,
  Safetensors,
  type SafetensorsEntry,
  type SafetensorsLocation,
  type Written,
  writeSafetensors,
} from "./safetensors.js";
import { type HostTensor, type LoadOptions, saveTensors } from "./state.js";
import type { STDiT } from "./stdit.js";
import type { TextEncoder } from "./text/encoder.js";
import { VocabularyEncoder } from "./text/vocabulary.js";
import { openVaeCodec } from "./vae/open.js";

type Info = Record<string, unknown>;

/** A model with everything that sampling needs. `dispose()` gives all of it back. */
export interface LoadedModel {
  model: STDiT;
  /** Undefined for models whose latents come from a codec outside the file. */
  codec: Codec | undefined;
  objective: Objective | undefined;
  /** What the file says of its text encoder, and the encoder where all of it is in the file. */
  text: { info: Info | undefined; encoder: TextEncoder | undefined };
  /** Free-form strings of the file. */
  metadata: Readonly<Record<string, string>>;
  /** Of a file that others made: what was taken from it. */
  report?: ImportReport;
  dispose(): void;
}

function json(metadata: Readonly<Record<string, string>>, key: string, file: string): Info | undefined {
  const text = metadata[key];
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`model file: metadata "${key}" of ${file} is no JSON: ${(cause as Error).message}.`, {
      cause,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new ConfigError(`model file: metadata "${key}" of ${file} is no object: ${text.slice(0, 60)}.`);
  return value as Info;
}

/** What a checkpoint says of its objective. */
export function encodeObjective(objective: Objective): Info {
  if (objective instanceof Flow)
    return { type: "rectified-flow", shift: objective.shift, target: "eps - x0", timestep: "1000 u" };
  if (objective instanceof Iddpm)
    return { type: "iddpm", loss: objective.terms, schedule: "linear", steps: objective.tables.steps };
  return { type: "v", schedule: "linear", steps: (objective as Velocity).tables.steps };
}

/**
 * Reads what `encodeObjective` wrote.
 * @throws ConfigError for an objective that is not known
 */
export function decodeObjective(info: Info): Objective {
  const { type } = info;
  if (type === "rectified-flow") return new Flow({ shift: info.shift as number });
  if ((type === "iddpm" || type === "v") && (info.steps ?? 1000) !== 1000)
    throw new ConfigError(`objective: ${type} has 1000 steps here: the file says ${info.steps}.`);
  if (type === "iddpm") return new Iddpm({ loss: info.loss as IddpmLoss | undefined });
  if (type === "v") return new Velocity();
  throw new ConfigError(`objective: unknown type ${JSON.stringify(type)}; known are rectified-flow, iddpm, v.`);
}

async function openCodec(
  engine: Engine,
  file: Safetensors,
  info: Info | undefined,
  given: Codec | undefined,
): Promise<Codec | undefined> {
  if (info?.type === "vae") return openVaeCodec(engine, file, info, given);
  if (info === undefined) return given;
  if (given)
    throw new ConfigError(`codec: ${file.name} has its own codec, of type ${JSON.stringify(info.type)}; give none.`);
  if (info.type === "pixels") return new PixelCodec();
  if (info.type !== "pca")
    throw new ConfigError(
      `codec: unknown type ${JSON.stringify(info.type)} in ${file.name}; known are pca, pixels, vae.`,
    );
  const [mean, basis, scale] = await Promise.all(
    ["mean", "basis", "scale"].map((name) => file.float32(`codec.${name}`)),
  );
  return new PCACodec(engine, { patch: info.patch as number, channels: scale.length, mean, basis, scale });
}

async function openText(
  file: Safetensors,
  info: Info | undefined,
  maxLength: number,
): Promise<TextEncoder | undefined> {
  if (!info || !file.has("text.vectors")) return undefined;
  const { words } = info;
  if (!Array.isArray(words) || !words.every((w) => typeof w === "string"))
    throw new ConfigError(`text: ${file.name} holds vectors but no list of their words.`);
  return new VocabularyEncoder(words, await file.float32("text.vectors"), maxLength);
}

/** Options of `openModel`. */
export interface OpenModelOptions extends Pick<LoadOptions, "onProgress"> {
  /** Storage of the parameters; default "f32". */
  dtype?: DType;
  /** Grow the model while it is read: the smaller one is never built. */
  grow?: GrowthOptions;
  /** Add a language branch while the model is read, after it has grown. */
  language?: LanguageOptions;
  /** The codec of a model whose file holds none, such as an autoencoder from `openVae`. It stays the caller's. */
  codec?: Codec;
  /** What a file that others made does not say: `json` where the file is given open, heads, the grid. */
  foreign?: ForeignOptions;
}

/**
 * Opens a model file, or one that others made: a safetensors file, the index of its shards or, for the latter, their
 * folder. Of others' the config.json beside it is read too.
 */
export async function openModelFile(location: SafetensorsLocation | Safetensors): Promise<OpenCheckpoint> {
  if (location instanceof Safetensors) return { file: location, json: undefined };
  const isPath = typeof location === "string" || location instanceof URL;
  let file: Safetensors;
  try {
    file = await openSafetensors(location);
  } catch (error) {
    if (isPath && error instanceof FileError && error.code === "EISDIR") return openCheckpoint("model file", location);
    throw error;
  }
  try {
    return { file, json: isPath && foreignKind(file) ? await jsonBeside(String(location)) : undefined };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The model of a file as the file has it. */
async function originIn(
  file: Safetensors,
  foreign?: ForeignOptions,
): Promise<{ origin: Origin; report?: ImportReport }> {
  const { metadata, name } = file;
  if (metadata.model === undefined) {
    const kind = foreignKind(file);
    if (kind) return foreignOrigin(file, kind, foreign);
    throw new ConfigError(
      `model file: ${name} holds no configuration; its metadata must have "model" as JSON, or its tensors the names of Open-Sora 1.0's STDiT or of PixArt-alpha.`,
    );
  }
  return { origin: ownOrigin(file) };
}

function ownOrigin(file: Safetensors): Origin {
  const { metadata, name } = file;
  const config = decodeConfig(metadata.model);
  return {
    config,
    source: file,
    growth: metadata.growth === undefined ? undefined : decodeGrowth(metadata.growth, config.depth, name),
    language: metadata.language === undefined ? undefined : decodeLanguage(metadata.language, config, name),
    lora: metadata.lora === undefined ? undefined : decodeLora(metadata.lora, name),
  };
}

/** What beside parameters may lie in a model file. */
const BESIDE = ["codec.", "text.", "train."];

/**
 * Opens a model file: safetensors with the configuration as JSON in its metadata; or a STDiT of Open-Sora 1.0, or a
 * PixArt-alpha to begin one from, under their own names. Tensors go to the GPU chunk by chunk.
 * @param location a path or address, a Blob, bytes, or an open file (which stays open); of others' also a folder
 * @throws ConfigError for a file without configuration, StateError for parameters that do not fit it
 */
export async function openModel(
  engine: Engine,
  location: SafetensorsLocation | Safetensors,
  options: OpenModelOptions = {},
): Promise<LoadedModel> {
  checkOptions("openModel", options, ["dtype", "onProgress", "grow", "language", "codec", "foreign"]);
  const { file, json: beside } = await openModelFile(location);
  let model: STDiT | undefined;
  let codec: Codec | undefined;
  try {
    const { metadata } = file;
    const found = await originIn(file, { ...(beside && { json: beside }), ...options.foreign });
    const { report } = found;
    let { origin } = found;
    if (options.grow || options.language) needPlain(`model file ${file.name}`, origin.lora !== undefined);
    if (options.grow) origin = await growOrigin(origin, options.grow);
    if (options.language) origin = await languageOrigin(origin, options.language);
    const about = json(metadata, "objective", file.name);
    const objective = about ? decodeObjective(about) : report && objectiveOf(origin.config);
    codec = await openCodec(engine, file, json(metadata, "codec", file.name), options.codec);
    if (options.codec && options.codec.channels !== origin.config.inChannels)
      throw new ConfigError(
        `codec: latents of ${options.codec.channels} channels do not fit ${file.name}, whose model takes ${origin.config.inChannels}; give the codec that it was trained with.`,
      );
    const info = json(metadata, "text", file.name);
    const encoder = await openText(file, info, origin.config.maxLength);
    const { dtype, onProgress } = options;
    model = await buildModel(engine, origin, { dtype, ignore: BESIDE, onProgress });
    const [m, c] = [model, codec];
    const dispose = () => {
      m.dispose();
      if (c !== options.codec) c?.dispose();
    };
    return { model, codec, objective, text: { info, encoder }, metadata, ...(report && { report }), dispose };
  } catch (error) {
    model?.dispose();
    if (codec !== options.codec) codec?.dispose();
    throw error;
  } finally {
    if (file !== location) await file.close();
  }
}

/** What Open-Sora 1.0 and PixArt train: noise, and variances where the model has outputs for them. */
const objectiveOf = ({ predSigma }: STDiTConfig): Objective => new Iddpm({ loss: predSigma ? "mse+vb" : "mse" });

async function withFile<T>(
  location: SafetensorsLocation | Safetensors,
  use: (file: Safetensors, json: OpenCheckpoint["json"]) => Promise<T>,
) {
  const { file, json } = await openModelFile(location);
  try {
    return await use(file, json);
  } finally {
    if (file !== location) await file.close();
  }
}

/**
 * What a model file says of its codec and of its text encoder, and the encoder where all of it is in the file; the model
 * is not loaded.
 * @throws ConfigError for a file without configuration
 */
export function openModelText(
  location: SafetensorsLocation | Safetensors,
  foreign?: ForeignOptions,
): Promise<{ model: Pick<STDiT, "config">; text: LoadedModel["text"]; codec: Info | undefined }> {
  return withFile(location, async (file, beside) => {
    const { config } = (await originIn(file, { ...(beside && { json: beside }), ...foreign })).origin;
    const info = json(file.metadata, "text", file.name);
    const encoder = await openText(file, info, config.maxLength);
    return { model: { config }, text: { info, encoder }, codec: json(file.metadata, "codec", file.name) };
  });
}

/** The codec in a model file, undefined where it has none; the model is not loaded. Throws what `openModel` does. */
export function openModelCodec(
  engine: Engine,
  location: SafetensorsLocation | Safetensors,
): Promise<Codec | undefined> {
  return withFile(location, (file) => openCodec(engine, file, json(file.metadata, "codec", file.name), undefined));
}

/** What `saveModel` writes. */
export interface ModelContent {
  model: STDiT;
  codec?: Codec;
  objective?: Objective;
  /** What to say of the text encoder; `words` and `vectors` [words, dim] put its whole vocabulary into the file. */
  text?: Info & { words?: readonly string[] };
  vectors?: HostTensor;
  /** Tensors to write instead of the model's own of the same name: averaged weights. */
  weights?: Readonly<Record<string, Tensor>>;
  /** False leaves adapters (LoRA) out: the base alone, as a plain model. Default true. */
  adapters?: boolean;
  /** Further strings for the metadata. */
  metadata?: Readonly<Record<string, string>>;
}

const hostEntry = (name: string, { shape, data }: HostTensor): SafetensorsEntry => ({
  name,
  dtype: "F32",
  shape,
  data: encodeFloat32(data instanceof Float32Array ? data : Float32Array.from(data), "F32"),
});

/**
 * The tensors and strings of a model file, for `writeSafetensors` or for a training checkpoint that holds more.
 * @throws ConfigError when averaged weights do not belong to the model, a metadata key is taken, or layers are quantised
 */
export function modelEntries(content: ModelContent): { entries: SafetensorsEntry[]; metadata: Record<string, string> } {
  const { model, codec, objective, text, vectors, weights = {}, adapters = true, metadata = {} } = content;
  const rounded = Array.from(model.namedModules()).filter(([, m]) => m instanceof QuantizedLinear);
  if (rounded.length)
    throw new ConfigError(
      `saveModel: model files hold full weights: ${rounded.length} linear layers are quantised, the first being ${rounded[0][0]}; write them with saveQuantized, or save the model before it is quantised.`,
    );
  const own = adapters ? model.stateDict() : baseState(model);
  const lora = adapters && !isMerged(model) ? loraConfig(model) : undefined;
  for (const [name, t] of Object.entries(weights))
    if (!own[name] || `${own[name].shape}` !== `${t.shape}`)
      throw new ConfigError(
        `saveModel: weight "${name}" [${t.shape.join(", ")}] is none of the model${own[name] ? `, whose shape is [${own[name].shape.join(", ")}]` : ""}.`,
      );
  if (vectors && vectors.shape[0] !== text?.words?.length)
    throw new ConfigError(
      `saveModel: ${vectors.shape[0]} text vectors need as many words in text.words: got ${text?.words?.length ?? "none"}.`,
    );
  const coded = codec?.state();
  const entries = [
    ...saveTensors(model.engine, { ...own, ...weights }),
    ...Object.entries(coded?.tensors ?? {}).flatMap(([name, t]) =>
      t instanceof Tensor ? saveTensors(t.engine, { [name]: t }, "codec.") : hostEntry(`codec.${name}`, t),
    ),
    ...(vectors ? [hostEntry("text.vectors", vectors)] : []),
  ];
  const strings: Record<string, string> = { model: encodeConfig(model.config) };
  if (model.growth) strings.growth = encodeGrowth(model.growth);
  if (model.language) strings.language = encodeLanguage(model.language);
  if (lora) strings.lora = encodeLora(lora);
  if (objective) strings.objective = JSON.stringify(encodeObjective(objective));
  if (coded) strings.codec = JSON.stringify(coded.info);
  if (text) strings.text = JSON.stringify(text);
  for (const key of Object.keys(metadata))
    if (key in strings) throw new ConfigError(`saveModel: metadata "${key}" is written already; take another name.`);
  return { entries, metadata: { ...strings, ...metadata } };
}

/** Writes a model file, atomically, reading tensors back chunk by chunk. */
export function saveModel(target: string | ByteSink, content: ModelContent): Promise<Written> {
  const { entries, metadata } = modelEntries(content);
  return writeSafetensors(target, entries, metadata);
}
