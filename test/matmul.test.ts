import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { conv2d, createEngine, matmul, type Tensor } from "../engine/index.js";
import { launchDirect } from "../engine/ops/direct.js";
import { type Activation, hasLanes, launchMatmul, type Plan, planMatmul, type Variant } from "../engine/ops/gemm.js";
import { random } from "./ops/loop.js";

const test = suite("matmul: all kernels, layouts, batches and shares");
const engine = await createEngine();
/** What software adapters take for ordinary shapes. */
const usual = planMatmul(engine, 1, 64, 64, 64).variant;
const variants: Variant[] = [
  "naive",
  "registers",
  "tiled",
  "tiled32",
  "skinny",
  ...(planMatmul(engine, 1, 64, 64, 64).variant === "lanes" ? (["lanes"] as const) : []),
];

/** A matrix as kernels may meet it: dense, transposed in memory, or a window of a larger one that starts anywhere. */
type Form = "dense" | "transposed" | "window";
interface Operand {
  tensor: Tensor;
  at(batch: number, row: number, column: number): number;
}

function operand(next: () => number, batch: number, rows: number, columns: number, form: Form): Operand {
  const [r, c] =
    form === "window" ? [rows + 1, columns + 3] : form === "transposed" ? [columns, rows] : [rows, columns];
  const values = Float32Array.from({ length: batch * r * c }, () => next() * 2 - 1);
  const base = engine.tensor(values, [batch, r, c]);
  const offset = form === "window" ? c + 3 : 0;
  const strides = form === "transposed" ? [r * c, 1, c] : [r * c, c, 1];
  return {
    tensor: base.view([batch, rows, columns], strides, offset, "test"),
    at: (q, i, j) => values[offset + (q % batch) * strides[0] + i * strides[1] + j * strides[2]],
  };
}

interface Setup {
  batch: number;
  one: "a" | "b" | "neither";
  m: number;
  n: number;
  k: number;
  forms: [Form, Form];
  plan: Plan;
  bias: "columns" | "rows" | undefined;
  activation: Activation;
  seed: number;
}

const act: Record<Activation, (v: number) => number> = {
  none: (v) => v,
  silu: (v) => v / (1 + Math.exp(-v)),
  geluTanh: (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
};

async function check(s: Setup): Promise<void> {
  const next = random(s.seed);
  const a = operand(next, s.one === "a" ? 1 : s.batch, s.m, s.k, s.forms[0]);
  const b = operand(next, s.one === "b" ? 1 : s.batch, s.k, s.n, s.forms[1]);
  const count = s.bias === "rows" ? s.m : s.n;
  const bias = s.bias && Float32Array.from({ length: count }, () => next());
  // A frame around y shows writes that fall beside it.
  const frame = engine.full([s.batch, s.m + 2, s.n + 1], 7);
  const y = frame.view([s.batch, s.m, s.n], frame.strides, frame.strides[1], "test");
  const rowSums = s.batch === 1 ? engine.full([s.m], 7) : undefined;
  const isSummed = launchMatmul(y, a.tensor, b.tensor, {
    rowSums,
    bias: bias && engine.tensor(bias),
    biasOf: s.bias,
    activation: s.activation,
    plan: s.plan,
  });
  assert.is(isSummed, rowSums !== undefined && s.plan.variant === "lanes" && s.plan.split === 1);
  const sums = await rowSums?.data();
  for (let i = 0; sums && i < s.m; i++) {
    let expected = 0;
    for (let k = 0; k < s.k; k++) expected += a.at(0, i, k);
    if (!(Math.abs(sums[i] - (isSummed ? expected : 7)) <= 3e-6 * (s.k + 1)))
      assert.unreachable(`row ${i} sums to ${sums[i]}, expected ${expected}: ${JSON.stringify(s)}`);
  }
  const got = await frame.data();
  for (let q = 0; q < s.batch; q++)
    for (let i = 0; i < s.m + 2; i++)
      for (let j = 0; j < s.n + 1; j++) {
        const value = got[(q * (s.m + 2) + i) * (s.n + 1) + j];
        let expected = 7;
        if (i > 0 && i <= s.m && j < s.n) {
          expected = bias ? bias[s.bias === "rows" ? i - 1 : j] : 0;
          for (let k = 0; k < s.k; k++) expected += a.at(q, i - 1, k) * b.at(q, k, j);
          expected = act[s.activation](expected);
        }
        if (!(Math.abs(value - expected) <= 3e-6 * Math.sqrt(s.k + 1) * (1 + Math.abs(expected))))
          assert.unreachable(`y[${q}, ${i - 1}, ${j}] is ${value}, expected ${expected}: ${JSON.stringify(s)}`);
      }
}

const size = (most: number) => fc.oneof(fc.integer({ min: 1, max: most }), fc.constantFrom(1, 8, 16, 31, 32, 33, 64));
for (const variant of variants)
  test(`${variant} on random shapes`, async () => {
    const setups = fc.record({
      batch: fc.integer({ min: 1, max: 3 }),
      one: fc.constantFrom("a" as const, "b" as const, "neither" as const),
      m: variant === "skinny" ? fc.integer({ min: 1, max: 8 }) : size(70),
      n: size(70),
      k: fc.oneof(size(50), fc.integer({ min: 100, max: 200 })),
      forms: fc.tuple(
        fc.constantFrom<Form>("dense", "transposed", "window"),
        fc.constantFrom<Form>("dense", "transposed", "window"),
      ),
      plan: fc.record({
        variant: fc.constant(variant),
        split: variant === "naive" ? fc.constant(1) : fc.constantFrom(1, 1, 3),
      }),
      bias: fc.constantFrom("columns" as const, "rows" as const, undefined),
      activation: fc.constantFrom<Activation>("none", "none", "geluTanh", "silu"),
      seed: fc.integer({ min: 0, max: 1 << 30 }),
    });
    await fc.assert(
      fc.asyncProperty(setups, async (s) => {
        // Skinny kernels keep at most 8 rows, and one b for the whole batch turns its rows into those of one matrix.
        if (variant === "skinny" && s.one === "b" && s.batch * s.m > 8) s.one = "neither";
        await check(s);
      }),
      { numRuns: 40, seed: 1 },
    );
  });

test("the edge of a share does not meet NaN beyond it", async () => {
  for (const variant of variants) {
    const values = Float32Array.from({ length: 4 * 40 }, (_, i) => (i % 40 < 33 ? 1 : Number.NaN));
    const base = engine.tensor(values, [4, 40]);
    const a = base.view([4, 33], [40, 1], 0, "test");
    const b = base.view([33, 4], [1, 40], 0, "test");
    for (const split of variant === "naive" ? [1] : [1, 2]) {
      const y = engine.empty([4, 4]);
      launchMatmul(y, a, b, { plan: { variant, split } });
      assert.equal([...(await y.data())], Array(16).fill(33), `${variant}, ${split} shares`);
    }
  }
});

test("more matrices than a launch has workgroups", async () => {
  const count = engine.limits.maxComputeWorkgroupsPerDimension + 3;
  const a = engine.arange(0, count).reshape([count, 1, 1]);
  const y = await matmul(a, engine.full([count, 1, 1], 2)).data();
  assert.is(
    y.findIndex((v, i) => v !== 2 * i),
    -1,
  );
  const wide = engine.empty([count, 1, 1]);
  launchMatmul(wide, a, engine.full([count, 1, 1], 2), { plan: { variant: usual, split: 1 } });
  assert.is(
    (await wide.data()).findIndex((v, i) => v !== 2 * i),
    -1,
  );
});

test("a matrix with more tiles than a launch has workgroups in one axis", async () => {
  const rows = 16 * engine.limits.maxComputeWorkgroupsPerDimension + 5;
  const y = engine.empty([rows, 1]);
  launchMatmul(y, engine.arange(0, rows).reshape([rows, 1]), engine.full([1, 1], 2), {
    plan: { variant: usual, split: 1 },
  });
  assert.is(
    (await y.data()).findIndex((v, i) => v !== 2 * i),
    -1,
  );
});

test("a convolution over a large image runs in bands", async () => {
  const [channels, outputs, side] = [16, 2, 175];
  const next = random(3);
  const values = (n: number) => Float32Array.from({ length: n }, () => next() * 2 - 1);
  const [x, w, g] = [values(channels * side * side), values(outputs * channels * 9), values(outputs * side * side)];
  const y = new Float64Array(g.length);
  const [dx, dw] = [new Float64Array(x.length), new Float64Array(w.length)];
  for (let o = 0; o < outputs; o++)
    for (let c = 0; c < channels; c++)
      for (let k = 0; k < 9; k++) {
        const tap = (o * channels + c) * 9 + k;
        const [ky, kx] = [Math.floor(k / 3) - 1, (k % 3) - 1];
        for (let v = Math.max(0, -ky); v < Math.min(side, side - ky); v++)
          for (let u = Math.max(0, -kx); u < Math.min(side, side - kx); u++) {
            const [from, to] = [(c * side + v + ky) * side + u + kx, (o * side + v) * side + u];
            y[to] += w[tap] * x[from];
            dx[from] += w[tap] * g[to];
            dw[tap] += x[from] * g[to];
          }
      }
  const tx = engine.tensor(x, [1, channels, side, side]).setRequiresGrad();
  const tw = engine.tensor(w, [outputs, channels, 3, 3]).setRequiresGrad();
  const ty = conv2d(tx, tw, undefined, { padding: 1 });
  ty.backward(engine.tensor(g, ty.shape));
  for (const [what, got, expected] of [
    ["y", ty, y],
    ["dx", tx.grad!, dx],
    ["dw", tw.grad!, dw],
  ] as const) {
    const values = await got.data();
    const scale = Math.sqrt(expected.reduce((s, v) => s + v * v, 0) / expected.length);
    const worst = expected.reduce((m, v, i) => Math.max(m, Math.abs(v - values[i])), 0);
    assert.ok(worst <= 2e-5 * scale, `${what} is off by ${worst} at a scale of ${scale}`);
  }
});

// Subgroups of 8 lanes are needed to run it; what other adapters take is tested with the ops.
const kernelTest = hasLanes(engine) ? test : () => undefined;
kernelTest("convolutions without a matrix of columns, at random geometries", async () => {
  const axis = fc.record({
    taps: fc.integer({ min: 1, max: 3 }),
    stride: fc.integer({ min: 1, max: 3 }),
    more: fc.integer({ min: 0, max: 9 }),
  });
  const setups = fc.record({
    items: fc.integer({ min: 1, max: 3 }),
    channels: fc.integer({ min: 1, max: 4 }),
    outputs: fc.constantFrom(1, 3, 16, 17),
    axes: fc.tuple(axis, axis, axis),
    bias: fc.boolean(),
    seed: fc.integer({ min: 0, max: 1 << 30 }),
  });
  await fc.assert(
    fc.asyncProperty(setups, async (s) => {
      const { items, channels, outputs, axes } = s;
      const size = axes.map((a) => a.taps + a.more);
      const [taps, stride] = [axes.map((a) => a.taps), axes.map((a) => a.stride)];
      const out = axes.map((a) => Math.floor(a.more / a.stride) + 1);
      const count = (list: readonly number[]) => list.reduce((a, b) => a * b, 1);
      const next = random(s.seed);
      const values = (n: number) => Float32Array.from({ length: n }, () => next() * 2 - 1);
      const [x, w] = [values(items * channels * count(size)), values(outputs * channels * count(taps))];
      const bias = s.bias ? values(outputs) : undefined;
      const y = engine.full([items, outputs, ...out], 7);
      launchDirect(
        y,
        engine.tensor(x, [items, channels, ...size]),
        engine.tensor(w, [outputs, channels, ...taps]),
        bias && engine.tensor(bias),
        { size, taps, stride, out },
      );
      const got = await y.data();
      for (let i = 0; i < got.length; i++) {
        const position = i % count(out);
        const o = Math.floor(i / count(out)) % outputs;
        const q = Math.floor(i / (count(out) * outputs));
        const at = [
          Math.floor(position / (out[1] * out[2])),
          Math.floor(position / out[2]) % out[1],
          position % out[2],
        ];
        let expected = bias ? bias[o] : 0;
        for (let k = 0; k < channels * count(taps); k++) {
          const c = Math.floor(k / count(taps));
          const tap = [Math.floor(k / (taps[1] * taps[2])) % taps[0], Math.floor(k / taps[2]) % taps[1], k % taps[2]];
          const [t, v, u] = at.map((p, a) => p * stride[a] + tap[a]);
          expected +=
            w[o * channels * count(taps) + k] * x[(((q * channels + c) * size[0] + t) * size[1] + v) * size[2] + u];
        }
        if (!(Math.abs(got[i] - expected) <= 1e-5))
          assert.unreachable(`y[${q}, ${o}, ${at}] is ${got[i]}, expected ${expected}: ${JSON.stringify(s)}`);
      }
    }),
    { numRuns: 40, seed: 1 },
  );
});

test.after(() => engine.destroy());
test.run();
