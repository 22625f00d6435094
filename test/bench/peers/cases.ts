// What the engines are compared at, with the share of the best peer's time that Espalier must reach.
import { attend, geluTanh, layerNorm, linear, type Numbers } from "../plain.js";
import { draw } from "./host.js";
import { stditInputs, stditLoss } from "./model.js";
import { HEADS, type Inputs, type Op } from "./protocol.js";

/** Right values of one output, at some of its places. */
export interface Expected {
  at: readonly number[];
  values: ArrayLike<number>;
}

export interface PeerCase {
  name: string;
  op: Op;
  /** Most that Espalier's time may be of the best right peer's. */
  target: number;
  /** Floating-point operations of one run. */
  flops?: number;
  inputs(): Inputs;
  /** In float64. For training: the first loss. */
  expected(inputs: Inputs): Expected[];
  /** Largest error that is right: |difference| over the largest value. Default 2e-5. */
  limit?: number;
}

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
const spread = (n: number, count: number) => range(count).map((i) => Math.round((i * (n - 1)) / (count - 1)));
const all = (values: ArrayLike<number>): Expected => ({ at: range(values.length), values });
const some = (n: number, f: (i: number) => number): Expected => {
  const at = spread(n, 512);
  return { at, values: at.map(f) };
};
const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

function matmulCase(name: string, lead: number[], n: number): PeerCase {
  return {
    name,
    op: "matmul",
    target: 0.6,
    flops: 2 * product(lead) * n ** 3,
    inputs: () => ({ a: draw([...lead, n, n]), b: draw([...lead, n, n]) }),
    expected: ({ a, b }) => [
      some(a.data.length, (i) => {
        const [row, column] = [Math.floor(i / n), i % n];
        const first = Math.floor(row / n) * n * n;
        let sum = 0;
        for (let k = 0; k < n; k++) sum += a.data[row * n + k] * b.data[first + k * n + column];
        return sum;
      }),
    ],
  };
}

const attentionInputs = (shape: number[]) => () =>
  Object.fromEntries(["q", "k", "v", "dy"].map((name) => [name, draw(shape)]));

/** softmax(q kᵀ / √D) v of [B, heads, N, D]. */
function attention({ q, k, v }: Inputs): Float64Array {
  const [N, D] = q.shape.slice(-2);
  const y = new Float64Array(q.data.length);
  for (let from = 0; from < y.length; from += D) {
    const head = Math.floor(from / (N * D)) * N * D;
    const keys = range(N).map((j) => [head + j * D, head + j * D] as const);
    y.set(attend(q.data, from, k.data, v.data, keys, D), from);
  }
  return y;
}

/** dq, dk, dv of the same for Σ y dy. */
function attentionGradients({ q, k, v, dy }: Inputs): Float64Array[] {
  const [N, D] = q.shape.slice(-2);
  const [dq, dk, dv] = range(3).map(() => new Float64Array(q.data.length));
  const dot = (a: Numbers, i: number, b: Numbers, j: number) => {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += a[i + d] * b[j + d];
    return sum;
  };
  const p = new Float64Array(N);
  const dp = new Float64Array(N);
  for (let i = 0; i < q.data.length; i += D) {
    const head = Math.floor(i / (N * D)) * N * D;
    for (let j = 0; j < N; j++) p[j] = dot(q.data, i, k.data, head + j * D) / Math.sqrt(D);
    const most = p.reduce((a, b) => Math.max(a, b));
    const total = p.reduce((sum, s) => sum + Math.exp(s - most), 0);
    for (let j = 0; j < N; j++) {
      p[j] = Math.exp(p[j] - most) / total;
      dp[j] = dot(dy.data, i, v.data, head + j * D);
    }
    const mean = p.reduce((sum, w, j) => sum + w * dp[j], 0);
    for (let j = 0; j < N; j++) {
      const ds = (p[j] * (dp[j] - mean)) / Math.sqrt(D);
      for (let d = 0; d < D; d++) {
        dq[i + d] += ds * k.data[head + j * D + d];
        dk[head + j * D + d] += ds * q.data[i + d];
        dv[head + j * D + d] += p[j] * dy.data[i + d];
      }
    }
  }
  return [dq, dk, dv];
}

const [B, N, C] = [4, 256, 128];

function blockInputs(): Inputs {
  const inputs: Inputs = { x: draw([B, N, C]) };
  for (const name of ["norm1", "norm2"]) {
    const weight = draw([C], 0.1);
    inputs[`${name}.weight`] = { ...weight, data: weight.data.map((v) => 1 + v) };
    inputs[`${name}.bias`] = draw([C], 0.1);
  }
  for (const [name, from, to] of [
    ["qkv", C, 3 * C],
    ["proj", C, C],
    ["fc1", C, 4 * C],
    ["fc2", 4 * C, C],
  ] as const) {
    inputs[`${name}.weight`] = draw([to, from], from ** -0.5);
    inputs[`${name}.bias`] = draw([to], 0.02);
  }
  return inputs;
}

/** x + attention(norm(x)), then + mlp(norm(x)). */
function block(inputs: Inputs): Float64Array {
  const at = (name: string) => inputs[name].data;
  const dense = (x: Numbers, name: string) =>
    linear(x, at(`${name}.weight`), at(`${name}.bias`), inputs[`${name}.weight`].shape[1]);
  const norm = (x: Numbers, name: string) =>
    layerNorm(x, C, 1e-5).map((v, i) => v * at(`${name}.weight`)[i % C] + at(`${name}.bias`)[i % C]);
  const x = at("x");
  const qkv = dense(norm(x, "norm1"), "qkv");
  const d = C / HEADS;
  const mixed = new Float64Array(x.length);
  for (let n = 0; n < B * N; n++)
    for (let h = 0; h < HEADS; h++) {
      const first = Math.floor(n / N) * N;
      const keys = range(N).map((j) => [1, 2].map((part) => ((first + j) * 3 + part) * C + h * d) as [number, number]);
      mixed.set(attend(qkv, n * 3 * C + h * d, qkv, qkv, keys, d), n * C + h * d);
    }
  const x1 = dense(mixed, "proj").map((v, i) => v + x[i]);
  return dense(dense(norm(x1, "norm2"), "fc1").map(geluTanh), "fc2").map((v, i) => v + x1[i]);
}

const blockLoss = ({ target, ...inputs }: Inputs) =>
  block(inputs).reduce((sum, v, i) => sum + (v - target.data[i]) ** 2, 0) / target.data.length;

const attentionFlops = (shape: number[]) => 4 * product(shape) * shape[2];
const blockFlops = 2 * B * N * C * C * 12 + attentionFlops([B, HEADS, N, C / HEADS]);

export const peerCases: readonly PeerCase[] = [
  ...[256, 512, 1024].map((n) => matmulCase(`matmul ${n}`, [], n)),
  matmulCase("bmm 64x[64,64,64]", [64], 64),
  {
    name: "softmax [1024,1024]",
    op: "softmax",
    target: 0.5,
    inputs: () => ({ x: draw([1024, 1024]) }),
    expected: ({ x }) => {
      const sums = range(1024).map((r) =>
        x.data.subarray(r * 1024, (r + 1) * 1024).reduce((s, v) => s + Math.exp(v), 0),
      );
      return [some(x.data.length, (i) => Math.exp(x.data[i]) / sums[i >> 10])];
    },
  },
  {
    name: "layerNorm [1024,1152]",
    op: "layerNorm",
    target: 0.2,
    inputs: () => ({ x: draw([1024, 1152]), weight: draw([1152]), bias: draw([1152]) }),
    expected: ({ x, weight, bias }) => [
      all(layerNorm(x.data, 1152, 1e-5).map((v, i) => v * weight.data[i % 1152] + bias.data[i % 1152])),
    ],
  },
  {
    name: "gelu 1M",
    op: "gelu",
    target: 0.6,
    inputs: () => ({ x: draw([1 << 20]) }),
    expected: ({ x }) => [all(Float64Array.from(x.data, geluTanh))],
  },
  ...(
    [
      ["attention [8,4,256,32]", [8, HEADS, 256, 32], 0.6],
      ["temporal attention [256,4,16,32]", [256, HEADS, 16, 32], 0.5],
    ] as const
  ).map(
    ([name, shape, target]): PeerCase => ({
      name,
      op: "attention",
      target,
      flops: attentionFlops([...shape]),
      inputs: attentionInputs([...shape]),
      expected: (inputs) => [all(attention(inputs))],
    }),
  ),
  {
    name: "attention [8,4,256,32] fwd+bwd",
    op: "attentionGradients",
    target: 0.5,
    flops: 3.5 * attentionFlops([8, HEADS, 256, 32]),
    inputs: attentionInputs([8, HEADS, 256, 32]),
    expected: (inputs) => attentionGradients(inputs).map(all),
  },
  {
    name: "block forward [4,256,128]",
    op: "block",
    target: 0.6,
    flops: blockFlops,
    inputs: blockInputs,
    expected: (inputs) => [all(block(inputs))],
  },
  {
    name: "block training step [4,256,128]",
    op: "blockStep",
    target: 0.55,
    flops: 3 * blockFlops,
    inputs: () => ({ target: draw([B, N, C]), ...blockInputs() }),
    expected: (inputs) => [{ at: [0], values: [blockLoss(inputs)] }],
    limit: 1e-4,
  },
  {
    name: "STDiT training step 4x128 [4,16,16]",
    op: "stditStep",
    target: 0.5,
    inputs: stditInputs,
    expected: (inputs) => [{ at: [0], values: [stditLoss(inputs)] }],
    limit: 1e-4,
  },
];
