import { crossEntropy, type Engine, mse, permute, type Tensor } from "../../engine/index.js";
import type { Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const scalar = (v: number): Nd => ({ shape: [], data: Float64Array.of(v) });
const average = (v: number[]) => v.reduce((a, b) => a + b, 0) / v.length;
const mseOracle = (x: Nd, t: Nd) => scalar(average([...nd.map((a, b) => (a - b) ** 2, x, t).data]));
/** Mean of -ln softmax(x)[label] over rows whose label is not `ignored`. */
function entropyOracle(x: Nd, labels: Nd, ignored?: number): Nd {
  const [n, classes] = x.shape;
  const losses: number[] = [];
  for (let r = 0; r < n; r++) {
    const row = [...x.data.slice(r * classes, (r + 1) * classes)];
    const m = Math.max(...row);
    const label = labels.data[r];
    if (label !== ignored) losses.push(m + Math.log(row.reduce((s, v) => s + Math.exp(v - m), 0)) - row[label]);
  }
  return scalar(average(losses));
}
const labels = (dtype: "i32" | "u32", values: number[]) => ({ shape: [values.length], dtype, values }) as const;

export const test: OpTest = {
  covers: ["mse", "crossEntropy"],
  cases: [
    ...[[1], [7], [3, 5, 4], []].map((shape) => ({
      name: `mse of [${shape}]`,
      inputs: { x: { shape }, t: { shape } },
      grads: ["x", "t"],
      run: ({ x, t }: Record<string, Tensor>) => mse(x, t),
      oracle: ({ x, t }: Record<string, Nd>) => mseOracle(x, t),
    })),
    {
      name: "mse of a view",
      inputs: {
        x: { shape: [3, 4], view: { engine: (t) => permute(t, [1, 0]), oracle: (x) => nd.permute(x, [1, 0]) } },
        t: { shape: [4, 3] },
      },
      run: ({ x, t }) => mse(x, t),
      oracle: ({ x, t }) => mseOracle(x, t),
      grads: ["x", "t"],
    },
    {
      name: "mse with a NaN",
      inputs: { x: { shape: [3], values: [1, Number.NaN, 2] }, t: { shape: [3] } },
      run: ({ x, t }) => mse(x, t),
      oracle: () => scalar(Number.NaN),
    },
    ...[
      [1, 1],
      [2, 4],
      [5, 7],
      [70, 3],
    ].map(([n, classes]) => ({
      name: `crossEntropy [${n}, ${classes}]`,
      inputs: {
        x: { shape: [n, classes] },
        t: { shape: [n], dtype: "i32" as const, values: { low: 0, high: classes } },
      },
      grads: ["x"],
      run: ({ x, t }: Record<string, Tensor>) => crossEntropy(x, t),
      oracle: ({ x, t }: Record<string, Nd>) => entropyOracle(x, t),
    })),
    {
      name: "crossEntropy with u32 labels",
      inputs: { x: { shape: [3, 5] }, t: labels("u32", [4, 0, 2]) },
      run: ({ x, t }) => crossEntropy(x, t),
      oracle: ({ x, t }) => entropyOracle(x, t),
      grads: ["x"],
    },
    {
      name: "crossEntropy leaves rows out",
      inputs: { x: { shape: [4, 3] }, t: labels("i32", [1, -100, 2, -100]) },
      run: ({ x, t }) => crossEntropy(x, t, { ignoreIndex: -100 }),
      oracle: ({ x, t }) => entropyOracle(x, t, -100),
      grads: ["x"],
    },
    {
      name: "crossEntropy leaves a class out",
      inputs: { x: { shape: [4, 3] }, t: labels("u32", [1, 0, 2, 0]) },
      run: ({ x, t }) => crossEntropy(x, t, { ignoreIndex: 0 }),
      oracle: ({ x, t }) => entropyOracle(x, t, 0),
      grads: ["x"],
    },
    {
      name: "crossEntropy of large logits",
      f16: false,
      inputs: { x: { shape: [3, 3], values: [1e4, 0, -1e4, 0, 1e4, 0, -1e4, 1e4, 9998] }, t: labels("i32", [0, 0, 2]) },
      run: ({ x, t }) => crossEntropy(x, t),
      oracle: ({ x, t }) => entropyOracle(x, t),
    },
    {
      name: "crossEntropy of a label outside the classes is NaN",
      inputs: { x: { shape: [2, 3] }, t: labels("i32", [1, 3]) },
      run: ({ x, t }) => crossEntropy(x, t),
      oracle: () => scalar(Number.NaN),
    },
    {
      name: "crossEntropy of a negative label is NaN",
      inputs: { x: { shape: [2, 3] }, t: labels("i32", [1, -1]) },
      run: ({ x, t }) => crossEntropy(x, t),
      oracle: () => scalar(Number.NaN),
    },
    {
      name: "crossEntropy of nothing left is NaN",
      inputs: { x: { shape: [2, 3] }, t: labels("i32", [1, 1]) },
      run: ({ x, t }) => crossEntropy(x, t, { ignoreIndex: 1 }),
      oracle: () => scalar(Number.NaN),
    },
    {
      name: "crossEntropy with a NaN",
      inputs: { x: { shape: [1, 3], values: [1, Number.NaN, 0] }, t: labels("i32", [0]) },
      run: ({ x, t }) => crossEntropy(x, t),
      oracle: () => scalar(Number.NaN),
    },
  ],
  refusals: [
    {
      name: "mse of unequal shapes",
      run: (e: Engine): Tensor => mse(e.ones([2, 3]), e.ones([3])),
      message: /mse: shapes differ: x \[2, 3\] · target \[3\]; they must be equal/,
    },
    { name: "mse of nothing", run: (e) => mse(e.ones([0]), e.ones([0])), message: /mse: \[0\] holds no values/ },
    {
      name: "mse of unequal dtypes",
      run: (e) => mse(e.ones([2]), e.ones([2], "i32")),
      message: /mse: dtypes differ: f32 · i32/,
    },
    {
      name: "float labels",
      run: (e) => crossEntropy(e.ones([2, 3]), e.ones([2])),
      message: /crossEntropy: labels must be i32 or u32: got f32/,
    },
    {
      name: "too few labels",
      run: (e) => crossEntropy(e.ones([2, 3]), e.ones([3], "i32")),
      message: /crossEntropy: needs logits \[N, C\] and labels \[N\]: got \[2, 3\] · \[3\]/,
    },
    {
      name: "an unknown option",
      run: (e) => crossEntropy(e.ones([2, 3]), e.ones([2], "i32"), { ignoreindex: 0 } as object),
      message: /crossEntropy: unknown option "ignoreindex"; did you mean "ignoreIndex"/,
    },
    {
      name: "half an index",
      run: (e) => crossEntropy(e.ones([2, 3]), e.ones([2], "i32"), { ignoreIndex: 0.5 }),
      message: /crossEntropy: ignoreIndex must be a whole number: got 0.5/,
    },
  ],
};
