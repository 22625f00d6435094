import { type Engine, flip, pad, permute, slice, type Tensor } from "../../engine/index.js";
import type { Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

/** Elements start, start + step, … of axis `dim`, `size` of them. */
export const cut = (x: Nd, dim: number, start: number, size: number, step = 1): Nd => {
  // Written without nd.at's broadcasting: a size of 1 must not repeat here.
  const strides = x.shape.map((_, i) => nd.size(x.shape.slice(i + 1)));
  return nd.build(
    x.shape.map((n, i) => (i === dim ? size : n)),
    (index) => x.data[index.reduce((s, v, i) => s + (i === dim ? start + v * step : v) * strides[i], 0)],
  );
};

const padded = (x: Nd, amounts: readonly (readonly [number, number])[], value: number): Nd =>
  nd.build(
    x.shape.map((n, i) => n + amounts[i][0] + amounts[i][1]),
    (index) => {
      const from = index.map((v, i) => v - amounts[i][0]);
      return from.every((v, i) => v >= 0 && v < x.shape[i]) ? nd.at(x, from) : value;
    },
  );

const reversed = (x: Nd, dims: readonly number[]): Nd =>
  nd.build(x.shape, (index) =>
    nd.at(
      x,
      index.map((v, i) => (dims.includes(i) ? x.shape[i] - 1 - v : v)),
    ),
  );

const x = (shape: readonly number[]) => ({ inputs: { x: { shape } }, grads: ["x"], tolerance: 0 });

export const test: OpTest = {
  covers: ["slice", "pad", "flip"],
  cases: [
    { name: "slice", ...x([3, 6, 2]), run: ({ x }) => slice(x, 1, 1, 4), oracle: ({ x }) => cut(x, 1, 1, 3) },
    {
      name: "slice to the end, from the end",
      ...x([6, 8]),
      run: ({ x }) => slice(x, 0, -2),
      oracle: ({ x }) => cut(x, 0, 4, 2),
    },
    {
      name: "slice with a step",
      ...x([2, 7, 4]),
      run: ({ x }) => slice(x, 1, 1, -1, 2),
      oracle: ({ x }) => cut(x, 1, 1, 3, 2),
    },
    {
      name: "slice with a step along the last axis",
      ...x([5, 7]),
      run: ({ x }) => slice(x, 1, 0, 7, 3),
      oracle: ({ x }) => cut(x, 1, 0, 3, 3),
    },
    {
      name: "slice with a step beyond the end",
      ...x([4, 1]),
      run: ({ x }) => slice(x, 0, 3, 4, 5),
      oracle: ({ x }) => cut(x, 0, 3, 1),
    },
    {
      name: "slice downwards",
      ...x([7, 4]),
      run: ({ x }) => slice(x, 0, -1, undefined, -2),
      oracle: ({ x }) => reversed(cut(x, 0, 0, 4, 2), [0]),
    },
    {
      name: "slice downwards to a position",
      ...x([7, 3]),
      run: ({ x }) => slice(x, 0, 5, 1, -3),
      oracle: ({ x }) => reversed(cut(x, 0, 2, 2, 3), [0]),
    },
    { name: "slice of nothing", ...x([3, 2]), run: ({ x }) => slice(x, 0, 2, 2), oracle: ({ x }) => cut(x, 0, 2, 0) },
    {
      name: "slice of a slice of a permuted view",
      ...x([4, 6, 5]),
      run: ({ x }) => slice(slice(permute(x, [2, 0, 1]), 2, 1, 6, 2), 0, 1, 3),
      oracle: ({ x }) => cut(cut(nd.permute(x, [2, 0, 1]), 2, 1, 3, 2), 0, 1, 2),
    },
    {
      name: "pad",
      ...x([2, 3, 4]),
      run: ({ x }) =>
        pad(x, [
          [1, 0],
          [0, 0],
          [0, 0],
        ]),
      oracle: ({ x }) =>
        padded(
          x,
          [
            [1, 0],
            [0, 0],
            [0, 0],
          ],
          0,
        ),
    },
    {
      name: "pad of two axes with a value",
      ...x([1, 2, 3, 5]),
      run: ({ x }) =>
        pad(
          x,
          [
            [0, 0],
            [0, 0],
            [1, 1],
            [2, 1],
          ],
          -1.5,
        ),
      oracle: ({ x }) =>
        padded(
          x,
          [
            [0, 0],
            [0, 0],
            [1, 1],
            [2, 1],
          ],
          -1.5,
        ),
    },
    {
      name: "pad of a view of six axes",
      ...x([2, 1, 3, 2, 2, 2]),
      run: ({ x }) =>
        pad(
          permute(x, [5, 4, 3, 2, 1, 0]),
          [
            [1, 0],
            [0, 0],
            [0, 2],
            [0, 0],
            [1, 1],
            [0, 1],
          ],
          2,
        ),
      oracle: ({ x }) =>
        padded(
          nd.permute(x, [5, 4, 3, 2, 1, 0]),
          [
            [1, 0],
            [0, 0],
            [0, 2],
            [0, 0],
            [1, 1],
            [0, 1],
          ],
          2,
        ),
    },
    {
      name: "pad of u32",
      inputs: { x: { shape: [3], dtype: "u32", values: [1, 2, 3] } },
      run: ({ x }) => pad(x, [[2, 1]], 4294967295),
      oracle: ({ x }) => padded(x, [[2, 1]], 4294967295),
      tolerance: 0,
    },
    { name: "flip", ...x([2, 3, 4]), run: ({ x }) => flip(x, [0, -1]), oracle: ({ x }) => reversed(x, [0, 2]) },
    {
      name: "flip of a view",
      ...x([4, 6]),
      run: ({ x }) => flip(slice(permute(x, [1, 0]), 0, 1, 6, 2), 0),
      oracle: ({ x }) => reversed(cut(nd.permute(x, [1, 0]), 0, 1, 3, 2), [0]),
    },
  ],
  refusals: [
    {
      name: "slice outside",
      run: (e) => slice(e.ones([2, 3]), 1, 0, 4),
      message: /slice: 4 lies outside axis 1 of \[2, 3\]; use -3 to 3/,
    },
    { name: "slice with step 0", run: (e) => slice(e.ones([3]), 0, 0, 3, 0), message: /slice: the step/ },
    {
      name: "slice of no such axis",
      run: (e: Engine): Tensor => slice(e.ones([3]), 2, 0),
      message: /slice: axis 2 is out of range/,
    },
    {
      name: "pad with too few amounts",
      run: (e) => pad(e.ones([2, 2]), [[1, 1]]),
      message: /pad: needs \[before, after\]/,
    },
    { name: "flip with an axis twice", run: (e) => flip(e.ones([2, 2]), [0, -2]), message: /flip: axis given twice/ },
  ],
};
