import { argmax, type Engine, max, mean, min, permute, sum, type Tensor, variance } from "../../engine/index.js";
import { launchReduce, type Merge, type ReduceVariant } from "../../engine/ops/reduction.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const total = (v: number[]) => v.reduce((a, b) => a + b, 0);
const average = (v: number[]) => total(v) / v.length;
const spread = (correction: number) => (v: number[]) => {
  const m = average(v);
  return total(v.map((x) => (x - m) ** 2)) / (v.length - correction);
};
const highest = (v: number[]) => v.reduce((a, b) => (Number.isNaN(a) || a >= b ? a : b));
const lowest = (v: number[]) => v.reduce((a, b) => (Number.isNaN(a) || a <= b ? a : b));
const first = (v: number[]) => v.findIndex((x) => Object.is(x, highest(v)) || x === highest(v));

const drop = (x: Nd, dims: readonly number[]): Nd =>
  nd.reshape(
    x,
    x.shape.filter((_, i) => !dims.includes(i)),
  );
const over =
  (dims: readonly number[], f: (v: number[]) => number, keep = false) =>
  ({ x }: Record<string, Nd>) =>
    keep ? nd.reduce(x, dims, f) : drop(nd.reduce(x, dims, f), dims);
/** Whole numbers in an order without equal neighbours: no ties, exact in any order of adding. */
const shuffled = (n: number) => Array.from({ length: n }, (_, i) => ((i * 37) % n) - (n >> 1));

function cases(): Case[] {
  const list: Case[] = [];
  const shapes: { shape: number[]; dims: number[] }[] = [
    { shape: [1], dims: [0] },
    { shape: [5], dims: [0] },
    { shape: [2, 5, 3], dims: [1] },
    { shape: [2, 5, 3], dims: [0, 2] },
    { shape: [3, 8], dims: [1] },
    { shape: [7, 8], dims: [0] },
    { shape: [2, 3, 4], dims: [1] },
    { shape: [2, 3, 1, 5], dims: [0, 1, 3] },
    { shape: [2, 2, 3, 2, 3], dims: [0, 2, 4] },
  ];
  for (const { shape, dims } of shapes) {
    const n = nd.size(dims.map((d) => shape[d]));
    const at = `[${shape}] over [${dims}]`;
    list.push(
      {
        name: `sum ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => sum(x, dims),
        oracle: over(dims, total),
        grads: ["x"],
      },
      {
        name: `mean ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => mean(x, dims, true),
        oracle: over(dims, average, true),
        grads: ["x"],
      },
      {
        name: `max ${at}`,
        inputs: { x: { shape, values: shuffled(nd.size(shape)) } },
        run: ({ x }) => max(x, dims),
        oracle: over(dims, highest),
        grads: ["x"],
      },
      {
        name: `min ${at}`,
        inputs: { x: { shape, values: shuffled(nd.size(shape)) } },
        run: ({ x }) => min(x, dims, true),
        oracle: over(dims, lowest, true),
        grads: ["x"],
      },
      {
        name: `biased variance ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => variance(x, dims, false, 0),
        oracle: over(dims, spread(0)),
        grads: ["x"],
      },
    );
    if (n > 1)
      list.push({
        name: `variance ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => variance(x, dims, true),
        oracle: over(dims, spread(1), true),
        grads: ["x"],
      });
    if (dims.length === 1)
      list.push({
        name: `argmax ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => argmax(x, dims[0] - shape.length),
        oracle: over(dims, first),
        f16: false,
      });
  }
  return list;
}

/** Every entry point, in one share and in several, gives the same. */
function variants(): Case[] {
  const list: Case[] = [];
  const sizes: [ReduceVariant, number, number, number][] = [
    ["scalar", 3, 65, 5],
    ["scalar", 2, 64, 1],
    ["columns", 3, 65, 8],
    ["columns", 1, 130, 64],
    ["rows", 3, 64, 1],
    ["rows", 65, 4, 1],
    ["group", 3, 63, 1],
    ["group", 2, 1025, 1],
  ];
  for (const [entry, outer, reduced, inner] of sizes)
    for (const shares of [1, 3, 16])
      for (const merge of (shares === 3 ? ["sum", "max", "min"] : ["sum"]) as Merge[])
        list.push({
          name: `${merge} by ${entry} of [${outer}, ${reduced}, ${inner}] in ${shares} shares`,
          inputs: { x: { shape: [outer, reduced, inner] } },
          run: ({ x }, engine) => {
            const y = engine.empty([outer, inner], x.dtype);
            launchReduce(x, y, { outer, reduced, inner }, merge, merge === "sum" ? 0.25 : 1, entry, shares);
            return y;
          },
          oracle: over([1], merge === "sum" ? (v) => total(v) / 4 : merge === "max" ? highest : lowest),
          tolerance: 2e-5,
          f16: merge === "sum" && shares === 3,
        });
  return list;
}

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
const odd = {
  shape: [5, 4],
  values: [1, nan, 3, 4, inf, 1, -inf, 2, -inf, -inf, -inf, -inf, nan, nan, 1, 2, inf, -inf, 1, 2],
};
const whole = (dtype: "i32" | "u32") =>
  ({ shape: [3, 64], dtype, values: { low: dtype === "i32" ? -90 : 0, high: 90 } }) as const;

export const test: OpTest = {
  covers: ["sum", "mean", "max", "min", "variance", "argmax"],
  cases: [
    ...cases(),
    ...variants(),
    {
      name: "sum of everything",
      inputs: { x: { shape: [13, 7] } },
      run: ({ x }) => sum(x),
      oracle: ({ x }) => ({ shape: [], data: Float64Array.of(total([...x.data])) }),
      grads: ["x"],
    },
    {
      name: "mean of everything, axes kept",
      inputs: { x: { shape: [13, 7] } },
      run: ({ x }) => mean(x, undefined, true),
      oracle: ({ x }) => ({ shape: [1, 1], data: Float64Array.of(average([...x.data])) }),
      grads: ["x"],
    },
    {
      name: "sum of a scalar",
      inputs: { x: { shape: [] } },
      run: ({ x }) => sum(x),
      oracle: ({ x }) => x,
      grads: ["x"],
    },
    {
      name: "sum over no axes",
      inputs: { x: { shape: [2, 3] } },
      run: ({ x }) => sum(x, []),
      oracle: ({ x }) => x,
      grads: ["x"],
    },
    {
      name: "mean of a permuted view",
      grads: ["x"],
      run: ({ x }) => mean(x, 1),
      oracle: over([1], average),
      inputs: {
        x: {
          shape: [3, 4, 5],
          view: { engine: (t) => permute(t, [2, 1, 0]), oracle: (x) => nd.permute(x, [2, 1, 0]) },
        },
      },
    },
    {
      name: "variance of a permuted view",
      grads: ["x"],
      run: ({ x }) => variance(x, [0, 2]),
      oracle: over([0, 2], spread(1)),
      inputs: {
        x: {
          shape: [3, 4, 5],
          view: { engine: (t) => permute(t, [1, 0, 2]), oracle: (x) => nd.permute(x, [1, 0, 2]) },
        },
      },
    },
    {
      name: "variance far from zero",
      inputs: { x: { shape: [2, 64], values: { low: 1000, high: 1001 } } },
      run: ({ x }) => variance(x, 1),
      oracle: over([1], spread(1)),
      tolerance: 1e-5,
      f16: false,
    },
    {
      name: "max shares the gradient among equals",
      inputs: { x: { shape: [2, 4], values: [1, 3, 3, 0, 5, 5, 5, 5] }, dy: { shape: [2] } },
      f16: false,
      run: ({ x, dy }) => {
        const leaf = x.detach().setRequiresGrad();
        max(leaf, 1).backward(dy);
        return leaf.grad!;
      },
      oracle: ({ dy }) => ({
        shape: [2, 4],
        data: Float64Array.of(0, dy.data[0] / 2, dy.data[0] / 2, 0, ...Array<number>(4).fill(dy.data[1] / 4)),
      }),
    },
    { name: "sum with NaN and infinities", inputs: { x: odd }, run: ({ x }) => sum(x, 1), oracle: over([1], total) },
    {
      name: "mean with NaN and infinities",
      inputs: { x: odd },
      run: ({ x }) => mean(x, 1),
      oracle: over([1], average),
    },
    { name: "max: a NaN wins", inputs: { x: odd }, run: ({ x }) => max(x, 1), oracle: over([1], highest) },
    { name: "min: a NaN wins", inputs: { x: odd }, run: ({ x }) => min(x, 1), oracle: over([1], lowest) },
    { name: "max of columns: a NaN wins", inputs: { x: odd }, run: ({ x }) => max(x, 0), oracle: over([0], highest) },
    {
      name: "argmax: the first NaN wins, then the first of equals",
      inputs: { x: { shape: [4, 3], values: [1, 1, 0, 1, nan, nan, inf, 2, inf, -inf, -inf, -inf] } },
      run: ({ x }) => argmax(x, 1),
      oracle: over([1], first),
    },
    {
      name: "argmax of everything",
      inputs: { x: { shape: [3, 5] } },
      run: ({ x }) => argmax(x),
      oracle: ({ x }) => ({ shape: [], data: Float64Array.of(first([...x.data])) }),
      f16: false,
    },
    {
      name: "argmax along an inner axis, kept",
      inputs: { x: { shape: [2, 5, 3] } },
      run: ({ x }) => argmax(x, 1, true),
      oracle: over([1], first, true),
      f16: false,
    },
    { name: "sum of i32", inputs: { x: whole("i32") }, run: ({ x }) => sum(x, 1), oracle: over([1], total) },
    { name: "max of i32", inputs: { x: whole("i32") }, run: ({ x }) => max(x, 0), oracle: over([0], highest) },
    { name: "min of i32", inputs: { x: whole("i32") }, run: ({ x }) => min(x, 1), oracle: over([1], lowest) },
    { name: "sum of u32", inputs: { x: whole("u32") }, run: ({ x }) => sum(x, 0), oracle: over([0], total) },
    { name: "max of u32", inputs: { x: whole("u32") }, run: ({ x }) => max(x, 1), oracle: over([1], highest) },
    { name: "argmax of i32", inputs: { x: whole("i32") }, run: ({ x }) => argmax(x, 1), oracle: over([1], first) },
    {
      name: "mean of f16 sums beyond f16's range",
      inputs: { x: { shape: [2, 64], values: { low: 2000, high: 3000 } } },
      run: ({ x }) => mean(x, 1),
      oracle: over([1], average),
    },
    {
      name: "sum of nothing is 0",
      inputs: { x: { shape: [2, 0, 4] } },
      run: ({ x }) => sum(x, 1),
      oracle: () => ({ shape: [2, 4], data: new Float64Array(8) }),
    },
    {
      name: "sum of many",
      inputs: { x: { shape: [1, 70000] } },
      run: ({ x }) => sum(x),
      oracle: ({ x }) => ({ shape: [], data: Float64Array.of(total([...x.data])) }),
      tolerance: 1e-4,
      f16: false,
    },
  ],
  refusals: [
    {
      name: "sum over an axis that is not there",
      run: (e: Engine): Tensor => sum(e.ones([2, 3]), 2),
      message: /sum: axis 2 is out of range: \[2, 3\]/,
    },
    { name: "sum over an axis twice", run: (e) => sum(e.ones([2, 3]), [1, -1]), message: /sum: axis given twice/ },
    { name: "mean of integers", run: (e) => mean(e.ones([2], "i32")), message: /mean: needs f32 or f16: got i32/ },
    { name: "max of nothing", run: (e) => max(e.ones([2, 0]), 1), message: /max: \[2, 0\] has no values/ },
    { name: "argmax of nothing", run: (e) => argmax(e.ones([2, 0]), 1), message: /argmax: \[2, 0\] has no values/ },
    {
      name: "argmax along an axis that is not there",
      run: (e) => argmax(e.ones([2, 3]), -3),
      message: /argmax: axis -3 is out of range/,
    },
    {
      name: "variance of one value",
      run: (e) => variance(e.ones([2, 1]), 1),
      message: /variance: 1 value along axes \[1\] of \[2, 1\] with correction 1 leave nothing/,
    },
  ],
};
