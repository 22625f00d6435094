import { ConfigError } from "../../engine/errors.js";
import type { HostTensor } from "../state.js";
import { checkPrompts, type Encoded, type TextEncoder } from "./encoder.js";
import { wordsOf } from "./words.js";

/** A text encoder whose whole vocabulary travels with its model: one fixed vector a word, without position. */
export class VocabularyEncoder implements TextEncoder {
  readonly dim: number;
  private readonly places: Map<string, number>;

  /**
   * @param words one for each row of `vectors`
   * @param vectors [words, dim]
   * @throws ConfigError when their numbers disagree
   */
  constructor(
    readonly words: readonly string[],
    private readonly vectors: Float32Array,
    readonly maxLength: number,
  ) {
    this.dim = vectors.length / words.length;
    if (words.length === 0 || !Number.isInteger(this.dim))
      throw new ConfigError(
        `vocabulary: words and vectors disagree: ${words.length} words, ${vectors.length} numbers; each word needs a row`,
      );
    this.places = new Map(words.map((word, i) => [word, i]));
  }

  /** The vectors with their shape, as `saveModel` takes them. */
  table(): HostTensor {
    return { shape: [this.words.length, this.dim], data: this.vectors };
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
      const all = wordsOf(prompt);
      const known = all.filter((word) => this.places.has(word));
      for (const word of all) if (!this.places.has(word)) unknown.add(word);
      if (known.length === 0)
        throw new ConfigError(
          `prompt ${b}: must hold a word that the model knows: ${JSON.stringify(prompt)} has none; it knows ${this.words.filter((w) => wordsOf(w).length > 0).join(", ")}`,
        );
      if (known.length > maxLength) {
        truncated.push(b);
        warnings.push(`prompt ${b}: ${maxLength} words are read: it has ${known.length}, and the rest were left out`);
      }
      known.slice(0, maxLength).forEach((word, i) => {
        const row = this.places.get(word)! * dim;
        embeddings.set(this.vectors.subarray(row, row + dim), (b * maxLength + i) * dim);
        mask[b * maxLength + i] = 1;
      });
    });
    if (unknown.size > 0) warnings.push(`prompt: words that the model does not know: ${[...unknown].join(", ")}`);
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
