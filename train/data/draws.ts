import { philox4x32 } from "../../engine/random/philox.js";

/** A run of uniform draws in [0, 1) that belongs to one sample alone. */
export interface Draws {
  /** The next draw, of 32 random bits. */
  next(): number;
  /** A whole number in [0, n). */
  below(n: number): number;
  /** A number in [low, high). */
  between(low: number, high: number): number;
}

/**
 * The draws of sample `index` of stream `stream` under `seed`: a pure function of the three, so that a data
 * position is a single number and resuming needs no state.
 * @param index whole number below 2^53
 */
export function drawsOf(seed: number, index: number, stream: number): Draws {
  const low = index >>> 0;
  const high = Math.floor(index / 2 ** 32) >>> 0;
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0] as const;
  let block = 0;
  let ready: number[] = [];
  const next = () => {
    if (ready.length === 0) ready = philox4x32([low, high, block++, stream >>> 0], key).reverse();
    return (ready.pop() as number) / 2 ** 32;
  };
  return {
    next,
    below: (n) => Math.floor(next() * n),
    between: (a, b) => a + (b - a) * next(),
  };
}

/** A random order of 0 … n - 1, the same for the same seed, index and stream (Fisher-Yates). */
export function shuffled(n: number, seed: number, index: number, stream: number): Uint32Array {
  const draws = drawsOf(seed, index, stream);
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = draws.below(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
