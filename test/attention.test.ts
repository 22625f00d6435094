import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { chunk, createEngine, permute, reshape, scaledDotProductAttention, type Tensor } from "../engine/index.js";
import { type AttentionVariant, attentionVariantsOf } from "../engine/ops/attend.js";
import { attention } from "./ops/attention.js";
import type { Nd } from "./ops/case.js";
import { random } from "./ops/loop.js";
import * as nd from "./ops/nd.js";

const test = suite("attention");
const engine = await createEngine();
const launches = () => engine.queue.counts.launches;

/** q, k and v with what surrounds them. */
interface Program {
  batch: number;
  heads: number;
  group: number;
  n: number;
  l: number;
  mask: "none" | "keys" | "added";
  causal: boolean;
  /** Memory holds [B, N, H, D] instead of [B, H, N, D]. */
  tokensFirst: boolean;
  seed: number;
}
// Few kinds of kernels and many shapes: compiling is what takes long. Kernels for 16 rows and less are those of the ops'
// own cases.
const programs = fc.record<Program>({
  // Sixteen heads of k and more are another way backward on software adapters.
  batch: fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 16, max: 18 })),
  heads: fc.integer({ min: 1, max: 2 }),
  group: fc.integer({ min: 1, max: 3 }),
  n: fc.integer({ min: 17, max: 70 }),
  l: fc.integer({ min: 17, max: 70 }),
  mask: fc.constantFrom("none", "keys", "added"),
  causal: fc.boolean(),
  tokensFirst: fc.boolean(),
  seed: fc.nat(1e6),
});
const COLUMNS = 4;

function leaf(shape: readonly number[], next: () => number): { t: Tensor; x: Nd } {
  const data = Float64Array.from({ length: nd.size(shape) }, () => Math.fround(next() * 4 - 2));
  return { t: engine.tensor(data, shape).setRequiresGrad(), x: { shape, data } };
}

async function worst(got: Tensor, expected: ArrayLike<number>): Promise<number> {
  const actual: ArrayLike<number> = await got.data();
  assert.is(actual.length, expected.length);
  let most = 0;
  for (let i = 0; i < actual.length; i++)
    most = Math.max(most, Math.abs(actual[i] - expected[i]) / (1 + Math.abs(expected[i])));
  return most;
}

/** Runs one program by a set of kernels: y against the float64 oracle, and its gradients for a comparison. */
async function run(p: Program, variant: AttentionVariant): Promise<Float64Array[]> {
  const next = random(p.seed);
  const turn = (t: Tensor) => (p.tokensFirst ? permute(t, [0, 2, 1, 3]) : t);
  const make = (h: number, rows: number) => {
    const { t, x } = leaf(p.tokensFirst ? [p.batch, rows, h, COLUMNS] : [p.batch, h, rows, COLUMNS], next);
    return { t, x: p.tokensFirst ? nd.permute(x, [0, 2, 1, 3]) : x };
  };
  const [q, k, v] = [make(p.heads * p.group, p.n), make(p.heads, p.l), make(p.heads, p.l)];
  const shape = p.mask === "keys" ? [p.batch, 1, 1, p.l] : [1, p.heads * p.group, p.n, p.l];
  const m = p.mask === "none" ? undefined : leaf(shape, next);
  const hides = p.mask === "keys";
  if (m && hides) m.x.data = m.x.data.map((value) => (value > -1 ? 1 : 0));
  const mask = m && (hides ? engine.tensor(m.x.data, shape, "u32") : m.t);
  const y = scaledDotProductAttention(turn(q.t), turn(k.t), turn(v.t), { mask, causal: p.causal, variant });
  const expected = attention(q.x, k.x, v.x, { causal: p.causal, ...(hides ? { keep: m!.x } : { bias: m?.x }) });
  const error = await worst(y, expected.data);
  assert.ok(error < 5e-6, `${variant}: y is off by ${error} in ${JSON.stringify(p)}`);
  const dy = Float64Array.from({ length: y.size }, () => next() * 2 - 1);
  y.backward(engine.tensor(dy, y.shape));
  const leaves = [q.t, k.t, v.t, ...(p.mask === "added" ? [m!.t] : [])];
  const grads: Float64Array[] = [];
  for (const t of leaves) grads.push(Float64Array.from(await t.grad!.data()));
  for (const t of leaves) t.dispose();
  return grads;
}

for (const variant of attentionVariantsOf(engine).filter((v) => v !== "naive"))
  test(`${variant} equals naive on random shapes, masks and orders of memory`, async () => {
    await fc.assert(
      fc.asyncProperty(programs, async (p) => {
        const [got, expected] = [await run(p, variant), await run(p, "naive")];
        for (const [i, g] of got.entries())
          g.forEach((value, n) => {
            const e = expected[i][n];
            assert.ok(
              Math.abs(value - e) <= 2e-5 * (1 + Math.abs(e)),
              `gradient ${i}[${n}] of ${JSON.stringify(p)}: ${value}, naive ${e}`,
            );
          });
      }),
      { seed: 20240, numRuns: 15 },
    );
  });

test("more columns than one workgroup owns, and another number for v", async () => {
  const variants = attentionVariantsOf(engine).filter((v) => v !== "tiles");
  for (const [d, e] of [
    [132, 8],
    [8, 136],
  ]) {
    const all: ArrayLike<number>[][] = [];
    for (const variant of variants) {
      const next = random(d);
      const [q, k, v] = [leaf([2, 5, d], next).t, leaf([2, 9, d], next).t, leaf([2, 9, e], next).t];
      const y = scaledDotProductAttention(q, k, v, { variant });
      y.backward(leaf([2, 5, e], next).t.detach());
      all.push([await y.data(), await q.grad!.data(), await k.grad!.data(), await v.grad!.data()]);
    }
    const [expected, ...others] = all;
    for (const [i, values] of others.flat().entries())
      for (let n = 0; n < values.length; n++) {
        const right = expected[i % 4][n];
        assert.ok(Math.abs(values[n] - right) <= 2e-5 * (1 + Math.abs(right)), `${d} and ${e} columns, ${i}[${n}]`);
      }
  }
});

test("no matrix of scores is stored, forward or backward", () => {
  const [n, d] = [1024, 4];
  const q = engine.ones([1, n, d]).setRequiresGrad();
  const before = engine.memory();
  const held = before.live + before.pooled;
  scaledDotProductAttention(q, q, q).backward(engine.ones([1, n, d]));
  const after = engine.memory();
  const taken = after.live + after.pooled - held;
  assert.ok(taken < n * n, `${taken} bytes were taken; a quarter of the matrix is ${n * n}`);
  q.dispose();
});

test("one projection to heads and back: a launch forward, two backward at most, no copies", () => {
  const [b, t, s, h, d] = [2, 3, 16, 2, 8];
  const x = engine.ones([b, t, s, 3 * h * d]).setRequiresGrad();
  for (const axes of [
    [0, 1, 3, 2, 4],
    [0, 2, 3, 1, 4],
  ]) {
    const qkv = x.mul(2);
    const before = launches();
    const pieces = chunk(reshape(qkv, [b, t, s, 3, h, d]), 3, 3);
    const [q, k, v] = pieces.map((p) => permute(reshape(p, [b, t, s, h, d]), axes));
    const y = scaledDotProductAttention(q, k, v);
    const back = permute(
      y,
      axes.map((_, i) => axes.indexOf(i)),
    );
    const tokens = reshape(back, [b, t, s, h * d]);
    assert.is(launches() - before, 1, "forward");
    assert.ok(tokens.isContiguous);
    const dy = engine.empty([b, t, s, h * d]);
    const start = launches();
    tokens.backward(dy);
    // One or two, and mul's.
    assert.ok(launches() - start <= 3, `backward took ${launches() - start}`);
    x.grad!.dispose();
    x.grad = undefined;
  }
});

test("equal bits on every run", async () => {
  const runs: string[] = [];
  for (let i = 0; i < 3; i++) {
    const next = random(7);
    const [q, k, v] = [20, 33, 33].map((rows) => leaf([2, 2, rows, COLUMNS], next).t);
    const y = scaledDotProductAttention(q, k, v);
    y.backward(
      engine.tensor(
        Float64Array.from({ length: y.size }, () => next()),
        y.shape,
      ),
    );
    const all: number[] = [];
    for (const t of [y, q.grad!, k.grad!, v.grad!]) all.push(...(await t.data()));
    runs.push(`${all}`);
  }
  assert.is(runs[1], runs[0]);
  assert.is(runs[2], runs[0]);
});

test.after(() => engine.destroy());
test.run();
