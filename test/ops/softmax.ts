import { logSoftmax, maskedSoftmax, permute, softmax, type Tensor } from "../../engine/index.js";
import { launchSoftmax, launchSoftmaxBackward, type SoftmaxVariant } from "../../engine/ops/softmax.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

/** f over each row along axis `dim`. */
function along(x: Nd, dim: number, f: (row: number[]) => number[]): Nd {
  const at = dim < 0 ? dim + x.shape.length : dim;
  const [n, inner] = [x.shape[at], nd.size(x.shape.slice(at + 1))];
  const data = new Float64Array(x.data.length);
  for (let r = 0; r < data.length / n; r++) {
    const first = Math.floor(r / inner) * n * inner + (r % inner);
    const place = (j: number) => first + j * inner;
    f(Array.from({ length: n }, (_, j) => x.data[place(j)])).forEach((v, j) => {
      data[place(j)] = v;
    });
  }
  return { shape: x.shape, data };
}
const share = (row: number[]) => {
  const m = Math.max(...row);
  const total = row.reduce((s, v) => s + Math.exp(v - m), 0);
  return row.map((v) => Math.exp(v - m) / total);
};
const logShare = (row: number[]) => {
  const m = Math.max(...row);
  const total = row.reduce((s, v) => s + Math.exp(v - m), 0);
  return row.map((v) => v - m - Math.log(total));
};
const shareOracle = (x: Nd, dim = -1) => along(x, dim, share);
const logOracle = (x: Nd, dim = -1) => along(x, dim, logShare);
/** A row that is masked as a whole is 0. */
const maskedOracle = (x: Nd, mask: Nd, dim: number, added: boolean) => {
  const scores = nd.map((v, m) => (added ? v + m : m === 0 ? Number.NEGATIVE_INFINITY : v), x, mask);
  return along(scores, dim, (row) =>
    row.every((v) => v === Number.NEGATIVE_INFINITY) ? row.map(() => 0) : share(row),
  );
};

const inf = Number.POSITIVE_INFINITY;

function shapes(): Case[] {
  const list: Case[] = [];
  const sizes: [number[], number][] = [
    [[1], 0],
    [[5], -1],
    [[3, 4], 1],
    [[3, 4], 0],
    [[2, 3, 5], 1],
    [[2, 9], -1],
    [[2, 64], -1],
    [[1, 65], -1],
    [[2, 3, 4, 2], 1],
  ];
  for (const [shape, dim] of sizes)
    list.push(
      {
        name: `softmax [${shape}] along ${dim}`,
        inputs: { x: { shape } },
        run: ({ x }) => softmax(x, dim),
        oracle: ({ x }) => shareOracle(x, dim),
        grads: ["x"],
      },
      {
        name: `logSoftmax [${shape}] along ${dim}`,
        inputs: { x: { shape } },
        run: ({ x }) => logSoftmax(x, dim),
        oracle: ({ x }) => logOracle(x, dim),
        grads: ["x"],
        gradTolerance: 4e-5,
      },
    );
  return list;
}

function variants(): Case[] {
  const list: Case[] = [];
  for (const entry of ["rows", "scalar", "group"] as SoftmaxVariant[])
    for (const n of [4, 63, 64, 300]) {
      if (entry === "rows" && n === 63) continue;
      list.push(
        {
          name: `softmax by ${entry} of ${n}`,
          f16: n === 64,
          inputs: { x: { shape: [70, n], values: { low: -20, high: 20 } } },
          oracle: ({ x }) => shareOracle(x),
          run: ({ x }, engine) => {
            const y = engine.empty(x.shape, x.dtype);
            launchSoftmax(x, y, 1, false, undefined, entry);
            return y;
          },
        },
        {
          name: `softmax under a mask by ${entry} of ${n}`,
          f16: false,
          inputs: { x: { shape: [7, n] }, mask: { shape: [7, n], dtype: "u32", values: { low: 0, high: 2 } } },
          run: ({ x, mask }, engine) => {
            const y = engine.empty(x.shape, x.dtype);
            launchSoftmax(x, y, 1, false, mask, entry);
            return y;
          },
          oracle: ({ x, mask }) => maskedOracle(x, mask, 1, false),
        },
      );
      for (const log of [false, true])
        list.push({
          name: `${log ? "logSoftmax" : "softmax"} backward by ${entry} of ${n}`,
          f16: false,
          tolerance: 1e-5,
          inputs: { y: { shape: [7, n], values: { low: -3, high: 0 } }, dy: { shape: [7, n] } },
          run: ({ y, dy }, engine) => {
            const dx = engine.empty(y.shape);
            launchSoftmaxBackward(y, dy, dx, 1, log, entry);
            return dx;
          },
          oracle: ({ y, dy }) => {
            const total = nd.reduce(log ? dy : nd.map((a, b) => a * b, y, dy), [1], (v) =>
              v.reduce((a, b) => a + b, 0),
            );
            return log
              ? nd.map((v, g, t) => g - Math.exp(v) * t, y, dy, total)
              : nd.map((v, g, t) => v * (g - t), y, dy, total);
          },
        });
    }
  return list;
}

const wide = {
  shape: [4, 4],
  values: [1e4, 1e4, 0, -1e4, 3e38, -3e38, 3e38, 0, 88, 89, 90, 1000, -200, -201, -300, -1e30],
};
const odd = {
  shape: [5, 4],
  values: [1, Number.NaN, 3, 4, inf, 1, 2, 3, -inf, 2, -inf, 2, -inf, -inf, -inf, -inf, -inf, -inf, -inf, 5],
};
const turned = { engine: (t: Tensor) => permute(t, [2, 0, 1]), oracle: (x: Nd) => nd.permute(x, [2, 0, 1]) };

export const test: OpTest = {
  covers: ["softmax", "logSoftmax", "maskedSoftmax"],
  cases: [
    ...shapes(),
    ...variants(),
    {
      name: "softmax of a permuted view",
      inputs: { x: { shape: [3, 4, 2], view: turned } },
      run: ({ x }) => softmax(x),
      oracle: ({ x }) => shareOracle(x),
      grads: ["x"],
    },
    {
      name: "softmax of large numbers",
      f16: false,
      inputs: { x: wide },
      run: ({ x }) => softmax(x),
      oracle: ({ x }) => shareOracle(x),
    },
    {
      name: "softmax of large numbers, backward",
      f16: false,
      inputs: { x: { shape: [2, 4], values: [90, 90, 0, -90, 88, 89, 90, 91] } },
      run: ({ x }) => softmax(x),
      oracle: ({ x }) => shareOracle(x),
      grads: ["x"],
    },
    {
      name: "softmax of large numbers, scalar",
      f16: false,
      inputs: { x: wide },
      run: ({ x }) => softmax(x, 0),
      oracle: ({ x }) => shareOracle(x, 0),
      tolerance: 1e-5,
    },
    {
      name: "logSoftmax of large numbers",
      f16: false,
      inputs: { x: { shape: [2, 4], values: [1e4, 1e4, 0, -1e4, 88, 89, 90, 1000] } },
      run: ({ x }) => logSoftmax(x),
      oracle: ({ x }) => logOracle(x),
    },
    {
      name: "softmax with NaN and infinities",
      f16: false,
      inputs: { x: odd },
      run: ({ x }) => softmax(x),
      oracle: ({ x }) => shareOracle(x),
    },
    {
      name: "softmax with NaN and infinities, scalar",
      f16: false,
      inputs: { x: { ...odd, shape: [5, 4, 1] } },
      run: ({ x }) => softmax(permute(x, [1, 2, 0]), 0),
      oracle: ({ x }) => nd.permute(shareOracle(x, 1), [1, 2, 0]),
    },
    {
      name: "logSoftmax with NaN and infinities",
      f16: false,
      inputs: { x: odd },
      run: ({ x }) => logSoftmax(x),
      oracle: ({ x }) => logOracle(x),
    },
    { name: "softmax of nothing", inputs: { x: { shape: [0, 3] } }, run: ({ x }) => softmax(x), oracle: ({ x }) => x },
    {
      name: "maskedSoftmax, one mask per sample",
      grads: ["x"],
      inputs: {
        x: { shape: [2, 3, 2, 4] },
        mask: { shape: [2, 1, 1, 4], dtype: "i32", values: [1, 0, 2, 0, 0, 0, 0, 0] },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask),
      oracle: ({ x, mask }) => maskedOracle(x, mask, -1, false),
    },
    {
      name: "maskedSoftmax, a triangle, odd rows",
      grads: ["x"],
      inputs: {
        x: { shape: [2, 5, 5] },
        mask: {
          shape: [5, 5],
          dtype: "u32",
          values: Array.from({ length: 25 }, (_, i) => (i % 5 <= Math.floor(i / 5) ? 1 : 0)),
        },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask),
      oracle: ({ x, mask }) => maskedOracle(x, mask, -1, false),
    },
    {
      name: "maskedSoftmax, an added mask with its gradient",
      grads: ["x", "mask"],
      inputs: { x: { shape: [2, 3, 4] }, mask: { shape: [3, 1] } },
      run: ({ x, mask }) => maskedSoftmax(x, mask, 1),
      oracle: ({ x, mask }) => maskedOracle(x, mask, 1, true),
    },
    {
      name: "maskedSoftmax, added infinities",
      inputs: {
        x: { shape: [3, 4] },
        mask: { shape: [3, 4], values: [0, -inf, 0, -inf, -inf, -inf, -inf, -inf, 0, 1, 2, 3] },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask),
      oracle: ({ x, mask }) => maskedOracle(x, mask, -1, true),
      grads: ["x"],
    },
    {
      name: "maskedSoftmax hides a NaN",
      f16: false,
      inputs: {
        x: { shape: [4], values: [1, Number.NaN, 3, 4] },
        mask: { shape: [4], dtype: "u32", values: [1, 0, 1, 1] },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask),
      oracle: () => shareRow([1, -inf, 3, 4]),
    },
    {
      name: "maskedSoftmax, a mask that is a view",
      inputs: {
        x: { shape: [4, 2, 3] },
        mask: { shape: [2, 3, 4], dtype: "u32", values: { low: 0, high: 2 }, view: turned },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask, 1),
      oracle: ({ x, mask }) => maskedOracle(x, mask, 1, false),
      grads: ["x"],
    },
    {
      name: "maskedSoftmax, a mask with six axes",
      inputs: {
        x: { shape: [2, 3, 2, 3, 2, 4] },
        mask: { shape: [2, 1, 2, 1, 2, 4], dtype: "u32", values: { low: 0, high: 2 } },
      },
      run: ({ x, mask }) => maskedSoftmax(x, mask),
      oracle: ({ x, mask }) => maskedOracle(x, mask, -1, false),
    },
  ],
  refusals: [
    {
      name: "softmax along an axis that is not there",
      run: (e) => softmax(e.ones([2, 3]), 2),
      message: /softmax: axis 2 is out of range: \[2, 3\]/,
    },
    {
      name: "softmax of integers",
      run: (e) => softmax(e.ones([2], "i32")),
      message: /softmax: needs f32 or f16: got i32/,
    },
    {
      name: "softmax of a single number",
      run: (e) => softmax(e.ones([])),
      message: /softmax: a single number has no axis/,
    },
    {
      name: "a mask larger than x",
      run: (e) => maskedSoftmax(e.ones([3]), e.ones([2, 3], "u32")),
      message: /maskedSoftmax: the mask \[2, 3\] is larger than x \[3\]/,
    },
    {
      name: "a mask that does not broadcast",
      run: (e) => maskedSoftmax(e.ones([2, 3]), e.ones([2], "u32")),
      message: /maskedSoftmax: shapes do not broadcast/,
    },
  ],
};

function shareRow(row: number[]): Nd {
  return shareOracle({ shape: [row.length], data: Float64Array.from(row) });
}
