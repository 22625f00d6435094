import { dequantizeWeight, linearQuantized, permute, quantizeWeight } from "../../engine/index.js";
import type { Case, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

type Bits = 8 | 4;
const padded = (inputs: number) => Math.ceil(inputs / 32) * 32;

/** Code k of row j of words [out, words]: two's complement, the first value in a word's lowest bits. */
function code(words: Nd, j: number, k: number, bits: Bits): number {
  const per = 32 / bits;
  const word = nd.at(words, [j, Math.floor(k / per)]);
  const raw = Math.floor(word / 2 ** (bits * (k % per))) % 2 ** bits;
  return raw >= 2 ** (bits - 1) ? raw - 2 ** bits : raw;
}

const transposed = new WeakMap<Float64Array, Nd>();
/** The weight that codes and scales stand for, [inputs, out]. Differences of the gradient check ask for it often. */
function weightOf(codes: Nd, scale: Nd, inputs: number, bits: Bits, group: number): Nd {
  let w = transposed.get(codes.data);
  if (!w) {
    w = nd.build(
      [inputs, codes.shape[0]],
      ([k, j]) => code(codes, j, k, bits) * nd.at(scale, [j, Math.floor(k / (group || padded(inputs)))]),
    );
    transposed.set(codes.data, w);
  }
  return w;
}

const act = {
  none: (v: number) => v,
  silu: (v: number) => v / (1 + Math.exp(-v)),
  geluTanh: (v: number) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
};

interface Layer {
  bits: Bits;
  group?: number;
  x: readonly number[];
  out: number;
  bias?: boolean;
  activation?: keyof typeof act;
  plan?: "naive" | "columns" | "shared" | "bands";
}

/** A layer on random codes: all 2^bits of them occur. */
function layer(name: string, { bits, group = 0, x, out, bias = false, activation = "none", plan }: Layer): Case {
  const inputs = x.at(-1)!;
  const groups = group ? Math.ceil(inputs / group) : 1;
  const top = 2 ** (bits - 1);
  return {
    name: `linearQuantized ${name}, ${bits} bits${plan ? `, ${plan}` : ""}`,
    inputs: {
      x: { shape: x },
      codes: { shape: [out, (padded(inputs) * bits) / 32], dtype: "u32", values: { low: 0, high: 2 ** 32 } },
      scale: { shape: [out, groups], values: { low: -1 / top, high: 1 / top } },
      ...(bias ? { b: { shape: [out] } } : {}),
    },
    run: ({ x, codes, scale, b }) => linearQuantized(x, codes, scale, { bits, group, bias: b, activation, plan }),
    oracle: ({ x, codes, scale, b }) => {
      const w = weightOf(codes, scale, inputs, bits, group);
      const rows = x.shape.length > 1 ? x : nd.reshape(x, [1, inputs]);
      const y = nd.map((v, c) => act[activation](v + c), nd.matmul(rows, w), b ?? nd.build([1], () => 0));
      return x.shape.length > 1 ? y : nd.reshape(y, [out]);
    },
    // Backward is one for all plans.
    grads: plan && plan !== "bands" ? undefined : bias ? ["x", "b"] : ["x"],
    tolerance: 2e-5,
    gradTolerance: 5e-5,
    // Every kernel of a type is compiled anew; the two plans of software adapters stand for all.
    f16: plan !== "naive" && plan !== "shared",
  };
}

/** Rounding of one group as the contract states it, in float64. */
function rounded(values: number[], bits: Bits): number[] {
  const extreme = values.reduce((a, v) => (Math.abs(v) > Math.abs(a) ? v : a), 0);
  if (extreme === 0) return values;
  const [low, high] = bits === 8 ? [-127, 127] : [-8, 7];
  const scales = bits === 8 ? [Math.abs(extreme) / 127] : Array.from({ length: 9 }, (_, c) => extreme / (-7 - 0.2 * c));
  const by = scales.map((s) => values.map((v) => s * Math.min(high, Math.max(low, Math.round(v / s)))));
  const error = (list: number[]) => list.reduce((e, v, i) => e + (v - values[i]) ** 2, 0);
  return by.reduce((a, b) => (error(b) < error(a) ? b : a));
}

const rounding = (bits: Bits, group: number, shape: readonly [number, number]): Case => ({
  name: `quantizeWeight ${shape}, ${bits} bits in groups of ${group}`,
  inputs: { w: { shape, values: { low: -3, high: 3 } } },
  run: ({ w }) => dequantizeWeight(quantizeWeight(w, { bits, group }), shape[1], { bits, group }),
  oracle: ({ w }) => {
    const [n, k] = shape;
    const data = new Float64Array(n * k);
    for (let j = 0; j < n; j++)
      for (let from = 0; from < k; from += group || k) {
        const part = Array.from(w.data.subarray(j * k + from, j * k + Math.min(k, from + (group || k))));
        data.set(rounded(part, bits), j * k + from);
      }
    return { shape, data };
  },
  f16: false,
});

export const test: OpTest = {
  covers: ["linearQuantized"],
  cases: [
    ...([8, 4] as const).flatMap((bits) => [
      ...(["naive", "columns", "shared", "bands"] as const).flatMap((plan) => [
        layer("one row", { bits, x: [1, 64], out: 9, plan }),
        layer("groups", { bits, group: 32, x: [2, 96], out: 10, bias: true, plan }),
        layer("inputs that do not divide by 4", { bits, group: 64, x: [plan === "shared" ? 2 : 9, 77], out: 3, plan }),
      ]),
      layer("with silu", { bits, x: [2, 36], out: 5, bias: true, activation: "silu", plan: "columns" }),
      layer("three leading axes", { bits, group: 32, x: [2, 1, 2, 40], out: 3, bias: true }),
      layer("with geluTanh", { bits, x: [3, 36], out: 4, activation: "geluTanh", plan: "bands" }),
      layer("a vector", { bits, group: 32, x: [70], out: 4, bias: true }),
      layer("one input", { bits, x: [2, 1], out: 3 }),
      rounding(bits, 0, [5, 37]),
      rounding(bits, 32, [3, 100]),
    ]),
    {
      ...layer("a permuted view", { bits: 4, group: 32, x: [2, 3, 32], out: 4 }),
      run: ({ x, codes, scale }) => linearQuantized(permute(x, [1, 0, 2]), codes, scale, { bits: 4, group: 32 }),
      oracle: ({ x, codes, scale }) => nd.matmul(nd.permute(x, [1, 0, 2]), weightOf(codes, scale, 32, 4, 32)),
    },
  ],
  refusals: [
    {
      name: "bits",
      run: (e) => linearQuantized(e.ones([1, 32]), e.ones([2, 8], "u32"), e.ones([2, 1]), { bits: 2 as 4, group: 0 }),
      message: /linearQuantized: bits must be 8 or 4: got 2/,
    },
    {
      name: "group",
      run: (e) => quantizeWeight(e.ones([2, 64]), { bits: 8, group: 48 }),
      message: /quantizeWeight: group must be a multiple of 32, or 0 for one scale for each output: got 48/,
    },
    {
      name: "words",
      run: (e) => linearQuantized(e.ones([1, 64]), e.ones([2, 8], "u32"), e.ones([2, 1]), { bits: 8, group: 0 }),
      message: /codes \[2, 8\] and scale \[2, 1\] do not fit x \[1, 64\]: 8 bits .* need \[2, 16\] and \[2, 1\]/,
    },
    {
      name: "groups",
      run: (e) => linearQuantized(e.ones([1, 64]), e.ones([2, 8], "u32"), e.ones([2, 1]), { bits: 4, group: 32 }),
      message: /4 bits in groups of 32 need \[2, 8\] and \[2, 2\]/,
    },
    {
      name: "codes that are floats",
      run: (e) => linearQuantized(e.ones([1, 32]), e.ones([2, 8]), e.ones([2, 1]), { bits: 8, group: 0 }),
      message: /codes must be u32: got f32/,
    },
    {
      name: "bias",
      run: (e) =>
        linearQuantized(e.ones([1, 32]), e.ones([2, 8], "u32"), e.ones([2, 1]), {
          bits: 8,
          group: 0,
          bias: e.ones([3]),
        }),
      message: /bias does not fit: \[3\] for 2 outputs; it must be \[2\]/,
    },
    {
      name: "a weight of three axes",
      run: (e) => quantizeWeight(e.ones([2, 2, 32]), { bits: 8, group: 0 }),
      message: /quantizeWeight: the weight must be \[out, in\]: got \[2, 2, 32\]/,
    },
    {
      name: "dequantize with other inputs",
      run: (e) => dequantizeWeight(quantizeWeight(e.ones([2, 32]), { bits: 8, group: 0 }), 64, { bits: 8, group: 0 }),
      message: /codes \[2, 8\] and scale \[2, 1\] are not those of 64 inputs: they must be \[2, 16\] and \[2, 1\]/,
    },
    {
      name: "unknown option",
      run: (e) =>
        linearQuantized(e.ones([1, 32]), e.ones([2, 8], "u32"), e.ones([2, 1]), {
          bits: 8,
          group: 0,
          groups: 32,
        } as never),
      message: /did you mean "group"/,
    },
  ],
};
