import type { Encoded, TextEncoder } from "../model/text/encoder.js";
import type { Dataset } from "./data/dataset.js";
import { drawsOf } from "./data/draws.js";

// Streams of the counter-based generator, apart from those of the data.
const TIME = 0x54494d45;
const DROP = 0x44524f50;

/** One batch on the host: clips, captions, and the draws that belong to each sample. */
export interface Batch {
  /** [B, 3, T, H, W] in [-1, 1]; latents [B, C, T, h, w] in their place where the data gives latents. */
  video: Float32Array;
  isLatent: boolean;
  shape: [batch: number, channels: number, frames: number, height: number, width: number];
  captions: string[];
  /** [B, L, D] */
  embeddings: Float32Array;
  /** [B, L]: 1 where there is a word. */
  mask: Int32Array;
  textShape: [batch: number, length: number, dim: number];
  /** What a language model makes of the captions, for models that read it. */
  language?: {
    embeddings: Float32Array;
    mask: Int32Array;
    shape: [batch: number, length: number, dim: number];
    /** [B]: 1 where the language caption is replaced by its null caption. */
    drop: Uint32Array;
  };
  /** [B] in [0, 1): decides the diffusion time of each sample. */
  time: Float32Array;
  /** [B]: 1 where the caption is replaced by the null caption. */
  drop: Uint32Array;
}

export interface BatchOptions {
  batchSize: number;
  /** Share of samples whose captions are all dropped, for classifier-free guidance. */
  conditionDropout: number;
  /** Share of samples whose language caption alone is dropped. */
  languageDropout: number;
  seed: number;
}

/**
 * Batches by number: batch n holds samples n·B to (n + 1)·B - 1 of the dataset, and every draw depends on the seed and
 * the sample's number alone. So a run that goes on from step n needs no other state to see what it would have seen.
 * The next batch is prepared while the caller works with the present one.
 */
export class Batches {
  private ahead: { index: number; batch: Promise<Batch> } | undefined;

  constructor(
    private readonly dataset: Dataset,
    private readonly text: TextEncoder,
    private readonly options: BatchOptions,
    /** What a language model makes of captions, for models that read one. */
    private readonly language?: (captions: string[]) => Promise<Encoded>,
  ) {}

  async get(index: number): Promise<Batch> {
    const ready = this.ahead?.index === index ? this.ahead.batch : this.make(index);
    const next = this.make(index + 1);
    // A failure surfaces when that batch is asked for, not as an unhandled rejection now.
    next.catch(() => {});
    this.ahead = { index: index + 1, batch: next };
    return ready;
  }

  private async make(index: number): Promise<Batch> {
    const { batchSize, conditionDropout, languageDropout, seed } = this.options;
    const { frames, height, width, latentShape } = this.dataset;
    const shape = latentShape ?? ([3, frames, height, width] as const);
    const numbers = Array.from({ length: batchSize }, (_, i) => index * batchSize + i);
    const samples = await Promise.all(numbers.map((n) => this.dataset.sample(n)));
    const video = new Float32Array(batchSize * shape.reduce((a, b) => a * b));
    samples.forEach((s, i) => {
      video.set(s.video, i * s.video.length);
    });
    const captions = samples.map((s) => s.caption);
    const encoded = await this.text.encode(captions);
    const spoken = await this.language?.(captions);
    // One draw a sample, cut into intervals: both captions, the language caption alone, none.
    const draws = numbers.map((n) => drawsOf(seed, n, DROP).next());
    const below = (limit: number) => Uint32Array.from(draws, (r) => (r < limit ? 1 : 0));
    return {
      video,
      isLatent: latentShape !== undefined,
      shape: [batchSize, ...shape],
      captions,
      embeddings: encoded.embeddings,
      mask: encoded.mask,
      textShape: encoded.shape,
      time: Float32Array.from(numbers, (n) => drawsOf(seed, n, TIME).next()),
      drop: below(conditionDropout),
      ...(spoken && {
        language: {
          embeddings: spoken.embeddings,
          mask: spoken.mask,
          shape: spoken.shape,
          drop: below(conditionDropout + languageDropout),
        },
      }),
    };
  }
}
