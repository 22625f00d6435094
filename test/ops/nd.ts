import type { Nd } from "./case.js";

/** Small float64 array tools for oracles: written for clarity, independent of the engine. */
export const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** An array whose element at an index is f(index). */
export function build(shape: readonly number[], f: (index: number[]) => number): Nd {
  const data = new Float64Array(size(shape));
  const index = shape.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    data[i] = f(index);
    for (let d = shape.length - 1; d >= 0 && ++index[d] === shape[d]; d--) index[d] = 0;
  }
  return { shape, data };
}

/** The element at an index; axes of size 1 and missing leading axes repeat. */
export function at(x: Nd, index: readonly number[]): number {
  const lead = index.length - x.shape.length;
  let i = 0;
  for (let d = 0; d < x.shape.length; d++) i = i * x.shape[d] + (x.shape[d] === 1 ? 0 : index[d + lead]);
  return x.data[i];
}

/** f over arrays that broadcast. */
export function map(f: (...values: number[]) => number, ...arrays: Nd[]): Nd {
  const rank = Math.max(...arrays.map((a) => a.shape.length));
  const shape = Array.from({ length: rank }, (_, d) => {
    const sizes = arrays.map((a) => a.shape[d - rank + a.shape.length] ?? 1);
    return sizes.includes(0) ? 0 : Math.max(...sizes);
  });
  return build(shape, (index) => f(...arrays.map((a) => at(a, index))));
}

/** Reduces the given axes (kept with size 1): f gets all values of one group. */
export function reduce(x: Nd, dims: readonly number[], f: (values: number[]) => number): Nd {
  const shape = x.shape.map((n, i) => (dims.includes(i) ? 1 : n));
  const groups = new Map<number, number[]>();
  build(x.shape, (index) => {
    let key = 0;
    for (let d = 0; d < shape.length; d++) key = key * shape[d] + (shape[d] === 1 ? 0 : index[d]);
    const list = groups.get(key);
    const value = at(x, index);
    if (list) list.push(value);
    else groups.set(key, [value]);
    return 0;
  });
  return { shape, data: Float64Array.from({ length: size(shape) }, (_, k) => f(groups.get(k) ?? [])) };
}

export const reshape = (x: Nd, shape: readonly number[]): Nd => ({ shape, data: x.data });
export const permute = (x: Nd, dims: readonly number[]): Nd =>
  build(
    dims.map((d) => x.shape[d]),
    (index) => {
      const from = new Array<number>(dims.length);
      dims.forEach((d, i) => {
        from[d] = index[i];
      });
      return at(x, from);
    },
  );
/** Batched product over the last two axes; leading axes broadcast. */
export function matmul(a: Nd, b: Nd): Nd {
  const [m, k, n] = [a.shape.at(-2)!, a.shape.at(-1)!, b.shape.at(-1)!];
  const rank = Math.max(a.shape.length, b.shape.length) - 2;
  const lead = Array.from({ length: rank }, (_, d) =>
    Math.max(a.shape[d - rank + a.shape.length - 2] ?? 1, b.shape[d - rank + b.shape.length - 2] ?? 1),
  );
  return build([...lead, m, n], (index) => {
    const [i, j] = index.slice(-2);
    const outer = index.slice(0, -2);
    let total = 0;
    for (let q = 0; q < k; q++) total += at(a, [...outer, i, q]) * at(b, [...outer, q, j]);
    return total;
  });
}
