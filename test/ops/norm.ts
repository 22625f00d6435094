import { type Engine, groupNorm, layerNorm, permute, rmsNorm, type Tensor } from "../../engine/index.js";
import { type NormWay, norms } from "../../engine/ops/norm.js";
import type { Case, Input, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const mean = (v: number[]) => v.reduce((a, b) => a + b, 0) / v.length;
/** (x - mean) / √(variance + eps) over the given axes; without the mean for rmsNorm. */
function normalized(x: Nd, dims: readonly number[], eps: number, center = true): Nd {
  const m = center ? nd.reduce(x, dims, mean) : { shape: x.shape.map(() => 1), data: new Float64Array(1) };
  const variance = nd.reduce(
    nd.map((v, a) => (v - a) ** 2, x, m),
    dims,
    mean,
  );
  return nd.map((v, a, s) => (v - a) / Math.sqrt(s + eps), x, m, variance);
}
const affine = (x: Nd, weight?: Nd, bias?: Nd) =>
  nd.map(
    (v, w, b) => v * w + b,
    x,
    weight ?? { shape: [], data: Float64Array.of(1) },
    bias ?? { shape: [], data: Float64Array.of(0) },
  );
const overLast = (x: Nd, eps: number, weight?: Nd, bias?: Nd, center = true) =>
  affine(normalized(x, [x.shape.length - 1], eps, center), weight, bias);
function overGroups(x: Nd, groups: number, eps: number, weight?: Nd, bias?: Nd): Nd {
  const rows = nd.reshape(x, [x.shape[0] * groups, x.data.length / (x.shape[0] * groups)]);
  const y = nd.reshape(normalized(rows, [1], eps), x.shape);
  const perChannel = (t?: Nd) => t && nd.reshape(t, [x.shape[1], ...x.shape.slice(2).map(() => 1)]);
  return affine(y, perChannel(weight), perChannel(bias));
}

const channels = (n: number): Record<string, Input> => ({
  weight: { shape: [n], values: { low: 0.5, high: 1.5 } },
  bias: { shape: [n] },
});

function shapes(): Case[] {
  const list: Case[] = [];
  for (const shape of [[1], [4], [3, 5], [2, 3, 8], [2, 1, 64], [1, 65]]) {
    const n = shape.at(-1)!;
    const at = `[${shape}]`;
    list.push(
      {
        name: `layerNorm ${at}`,
        inputs: { x: { shape } },
        run: ({ x }) => layerNorm(x, { eps: 1e-3 }),
        oracle: ({ x }) => overLast(x, 1e-3),
        grads: ["x"],
        gradTolerance: 5e-5,
        f16: n === 8,
      },
      {
        name: `layerNorm ${at} with weight and bias`,
        inputs: { x: { shape }, ...channels(n) },
        grads: ["x", "weight", "bias"],
        gradTolerance: 5e-5,
        f16: n === 8,
        run: ({ x, weight, bias }) => layerNorm(x, { weight, bias }),
        oracle: ({ x, weight, bias }) => overLast(x, 1e-5, weight, bias),
      },
      {
        name: `rmsNorm ${at}`,
        inputs: { x: { shape }, weight: { shape: [n] } },
        grads: ["x", "weight"],
        gradTolerance: 5e-5,
        f16: n === 8,
        run: ({ x, weight }) => rmsNorm(x, { weight, eps: 1e-6 }),
        oracle: ({ x, weight }) => overLast(x, 1e-6, weight, undefined, false),
      },
    );
  }
  const grouped: [number[], number][] = [
    [[2, 4], 2],
    [[2, 6, 3], 3],
    [[1, 4, 2, 2], 1],
    [[2, 4, 4], 4],
    [[2, 8, 2, 4], 2],
    [[2, 3, 5, 1], 3],
  ];
  for (const [shape, groups] of grouped)
    list.push({
      name: `groupNorm [${shape}] in ${groups}`,
      inputs: { x: { shape }, ...channels(shape[1]) },
      grads: ["x", "weight", "bias"],
      gradTolerance: 5e-5,
      f16: groups === 2,
      run: ({ x, weight, bias }) => groupNorm(x, groups, { weight, bias, eps: 1e-3 }),
      oracle: ({ x, weight, bias }) => overGroups(x, groups, 1e-3, weight, bias),
    });
  return list;
}

/** More rows than a subgroup takes in turn, and a last share of them. */
const manyRows: Case = {
  name: "layerNorm of many rows",
  inputs: { x: { shape: [21, 256] }, ...channels(256) },
  grads: ["x", "weight", "bias"],
  gradTolerance: 5e-5,
  run: ({ x, weight, bias }) => layerNorm(x, { weight, bias }),
  oracle: ({ x, weight, bias }) => overLast(x, 1e-5, weight, bias),
};

/** Every way gives the same, forward and backward. */
function ways(): Case[] {
  const list: Case[] = [manyRows];
  const all: NormWay[] = [
    { variant: "rows", split: 1 },
    { variant: "group", split: 1 },
    { variant: "shares", split: 1 },
    { variant: "shares", split: 3 },
  ];
  const grads = ["x", "weight", "bias"];
  for (const way of all) {
    const label = `${way.variant}${way.split > 1 ? ` of ${way.split}` : ""}`;
    list.push(
      {
        name: `layerNorm by ${label}`,
        inputs: { x: { shape: [3, 12] }, ...channels(12) },
        grads,
        gradTolerance: 5e-5,
        f16: false,
        run: ({ x, weight, bias }) => norms.layerNorm({ x, weight, bias }, { eps: 1e-5, groups: 1, way })[0],
        oracle: ({ x, weight, bias }) => overLast(x, 1e-5, weight, bias),
      },
      {
        name: `rmsNorm by ${label}`,
        inputs: { x: { shape: [2, 8] } },
        grads: ["x"],
        gradTolerance: 5e-5,
        f16: false,
        run: ({ x }) => norms.rmsNorm({ x }, { eps: 1e-5, groups: 1, way })[0],
        oracle: ({ x }) => overLast(x, 1e-5, undefined, undefined, false),
      },
      {
        name: `groupNorm by ${label}`,
        inputs: { x: { shape: [2, 4, 2, 3] }, ...channels(4) },
        grads,
        gradTolerance: 5e-5,
        f16: false,
        run: ({ x, weight, bias }) => norms.groupNorm({ x, weight, bias }, { eps: 1e-5, groups: 2, way })[0],
        oracle: ({ x, weight, bias }) => overGroups(x, 2, 1e-5, weight, bias),
      },
      {
        name: `layerNorm of long rows by ${label}`,
        inputs: { x: { shape: [5, 260], values: { low: 3, high: 5 } } },
        tolerance: 1e-5,
        f16: false,
        run: ({ x }) => norms.layerNorm({ x }, { eps: 1e-5, groups: 1, way })[0],
        oracle: ({ x }) => overLast(x, 1e-5),
      },
    );
    if (way.variant !== "rows")
      list.push({
        name: `layerNorm of odd rows by ${label}`,
        inputs: { x: { shape: [2, 67] }, ...channels(67) },
        tolerance: 1e-5,
        f16: false,
        run: ({ x, weight, bias }) => norms.layerNorm({ x, weight, bias }, { eps: 1e-5, groups: 1, way })[0],
        oracle: ({ x, weight, bias }) => overLast(x, 1e-5, weight, bias),
      });
  }
  return list;
}

const { NaN: nan, POSITIVE_INFINITY: inf } = Number;

export const test: OpTest = {
  covers: ["layerNorm", "rmsNorm", "groupNorm"],
  cases: [
    ...shapes(),
    ...ways(),
    {
      name: "layerNorm with a weight only",
      inputs: { x: { shape: [3, 8] }, ...channels(8) },
      run: ({ x, weight }) => layerNorm(x, { weight }),
      oracle: ({ x, weight }) => overLast(x, 1e-5, weight),
      grads: ["x", "weight"],
      gradTolerance: 5e-5,
      f16: false,
    },
    {
      name: "layerNorm with a bias only",
      inputs: { x: { shape: [3, 8] }, ...channels(8) },
      run: ({ x, bias }) => layerNorm(x, { bias }),
      oracle: ({ x, bias }) => overLast(x, 1e-5, undefined, bias),
      grads: ["x", "bias"],
      gradTolerance: 5e-5,
      f16: false,
    },
    {
      name: "gradients of weight and bias alone",
      inputs: { x: { shape: [70, 8] }, ...channels(8) },
      run: ({ x, weight, bias }) => layerNorm(x, { weight, bias }),
      oracle: ({ x, weight, bias }) => overLast(x, 1e-5, weight, bias),
      grads: ["weight", "bias"],
      gradTolerance: 5e-5,
      f16: false,
    },
    {
      name: "layerNorm far from zero",
      inputs: { x: { shape: [4, 64], values: { low: 1000, high: 1001 } } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
      tolerance: 2e-4,
      f16: false,
    },
    {
      name: "layerNorm with an outlier first",
      inputs: { x: { shape: [2, 64], values: [3000, ...Array.from({ length: 63 }, (_, i) => Math.sin(i))] } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
      tolerance: 2e-5,
      f16: false,
    },
    {
      name: "layerNorm of equal values",
      inputs: { x: { shape: [2, 8], values: [7] } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
    },
    {
      name: "layerNorm with NaN and infinities",
      inputs: { x: { shape: [3, 4], values: [1, nan, 2, 3, 1, inf, 2, 3, 1, 2, 3, 4] } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
      f16: false,
    },
    {
      name: "layerNorm with NaN and infinities, odd rows",
      inputs: { x: { shape: [3, 3], values: [1, nan, 2, 1, inf, 2, 1, 2, 3] } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
      f16: false,
    },
    {
      name: "layerNorm of a permuted view",
      grads: ["x"],
      gradTolerance: 5e-5,
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => overLast(x, 1e-5),
      f16: false,
      inputs: {
        x: {
          shape: [4, 2, 3],
          view: { engine: (t: Tensor) => permute(t, [2, 1, 0]), oracle: (x) => nd.permute(x, [2, 1, 0]) },
        },
      },
    },
    {
      name: "layerNorm of nothing",
      inputs: { x: { shape: [0, 4] } },
      run: ({ x }) => layerNorm(x),
      oracle: ({ x }) => x,
    },
  ],
  refusals: [
    {
      name: "a weight of the wrong size",
      run: (e: Engine): Tensor => layerNorm(e.ones([2, 3]), { weight: e.ones([2]) }),
      message: /layerNorm: the weight must be \[3\] for x \[2, 3\]: got \[2\]/,
    },
    {
      name: "an unknown option",
      run: (e) => layerNorm(e.ones([2, 3]), { epsilon: 1 } as object),
      message: /layerNorm: unknown option "epsilon"/,
    },
    {
      name: "a bias for rmsNorm",
      run: (e) => rmsNorm(e.ones([2, 3]), { bias: e.ones([3]) } as object),
      message: /rmsNorm: unknown option "bias"/,
    },
    {
      name: "a negative eps",
      run: (e) => layerNorm(e.ones([2, 3]), { eps: -1 }),
      message: /layerNorm: eps must not be negative: got -1/,
    },
    {
      name: "layerNorm of integers",
      run: (e) => layerNorm(e.ones([2, 3], "i32")),
      message: /layerNorm: needs f32 or f16: got i32/,
    },
    {
      name: "layerNorm of a single number",
      run: (e) => layerNorm(e.ones([])),
      message: /layerNorm: a single number has no axis/,
    },
    {
      name: "groups that do not divide",
      run: (e) => groupNorm(e.ones([2, 6, 3]), 4),
      message: /groupNorm: 4 groups do not divide the channels of \[2, 6, 3\]/,
    },
  ],
};
