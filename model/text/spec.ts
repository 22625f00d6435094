import { ConfigError, checkOptions, type DType, type Engine, EspalierError } from "../../engine/index.js";
import { openModelText } from "../checkpoint.js";
import { type Folder, folderOf, jsonObject } from "../files/folder.js";
import { FileError } from "../files/source.js";
import { encodeFloat32, openSafetensors, type SafetensorsLocation } from "../safetensors.js";
import { openWeights, weightsPrint } from "../weights.js";
import { EMBEDDED_T5_LENGTH, identifyEmbeddedT5, openEmbeddedT5 } from "./embedded.js";
import { type Identity, identityOf, type TextEncoder } from "./encoder.js";
import { EMBEDDED_LENGTH, identifyLanguage, identifyLlama, openLanguage, openLlama } from "./language.js";
import { encoderOf } from "./open.js";
import { identifyT5, openT5 } from "./t5.js";
import { fnv1a } from "./table.js";
import { VocabularyEncoder } from "./vocabulary.js";
import { WordEncoder } from "./words.js";

/** Which text encoder, and how it reads. Options that an encoder does not have are refused. */
export interface EncoderSpec {
  /**
   * "words": the word vectors that ship with Espalier; "t5" and "language": its small T5 and language model; or where one
   * lies: a model file of Espalier's (its own encoder), a file of such a T5 or language model, or a T5's or Llama's folder
   * as Hugging Face lays it out.
   */
  encoder: string;
  /** Vectors a prompt; by default the encoder's own choice. Not for model files, which know theirs. */
  maxLength?: number;
  /** Storage of a T5's or a language model's weights; default "f32". */
  dtype?: DType;
  /** Round their linear layers to 8 or 4 bits. */
  bits?: 8 | 4;
  /** Clean captions first (T5); default true. */
  clean?: boolean;
  /** Whose hidden states (language models); default -1. */
  layer?: number;
  /** Wrap prompts in the chat template (language models); default true. */
  template?: boolean;
}

const KEYS = [
  "encoder",
  "maxLength",
  "dtype",
  "bits",
  "clean",
  "layer",
  "template",
] as const satisfies readonly (keyof EncoderSpec)[];

/** Where the encoders that ship with Espalier are. */
export interface EncoderAssets {
  /** The bytes of model/text/words.bin. */
  words(): Uint8Array | Promise<Uint8Array>;
  /** model/text/language.safetensors. */
  language(): SafetensorsLocation | Promise<SafetensorsLocation>;
  /** model/text/t5.safetensors. */
  t5(): SafetensorsLocation | Promise<SafetensorsLocation>;
  /** Takes the place of `openEncoder`'s own opening, such as a cache that opens encoders only for new prompts. */
  open?(engine: Engine | undefined, spec: EncoderSpec): Promise<OpenEncoder>;
}

/** An encoder that is to be disposed of when it holds memory on a GPU. */
export type OpenEncoder = TextEncoder & { dispose?(): void };

/** An encoder that was found but not loaded. */
export interface FoundEncoder {
  kind: "words" | "vocabulary" | "t5" | "llama";
  /** Of weights, tokenizer and options, from the files' headers and a few values: nothing is loaded for it. */
  fingerprint: string;
  /** Whether it runs on the GPU. */
  needsEngine: boolean;
  /** Its width, length and own fingerprint; no weights are read. @param engine for encoders that need one */
  identify(engine: Engine | undefined): Promise<Identity>;
  /** @param engine for encoders that need one */
  open(engine: Engine | undefined): Promise<OpenEncoder>;
}

const utf8 = (text: string): Uint8Array => new globalThis.TextEncoder().encode(text);

/** The options that are given, without the encoder; refuses those that this kind of encoder has no use for. */
function optionsOf<K extends keyof EncoderSpec>(
  spec: EncoderSpec,
  kind: string,
  known: readonly K[],
): Pick<EncoderSpec, K> {
  const { encoder, ...rest } = spec;
  const given = Object.entries(rest).filter(([, value]) => value !== undefined);
  for (const [key] of given)
    if (!(known as readonly string[]).includes(key))
      throw new ConfigError(
        `text: ${key} has no use: ${encoder} is ${kind}; ${known.length > 0 ? `it takes ${known.join(", ")}` : "leave it out"}`,
      );
  return Object.fromEntries(given) as Pick<EncoderSpec, K>;
}

/** The encoder elsewhere that a model file names, with the options that it was trained with. */
export function namedIn(info: Readonly<Record<string, unknown>> | undefined): EncoderSpec | undefined {
  if (typeof info?.encoder !== "string") return undefined;
  const known = KEYS.filter((key) => info[key] !== undefined).map((key) => [key, info[key]]);
  return Object.fromEntries(known) as EncoderSpec;
}

const needs = (engine: Engine | undefined): Engine => {
  if (!engine) throw new ConfigError("text: the encoder runs on a GPU: no engine was given; give one");
  return engine;
};

const T5_OPTIONS = ["maxLength", "dtype", "bits", "clean"] as const;
const LANGUAGE_OPTIONS = ["maxLength", "dtype", "bits", "layer", "template"] as const;

/** What encoders do where nothing is said, so that saying it makes no other fingerprint. */
const T5_DEFAULTS = { maxLength: 120, dtype: "f32", clean: true };
const LLAMA_DEFAULTS = { maxLength: 256, dtype: "f32", layer: -1, template: true };

/** A fingerprint of weights and options, in one order of options. */
function fingerprintOf(kind: string, print: string, defaults: object, options: object): string {
  const all = Object.entries({ ...defaults, ...options }).sort(([a], [b]) => (a < b ? -1 : 1));
  return `${kind} ${print} ${all.map(([key, value]) => `${key} ${value}`).join(" ")}`;
}

async function findFile(
  spec: EncoderSpec,
  location: SafetensorsLocation,
  assets: EncoderAssets,
): Promise<FoundEncoder> {
  const file = await openSafetensors(location);
  try {
    if (file.metadata.model !== undefined) {
      optionsOf(spec, "a model file, which says how its encoder reads", []);
      const about = await openModelText(file);
      const elsewhere = namedIn(about.text.info);
      if (elsewhere)
        return await findEncoder(
          { ...elsewhere, maxLength: elsewhere.maxLength ?? about.model.config.maxLength },
          assets,
        );
      const encoder = await encoderOf(about, () => assets.words());
      return encoder instanceof VocabularyEncoder ? foundVocabulary(encoder) : foundWords(encoder as WordEncoder);
    }
    const { config, tokenizer, tokenizer_config: settings } = file.metadata;
    if (config === undefined || tokenizer === undefined || settings === undefined)
      throw new ConfigError(
        `text: no encoder in ${file.name}: its metadata has neither "model" nor "config" with "tokenizer"; give a model file of Espalier's, or a folder as Hugging Face lays it out`,
      );
    const print = await weightsPrint(file, [config, tokenizer, settings].map(utf8));
    if (jsonObject(config, `the "config" of ${file.name}`).model_type === "t5") {
      const options = optionsOf(spec, "a T5", T5_OPTIONS);
      return {
        kind: "t5",
        fingerprint: fingerprintOf("t5", print, { ...T5_DEFAULTS, maxLength: EMBEDDED_T5_LENGTH }, options),
        needsEngine: true,
        identify: (engine) => identifyEmbeddedT5(needs(engine), location, options),
        open: (engine) => openEmbeddedT5(needs(engine), location, options),
      };
    }
    const options = optionsOf(spec, "a language model", LANGUAGE_OPTIONS);
    return {
      kind: "llama",
      fingerprint: fingerprintOf("language", print, { ...LLAMA_DEFAULTS, maxLength: EMBEDDED_LENGTH }, options),
      needsEngine: true,
      identify: (engine) => identifyLanguage(needs(engine), location, options),
      open: (engine) => openLanguage(needs(engine), location, options),
    };
  } finally {
    await file.close();
  }
}

const foundWords = (encoder: WordEncoder): FoundEncoder => ({
  kind: "words",
  fingerprint: `words ${encoder.fingerprint} mix ${encoder.mix} length ${encoder.maxLength}`,
  needsEngine: false,
  identify: async () => identityOf(encoder),
  open: async () => encoder,
});

function foundVocabulary(encoder: VocabularyEncoder): FoundEncoder {
  const vectors = encodeFloat32(Float32Array.from(encoder.table().data as ArrayLike<number>), "F32");
  const print = fnv1a(vectors, fnv1a(utf8(encoder.words.join("\n")), 0))
    .toString(16)
    .padStart(8, "0");
  return {
    kind: "vocabulary",
    fingerprint: `vocabulary ${print} length ${encoder.maxLength}`,
    needsEngine: false,
    identify: async () => identityOf(encoder),
    open: async () => encoder,
  };
}

/** Files beside the weights that change what is read of a prompt. */
const BESIDE = [
  "config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
  "spiece.model",
  "tokenizer.model",
];

async function findFolder(spec: EncoderSpec, folder: Folder): Promise<FoundEncoder> {
  const config = await folder.json("config.json");
  if (config === undefined)
    throw new ConfigError(
      `text: no encoder at ${spec.encoder}: there is no config.json; give "words", "t5", "language", a model file, or a folder as Hugging Face lays it out`,
    );
  const family = config.model_type;
  if (family !== "t5" && family !== "llama")
    throw new ConfigError(
      `text: unknown family: the config.json of ${spec.encoder} says model_type ${JSON.stringify(family) ?? "nothing"}; t5 and llama are known`,
    );
  const isT5 = family === "t5";
  const options = isT5 ? optionsOf(spec, "a T5", T5_OPTIONS) : optionsOf(spec, "a language model", LANGUAGE_OPTIONS);
  const file = await openWeights(folder, family, isT5 ? "T5EncoderModel" : "AutoModelForCausalLM");
  try {
    const beside = await Promise.all(BESIDE.map((name) => folder.bytes(name)));
    const print = await weightsPrint(
      file,
      beside.filter((bytes) => bytes !== undefined),
    );
    return {
      kind: family,
      fingerprint: fingerprintOf(family, print, isT5 ? T5_DEFAULTS : LLAMA_DEFAULTS, options),
      needsEngine: true,
      identify: (engine) =>
        isT5 ? identifyT5(needs(engine), spec.encoder, options) : identifyLlama(needs(engine), spec.encoder, options),
      open: (engine) =>
        isT5 ? openT5(needs(engine), spec.encoder, options) : openLlama(needs(engine), spec.encoder, options),
    };
  } finally {
    await file.close();
  }
}

/**
 * Finds a text encoder and identifies it, without loading it.
 * @throws ConfigError for one that is not known, or an option that it does not have; SafetensorsError, DataError or
 *   FileError for files that cannot be used
 */
export async function findEncoder(spec: EncoderSpec, assets: EncoderAssets): Promise<FoundEncoder> {
  checkOptions("text", spec, KEYS);
  const { encoder } = spec;
  if (typeof encoder !== "string" || encoder === "")
    throw new ConfigError(
      `text: encoder must be named: ${JSON.stringify(encoder)} was given; "words", "t5", "language", or where one lies`,
    );
  if (encoder === "words") {
    const options = optionsOf(spec, "word vectors", ["maxLength"]);
    return foundWords(new WordEncoder(await assets.words(), options));
  }
  if (encoder === "t5") return findFile(spec, await assets.t5(), assets);
  if (encoder === "language") return findFile(spec, await assets.language(), assets);
  if (/\.safetensors($|\?)/i.test(encoder)) return findFile(spec, encoder, assets);
  try {
    return await findFolder(spec, folderOf(encoder));
  } catch (error) {
    if (error instanceof FileError && error.code === "ENOTDIR")
      throw new ConfigError(`text: not a folder and no .safetensors file: ${encoder}`, { cause: error });
    throw error;
  }
}

/**
 * Opens the encoder that a model's file names, or one that is named instead.
 * @param flag what says on the command line where it lies
 * @param isNamed whether the file names it: then an error says that too
 */
export async function openNamed(
  engine: Engine | undefined,
  spec: EncoderSpec,
  assets: EncoderAssets,
  flag: string,
  isNamed: boolean,
): Promise<OpenEncoder> {
  try {
    return await openEncoder(engine, spec, assets);
  } catch (cause) {
    if (!isNamed || !(cause instanceof EspalierError)) throw cause;
    const message = cause.message.replace(/[.;]?$/, "");
    throw new ConfigError(`${message}; the model's file names ${spec.encoder}: if it lies elsewhere, give ${flag}.`, {
      cause,
    });
  }
}

/** Finds a text encoder and opens it. `dispose`, where it has one, gives its memory back. Throws what `findEncoder` does. */
export async function openEncoder(
  engine: Engine | undefined,
  spec: EncoderSpec,
  assets: EncoderAssets,
): Promise<OpenEncoder> {
  if (assets.open) return assets.open(engine, spec);
  return (await findEncoder(spec, assets)).open(engine);
}
