import { type Activation, linear, matmul, permute, transpose } from "../../engine/index.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const swap = (x: Nd): Nd => {
  const n = x.shape.length;
  return nd.permute(x, [...x.shape.map((_, i) => i).slice(0, -2), n - 1, n - 2]);
};
const act: Record<Activation, (v: number) => number> = {
  none: (v) => v,
  silu: (v) => v / (1 + Math.exp(-v)),
  geluTanh: (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
};

/** a · b for given shapes, with both gradients. */
const plain = (name: string, a: readonly number[], b: readonly number[], more: Partial<Case> = {}): Case => ({
  name: `matmul ${name}`,
  inputs: { a: { shape: a }, b: { shape: b } },
  grads: ["a", "b"],
  run: ({ a, b }) => matmul(a, b),
  oracle: ({ a, b }) => nd.matmul(a, b),
  tolerance: 1e-5,
  ...more,
});

const transposed = (transposeA: boolean, transposeB: boolean): Case => ({
  name: `matmul ${transposeA ? "T" : "N"}${transposeB ? "T" : "N"}`,
  inputs: { a: { shape: transposeA ? [2, 7, 5] : [2, 5, 7] }, b: { shape: transposeB ? [6, 7] : [7, 6] } },
  run: ({ a, b }) => matmul(a, b, { transposeA, transposeB }),
  oracle: ({ a, b }) => nd.matmul(transposeA ? swap(a) : a, transposeB ? swap(b) : b),
  grads: ["a", "b"],
});

const layer = (name: string, x: readonly number[], out: number, activation: Activation, bias: boolean): Case => ({
  name: `linear ${name}`,
  inputs: {
    x: { shape: x },
    w: { shape: [out, x.at(-1)!], values: { low: -1, high: 1 } },
    ...(bias ? { b: { shape: [out] } } : {}),
  },
  run: ({ x, w, b }) => linear(x, w, b, activation),
  oracle: ({ x, w, b }) =>
    nd.map((v, c) => act[activation](v + c), nd.matmul(x, swap(w)), b ?? { shape: [1], data: new Float64Array(1) }),
  grads: bias ? ["x", "w", "b"] : ["x", "w"],
  tolerance: 1e-5,
  gradTolerance: 5e-5,
});

export const test: OpTest = {
  covers: ["matmul"],
  cases: [
    plain("1 x 1 x 1", [1, 1], [1, 1]),
    plain("row times column", [1, 9], [9, 1]),
    plain("column times row", [7, 1], [1, 5]),
    plain("8 x 8 x 8", [8, 8], [8, 8]),
    plain("9 x 13 x 10", [9, 13], [13, 10]),
    plain("long k", [3, 700], [700, 2], { grads: undefined, tolerance: 4e-5, f16: false }),
    plain("63 x 65 x 64", [63, 65], [65, 64], { grads: undefined, tolerance: 2e-5 }),
    plain("65 x 64 x 63", [65, 64], [64, 63], { grads: undefined, tolerance: 2e-5 }),
    plain("batch", [2, 3, 4, 5], [2, 3, 5, 3]),
    plain("batch broadcast in both", [2, 1, 3, 4], [3, 4, 2]),
    plain("batch broadcast, alternating axes", [2, 1, 2, 1, 2, 3], [2, 1, 2, 3, 2]),
    plain("one a for the batch", [3, 4], [2, 4, 5]),
    plain("one b for the batch", [2, 3, 4], [4, 5]),
    plain("no inner values", [3, 0], [0, 4], { grads: undefined }),
    plain("no rows", [0, 3], [3, 4], { grads: undefined }),
    plain("vector · vector", [5], [5], {
      oracle: ({ a, b }) => nd.reshape(nd.matmul(nd.reshape(a, [1, 5]), nd.reshape(b, [5, 1])), []),
    }),
    plain("vector · matrix", [5], [2, 5, 3], {
      oracle: ({ a, b }) => nd.reshape(nd.matmul(nd.reshape(a, [1, 5]), b), [2, 3]),
    }),
    plain("matrix · vector", [2, 3, 5], [5], {
      oracle: ({ a, b }) => nd.reshape(nd.matmul(a, nd.reshape(b, [5, 1])), [2, 3]),
    }),
    transposed(false, true),
    transposed(true, false),
    transposed(true, true),
    plain("of views with swapped axes", [4, 6], [3, 6], {
      run: ({ a, b }) => matmul(transpose(transpose(a, 0, 1), 0, 1), transpose(b, 0, 1)),
      oracle: ({ a, b }) => nd.matmul(a, swap(b)),
    }),
    plain("of permuted heads", [2, 5, 3, 4], [2, 6, 3, 4], {
      run: ({ a, b }) => matmul(permute(a, [0, 2, 1, 3]), permute(b, [0, 2, 3, 1])),
      oracle: ({ a, b }) => nd.matmul(nd.permute(a, [0, 2, 1, 3]), nd.permute(b, [0, 2, 3, 1])),
    }),
    plain("large values", [2, 3], [3, 2], {
      inputs: {
        a: { shape: [2, 3], values: [1e18, -1e18, 3, 1e-20, 2, -5e17] },
        b: { shape: [3, 2], values: [1e18, 2, 1e18, 4, 1, 1] },
      },
      grads: undefined,
      f16: false,
    }),
    plain("NaN and infinity reach their rows only", [3, 2], [2, 2], {
      inputs: {
        a: { shape: [3, 2], values: [Number.NaN, 1, Number.POSITIVE_INFINITY, 1, 2, 3] },
        b: { shape: [2, 2], values: [1, 2, 3, 4] },
      },
      grads: undefined,
    }),
    {
      ...layer("of a vector", [6], 5, "none", true),
      oracle: ({ x, w, b }) => nd.build([5], ([j]) => x.data.reduce((t, v, i) => t + v * w.data[j * 6 + i], b.data[j])),
    },
    layer("without bias", [4, 6], 5, "none", false),
    layer("with three leading axes", [2, 2, 3, 7], 5, "none", true),
    layer("with geluTanh", [5, 6], 9, "geluTanh", true),
    layer("with silu, no bias", [2, 3, 5], 6, "silu", false),
    {
      ...layer("with extreme geluTanh", [2, 2], 2, "geluTanh", true),
      inputs: {
        x: { shape: [2, 2], values: [100, -100, 30, 0] },
        w: { shape: [2, 2], values: [3, 0, 0, 3] },
        b: { shape: [2], values: [0, 0] },
      },
      f16: false,
    },
    {
      ...layer("of a permuted view", [3, 2, 4], 5, "none", true),
      run: ({ x, w, b }) => linear(permute(x, [1, 0, 2]), w, b),
      oracle: ({ x, w, b }) => nd.map((v, c) => v + c, nd.matmul(nd.permute(x, [1, 0, 2]), swap(w)), b),
    },
  ],
  refusals: [
    {
      name: "inner dimensions",
      run: (e) => matmul(e.ones([4, 77, 768]), e.ones([1024, 512])),
      message:
        /matmul: inner dimensions differ: a \[4, 77, 768\] · b \[1024, 512\]; a's last \(768\) must equal b's second to last \(1024\)/,
    },
    {
      name: "inner dimensions, transposed",
      run: (e) => matmul(e.ones([4, 3]), e.ones([4, 5]), { transposeA: true, transposeB: true }),
      message: /a \[4, 3\]ᵀ · b \[4, 5\]ᵀ; a's second to last \(4\) must equal b's last \(5\)/,
    },
    { name: "batch", run: (e) => matmul(e.ones([2, 3, 4]), e.ones([3, 4, 5])), message: /do not broadcast/ },
    { name: "dtypes", run: (e) => matmul(e.ones([2, 2]), e.ones([2, 2], "i32")), message: /dtypes differ: f32 · i32/ },
    { name: "integers", run: (e) => matmul(e.ones([2, 2], "i32"), e.ones([2, 2], "i32")), message: /needs f32 or f16/ },
    {
      name: "bias",
      run: (e) => matmul(e.ones([2, 3]), e.ones([3, 4]), { bias: e.ones([3]) }),
      message: /bias does not fit: \[3\] for 4 columns; it must be \[4\]/,
    },
    {
      name: "a number",
      run: (e) => matmul(e.ones([]), e.ones([3, 4])),
      message: /a is \[\]; it needs at least one axis/,
    },
    {
      name: "a vector to transpose",
      run: (e) => matmul(e.ones([3, 4]), e.ones([4]), { transposeB: true }),
      message: /needs two axes to be transposed/,
    },
    {
      name: "unknown option",
      run: (e) => matmul(e.ones([2, 2]), e.ones([2, 2]), { transpose_a: true } as object),
      message: /did you mean "transposeA"/,
    },
    {
      name: "unknown activation",
      run: (e) => linear(e.ones([2, 2]), e.ones([2, 2]), undefined, "gelutanh" as "geluTanh"),
      message: /linear: unknown activation "gelutanh"; did you mean "geluTanh"/,
    },
    {
      name: "linear sizes",
      run: (e) => linear(e.ones([2, 3]), e.ones([5, 4])),
      message:
        /linear: sizes differ: x \[2, 3\] · weight \[5, 4\]; weight must be \[out, in\] with in = x's last axis \(3\)/,
    },
    {
      name: "linear bias",
      run: (e) => linear(e.ones([2, 3]), e.ones([5, 3]), e.ones([3])),
      message: /linear: bias does not fit: \[3\] for weight \[5, 3\]; it must be \[5\]/,
    },
  ],
};
