// What of a text a T5 is to find again.
import { philox4x32 } from "../engine/random/philox.js";

/** Share of a text that is left out, in runs of at most so many tokens. */
export const LEFT_OUT = 0.2;
const RUN = 3;

/** Whole numbers below 2^32, a pure function of the seed and of where they are for. */
export function* numbers(seed: number, step: number, row: number, use: number): Generator<number, never> {
  for (let n = 0; ; n++) yield* philox4x32([step, row, n, use], [seed, 0x74357478]);
}

/** Places of a text, its end never among them: runs of tokens, as long and where the drawn numbers say. */
export function leaveOut(ids: readonly number[], drawn: Iterator<number, never>): Set<number> {
  const left = new Set<number>();
  const count = Math.max(1, Math.round(LEFT_OUT * (ids.length - 1)));
  while (left.size < count) {
    const from = drawn.next().value % (ids.length - 1);
    const length = 1 + (drawn.next().value % RUN);
    for (let t = from; t < Math.min(from + length, ids.length - 1) && left.size < count; t++) left.add(t);
  }
  return left;
}
