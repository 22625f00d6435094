import { conv2d, conv3d, permute } from "../../engine/index.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

/** Direct sum over channels and taps; spatial axes are whatever follows the second. */
function convolve(
  x: Nd,
  w: Nd,
  b: Nd | undefined,
  stride: readonly number[],
  pads: readonly (readonly [number, number])[],
): Nd {
  const size = x.shape.slice(2);
  const taps = w.shape.slice(2);
  const out = size.map((n, i) => Math.floor((n + pads[i][0] + pads[i][1] - taps[i]) / stride[i]) + 1);
  return nd.build([x.shape[0], w.shape[0], ...out], ([item, o, ...p]) => {
    let total = b ? b.data[o] : 0;
    nd.build([x.shape[1], ...taps], ([c, ...k]) => {
      const at = p.map((v, i) => v * stride[i] + k[i] - pads[i][0]);
      if (at.every((v, i) => v >= 0 && v < size[i])) total += nd.at(x, [item, c, ...at]) * nd.at(w, [o, c, ...k]);
      return 0;
    });
    return total;
  });
}

interface Setup {
  name: string;
  x: readonly number[];
  w: readonly number[];
  stride?: readonly number[];
  pads?: readonly (readonly [number, number])[];
  bias?: boolean;
}
function conv({ name, x, w, stride, pads, bias = true }: Setup): Case {
  const axes = x.length - 2;
  const s = stride ?? Array<number>(axes).fill(1);
  const p = pads ?? Array<readonly [number, number]>(axes).fill([0, 0]);
  return {
    name: `conv${axes}d ${name}`,
    inputs: { x: { shape: x }, w: { shape: w }, ...(bias ? { b: { shape: [w[0]] } } : {}) },
    run: (t) => (axes === 2 ? conv2d : conv3d)(t.x, t.w, t.b, { stride: s, padding: p }),
    oracle: (t) => convolve(t.x, t.w, t.b, s, p),
    grads: bias ? ["x", "w", "b"] : ["x", "w"],
    tolerance: 1e-5,
    gradTolerance: 5e-5,
  };
}
const even = (n: number, axes = 2) => Array<readonly [number, number]>(axes).fill([n, n]);

export const test: OpTest = {
  covers: ["conv"],
  cases: [
    conv({ name: "of one value", x: [1, 1, 1, 1], w: [1, 1, 1, 1] }),
    conv({ name: "3 x 3", x: [2, 3, 5, 4], w: [4, 3, 3, 3], pads: even(1) }),
    conv({ name: "3 x 3 without padding or bias", x: [1, 2, 5, 6], w: [3, 2, 3, 3], bias: false }),
    conv({ name: "3 x 3, stride 2", x: [1, 2, 6, 5], w: [3, 2, 3, 3], stride: [2, 2], pads: even(1) }),
    conv({
      name: "3 x 3, stride 2, padded right and below",
      x: [1, 2, 4, 6],
      w: [2, 2, 3, 3],
      stride: [2, 2],
      pads: [
        [0, 1],
        [0, 1],
      ],
    }),
    conv({ name: "1 x 1", x: [2, 5, 3, 4], w: [6, 5, 1, 1] }),
    conv({ name: "1 x 1, stride 2", x: [1, 2, 5, 4], w: [3, 2, 1, 1], stride: [2, 2] }),
    conv({
      name: "2 x 3, uneven strides and padding",
      x: [1, 2, 5, 7],
      w: [2, 2, 2, 3],
      stride: [1, 3],
      pads: [
        [2, 0],
        [0, 1],
      ],
    }),
    conv({ name: "patches", x: [2, 2, 4, 6], w: [5, 2, 2, 2], stride: [2, 2] }),
    conv({ name: "that leaves a rest", x: [1, 1, 5, 7], w: [2, 1, 2, 3], stride: [2, 3] }),
    conv({ name: "patches", x: [2, 2, 3, 4, 4], w: [3, 2, 1, 2, 2], stride: [1, 2, 2] }),
    conv({ name: "3 x 3 x 3", x: [1, 2, 3, 4, 3], w: [2, 2, 3, 3, 3], pads: even(1, 3) }),
    {
      ...conv({ name: "one number for all axes", x: [1, 2, 5, 5], w: [2, 2, 3, 3], stride: [2, 2], pads: even(1) }),
      run: ({ x, w, b }) => conv2d(x, w, b, { stride: 2, padding: 1 }),
    },
    {
      ...conv({ name: "of a permuted view", x: [1, 4, 3, 2], w: [2, 2, 2, 2] }),
      run: ({ x, w, b }) => conv2d(permute(x, [0, 3, 1, 2]), w, b),
      oracle: ({ x, w, b }) => convolve(nd.permute(x, [0, 3, 1, 2]), w, b, [1, 1], even(0)),
    },
    {
      ...conv({ name: "with a NaN, seen where a tap reaches it", x: [1, 1, 1, 6], w: [1, 1, 1, 2] }),
      inputs: {
        x: { shape: [1, 1, 1, 6], values: [1, 2, Number.NaN, 4, 5, 6] },
        w: { shape: [1, 1, 1, 2] },
        b: { shape: [1] },
      },
      grads: undefined,
    },
  ],
  refusals: [
    {
      name: "conv2d channels",
      run: (e) => conv2d(e.ones([1, 3, 4, 4]), e.ones([2, 4, 3, 3])),
      message: /conv2d: channels differ: x \[1, 3, 4, 4\] has 3, weight \[2, 4, 3, 3\] takes 4/,
    },
    {
      name: "conv2d rank",
      run: (e) => conv2d(e.ones([3, 4, 4]), e.ones([2, 3, 3, 3])),
      message: /conv2d: x is \[3, 4, 4\]; it needs 4 axes/,
    },
    {
      name: "conv2d kernel",
      run: (e) => conv2d(e.ones([1, 1, 2, 4]), e.ones([1, 1, 3, 3])),
      message: /kernel \[3, 3\] is larger than the padded input/,
    },
    {
      name: "conv2d bias",
      run: (e) => conv2d(e.ones([1, 1, 4, 4]), e.ones([2, 1, 3, 3]), e.ones([1])),
      message: /bias does not fit: \[1\] .* must be \[2\]/,
    },
    {
      name: "conv2d stride",
      run: (e) => conv2d(e.ones([1, 1, 4, 4]), e.ones([2, 1, 3, 3]), undefined, { stride: 0 }),
      message: /stride must be a whole number from 1, or 2 of them: got 0/,
    },
    {
      name: "conv2d padding",
      run: (e) => conv2d(e.ones([1, 1, 4, 4]), e.ones([2, 1, 3, 3]), undefined, { padding: [1, 1, 1] }),
      message: /padding must be .* 2 axes: got \[1,1,1\]/,
    },
    {
      name: "conv3d weight",
      run: (e) => conv3d(e.ones([1, 1, 2, 4, 4]), e.ones([2, 1, 3, 3])),
      message: /conv3d: weight is \[2, 1, 3, 3\]; it needs 5 axes/,
    },
    {
      name: "conv2d option",
      run: (e) => conv2d(e.ones([1, 1, 4, 4]), e.ones([2, 1, 3, 3]), undefined, { pading: 1 } as object),
      message: /did you mean "padding"/,
    },
  ],
};
