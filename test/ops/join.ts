import { cat, chunk, permute, slice, split, stack, unbind } from "../../engine/index.js";
import type { Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";
import { cut } from "./slice.js";

/** The arrays one after another along axis `dim`. */
function join(arrays: readonly Nd[], dim: number): Nd {
  const shape = arrays[0].shape.map((n, i) => (i === dim ? arrays.reduce((s, a) => s + a.shape[dim], 0) : n));
  return nd.build(shape, (index) => {
    const at = [...index];
    let k = 0;
    while (at[dim] >= arrays[k].shape[dim]) at[dim] -= arrays[k++].shape[dim];
    return nd.at(arrays[k], at);
  });
}

/** Inputs x0, x1, … of the given shapes, all with gradients. */
const several = (shapes: readonly (readonly number[])[]) => ({
  inputs: Object.fromEntries(shapes.map((shape, i) => [`x${i}`, { shape }])),
  grads: shapes.map((_, i) => `x${i}`),
});
const list = <T>(r: Record<string, T>): T[] => Object.keys(r).map((_, i) => r[`x${i}`]);
/** Data movement is exact; gradients are compared with differences, which are not. */
const exact = { tolerance: 0 };

const x = (shape: readonly number[]) => ({ inputs: { x: { shape } }, grads: ["x"], ...exact });

export const test: OpTest = {
  covers: ["cat", "split"],
  cases: [
    {
      name: "cat along the middle",
      ...several([
        [2, 3, 4],
        [2, 1, 4],
        [2, 2, 4],
      ]),
      run: (t) => cat(list(t), 1),
      oracle: (x) => join(list(x), 1),
      ...exact,
    },
    {
      name: "cat along the last axis in fours and not",
      ...several([
        [3, 4],
        [3, 8],
        [3, 3],
        [3, 1],
      ]),
      run: (t) => cat(list(t), -1),
      oracle: (x) => join(list(x), 1),
      ...exact,
    },
    { name: "cat of one", ...several([[2, 1]]), run: (t) => cat(list(t)), oracle: (x) => join(list(x), 0), ...exact },
    {
      name: "cat with an empty piece",
      ...several([
        [2, 3],
        [0, 3],
        [1, 3],
      ]),
      run: (t) => cat(list(t)),
      oracle: (x) => join(list(x), 0),
      ...exact,
    },
    {
      name: "cat of 40 pieces",
      ...several(Array.from({ length: 40 }, (_, i) => [2, 1 + (i % 2)])),
      run: (t) => cat(list(t), 1),
      oracle: (x) => join(list(x), 1),
      ...exact,
      f16: false,
    },
    {
      name: "cat of views",
      ...several([
        [3, 2, 4],
        [2, 8, 2],
        [2, 2, 4],
      ]),
      ...exact,
      run: ({ x0, x1, x2 }) => cat([permute(x0, [1, 0, 2]), permute(slice(x1, 1, 1, 8, 2), [0, 2, 1]), x2], 1),
      oracle: ({ x0, x1, x2 }) => join([nd.permute(x0, [1, 0, 2]), nd.permute(cut(x1, 1, 1, 4, 2), [0, 2, 1]), x2], 1),
    },
    {
      name: "cat of a permuted view of six axes",
      ...several([
        [2, 2, 2, 2, 2, 2],
        [2, 2, 2, 1, 2, 2],
      ]),
      ...exact,
      run: ({ x0, x1 }) => cat([permute(x0, [5, 3, 1, 4, 2, 0]), permute(x1, [5, 4, 1, 3, 2, 0])], 3),
      oracle: ({ x0, x1 }) => join([nd.permute(x0, [5, 3, 1, 4, 2, 0]), nd.permute(x1, [5, 4, 1, 3, 2, 0])], 3),
    },
    {
      name: "cat of i32",
      inputs: {
        x0: { shape: [2, 2], dtype: "i32", values: [-1, 2, 3, 4] },
        x1: { shape: [2, 1], dtype: "i32", values: [7, -8] },
      },
      run: (t) => cat(list(t), 1),
      oracle: (x) => join(list(x), 1),
      ...exact,
    },
    {
      name: "cat moves NaN and infinities as they are",
      inputs: {
        x0: { shape: [4], values: [Number.NaN, Number.POSITIVE_INFINITY, 1, 2] },
        x1: { shape: [1], values: [Number.NEGATIVE_INFINITY] },
      },
      run: (t) => cat(list(t)),
      oracle: (x) => join(list(x), 0),
      ...exact,
    },
    {
      name: "stack along a new last axis",
      ...several([
        [2, 3],
        [2, 3],
      ]),
      ...exact,
      run: (t) => stack(list(t), -1),
      oracle: ({ x0, x1 }) => nd.build([2, 3, 2], (i) => nd.at(i[2] ? x1 : x0, i.slice(0, 2))),
    },
    {
      name: "split, all pieces used",
      ...x([2, 6, 2]),
      run: ({ x }) => {
        const [a, b, c] = split(x, [1, 3, 2], 1);
        return cat([c, a, b], 1);
      },
      oracle: ({ x }) => join([cut(x, 1, 4, 2), cut(x, 1, 0, 1), cut(x, 1, 1, 3)], 1),
    },
    { name: "split, one piece used", ...x([5, 3]), run: ({ x }) => split(x, 2)[1], oracle: ({ x }) => cut(x, 0, 2, 2) },
    {
      name: "chunk along the last axis",
      ...x([3, 12]),
      run: ({ x }) => {
        const [a, b, c] = chunk(x, 3, -1);
        return a.mul(b).add(c);
      },
      oracle: ({ x }) => nd.map((a, b, c) => a * b + c, cut(x, 1, 0, 4), cut(x, 1, 4, 4), cut(x, 1, 8, 4)),
      tolerance: 1e-6,
    },
    {
      name: "unbind",
      ...x([2, 3, 4]),
      run: ({ x }) => {
        const [a, b, c] = unbind(x, 1);
        return a.mul(c).add(b);
      },
      oracle: ({ x }) =>
        nd.reshape(
          nd.map((a, b, c) => a * c + b, cut(x, 1, 0, 1), cut(x, 1, 1, 1), cut(x, 1, 2, 1)),
          [2, 4],
        ),
      tolerance: 1e-6,
    },
  ],
  refusals: [
    { name: "cat of nothing", run: () => cat([]), message: /cat: needs at least one tensor/ },
    {
      name: "cat of other shapes",
      run: (e) => cat([e.ones([2, 3]), e.ones([2, 4])], 0),
      message: /cat: shapes differ beside axis 0: \[2, 3\] · \[2, 4\]/,
    },
    {
      name: "cat of other dtypes",
      run: (e) => cat([e.ones([2]), e.ones([2], "i32")]),
      message: /cat: dtypes differ: f32 · i32/,
    },
    { name: "stack of other shapes", run: (e) => stack([e.ones([2]), e.ones([3])]), message: /stack: shapes differ/ },
    {
      name: "split that does not add up",
      run: (e) => split(e.ones([5]), [2, 2]),
      message: /split: pieces \[2, 2\] do not add up/,
    },
    {
      name: "chunk that does not divide",
      run: (e) => chunk(e.ones([2, 5]), 2, 1),
      message: /chunk: axis 1 of \[2, 5\] does not divide into 2/,
    },
  ],
};
