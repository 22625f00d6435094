import { dropout, Key, normal, permute, randint, randomBits, uniform } from "../../engine/index.js";
import { philox4x32 } from "../../engine/random/philox.js";
import type { Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";

const key = Key.from(2026);

/** Word e of the key's stream. */
const word = (k: Key, e: number): number => philox4x32([Math.floor(e / 4), 0, 0, 0], k.words)[e % 4];

/** An array whose element e, in row-major order, is f(e). */
const each = (shape: readonly number[], f: (e: number) => number): Nd => ({
  shape,
  data: Float64Array.from({ length: nd.size(shape) }, (_, e) => f(e)),
});

/** Box-Muller in float64: elements 2i and 2i + 1 are radius · (cos, sin). */
function gauss(e: number): number {
  const [a, b] = [word(key, e - (e % 2)), word(key, e - (e % 2) + 1)];
  const u = Math.fround((a >>> 8) / 2 ** 24 + ((a & 255) + 1) / 2 ** 32);
  const angle = (2 * Math.PI * (b >>> 8)) / 2 ** 24;
  return Math.sqrt(-2 * Math.log(u)) * (e % 2 ? Math.sin(angle) : Math.cos(angle));
}

const kept = (e: number, p: number): number => (word(key, e) >= p * 2 ** 32 ? 1 / (1 - p) : 0);
const dropped =
  (p: number) =>
  ({ x }: Record<string, Nd>): Nd =>
    each(x.shape, (e) => x.data[e] * kept(e, p));

export const test: OpTest = {
  covers: ["randomBits", "uniform", "normal", "randint", "dropout"],
  cases: [
    ...[[1], [63], [64], [65], [3, 5, 7], [1000], [0, 3]].map((shape) => ({
      name: `randomBits ${shape}`,
      inputs: {},
      run: (_: object, e: Parameters<typeof randomBits>[0]) => randomBits(e, key, shape),
      oracle: () => each(shape, (e) => word(key, e)),
      tolerance: 0,
    })),
    {
      name: "randomBits of another key",
      inputs: {},
      run: (_, e) => randomBits(e, key.fold(7), [9]),
      oracle: () => each([9], (e) => word(key.fold(7), e)),
      tolerance: 0,
    },
    {
      name: "uniform",
      inputs: {},
      run: (_, e) => uniform(e, key, [5, 13]),
      oracle: () => each([5, 13], (e) => (word(key, e) >>> 8) / 2 ** 24),
      tolerance: 0,
    },
    {
      name: "uniform of a range",
      inputs: {},
      run: (_, e) => uniform(e, key, [67], { low: -3, high: 5 }),
      oracle: () => each([67], (e) => -3 + (8 * (word(key, e) >>> 8)) / 2 ** 24),
      tolerance: 3e-7,
    },
    {
      name: "normal",
      inputs: {},
      run: (_, e) => normal(e, key, [33, 31]),
      oracle: () => each([33, 31], gauss),
      tolerance: 6e-7,
    },
    {
      name: "normal of one value",
      inputs: {},
      run: (_, e) => normal(e, key, []),
      oracle: () => each([], gauss),
      tolerance: 6e-7,
    },
    {
      name: "normal with mean and std",
      inputs: {},
      run: (_, e) => normal(e, key, [50], { mean: 2, std: 0.02 }),
      oracle: () => each([50], (e) => 2 + 0.02 * gauss(e)),
      tolerance: 6e-7,
    },
    {
      name: "randint",
      inputs: {},
      run: (_, e) => randint(e, key, [65], -4, 996),
      oracle: () => each([65], (e) => -4 + Math.floor((word(key, e) * 1000) / 2 ** 32)),
      tolerance: 0,
    },
    {
      name: "randint over nearly all",
      inputs: {},
      run: (_, e) => randint(e, key, [64], -(2 ** 31), 2 ** 31 - 1),
      oracle: () => each([64], (e) => -(2 ** 31) + Number((BigInt(word(key, e)) * (2n ** 32n - 1n)) >> 32n)),
      tolerance: 0,
    },
    {
      name: "randint of one number",
      inputs: {},
      run: (_, e) => randint(e, key, [5], 7, 8),
      oracle: () => each([5], () => 7),
      tolerance: 0,
    },
    {
      name: "dropout",
      inputs: { x: { shape: [5, 13] } },
      run: ({ x }) => dropout(x, 0.3, key),
      oracle: dropped(0.3),
      grads: ["x"],
    },
    {
      name: "dropout of nothing",
      inputs: { x: { shape: [7] } },
      run: ({ x }) => dropout(x, 0, key),
      oracle: ({ x }) => x,
      grads: ["x"],
      tolerance: 0,
    },
    {
      name: "dropout of all",
      inputs: { x: { shape: [66], values: [1e30, Number.POSITIVE_INFINITY, 3] } },
      run: ({ x }) => dropout(x, 1, key),
      oracle: ({ x }) => each(x.shape, () => 0),
      tolerance: 0,
      f16: false,
    },
    {
      name: "dropout of a view",
      inputs: {
        x: { shape: [4, 9], view: { engine: (t) => permute(t, [1, 0]), oracle: (v) => nd.permute(v, [1, 0]) } },
      },
      run: ({ x }) => dropout(x, 0.5, key),
      oracle: dropped(0.5),
      grads: ["x"],
    },
    {
      name: "dropout keeps NaN and infinity",
      inputs: { x: { shape: [32], values: [Number.NaN, Number.POSITIVE_INFINITY, 1] } },
      run: ({ x }) => dropout(x, 0.5, key),
      oracle: ({ x }) => each(x.shape, (e) => (kept(e, 0.5) ? x.data[e] * 2 : 0)),
    },
  ],
  refusals: [
    {
      name: "uniform without a key",
      run: (e) => uniform(e, undefined as unknown as Key, [2]),
      message: /uniform: needs a key: got nothing; take engine\.key\(\)/,
    },
    {
      name: "uniform with a wrong option",
      run: (e) => uniform(e, key, [2], { hi: 2 } as object),
      message: /uniform: unknown option "hi"; did you mean "high"\?/,
    },
    {
      name: "uniform upside down",
      run: (e) => uniform(e, key, [2], { low: 2, high: 1 }),
      message: /low must not exceed high: got \[2, 1\)/,
    },
    {
      name: "normal of integers",
      run: (e) => normal(e, key, [2], { dtype: "i32" }),
      message: /normal: draws f32 or f16: got i32/,
    },
    {
      name: "normal of a bad shape",
      run: (e) => normal(e, key, [2.5]),
      message: /normal: sizes must be non-negative integers/,
    },
    {
      name: "normal with a negative std",
      run: (e) => normal(e, key, [2], { std: -1 }),
      message: /std must not be negative: got -1/,
    },
    {
      name: "randint of an empty range",
      run: (e) => randint(e, key, [2], 5, 5),
      message: /randint: \[5, 5\) must hold/,
    },
    {
      name: "randint beyond 32 bits",
      run: (e) => randint(e, key, [2], 0, 2 ** 33),
      message: /high must be a whole number of 32 bits/,
    },
    {
      name: "dropout with p above 1",
      run: (e) => dropout(e.ones([2]), 1.5, key),
      message: /dropout: p must lie in \[0, 1\]: got 1\.5/,
    },
    {
      name: "dropout of integers",
      run: (e) => dropout(e.ones([2], "i32"), 0.5, key),
      message: /dropout: needs f32 or f16: got i32/,
    },
  ],
};
