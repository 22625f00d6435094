import { AbortedError, ConfigError } from "../../engine/errors.js";
import { checkPrompts, type Encoded, type TextEncoder } from "../../model/text/encoder.js";
import type { OpenEncoder } from "../../model/text/spec.js";
import { CacheStore, type Entry, keyOf, type StoreOptions } from "./store.js";

/** Prompts encoded at a time. */
const BATCH = 16;

/** An encoder that has not been opened yet. */
export interface LazyEncoder {
  /** Identifies weights, tokenizer, length and whatever else changes a vector. */
  fingerprint: string;
  open(): OpenEncoder | Promise<OpenEncoder>;
}

/** Options of `CachedTextEncoder.open`. */
export interface CachedTextOptions extends StoreOptions {
  /** Prompts that the encoder is given at a time; default 16. */
  batch?: number;
  /** Keep other processes from encoding the same until `close`; default false. */
  exclusive?: boolean;
}

/** What a cache knows of its encoder. */
interface Described {
  dim: number;
  maxLength: number;
  fingerprint?: string;
  settings?: Readonly<Record<string, unknown>>;
}

interface Note {
  unknown: string[];
  truncated: boolean;
  warnings: string[];
}

/** "prompt 3: …" names a place in a batch; here the places are those of another. */
const PLACE = /^prompt (\d+): /;

/** What a batch's results say of the prompt at place `i`, as an entry. Rows after its last token are not stored. */
function entryOf(encoded: Encoded, i: number, prompt: string): Entry {
  const [, length, dim] = encoded.shape;
  const mask = encoded.mask.slice(i * length, (i + 1) * length);
  const rows = mask.lastIndexOf(1) + 1;
  const data = encoded.embeddings.slice(i * length * dim, (i * length + rows) * dim);
  const holes = mask.subarray(0, rows).includes(0);
  const text = prompt.toLowerCase();
  const note: Note & { mask?: number[] } = {
    unknown: encoded.unknown.filter((word) => text.includes(word.toLowerCase())),
    truncated: encoded.truncated.includes(i),
    warnings: encoded.warnings.flatMap((w) => (w.startsWith(`prompt ${i}: `) ? [w.replace(PLACE, "")] : [])),
    ...(holes && { mask: [...mask.subarray(0, rows)] }),
  };
  return { tensors: { embeddings: { shape: [rows, dim], data } }, note };
}

/**
 * A text encoder whose results are kept: a prompt that was encoded before, in this run or another, is read from the
 * cache, and the encoder itself is opened only when a prompt is new. Vectors are those that were stored, so a first
 * and a second run see equal numbers, f16 or not.
 */
export class CachedTextEncoder implements TextEncoder {
  /** The encoder's own, where it has one: what a model says of the vectors that it was trained with. */
  readonly fingerprint: string;
  /** What the encoder says of itself, such as a language model's layer. */
  readonly settings: Readonly<Record<string, unknown>> | undefined;
  private encoder: Promise<OpenEncoder> | undefined;
  private working: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly lazy: LazyEncoder,
    private readonly store: CacheStore,
    private readonly batch: number,
    readonly dim: number,
    readonly maxLength: number,
  ) {
    const { fingerprint, settings } = store.about as Partial<Described>;
    this.fingerprint = fingerprint ?? lazy.fingerprint;
    this.settings = settings;
  }

  /**
   * Opens the part of a cache that belongs to an encoder. A cache that has nothing of it opens the encoder at once, to
   * learn its width and length.
   * @param root the cache's folder
   * @throws ConfigError for an option that cannot be or when another process encodes the same, and what the encoder's own opening throws
   */
  static async open(root: string, lazy: LazyEncoder, options: CachedTextOptions = {}): Promise<CachedTextEncoder> {
    const { batch = BATCH, exclusive = false, ...rest } = options;
    if (!(Number.isInteger(batch) && batch >= 1))
      throw new ConfigError(`cache: batch must be a whole number from 1: ${batch}; 16 is usual`);
    if (lazy.fingerprint === "")
      throw new ConfigError("cache: the encoder must have a fingerprint: it has none; give it one");
    const store = await CacheStore.open(root, { kind: "text", fingerprint: lazy.fingerprint }, rest);
    let opened: (Described & OpenEncoder) | undefined;
    try {
      // Before the encoder is opened, which may take long.
      if (exclusive) await store.hold();
      if (store.about === undefined) {
        opened = await lazy.open();
        const { dim, maxLength, fingerprint, settings } = opened;
        store.describe({ dim, maxLength, ...(fingerprint && { fingerprint }), ...(settings && { settings }) });
      }
    } catch (error) {
      await store.close();
      throw error;
    }
    const { dim, maxLength } = store.about as unknown as Described;
    const cached = new CachedTextEncoder(lazy, store, batch, dim, maxLength);
    if (opened) cached.encoder = Promise.resolve(opened);
    return cached;
  }

  /** Whether the encoder itself had to be opened. */
  get isOpened(): boolean {
    return this.encoder !== undefined;
  }

  /** Where results are kept. */
  get folder(): string {
    return this.store.folder;
  }

  /** Results that are kept. */
  get size(): number {
    return this.store.size;
  }

  /** Whether a prompt's result is kept. */
  has(prompt: string): boolean {
    return this.store.has(keyOf(prompt));
  }

  async encode(prompts: string[]): Promise<Encoded> {
    // Whether a prompt may be empty is for the encoder to say.
    checkPrompts(prompts, true);
    const { dim, maxLength } = this;
    const entries = new Map<string, Entry>();
    for (const prompt of new Set(prompts)) {
      const entry = this.has(prompt) ? await this.store.get(keyOf(prompt)) : undefined;
      if (entry) entries.set(prompt, entry);
    }
    const missing = [...new Set(prompts)].filter((prompt) => !entries.has(prompt));
    if (missing.length > 0)
      for (const [prompt, entry] of await this.add(missing, (prompt) => prompts.indexOf(prompt)))
        entries.set(prompt, entry);

    const embeddings = new Float32Array(prompts.length * maxLength * dim);
    const mask = new Int32Array(prompts.length * maxLength);
    const unknown = new Set<string>();
    const truncated: number[] = [];
    const warnings: string[] = [];
    prompts.forEach((prompt, i) => {
      const { tensors, note } = entries.get(prompt)!;
      const { shape, data } = tensors.embeddings;
      const said = note as Note & { mask?: number[] };
      embeddings.set(data, i * maxLength * dim);
      if (said.mask) mask.set(said.mask, i * maxLength);
      else mask.fill(1, i * maxLength, i * maxLength + shape[0]);
      for (const word of said.unknown) unknown.add(word);
      if (said.truncated) truncated.push(i);
      for (const text of said.warnings) warnings.push(`prompt ${i}: ${text}`);
    });
    if (unknown.size > 0) warnings.push(`prompt: words without a known meaning: ${[...unknown].join(", ")}`);
    return {
      embeddings,
      mask,
      shape: [prompts.length, maxLength, dim],
      unknown: [...unknown],
      truncated,
      warnings,
    };
  }

  /**
   * Encodes the prompts that are not kept yet.
   * @param onDone is told how many of the distinct prompts are done, from those that are kept
   * @returns those of the new ones that were too long and lost their end
   * @throws what the encoder throws, AbortedError where the signal says so; results so far are kept
   */
  async fill(
    prompts: readonly string[],
    onDone: (done: number) => void = () => {},
    signal?: AbortSignal,
  ): Promise<string[]> {
    const distinct = [...new Set(prompts)];
    const missing = distinct.filter((prompt) => !this.has(prompt));
    const cut: string[] = [];
    let done = distinct.length - missing.length;
    onDone(done);
    for (let at = 0; at < missing.length; at += this.batch) {
      if (signal?.aborted) {
        await this.store.flush();
        throw new AbortedError(
          `encode: stopped after ${done} of ${distinct.length} captions; the same command goes on after them`,
        );
      }
      const part = missing.slice(at, at + this.batch);
      for (const [prompt, { note }] of await this.add(part, (prompt) => prompts.indexOf(prompt)))
        if ((note as Note).truncated) cut.push(prompt);
      done += part.length;
      onDone(done);
    }
    await this.store.flush();
    return cut;
  }

  /** Writes new results and gives the memory of the encoder back, where it was opened. */
  async close(): Promise<void> {
    const encoder = await this.encoder?.catch(() => undefined);
    this.encoder = undefined;
    encoder?.dispose?.();
    await this.store.close();
  }

  /** As `close`, for owners that cannot wait; a failure to write is told on stderr. */
  dispose(): void {
    this.close().catch((error: Error) => console.warn(error.message));
  }

  /** Encodes new prompts and keeps them. One call at a time: encoders share one GPU, and no prompt is encoded twice. */
  private add(prompts: readonly string[], placeOf: (prompt: string) => number): Promise<Map<string, Entry>> {
    const work = this.working
      .catch(() => {})
      .then(async () => {
        const entries = new Map<string, Entry>();
        const missing: string[] = [];
        for (const prompt of prompts) {
          const entry = await this.store.get(keyOf(prompt));
          if (entry) entries.set(prompt, entry);
          else missing.push(prompt);
        }
        for (let at = 0; at < missing.length; at += this.batch) {
          const part = missing.slice(at, at + this.batch);
          const encoded = await this.run(part, placeOf);
          for (const [i, prompt] of part.entries()) {
            const key = keyOf(prompt);
            await this.store.put(key, entryOf(encoded, i, prompt));
            // Read back: as rounded as it will be the next time.
            entries.set(prompt, (await this.store.get(key))!);
          }
        }
        return entries;
      });
    this.working = work;
    return work;
  }

  private async run(part: string[], placeOf: (prompt: string) => number): Promise<Encoded> {
    this.encoder ??= Promise.resolve(this.lazy.open());
    const encoder = await this.encoder.catch((error: unknown) => {
      this.encoder = undefined;
      throw error;
    });
    if (encoder.dim !== this.dim || encoder.maxLength !== this.maxLength)
      throw new ConfigError(
        `cache: the encoder is another: ${encoder.maxLength} x ${encoder.dim} numbers a prompt, ${this.store.folder} holds ${this.maxLength} x ${this.dim}; its fingerprint must tell them apart`,
      );
    try {
      return await encoder.encode(part);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const at = (place: string) => `prompt ${placeOf(part[Number(place)])}: `;
      throw new ConfigError(
        error.message.replace(PLACE, (_, place: string) => at(place)),
        { cause: error },
      );
    }
  }
}
