import { ConfigError, checkOptions } from "../../engine/errors.js";
import { philox4x32 } from "../../engine/random/philox.js";
import { checkPrompts, type Encoded, type TextEncoder } from "./encoder.js";
import { fnv1a, WordTable } from "./table.js";

export interface WordEncoderOptions {
  /** Words that are read of a prompt, L; default 16. */
  maxLength?: number;
  /** Share of a vector's squared length that is meaning, 0..1; default 0.25. The rest is the word's own. */
  mix?: number;
}

/** The words of a text: runs of letters, digits and inner apostrophes, in lower case; "it's" is one word, "t-rex" two. */
export function wordsOf(text: string): string[] {
  return (
    text
      .normalize("NFKC")
      .toLowerCase()
      .replaceAll("\u2019", "'")
      .match(/[\p{L}\p{N}]+(?:'[\p{L}\p{N}]+)*/gu) ?? []
  );
}

const ENDINGS: readonly (readonly [ending: string, base: string])[] = [
  ["'s", ""],
  ["s", ""],
  ["ies", "y"],
  ["ves", "f"],
  ["ves", "fe"],
  ["es", ""],
  ["men", "man"],
  ["ing", ""],
  ["ing", "e"],
  ["ed", ""],
  ["ed", "e"],
  ["ied", "y"],
  ["er", ""],
  ["er", "e"],
  ["est", ""],
  ["est", "e"],
];

/** What a word may be an inflection of, likeliest first: "foxes" of "fox", "running" of "run". Many are no words. */
export function baseForms(word: string): string[] {
  const forms: string[] = [];
  for (const [ending, base] of ENDINGS) {
    if (!word.endsWith(ending) || word.length - ending.length < 2) continue;
    const stem = word.slice(0, -ending.length);
    forms.push(stem + base);
    if (base === "" && /([b-df-hj-np-tv-z])\1$/.test(stem)) forms.push(stem.slice(0, -1));
  }
  return forms;
}

/**
 * The default text encoder: a vector for each word, without position, of length sqrt(dim) (unit variance an entry).
 * A vector is sqrt(mix) meaning + sqrt(1 - mix) own part. Meaning comes from the table, so that synonyms are near
 * each other; the own part is a random direction seeded by the word, so that opposites and colours, whose meanings
 * are alike, stay nearly orthogonal, and so that a word outside the table has a vector too.
 * Only exactly rounded arithmetic is used: every engine gives the same bits.
 */
export class WordEncoder implements TextEncoder {
  readonly dim: number;
  readonly maxLength: number;
  readonly mix: number;
  /** Identifies the table: a model must be sampled with the vectors that it was trained with. */
  readonly fingerprint: string;
  private readonly table: WordTable;
  private readonly made = new Map<string, Float32Array>();

  /**
   * @param table bytes of a word table (model/text/words.bin)
   * @throws DataError when they are none, ConfigError for an option out of range
   */
  constructor(table: Uint8Array, options: WordEncoderOptions = {}) {
    checkOptions("text", options, ["maxLength", "mix"]);
    const { maxLength = 16, mix = 0.25 } = options;
    if (!Number.isInteger(maxLength) || maxLength < 1)
      throw new ConfigError(`text: maxLength must be a whole number from 1: ${maxLength}; 16 is usual`);
    if (!(mix >= 0 && mix <= 1)) throw new ConfigError(`text: mix must lie in 0..1: ${mix}; 0.25 is usual`);
    this.table = new WordTable(table);
    this.dim = this.table.dim;
    this.fingerprint = this.table.fingerprint;
    this.maxLength = maxLength;
    this.mix = mix;
  }

  /** Whether a word, or what it is an inflection of, has a meaning in the table. */
  knows(word: string): boolean {
    return this.table.has(word) || baseForms(word).some((base) => this.table.has(base));
  }

  /** The vector of one word, [dim]; kept, so do not write to it. */
  vector(word: string): Float32Array {
    const kept = this.made.get(word);
    if (kept !== undefined) return kept;
    const known = this.table.has(word) ? word : baseForms(word).find((base) => this.table.has(base));
    const meaning = known === undefined ? undefined : this.table.row(known);
    const own = this.ownPart(word);
    const meant = meaning === undefined ? 0 : Math.sqrt(this.mix);
    const rest = meaning === undefined ? 1 : Math.sqrt(1 - this.mix);
    const sum = own.map((x, d) => rest * x + meant * (meaning?.[d] ?? 0));
    const norm = Math.sqrt(sum.reduce((a, b) => a + b * b, 0) / this.dim);
    const vector = Float32Array.from(sum, (x) => x / norm);
    this.made.set(word, vector);
    return vector;
  }

  /** A unit vector that belongs to the word alone. Sums of four uniforms stand in for normal draws. */
  private ownPart(word: string): Float64Array {
    const key = [fnv1a(new globalThis.TextEncoder().encode(word), 0), this.table.salt] as const;
    const part = Float64Array.from({ length: this.dim }, (_, d) => {
      const [a, b, c, e] = philox4x32([d, 0, 0, 0], key);
      return (a + b + c + e) / 2 ** 32 - 2;
    });
    const norm = Math.sqrt(part.reduce((a, b) => a + b * b, 0));
    return part.map((x) => x / norm);
  }

  encode(prompts: string[]): Encoded {
    checkPrompts(prompts);
    const { dim, maxLength } = this;
    const embeddings = new Float32Array(prompts.length * maxLength * dim);
    const mask = new Int32Array(prompts.length * maxLength);
    const unknown = new Set<string>();
    const truncated: number[] = [];
    const warnings: string[] = [];
    prompts.forEach((prompt, b) => {
      const words = wordsOf(prompt);
      if (words.length === 0)
        throw new ConfigError(`prompt ${b}: must hold a word: ${JSON.stringify(prompt)} has none; say what to show`);
      if (words.length > maxLength) {
        truncated.push(b);
        warnings.push(
          `prompt ${b}: ${maxLength} words are read: it has ${words.length}, and those from "${words[maxLength]}" on were left out`,
        );
      }
      words.slice(0, maxLength).forEach((word, i) => {
        if (!this.knows(word)) unknown.add(word);
        embeddings.set(this.vector(word), (b * maxLength + i) * dim);
        mask[b * maxLength + i] = 1;
      });
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
}
