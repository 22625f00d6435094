import { DataError, type DType, type Engine, SafetensorsError } from "../../engine/index.js";
import { type Folder, type FolderLocation, folderOf } from "../files/folder.js";
import { memorySource } from "../files/source.js";
import { type LlamaConfig, llamaConfigOf } from "../llama/config.js";
import { Llama } from "../llama/llama.js";
import { deferred } from "../module.js";
import { builtWith } from "../quantize.js";
import { openSafetensors, type Safetensors, type SafetensorsLocation } from "../safetensors.js";
import type { LoadOptions, LoadReport } from "../state.js";
import { type Identity, identityOf } from "./encoder.js";
import { type LlamaEncoderOptions, LlamaTextEncoder } from "./llama.js";
import { fnv1a } from "./table.js";
import { openTokenizer, type Tokenizer } from "./tokenizer.js";

/** Options of `openLlama` and `openLanguage`. */
export interface OpenLlamaOptions extends LlamaEncoderOptions, Pick<LoadOptions, "onProgress"> {
  /** Storage of the weights; default "f32". */
  dtype?: DType;
  /** Rounds the weights of linear layers to 8 or 4 bits, in groups of 32, as they are read. */
  bits?: 8 | 4;
}

/** A text encoder with what loading its weights found. */
export type OpenedLlama = LlamaTextEncoder & { readonly report: LoadReport };

const utf8 = (text: string): Uint8Array => new globalThis.TextEncoder().encode(text);

/** A hash over names, types and shapes of all tensors, and the values of the norms: any further training changes those. */
async function weightsPrint(file: Safetensors, more: readonly Uint8Array[]): Promise<string> {
  let hash = 0;
  const add = (bytes: Uint8Array) => {
    hash = fnv1a(bytes, hash);
  };
  for (const name of [...file.tensors.keys()].sort()) {
    const { dtype, shape } = file.info(name);
    add(utf8(`${name} ${dtype} ${shape}`));
    if (name.endsWith("norm.weight")) add((await file.tensor(name)).data);
  }
  more.forEach(add);
  return hash.toString(16).padStart(8, "0");
}

/** What is made of an open language model whose weights are yet to be read. */
interface Use<T> {
  built(build: () => Llama, options: OpenLlamaOptions): Llama;
  use(encoder: LlamaTextEncoder, file: Safetensors, options: OpenLlamaOptions): Promise<T>;
}

const LOADED: Use<OpenedLlama> = {
  built: (build, { bits }) => builtWith(bits, build),
  use: async (encoder, file, { onProgress }) =>
    Object.assign(encoder, { report: await encoder.model.loadStateDict(file, { onProgress }) }),
};

const IDENTIFIED: Use<Identity> = {
  built: (build) => deferred(build),
  use: async (encoder) => {
    const said = identityOf(encoder);
    encoder.dispose();
    return said;
  },
};

async function encoderOf<T>(
  engine: Engine,
  file: Safetensors,
  config: LlamaConfig,
  tokenizer: Tokenizer,
  weights: string,
  given: OpenLlamaOptions,
  { built, use }: Use<T>,
): Promise<T> {
  const { dtype, bits, onProgress: _, ...options } = given;
  const model = built(() => new Llama(engine, config, { dtype, head: false }), given);
  try {
    // Before the weights: a bad option should not cost their loading.
    const encoder = new LlamaTextEncoder(model, tokenizer, bits ? `${weights} ${bits}` : weights, options);
    return await use(encoder, file, given);
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** The weights of a folder: one file, or several behind an index. */
async function openWeights(folder: Folder): Promise<Safetensors> {
  const index = await folder.bytes("model.safetensors.index.json");
  if (index !== undefined)
    return openSafetensors(memorySource(index, `${folder.name}/model.safetensors.index.json`), {
      shard: (file) => {
        const at = folder.locate(file);
        if (at === undefined)
          throw new DataError(`llama: a shard is missing: the index names ${file}, which is not among ${folder.name}.`);
        return at;
      },
    });
  const whole = await folder.open("model.safetensors");
  if (whole !== undefined) return openSafetensors(whole);
  for (const pickle of ["pytorch_model.bin", "pytorch_model.bin.index.json"]) {
    const found = await folder.open(pickle);
    if (found === undefined) continue;
    await found.close();
    throw new SafetensorsError(
      `llama: a pickle is a program, and none is run here: ${folder.name} has ${pickle} but no model.safetensors; convert it once, where you trust it:\n` +
        `  python3 -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained('${folder.name}', torch_dtype='auto').save_pretrained('${folder.name}')"`,
    );
  }
  throw new DataError(
    `llama: no weights: none of model.safetensors, model.safetensors.index.json in ${folder.name}; take a folder as Hugging Face lays it out`,
  );
}

/**
 * Opens a Llama 2 or 3 as a text encoder, from a folder as Hugging Face lays it out: config.json, model.safetensors (or
 * its shards behind model.safetensors.index.json), tokenizer.json, tokenizer_config.json with the chat template (newer
 * folders: chat_template.jinja). Weights go to the GPU chunk by chunk, whatever their float type; the head is left out.
 * @param location the folder, or where each of the files is, by name
 * @throws DataError for a file that is missing; SafetensorsError for a folder of pickles, with the line that converts it;
 *   StateError for weights that do not fit the configuration; ConfigError for another family or an option out of range
 */
export function openLlama(
  engine: Engine,
  location: FolderLocation,
  options: OpenLlamaOptions = {},
): Promise<OpenedLlama> {
  return withLlama(engine, location, options, LOADED);
}

/** What `openLlama` would open, from headers and norms. Throws what it does, save for weights that do not fit. */
export function identifyLlama(
  engine: Engine,
  location: FolderLocation,
  options: OpenLlamaOptions = {},
): Promise<Identity> {
  return withLlama(engine, location, options, IDENTIFIED);
}

async function withLlama<T>(
  engine: Engine,
  location: FolderLocation,
  options: OpenLlamaOptions,
  use: Use<T>,
): Promise<T> {
  const folder = folderOf(location);
  const config = await folder.json("config.json");
  if (config === undefined)
    throw new DataError(
      `llama: no config.json in ${folder.name}; take a folder as Hugging Face lays it out, or openLanguage for a file that holds everything`,
    );
  const sizes = llamaConfigOf(config);
  const tokenizer = await openTokenizer(location);
  const file = await openWeights(folder);
  try {
    const text = await folder.bytes("chat_template.jinja");
    const template = options.template ?? (text && new TextDecoder().decode(text));
    const parts = [utf8(JSON.stringify(config)), (await folder.bytes("tokenizer.json")) ?? new Uint8Array()];
    const print = await weightsPrint(file, parts);
    return await encoderOf(engine, file, sizes, tokenizer, print, { ...options, template }, use);
  } finally {
    await file.close();
  }
}

/** Vectors a prompt of the embedded model: its captions and the template around them fit. */
export const EMBEDDED_LENGTH = 24;

/**
 * Opens a language model that lies in one safetensors file with its `config`, `tokenizer` and `tokenizer_config` (the
 * texts of Hugging Face's JSON files) in the metadata, such as model/text/language.safetensors, the small one that ships
 * with Espalier. Default: 24 vectors a prompt.
 * @throws ConfigError for a file without them, or an option out of range
 */
export function openLanguage(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenLlamaOptions = {},
): Promise<OpenedLlama> {
  return withLanguage(engine, location, options, LOADED);
}

/** What `openLanguage` would open, from headers and norms. Throws what it does, save for weights that do not fit. */
export function identifyLanguage(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenLlamaOptions = {},
): Promise<Identity> {
  return withLanguage(engine, location, options, IDENTIFIED);
}

async function withLanguage<T>(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenLlamaOptions,
  use: Use<T>,
): Promise<T> {
  const file = await openSafetensors(location);
  try {
    const { config, tokenizer, tokenizer_config } = file.metadata;
    if (config === undefined || tokenizer === undefined || tokenizer_config === undefined)
      throw new DataError(
        `language: not a language model's file: ${file.name} lacks "config", "tokenizer" or "tokenizer_config" in its metadata; take model/text/language.safetensors, or openLlama for a folder`,
      );
    const files = { "tokenizer.json": utf8(tokenizer), "tokenizer_config.json": utf8(tokenizer_config) };
    const weights = await weightsPrint(file, [utf8(config), files["tokenizer.json"]]);
    const reading = { ...options, maxLength: options.maxLength ?? EMBEDDED_LENGTH };
    return await encoderOf(engine, file, llamaConfigOf(config), await openTokenizer(files), weights, reading, use);
  } finally {
    await file.close();
  }
}
