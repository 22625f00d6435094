/**
 * The model's block on the host in float64, written for clarity: what the benchmark's results are checked against.
 * Arrays are row-major; sizes come first.
 */
export type Numbers = ArrayLike<number>;

/** x [rows, inputs] · weightᵀ + bias for weight [outputs, inputs]: [rows, outputs]. */
export function linear(x: Numbers, weight: Numbers, bias: Numbers, inputs: number): Float64Array {
  const outputs = bias.length;
  const rows = x.length / inputs;
  const y = new Float64Array(rows * outputs);
  for (let r = 0; r < rows; r++)
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let i = 0; i < inputs; i++) sum += x[r * inputs + i] * weight[o * inputs + i];
      y[r * outputs + o] = sum;
    }
  return y;
}

/** (x - mean) / √(variance + eps) of each row of `width` values. */
export function layerNorm(x: Numbers, width: number, eps: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += width) {
    let [mean, variance] = [0, 0];
    for (let i = 0; i < width; i++) mean += x[at + i] / width;
    for (let i = 0; i < width; i++) variance += (x[at + i] - mean) ** 2 / width;
    for (let i = 0; i < width; i++) y[at + i] = (x[at + i] - mean) / Math.sqrt(variance + eps);
  }
  return y;
}

/**
 * One row of softmax(scale · q kᵀ) v: the query of `depth` values at q[from], keys and values at k[…] and v[…] of the
 * places in `keys`.
 */
export function attend(
  q: Numbers,
  from: number,
  k: Numbers,
  v: Numbers,
  keys: readonly (readonly [number, number])[],
  depth: number,
): Float64Array {
  const scores = keys.map(([at]) => {
    let dot = 0;
    for (let i = 0; i < depth; i++) dot += q[from + i] * k[at + i];
    return dot / Math.sqrt(depth);
  });
  const most = Math.max(...scores);
  const weights = scores.map((s) => Math.exp(s - most));
  const total = weights.reduce((a, b) => a + b);
  const y = new Float64Array(depth);
  for (const [j, [, at]] of keys.entries()) for (let i = 0; i < depth; i++) y[i] += (weights[j] / total) * v[at + i];
  return y;
}

export const geluTanh = (x: number): number =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

/** Sizes of a block's run. */
export interface Sizes {
  B: number;
  T: number;
  S: number;
  L: number;
  C: number;
  heads: number;
}

/** Multi-head attention of tokens in groups that see each other: `groups` lists the tokens of each. */
function selfAttention(
  x: Numbers,
  weights: Record<string, Numbers>,
  name: string,
  groups: number[][],
  { C, heads }: Sizes,
): Float64Array {
  const qkv = linear(x, weights[`${name}.qkv.weight`], weights[`${name}.qkv.bias`], C);
  const [mixed, d] = [new Float64Array(x.length), C / heads];
  for (const group of groups)
    for (let h = 0; h < heads; h++) {
      const keys = group.map((n) => [n * 3 * C + C + h * d, n * 3 * C + 2 * C + h * d] as const);
      for (const n of group) mixed.set(attend(qkv, n * 3 * C + h * d, qkv, qkv, keys, d), n * C + h * d);
    }
  return linear(mixed, weights[`${name}.proj.weight`], weights[`${name}.proj.bias`], C);
}

/**
 * STDiT's block: x [B, T, S, C], caption y [B, L, C], timestep t6 [B, 6, C] with 1 in its scale rows; weights by their
 * checkpoint names. All words count. `temporal` [T, C] is added to what the attention over time sees.
 */
export function block(
  x: Numbers,
  y: Numbers,
  t6: Numbers,
  weights: Record<string, Numbers>,
  sizes: Sizes,
  temporal?: Numbers,
): Float64Array {
  const { B, T, S, L, C, heads } = sizes;
  const [N, d] = [T * S, C / heads];
  const row = (i: number, r: number) => {
    const sample = Math.floor(i / (N * C));
    return t6[(sample * 6 + r) * C + (i % C)] + weights.scale_shift_table[r * C + (i % C)];
  };
  const modulate = (z: Numbers, shift: number, scale: number) =>
    Float64Array.from(z, (v, i) => row(i, shift) + v * row(i, scale));
  const gated = (a: Numbers, gate: number, z: Numbers) => Float64Array.from(a, (v, i) => v + row(i, gate) * z[i]);
  const range = (n: number) => Array.from({ length: n }, (_, i) => i);
  const frames = range(B * T).map((f) => range(S).map((s) => f * S + s));
  const tracks = range(B).flatMap((b) => range(S).map((s) => range(T).map((t) => b * N + t * S + s)));

  let z = gated(x, 2, selfAttention(modulate(layerNorm(x, C, 1e-6), 0, 1), weights, "attn", frames, sizes));
  const timed = temporal ? z.map((v, i) => v + temporal[(Math.floor(i / (S * C)) % T) * C + (i % C)]) : z;
  z = gated(z, 2, selfAttention(timed, weights, "attn_temp", tracks, sizes));

  const q = linear(z, weights["cross_attn.q_linear.weight"], weights["cross_attn.q_linear.bias"], C);
  const kv = linear(y, weights["cross_attn.kv_linear.weight"], weights["cross_attn.kv_linear.bias"], C);
  const mixed = new Float64Array(q.length);
  for (let n = 0; n < B * N; n++)
    for (let h = 0; h < heads; h++) {
      const words = range(L).map((l) => (Math.floor(n / N) * L + l) * 2 * C + h * d);
      mixed.set(
        attend(
          q,
          n * C + h * d,
          kv,
          kv,
          words.map((at) => [at, at + C] as const),
          d,
        ),
        n * C + h * d,
      );
    }
  const crossed = linear(mixed, weights["cross_attn.proj.weight"], weights["cross_attn.proj.bias"], C);
  z = z.map((v, i) => v + crossed[i]);

  const hidden = linear(modulate(layerNorm(z, C, 1e-6), 3, 4), weights["mlp.fc1.weight"], weights["mlp.fc1.bias"], C);
  const out = linear(hidden.map(geluTanh), weights["mlp.fc2.weight"], weights["mlp.fc2.bias"], hidden.length / (B * N));
  return gated(z, 5, out);
}
