import { embedding, gather, permute, scatterAdd } from "../../engine/index.js";
import type { Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const pick = (x: Nd, dim: number, index: Nd): Nd =>
  nd.build(index.shape, (i) => {
    const to = nd.at(index, i);
    return to < 0 || to >= x.shape[dim]
      ? 0
      : nd.at(
          x,
          i.map((v, d) => (d === dim ? to : v)),
        );
  });

const scatter = (x: Nd, dim: number, index: Nd, src: Nd): Nd => {
  const y = { shape: x.shape, data: x.data.slice() };
  nd.build(index.shape, (i) => {
    const to = nd.at(index, i);
    if (to >= 0 && to < x.shape[dim])
      y.data[i.map((v, d) => (d === dim ? to : v)).reduce((at, v, d) => at * x.shape[d] + v, 0)] += nd.at(src, i);
    return 0;
  });
  return y;
};

const whole = (shape: readonly number[], high: number) => ({ shape, dtype: "i32" as const, values: { low: 0, high } });

export const test: OpTest = {
  covers: ["gather", "scatterAdd", "embedding"],
  cases: [
    {
      name: "gather along the last axis",
      inputs: { x: { shape: [3, 5] }, index: whole([3, 4], 5) },
      run: ({ x, index }) => gather(x, -1, index),
      oracle: ({ x, index }) => pick(x, 1, index),
      grads: ["x"],
    },
    {
      name: "gather along the first axis, a part of x",
      inputs: { x: { shape: [5, 4, 3] }, index: whole([7, 2, 3], 5) },
      run: ({ x, index }) => gather(x, 0, index),
      oracle: ({ x, index }) => pick(x, 0, index),
      grads: ["x"],
    },
    {
      name: "gather from a view",
      inputs: {
        x: { shape: [4, 3], view: { engine: (t) => permute(t, [1, 0]), oracle: (t) => nd.permute(t, [1, 0]) } },
        index: whole([3, 6], 4),
      },
      run: ({ x, index }) => gather(x, 1, index),
      oracle: ({ x, index }) => pick(x, 1, index),
      grads: ["x"],
    },
    {
      name: "gather outside the axis gives 0",
      inputs: { x: { shape: [4] }, index: { shape: [5], dtype: "i32", values: [-1, 0, 3, 4, 3] } },
      run: ({ x, index }) => gather(x, 0, index),
      oracle: ({ x, index }) => pick(x, 0, index),
      grads: ["x"],
    },
    {
      name: "gather of integers",
      inputs: {
        x: { shape: [6], dtype: "i32", values: [5, -7, 11, 2 ** 30, 0, 1] },
        index: { shape: [3], dtype: "u32", values: [3, 1, 0] },
      },
      run: ({ x, index }) => gather(x, 0, index),
      oracle: ({ x, index }) => pick(x, 0, index),
    },
    {
      name: "scatterAdd with repeated places",
      inputs: {
        x: { shape: [2, 3] },
        index: { shape: [2, 5], dtype: "i32", values: [0, 2, 0, 0, 1, 2, 2, 2, 1, 9] },
        src: { shape: [2, 5] },
      },
      run: ({ x, index, src }) => scatterAdd(x, 1, index, src),
      oracle: ({ x, index, src }) => scatter(x, 1, index, src),
      grads: ["x", "src"],
    },
    {
      name: "scatterAdd along the first of three axes",
      inputs: { x: { shape: [3, 2, 2] }, index: whole([6, 2, 2], 3), src: { shape: [6, 2, 2] } },
      run: ({ x, index, src }) => scatterAdd(x, 0, index, src),
      oracle: ({ x, index, src }) => scatter(x, 0, index, src),
      grads: ["x", "src"],
    },
    {
      name: "embedding with repeated rows",
      inputs: { weight: { shape: [5, 3] }, index: { shape: [2, 4], dtype: "i32", values: [0, 4, 4, 1, 4, 0, 2, -1] } },
      run: ({ weight, index }) => embedding(weight, index),
      grads: ["weight"],
      oracle: ({ weight, index }) =>
        nd.build([2, 4, 3], ([a, b, d]) => (nd.at(index, [a, b]) < 0 ? 0 : nd.at(weight, [nd.at(index, [a, b]), d]))),
    },
    {
      name: "embedding of one row",
      inputs: { weight: { shape: [1, 1] }, index: { shape: [1], dtype: "u32", values: [0] } },
      run: ({ weight, index }) => embedding(weight, index),
      oracle: ({ weight }) => nd.reshape(weight, [1, 1]),
      grads: ["weight"],
    },
    {
      name: "embedding, more rows than a workgroup",
      inputs: { weight: { shape: [65, 2] }, index: whole([67], 65) },
      run: ({ weight, index }) => embedding(weight, index),
      oracle: ({ weight, index }) => nd.build([67, 2], ([a, d]) => nd.at(weight, [nd.at(index, [a]), d])),
      grads: ["weight"],
    },
  ],
  refusals: [
    {
      name: "gather by floats",
      run: (e) => gather(e.ones([3]), 0, e.ones([2])),
      message: /gather: the index must be i32 or u32: got f32/,
    },
    {
      name: "gather with an index of other rank",
      run: (e) => gather(e.ones([3, 2]), 0, e.tensor(new Int32Array(2))),
      message: /gather: the index does not fit x: \[2\] on \[3, 2\]/,
    },
    {
      name: "scatterAdd with unequal shapes",
      run: (e) => scatterAdd(e.ones([3]), 0, e.tensor(new Int32Array(2)), e.ones([3])),
      message: /scatterAdd: index and src must have one shape/,
    },
    {
      name: "scatterAdd that does not fit",
      run: (e) => scatterAdd(e.ones([3, 2]), 0, e.tensor(new Int32Array(3), [1, 3]), e.ones([1, 3])),
      message: /scatterAdd: src does not fit x/,
    },
    {
      name: "embedding of a vector",
      run: (e) => embedding(e.ones([3]), e.tensor(new Int32Array(1))),
      message: /embedding: the table must be \[V, D\]: got \[3\]/,
    },
  ],
};
