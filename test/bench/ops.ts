import {
  add,
  type Engine,
  gelu,
  layerNorm,
  linear,
  matmul,
  normal,
  scaledDotProductAttention,
  softmax,
  sum,
  type Tensor,
} from "../../engine/index.js";
import { type Case, errorAt, places } from "./case.js";
import { attend, geluTanh, layerNorm as plainLayerNorm } from "./plain.js";

let drawn = 0;
/** Standard normal numbers, other ones at each call. */
export const random = (engine: Engine, shape: readonly number[]): Tensor =>
  normal(engine, engine.key().fold(drawn++), shape).keep();

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const show = (shape: readonly number[]): string => `[${shape.join(",")}]`;

/** Runs `f`, takes the gradients of leaves with dy, and drops them. */
function walk(leaves: readonly Tensor[], f: () => Tensor, dy: Tensor): void {
  f().backward(dy);
  for (const leaf of leaves) {
    leaf.grad!.dispose();
    leaf.grad = undefined;
  }
}

function matmulCase(lead: readonly number[], m: number, k: number, n: number, name: string, long = false): Case {
  return {
    name,
    flops: 2 * product(lead) * m * k * n,
    long,
    prepare: (engine) => {
      const [a, b] = [random(engine, [...lead, m, k]), random(engine, [...lead, k, n])];
      return {
        run: () => void matmul(a, b),
        check: async () => {
          const [x, y] = [await a.data(), await b.data()];
          const y0 = matmul(a, b);
          return errorAt(y0, (i) => {
            const [batch, row, column] = [Math.floor(i / (m * n)), Math.floor(i / n) % m, i % n];
            let total = 0;
            for (let j = 0; j < k; j++) total += x[(batch * m + row) * k + j] * y[(batch * k + j) * n + column];
            return total;
          }).finally(() => y0.dispose());
        },
      };
    },
  };
}

/** A linear layer on `rows` tokens, forward or with all three gradients. */
function linearCase(rows: number, inputs: number, outputs: number, backward: boolean): Case {
  return {
    name: `linear [${rows},${inputs}]x[${outputs},${inputs}]T${backward ? " fwd+bwd" : ""}`,
    flops: (backward ? 6 : 2) * rows * inputs * outputs,
    prepare: (engine) => {
      const [x, w, b] = [[rows, inputs], [outputs, inputs], [outputs]].map((shape) => random(engine, shape));
      const dy = random(engine, [rows, outputs]);
      if (backward) for (const t of [x, w, b]) t.setRequiresGrad();
      const f = () => linear(x, w, b);
      return {
        run: () => (backward ? walk([x, w, b], f, dy) : void f()),
        check: async () => {
          const [hx, hw, hb, hdy] = await Promise.all([x, w, b, dy].map((t) => t.data()));
          const dot = (n: number, term: (j: number) => number) => {
            let total = 0;
            for (let j = 0; j < n; j++) total += term(j);
            return total;
          };
          const y = f();
          const errors = [
            await errorAt(
              y,
              (i) =>
                hb[i % outputs] +
                dot(inputs, (j) => hx[Math.floor(i / outputs) * inputs + j] * hw[(i % outputs) * inputs + j]),
            ),
          ];
          if (backward) {
            y.backward(dy);
            const row = (i: number) => Math.floor(i / inputs);
            errors.push(
              await errorAt(x.grad!, (i) =>
                dot(outputs, (j) => hdy[row(i) * outputs + j] * hw[j * inputs + (i % inputs)]),
              ),
              await errorAt(w.grad!, (i) =>
                dot(rows, (j) => hdy[j * outputs + row(i)] * hx[j * inputs + (i % inputs)]),
              ),
              await errorAt(b.grad!, (i) => dot(rows, (j) => hdy[j * outputs + i])),
            );
            for (const t of [x, w, b]) t.grad!.dispose();
            for (const t of [x, w, b]) t.grad = undefined;
          }
          y.dispose();
          return Math.max(...errors);
        },
      };
    },
  };
}

/** Attention of heads with N rows each. Backward is checked against the kernels that follow the definition. */
function attentionCase(label: string, shape: readonly number[], backward: boolean): Case {
  const [N, D] = shape.slice(-2);
  const forward = 4 * product(shape) * N;
  return {
    name: `${label} ${show(shape)}${backward ? " fwd+bwd" : ""}`,
    // Backward computes the scores again, and four products more.
    flops: backward ? 3.5 * forward : forward,
    prepare: (engine) => {
      const [q, k, v, dy] = [0, 1, 2, 3].map(() => random(engine, shape));
      if (backward) for (const t of [q, k, v]) t.setRequiresGrad();
      const f = () => scaledDotProductAttention(q, k, v);
      const gradients = async (variant?: "naive") => {
        scaledDotProductAttention(q, k, v, { variant }).backward(dy);
        const grads = [q, k, v].map((t) => t.grad!);
        for (const t of [q, k, v]) t.grad = undefined;
        return grads;
      };
      return {
        run: () => (backward ? walk([q, k, v], f, dy) : void f()),
        check: async () => {
          const [hq, hk, hv] = await Promise.all([q, k, v].map((t) => t.data()));
          const y = engine.noGrad(f);
          const error = await errorAt(y, (i) => {
            const [head, row] = [Math.floor(i / (N * D)), Math.floor(i / D)];
            const keys = Array.from({ length: N }, (_, j) => [(head * N + j) * D, (head * N + j) * D] as const);
            return attend(hq, row * D, hk, hv, keys, D)[i % D];
          });
          y.dispose();
          if (!backward) return error;
          const [fast, plain] = [await gradients(), await gradients("naive")];
          const errors = [error];
          for (const [i, g] of fast.entries()) {
            const expected = await plain[i].data();
            errors.push(await errorAt(g, (at) => expected[at], places(g.size, g.size)));
          }
          for (const t of [...fast, ...plain]) t.dispose();
          return Math.max(...errors);
        },
      };
    },
  };
}

/** An op from one tensor to another of the same size or smaller, bound by memory. */
function streamCase(
  name: string,
  shape: readonly number[],
  bytes: number,
  f: (x: Tensor) => Tensor,
  expected: (x: ArrayLike<number>) => (i: number) => number,
): Case {
  return {
    name,
    bytes,
    prepare: (engine) => {
      const x = random(engine, shape);
      return {
        run: () => void f(x),
        check: async () => {
          const y = f(x);
          return errorAt(y, expected(await x.data())).finally(() => y.dispose());
        },
      };
    },
  };
}
/** Launches that wait for each other: what a launch costs beside its work. */
function chainCase(count: number): Case {
  return {
    name: `${count} matmuls 16 in a row`,
    flops: count * 2 * 16 ** 3,
    prepare: (engine) => {
      const [a, b] = [
        random(engine, [16, 16]),
        engine
          .tensor(
            Float32Array.from({ length: 256 }, (_, i) => (i % 17 === 0 ? 0.9 : 0.1 * Math.sin(i))),
            [16, 16],
          )
          .keep(),
      ];
      const f = () => {
        let y = a;
        for (let i = 0; i < count; i++) y = matmul(y, b);
        return y;
      };
      return {
        run: () => void f(),
        check: async () => {
          let x = Float64Array.from(await a.data());
          const w = await b.data();
          for (let i = 0; i < count; i++)
            x = x.map((_, at) => {
              let total = 0;
              for (let j = 0; j < 16; j++) total += x[at - (at % 16) + j] * w[j * 16 + (at % 16)];
              return total;
            });
          const y = engine.scope(f);
          return errorAt(y, (i) => x[i]).finally(() => y.dispose());
        },
      };
    },
  };
}

/** Small launches: the host's cost of recording shows. */
function smallCase(count: number): Case {
  return {
    name: `${count} additions of [4]`,
    bytes: count * 48,
    prepare: (engine) => {
      const [zero, one] = [engine.zeros([4]).keep(), engine.ones([4]).keep()];
      const f = () => {
        let y = zero;
        for (let i = 0; i < count; i++) y = add(y, one);
        return y;
      };
      return {
        run: () => void f(),
        check: async () => {
          const y = engine.scope(f);
          return errorAt(y, () => count).finally(() => y.dispose());
        },
      };
    },
  };
}

const sumsOf = (x: ArrayLike<number>, width: number) => (i: number) => {
  let total = 0;
  for (let at = i; at < x.length; at += width) total += x[at];
  return total;
};

/** Kernels at the sizes that other engines are compared at, and at those of the demonstration's model. */
export const ops: readonly Case[] = [
  matmulCase([], 256, 256, 256, "matmul 256"),
  matmulCase([], 512, 512, 512, "matmul 512"),
  matmulCase([], 1024, 1024, 1024, "matmul 1024", true),
  matmulCase([64], 64, 64, 64, "matmul 64x[64,64,64]"),
  ...[
    [64, 192],
    [64, 64],
    [64, 256],
    [256, 64],
  ].flatMap(([inputs, outputs]) => [false, true].map((backward) => linearCase(1024, inputs, outputs, backward))),
  streamCase(
    "softmax [1024,1024]",
    [1024, 1024],
    8 << 20,
    (x) => softmax(x),
    (x) => (i) => {
      const row = Array.from({ length: 1024 }, (_, j) => Math.exp(x[i - (i % 1024) + j]));
      return row[i % 1024] / row.reduce((a, b) => a + b);
    },
  ),
  streamCase(
    "layerNorm [1024,1152]",
    [1024, 1152],
    8 * 1024 * 1152,
    (x) => layerNorm(x),
    (x) => {
      const y = plainLayerNorm(x, 1152, 1e-5);
      return (i) => y[i];
    },
  ),
  streamCase(
    "gelu 1M",
    [1 << 20],
    8 << 20,
    (x) => gelu(x),
    (x) => (i) => geluTanh(x[i]),
  ),
  streamCase(
    "sum [1024,64] to [64]",
    [1024, 64],
    4 * 1024 * 64,
    (x) => sum(x, 0),
    (x) => sumsOf(x, 64),
  ),
  ...[false, true].map((backward) => attentionCase("attention", [8, 4, 256, 32], backward)),
  ...[false, true].map((backward) => attentionCase("spatial", [64, 4, 16, 16], backward)),
  ...[false, true].map((backward) => attentionCase("temporal", [256, 4, 16, 32], backward)),
  chainCase(100),
  smallCase(200),
];
