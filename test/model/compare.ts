import * as assert from "uvu/assert";
import type { Tensor } from "../../engine/index.js";

/** Numbers with or without a GPU. */
export type Numbers = ArrayLike<number>;

/** Largest |got - expected|. */
export function worstAbs(got: Numbers, expected: Numbers): number {
  assert.is(got.length, expected.length, "lengths");
  let worst = 0;
  // Math.max keeps a NaN, and a NaN is within no limit.
  for (let i = 0; i < expected.length; i++) worst = Math.max(worst, Math.abs(got[i] - expected[i]));
  return worst;
}

/** ‖got - expected‖ / ‖expected‖. */
export function relNorm(got: Numbers, expected: Numbers): number {
  assert.is(got.length, expected.length, "lengths");
  let [d, n] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    d += (got[i] - expected[i]) ** 2;
    n += expected[i] ** 2;
  }
  return Math.sqrt(d / n);
}

/** Fails unless a tensor is within `limit` of the expected numbers by `measure`; returns the measure. */
export async function near(
  what: string,
  got: Tensor | Numbers,
  expected: { shape?: readonly number[]; data: Numbers },
  limit: number,
  measure = worstAbs,
): Promise<number> {
  const values = "engine" in got ? await got.data() : got;
  if ("engine" in got && expected.shape) assert.equal([...got.shape], [...expected.shape], `${what}: shape`);
  const off = measure(values, expected.data);
  assert.ok(off <= limit, `${what}: off by ${off.toExponential(2)}, limit ${limit.toExponential(1)}`);
  return off;
}
