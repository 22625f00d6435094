import type { Spec } from "./world.js";

/** One training clip. An image is a clip of equal frames. */
export interface Sample {
  /** [3, T, H, W], values in [-1, 1]; of a set with `latentShape` the clip's latent, [C, T, h, w], in its place. */
  video: Float32Array;
  caption: string;
  frames: number;
  height: number;
  width: number;
  /** What a composed clip shows; absent for recorded ones. */
  spec?: Spec;
}

/**
 * Clips by position. `sample(i)` is a pure function of i for every i >= 0, and positions go on for ever: past
 * `size` a finite set starts over in another order. So a trainer's data cursor is one number.
 */
export interface Dataset {
  /** Distinct clips, Infinity where clips are composed. */
  readonly size: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  /** [C, T, h, w] where samples are latents already, not to be encoded again. */
  readonly latentShape?: readonly [channels: number, frames: number, rows: number, columns: number];
  sample(index: number): Sample | Promise<Sample>;
}
