import type { T5Config } from "./config.js";

/**
 * Row of the table of relative positions for a key `distance` places after the query (before it where negative).
 * Half the rows are for each side; of those half are for one distance each, the rest for ranges that grow by equal
 * factors up to `maxDistance`. Source: https://arxiv.org/abs/1910.10683, section 2.1.
 */
export function positionBucket(distance: number, { buckets, maxDistance }: Pick<T5Config, "buckets" | "maxDistance">) {
  const half = buckets / 2;
  const exact = half / 2;
  const side = distance > 0 ? half : 0;
  const far = Math.abs(distance);
  if (far < exact) return side + far;
  // Whole powers must not fall a rounding error short: f32 is what tables were learned with.
  const share = Math.fround(Math.log(far / exact) / Math.log(maxDistance / exact));
  return side + Math.min(half - 1, exact + Math.floor(Math.fround(share * (half - exact))));
}

/** Rows for all pairs of a text's L tokens, [L, L]: query by key. */
export function bucketIndex(length: number, config: Pick<T5Config, "buckets" | "maxDistance">): Int32Array {
  const byDistance = Int32Array.from({ length: 2 * length - 1 }, (_, i) => positionBucket(i - length + 1, config));
  const index = new Int32Array(length * length);
  for (let query = 0; query < length; query++)
    index.set(byDistance.subarray(length - 1 - query, 2 * length - 1 - query), query * length);
  return index;
}
