import type { Encoded, TextEncoder } from "./encoder.js";

/** One caption's part of an encoding. */
interface Row {
  embeddings: Float32Array;
  mask: Int32Array;
  unknown: string[];
  truncated: boolean;
}

/**
 * Remembers what a slow encoder made of each caption, so that training, which meets the same captions again and again,
 * asks it once. The oldest are forgotten beyond a limit.
 */
export class MemoEncoder implements TextEncoder {
  private readonly rows = new Map<string, Row>();

  /** @param limit bytes of embeddings to keep; default 256 MiB */
  constructor(
    readonly encoder: TextEncoder,
    private readonly limit = 256 << 20,
  ) {}

  get dim(): number {
    return this.encoder.dim;
  }

  get maxLength(): number {
    return this.encoder.maxLength;
  }

  async encode(prompts: string[]): Promise<Encoded> {
    const missing = [...new Set(prompts)].filter((prompt) => !this.rows.has(prompt));
    const warnings = missing.length || prompts.length === 0 ? await this.add(missing) : [];
    const [L, D] = [this.maxLength, this.dim];
    const embeddings = new Float32Array(prompts.length * L * D);
    const mask = new Int32Array(prompts.length * L);
    const unknown = new Set<string>();
    const truncated: number[] = [];
    prompts.forEach((prompt, i) => {
      const row = this.rows.get(prompt)!;
      embeddings.set(row.embeddings, i * L * D);
      mask.set(row.mask, i * L);
      for (const word of row.unknown) unknown.add(word);
      if (row.truncated) truncated.push(i);
    });
    this.forget();
    return { embeddings, mask, shape: [prompts.length, L, D], unknown: [...unknown], truncated, warnings };
  }

  /** Asks the encoder for captions that are not known yet; its warnings are passed on once. */
  private async add(prompts: string[]): Promise<string[]> {
    const { embeddings, mask, shape, unknown, truncated, warnings } = await this.encoder.encode(prompts);
    const [, L, D] = shape;
    prompts.forEach((prompt, i) => {
      this.rows.set(prompt, {
        embeddings: embeddings.slice(i * L * D, (i + 1) * L * D),
        mask: mask.slice(i * L, (i + 1) * L),
        // Which caption an unknown word is from is not told; a warning that comes too often does no harm.
        unknown: unknown.filter((word) => prompt.toLowerCase().includes(word)),
        truncated: truncated.includes(i),
      });
    });
    return warnings;
  }

  private forget(): void {
    const each = 4 * this.maxLength * (this.dim + 1);
    for (const prompt of this.rows.keys()) {
      if (this.rows.size * each <= this.limit) return;
      this.rows.delete(prompt);
    }
  }
}
