import {
  type AttentionOptions,
  chunk,
  expand,
  permute,
  reshape,
  scaledDotProductAttention,
  slice,
  type Tensor,
} from "../../engine/index.js";
import { attentionVariants, attentionVariantsOf } from "../../engine/ops/attend.js";
import type { Case, Input, Nd, OpTest } from "./case.js";
import * as nd from "./nd.js";
import { cut } from "./slice.js";

/** Attention by its definition. `keep` hides keys where it is 0, `bias` is added to the scores; both broadcast. */
export function attention(q: Nd, k: Nd, v: Nd, o: { keep?: Nd; bias?: Nd; causal?: boolean; scale?: number } = {}): Nd {
  const [h, n, d] = q.shape.slice(-3);
  const [shared, l] = k.shape.slice(-3);
  const e = v.shape.at(-1)!;
  const rank = Math.max(q.shape.length, k.shape.length, v.shape.length) - 3;
  const lead = Array.from({ length: rank }, (_, i) =>
    Math.max(...[q, k, v].map((t) => t.shape[i - rank + t.shape.length - 3] ?? 1)),
  );
  const scale = o.scale ?? d ** -0.5;
  const weights = nd.build([...lead, h, n, l], (index) => {
    const [head, i, j] = index.slice(-3);
    const outer = index.slice(0, -3);
    const kv = Math.floor(head / (h / shared));
    if ((o.keep && nd.at(o.keep, index) === 0) || (o.causal && j > i)) return Number.NEGATIVE_INFINITY;
    let s = 0;
    for (let c = 0; c < d; c++) s += nd.at(q, [...outer, head, i, c]) * nd.at(k, [...outer, kv, j, c]);
    return s * scale + (o.bias ? nd.at(o.bias, index) : 0);
  });
  for (let row = 0; row < weights.data.length; row += l) {
    const part = weights.data.subarray(row, row + l);
    const high = part.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const exps = part.map((s) => (s === Number.NEGATIVE_INFINITY ? 0 : Math.exp(s - high)));
    const total = exps.reduce((a, b) => a + b, 0);
    for (let j = 0; j < l; j++) part[j] = total === 0 ? 0 : exps[j] / total;
  }
  return nd.build([...lead, h, n, e], (index) => {
    const [head, i, c] = index.slice(-3);
    const outer = index.slice(0, -3);
    let y = 0;
    for (let j = 0; j < l; j++)
      y += nd.at(weights, [...outer, head, i, j]) * nd.at(v, [...outer, Math.floor(head / (h / shared)), j, c]);
    return y;
  });
}

interface Setup {
  name: string;
  q: readonly number[];
  k: readonly number[];
  v?: readonly number[];
  /** Hides keys. */
  keep?: Input;
  /** Is added to the scores. */
  bias?: Input;
  options?: AttentionOptions;
}

/** A case on q, k and v of the given shapes, with all gradients. */
const make = ({ name, q, k, v = k, keep, bias, options = {} }: Setup): Case => ({
  name,
  inputs: {
    q: { shape: q },
    k: { shape: k },
    v: { shape: v },
    ...(keep && { keep: { dtype: "u32", ...keep } }),
    ...(bias && { bias }),
  },
  grads: ["q", "k", "v", ...(bias ? ["bias"] : [])],
  run: (t, engine) => {
    // An adapter without the subgroups of a variant runs its own choice.
    const variant = attentionVariantsOf(engine).find((v) => v === options.variant);
    return scaledDotProductAttention(t.q, t.k, t.v, { ...options, variant, mask: t.keep ?? t.bias });
  },
  oracle: (x) => attention(x.q, x.k, x.v, { ...options, keep: x.keep, bias: x.bias }),
});

const keep = (shape: readonly number[], values: readonly number[]): Input => ({ shape, dtype: "u32", values });

/** The same cases for each set of kernels. */
const setups: Setup[] = [
  { name: "plain", q: [2, 2, 5, 4], k: [2, 2, 7, 4] },
  { name: "one of everything", q: [1, 1, 1, 4], k: [1, 1, 1, 4] },
  { name: "one query, many keys", q: [1, 2, 1, 4], k: [1, 2, 17, 4] },
  { name: "columns of q and v differ", q: [1, 1, 9, 4], k: [1, 1, 6, 4], v: [1, 1, 6, 8] },
  { name: "causal", q: [1, 2, 10, 4], k: [1, 2, 10, 4], options: { causal: true } },
  { name: "causal with more keys than rows", q: [1, 1, 3, 4], k: [1, 1, 9, 4], options: { causal: true, scale: 0.3 } },
  {
    name: "hidden keys, and rows without any",
    q: [2, 2, 3, 4],
    k: [2, 2, 6, 4],
    keep: keep([2, 1, 1, 6], [1, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
  },
  { name: "added mask", q: [2, 2, 3, 4], k: [2, 2, 5, 4], bias: { shape: [1, 2, 3, 5] } },
  {
    name: "added mask of lower rank, causal",
    q: [2, 1, 4, 4],
    k: [2, 1, 4, 4],
    bias: { shape: [4, 4] },
    options: { causal: true },
  },
  { name: "heads that share keys", q: [1, 4, 9, 4], k: [1, 2, 3, 4] },
  {
    name: "all heads share keys, hidden by head",
    q: [2, 3, 2, 4],
    k: [2, 1, 4, 4],
    keep: keep([1, 3, 1, 4], [1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0]),
  },
  { name: "leading axes broadcast", q: [2, 1, 1, 2, 4], k: [1, 3, 1, 2, 4], v: [3, 1, 2, 4] },
];

const variants: Case[] = attentionVariants.flatMap((variant) =>
  // Other columns of v are another set of kernels, which tiles take long to compile on software adapters.
  setups
    .filter((s) => variant !== "tiles" || !s.v || s.v.at(-1) === 4)
    .map((s) => ({
      ...make({ ...s, name: `attention, ${variant}: ${s.name}`, options: { ...s.options, variant } }),
      // Each pair of a variant and a dtype compiles kernels of its own; one case shows that half storage works.
      f16: s.name === "plain",
    })),
);

/** qkv [B, T, S, 3, H, D] to heads [B, T, H, S, D], as a transformer cuts its projection. */
const cutQkv: Case = {
  name: "attention of slices of one qkv tensor, back in its order",
  inputs: { qkv: { shape: [2, 2, 3, 3, 2, 4] } },
  grads: ["qkv"],
  run: ({ qkv }) => {
    const [q, k, v] = chunk(qkv, 3, 3).map((t) => permute(reshape(t, [2, 2, 3, 2, 4]), [0, 1, 3, 2, 4]));
    return reshape(permute(scaledDotProductAttention(q, k, v), [0, 1, 3, 2, 4]), [2, 2, 3, 8]);
  },
  oracle: ({ qkv }) => {
    const [q, k, v] = [0, 1, 2].map((i) => nd.permute(nd.reshape(cut(qkv, 3, i, 1), [2, 2, 3, 2, 4]), [0, 1, 3, 2, 4]));
    return nd.reshape(nd.permute(attention(q, k, v), [0, 1, 3, 2, 4]), [2, 2, 3, 8]);
  },
};

const swap = (t: Tensor): Tensor => permute(t, [0, 1, 3, 2]);

const others: Case[] = [
  cutQkv,
  {
    name: "attention over time: qkv [B, T, S, 3, H, D] to [B, S, H, T, D]",
    inputs: { qkv: { shape: [1, 3, 2, 3, 2, 4] } },
    grads: ["qkv"],
    run: ({ qkv }) => {
      const [q, k, v] = chunk(qkv, 3, 3).map((t) => permute(reshape(t, [1, 3, 2, 2, 4]), [0, 2, 3, 1, 4]));
      return permute(scaledDotProductAttention(q, k, v), [0, 3, 1, 2, 4]);
    },
    oracle: ({ qkv }) => {
      const [q, k, v] = [0, 1, 2].map((i) =>
        nd.permute(nd.reshape(cut(qkv, 3, i, 1), [1, 3, 2, 2, 4]), [0, 2, 3, 1, 4]),
      );
      return nd.permute(attention(q, k, v), [0, 3, 1, 2, 4]);
    },
  },
  {
    name: "attention of operands whose columns are not dense",
    inputs: { q: { shape: [1, 2, 4, 3] }, k: { shape: [1, 2, 4, 5] }, v: { shape: [1, 2, 8, 5] } },
    grads: ["q", "k", "v"],
    run: ({ q, k, v }) => scaledDotProductAttention(swap(q), swap(k), swap(slice(v, 2, 0, 8, 2))),
    oracle: ({ q, k, v }) =>
      attention(nd.permute(q, [0, 1, 3, 2]), nd.permute(k, [0, 1, 3, 2]), nd.permute(cut(v, 2, 0, 4, 2), [0, 1, 3, 2])),
  },
  {
    name: "attention with five leading axes that do not merge",
    inputs: {
      q: { shape: [2, 1, 2, 2, 1, 2, 1, 3] },
      k: { shape: [1, 2, 1, 2, 2, 1, 1, 3] },
      v: { shape: [1, 2, 1, 2, 2, 1, 1, 1] },
    },
    grads: ["q", "k", "v"],
    run: ({ q, k, v }) => scaledDotProductAttention(permute(q, [3, 1, 0, 4, 2, 5, 6, 7]), k, v),
    oracle: ({ q, k, v }) => attention(nd.permute(q, [3, 1, 0, 4, 2, 5, 6, 7]), k, v),
    f16: false,
  },
  {
    name: "attention with a repeated query",
    inputs: { q: { shape: [1, 1, 2, 4] }, k: { shape: [2, 3, 5, 4] }, v: { shape: [2, 3, 5, 4] } },
    grads: ["q", "k", "v"],
    run: ({ q, k, v }) => scaledDotProductAttention(expand(q, [2, 3, 2, 4]), k, v),
    oracle: ({ q, k, v }) =>
      attention(
        nd.build([2, 3, 2, 4], (i) => nd.at(q, i)),
        k,
        v,
      ),
  },
  {
    name: "attention with large scores",
    inputs: {
      q: { shape: [1, 1, 3, 4], values: { low: -60, high: 60 } },
      k: { shape: [1, 1, 5, 4], values: { low: -60, high: 60 } },
      v: { shape: [1, 1, 5, 4] },
    },
    run: ({ q, k, v }) => scaledDotProductAttention(q, k, v),
    oracle: ({ q, k, v }) => attention(q, k, v),
    tolerance: 3e-4,
    f16: false,
  },
  {
    name: "attention with an added mask of minus infinity",
    inputs: {
      q: { shape: [1, 1, 2, 4] },
      k: { shape: [1, 1, 3, 4] },
      v: { shape: [1, 1, 3, 4] },
      bias: {
        shape: [2, 3],
        values: [
          0,
          Number.NEGATIVE_INFINITY,
          1,
          Number.NEGATIVE_INFINITY,
          Number.NEGATIVE_INFINITY,
          Number.NEGATIVE_INFINITY,
        ],
      },
    },
    grads: ["q", "k", "v"],
    run: ({ q, k, v, bias }) => scaledDotProductAttention(q, k, v, { mask: bias }),
    oracle: ({ q, k, v, bias }) => attention(q, k, v, { bias }),
  },
  {
    name: "attention passes NaN on in its own row",
    inputs: {
      q: { shape: [1, 1, 2, 4], values: [1, Number.NaN, 1, 1, 1, 1, 1, 1] },
      k: { shape: [1, 1, 3, 4] },
      v: { shape: [1, 1, 3, 4] },
    },
    run: ({ q, k, v }) => scaledDotProductAttention(q, k, v),
    oracle: ({ q, k, v }) => attention(q, k, v),
  },
  {
    name: "attention to no keys gives 0",
    inputs: { q: { shape: [1, 2, 3, 4] }, k: { shape: [1, 2, 0, 4] }, v: { shape: [1, 2, 0, 4] } },
    grads: ["q"],
    run: ({ q, k, v }) => scaledDotProductAttention(q, k, v),
    oracle: ({ q, k, v }) => attention(q, k, v),
  },
  {
    ...make({
      name: "attention with an i32 mask of all axes",
      q: [1, 2, 3, 4],
      k: [1, 2, 3, 4],
      keep: { shape: [1, 2, 3, 3], dtype: "i32", values: [1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, -1, 1, 0, 0, 0, 0, 1] },
    }),
    f16: false,
  },
  {
    ...make({ name: "attention with 3 columns, and 5 of v", q: [1, 1, 9, 3], k: [1, 1, 10, 3], v: [1, 1, 10, 5] }),
    f16: false,
  },
];

export const test: OpTest = {
  covers: ["scaledDotProductAttention"],
  cases: [...variants, ...others],
  refusals: [
    {
      name: "attention with other columns",
      run: (e) => scaledDotProductAttention(e.ones([1, 2, 4]), e.ones([1, 2, 5]), e.ones([1, 2, 5])),
      message: /scaledDotProductAttention: q and k differ in their columns: q \[1, 2, 4\] · k \[1, 2, 5\]/,
    },
    {
      name: "attention with more keys than values",
      run: (e) => scaledDotProductAttention(e.ones([1, 2, 4]), e.ones([1, 3, 4]), e.ones([1, 2, 4])),
      message: /one value for each key/,
    },
    {
      name: "attention with heads that do not divide",
      run: (e) => scaledDotProductAttention(e.ones([3, 2, 4]), e.ones([2, 3, 4]), e.ones([2, 3, 4])),
      message: /heads do not fit/,
    },
    {
      name: "attention of too few axes",
      run: (e) => scaledDotProductAttention(e.ones([2, 4]), e.ones([3, 4]), e.ones([3, 4])),
      message: /need axes \[\.\.\., heads, rows, columns\]/,
    },
    {
      name: "attention with another mask",
      run: (e) =>
        scaledDotProductAttention(e.ones([1, 2, 4]), e.ones([1, 3, 4]), e.ones([1, 3, 4]), { mask: e.ones([4]) }),
      message: /the mask \[4\] does not broadcast to \[1, 2, 3\]/,
    },
    {
      name: "attention of integers",
      run: (e) =>
        scaledDotProductAttention(e.ones([1, 2, 4], "i32"), e.ones([1, 2, 4], "i32"), e.ones([1, 2, 4], "i32")),
      message: /needs f32 or f16: got i32/,
    },
    {
      name: "attention with a misspelt option",
      run: (e) =>
        scaledDotProductAttention(e.ones([1, 2, 4]), e.ones([1, 2, 4]), e.ones([1, 2, 4]), {
          isCausal: true,
        } as AttentionOptions),
      message: /unknown option "isCausal"; did you mean "causal"/,
    },
    {
      name: "attention with an unknown variant",
      run: (e) =>
        scaledDotProductAttention(e.ones([1, 2, 4]), e.ones([1, 2, 4]), e.ones([1, 2, 4]), {
          variant: "tile",
        } as unknown as AttentionOptions),
      message: /unknown variant "tile"; did you mean "tiles"/,
    },
    {
      name: "attention by tiles with odd columns",
      run: (e) =>
        scaledDotProductAttention(e.ones([1, 2, 3]), e.ones([1, 2, 3]), e.ones([1, 2, 3]), { variant: "tiles" }),
      message: /"tiles" needs columns/,
    },
  ],
};
