import { ConfigError, checkOptions, DataError, type DType, type Engine } from "../../engine/index.js";
import { type FolderLocation, folderOf } from "../files/folder.js";
import { deferred } from "../module.js";
import { builtWith } from "../quantize.js";
import type { Safetensors } from "../safetensors.js";
import type { LoadOptions, LoadReport } from "../state.js";
import { t5ConfigOf } from "../t5/config.js";
import { T5Encoder } from "../t5/t5.js";
import { openWeights, weightsPrint } from "../weights.js";
import { cleanCaption } from "./clean.js";
import { checkPrompts, type Encoded, type Identity, identityOf, type TextEncoder } from "./encoder.js";
import { fnv1a } from "./table.js";
import { openTokenizer, specialId, type Tokenizer } from "./tokenizer.js";

/** How a T5 reads prompts. */
export interface T5EncoderOptions {
  /** Vectors a prompt, L, the end of text included. Default 120, as Open-Sora 1.0. */
  maxLength?: number;
  /** Cleans prompts first, twice (`cleanCaption`), as Open-Sora and PixArt do. Default true. */
  clean?: boolean;
  /** Prompts that run at once. Default 8. */
  batch?: number;
}

const OPTIONS = ["maxLength", "clean", "batch"];

/** Tokenizers that cut this alike cut most text alike. */
const PROBE = "An octopus, juggling 37 oranges: the café's neighbourhood (really) applauds; naïveté wins!";

const utf8 = (text: string): Uint8Array => new globalThis.TextEncoder().encode(text);

/** The model is frozen and runs batch by batch, each as long as its longest prompt; padding is never read. */
export class T5TextEncoder implements TextEncoder {
  readonly dim: number;
  readonly maxLength: number;
  /** Identifies weights, tokenizer and options: two encoders with one fingerprint give the same vectors. */
  readonly fingerprint: string;
  private readonly batch: number;
  private readonly clean: boolean;
  private readonly eos: number;
  private readonly pad: number;

  /**
   * @param weights identifies the weights and the tokenizer
   * @throws ConfigError for an option out of range, a tokenizer without end or padding, or with more tokens than the model
   */
  constructor(
    readonly model: T5Encoder,
    readonly tokenizer: Tokenizer,
    weights: string,
    options: T5EncoderOptions = {},
  ) {
    checkOptions("t5", options, OPTIONS);
    const { maxLength = 120, clean = true, batch = 8 } = options;
    for (const [name, value] of Object.entries({ maxLength, batch }))
      if (!(Number.isInteger(value) && value >= 1))
        throw new ConfigError(`t5: ${name} must be a whole number from 1: got ${value}.`);
    if (typeof clean !== "boolean") throw new ConfigError(`t5: clean must be true or false: got ${clean}.`);
    const { vocabSize, hidden } = model.config;
    if (tokenizer.vocabSize > vocabSize)
      throw new ConfigError(
        `t5: tokenizer and model do not belong together: ${tokenizer.name} has ${tokenizer.vocabSize} tokens, the model embeds ${vocabSize}; take both from one folder.`,
      );
    this.eos = specialId(tokenizer, "eos");
    this.pad = specialId(tokenizer, "pad");
    this.dim = hidden;
    this.maxLength = maxLength;
    this.batch = batch;
    this.clean = clean;
    const said = JSON.stringify([weights, model.config, model.shared.weight.dtype, maxLength, clean]);
    this.fingerprint = `t5 ${fnv1a(utf8(said), 0).toString(16).padStart(8, "0")}`;
  }

  /** The text that is read of a prompt. */
  textOf(prompt: string): string {
    return this.clean ? cleanCaption(cleanCaption(prompt)) : prompt;
  }

  /** An empty prompt is the end of text alone. @throws ConfigError for what is no list of texts */
  async encode(prompts: string[]): Promise<Encoded> {
    checkPrompts(prompts, true);
    const { dim, maxLength, tokenizer } = this;
    const texts = prompts.map((prompt) => this.textOf(prompt));
    const all = texts.map((text) => tokenizer.encode(text));
    const rows = all.map((ids) => [...ids.slice(0, maxLength - 1), this.eos]);
    const embeddings = new Float32Array(prompts.length * maxLength * dim);
    const mask = new Int32Array(prompts.length * maxLength);
    for (let at = 0; at < rows.length; at += this.batch) {
      const some = rows.slice(at, at + this.batch);
      const { length, states } = await this.run(some);
      some.forEach((ids, b) => {
        const begin = (at + b) * maxLength;
        embeddings.set(states.subarray(b * length * dim, (b * length + ids.length) * dim), begin * dim);
        mask.fill(1, begin, begin + ids.length);
      });
    }
    const truncated = all.flatMap((ids, i) => (ids.length > maxLength - 1 ? [i] : []));
    const unknown = this.unknownIn(texts, all);
    return {
      embeddings,
      mask,
      shape: [prompts.length, maxLength, dim],
      unknown,
      truncated,
      warnings: [
        ...truncated.map(
          (i) =>
            `prompt ${i}: ${maxLength} tokens are read, the end of text included: it has ${all[i].length + 1}, and its end was left out`,
        ),
        ...(unknown.length ? [`prompt: words that ${tokenizer.name} has no token for: ${unknown.join(", ")}`] : []),
      ],
    };
  }

  /** States [B, length, D] of rows of ids. */
  private async run(rows: readonly number[][]): Promise<{ length: number; states: Float32Array }> {
    const { model, pad } = this;
    const { engine } = model;
    const length = Math.max(...rows.map((ids) => ids.length));
    const ids = new Int32Array(rows.length * length).fill(pad);
    const read = new Int32Array(rows.length * length);
    rows.forEach((row, b) => {
      ids.set(row, b * length);
      read.fill(1, b * length, b * length + row.length);
    });
    const shape = [rows.length, length];
    const out = engine.noGrad(() =>
      engine.scope(() => model.forward(engine.tensor(ids, shape, "i32"), engine.tensor(read, shape, "i32"))),
    ); // [B, length, D]
    const states = (await out.data().finally(() => out.dispose())) as Float32Array;
    return { length, states };
  }

  private unknownIn(texts: readonly string[], ids: readonly (readonly number[])[]): string[] {
    const { unk } = this.tokenizer.special;
    if (unk === undefined) return [];
    const words = new Set(texts.filter((_, i) => ids[i].includes(unk)).flatMap((text) => text.trim().split(/\s+/)));
    return [...words].filter((word) => this.tokenizer.encode(word).includes(unk));
  }

  /** Gives the model's memory back. */
  dispose(): void {
    this.model.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Options of `openT5`. */
export interface OpenT5Options extends T5EncoderOptions, Pick<LoadOptions, "onProgress"> {
  /** Storage of the weights; default "f32". */
  dtype?: DType;
  /** Rounds the weights of linear layers to 8 or 4 bits, in groups of 32, as they are read. */
  bits?: 8 | 4;
}

/** A text encoder with what loading its weights found. */
export type OpenedT5 = T5TextEncoder & { readonly report: LoadReport };

/**
 * Opens a T5 v1.1 as a text encoder, from a folder as Hugging Face lays it out: config.json, model.safetensors (or its
 * shards behind model.safetensors.index.json), spiece.model or tokenizer.json. A whole T5 will do: its decoder is left
 * out. Weights go to the GPU chunk by chunk, whatever their float type.
 * @param location the folder, or where each of the files is, by name
 * @throws DataError for a file that is missing; SafetensorsError for a missing shard, and for a folder of pickles, with
 *   the line that converts it; StateError for weights that do not fit the configuration; ConfigError for another family
 *   or an option out of range
 */
export function openT5(engine: Engine, location: FolderLocation, options: OpenT5Options = {}): Promise<OpenedT5> {
  const { bits, onProgress } = options;
  return withT5(
    engine,
    location,
    options,
    (build) => builtWith(bits, build),
    async (encoder, file) =>
      Object.assign(encoder, { report: await encoder.model.loadStateDict(file, { onProgress }) }),
  );
}

/** What `openT5` would open, from headers and a few values. Throws what it does, save for weights that do not fit. */
export function identifyT5(engine: Engine, location: FolderLocation, options: OpenT5Options = {}): Promise<Identity> {
  return withT5(engine, location, options, deferred, async (encoder) => {
    const said = identityOf(encoder);
    encoder.dispose();
    return said;
  });
}

async function withT5<T>(
  engine: Engine,
  location: FolderLocation,
  { dtype = "f32", bits, onProgress: _, ...options }: OpenT5Options,
  built: (build: () => T5Encoder) => T5Encoder,
  use: (encoder: T5TextEncoder, file: Safetensors) => Promise<T>,
): Promise<T> {
  if (dtype !== "f32" && dtype !== "f16") throw new ConfigError(`t5: dtype must be "f32" or "f16": got ${dtype}.`);
  const folder = folderOf(location);
  const json = await folder.json("config.json");
  if (json === undefined)
    throw new DataError(`t5: no config.json in ${folder.name}; take a folder as Hugging Face lays it out`);
  const config = t5ConfigOf(json);
  const tokenizer = await openTokenizer(location);
  const file = await openWeights(folder, "t5", "T5EncoderModel");
  try {
    const probe = JSON.stringify([
      tokenizer.vocabSize,
      tokenizer.special,
      tokenizer.encode(PROBE),
      ...(bits ? [bits] : []),
    ]);
    const weights = await weightsPrint(file, [utf8(probe)]);
    const model = built(() => new T5Encoder(engine, config, { dtype }));
    try {
      // Before the weights: a bad option should not cost their loading.
      const encoder = new T5TextEncoder(model, tokenizer, weights, options);
      return await use(encoder, file);
    } catch (error) {
      model.dispose();
      throw error;
    }
  } finally {
    await file.close();
  }
}
