import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Tensor } from "../engine/index.js";
import * as ops from "../engine/index.js";
import { norms } from "../engine/ops/norm.js";
import { launchReduce, type ReduceVariant } from "../engine/ops/reduction.js";
import type { Nd } from "./ops/case.js";
import { random } from "./ops/loop.js";
import * as nd from "./ops/nd.js";

/** Seeded random programs over shapes, views and axes; fast-check shrinks a failure to its smallest shapes. */
const test = suite("random shapes");
const engine = await ops.createEngine();
const settings = (numRuns: number): fc.Parameters<unknown> => ({ seed: 20240, numRuns });

const axisSize = fc.integer({ min: 1, max: 9 });
const shapes = fc.array(axisSize, { minLength: 1, maxLength: 5 }).filter((s) => nd.size(s) <= 2000);

/** How a tensor is cut and turned before it is used. */
interface Look {
  order: number[];
  cut?: { dim: number; start: number; step: number };
}
const looks = (rank: number): fc.Arbitrary<Look> =>
  fc.record({
    order: fc.shuffledSubarray(
      Array.from({ length: rank }, (_, i) => i),
      { minLength: rank, maxLength: rank },
    ),
    cut: fc.option(fc.record({ dim: fc.nat(rank - 1), start: fc.nat(2), step: fc.integer({ min: 1, max: 3 }) }), {
      nil: undefined,
    }),
  });

interface Operand {
  leaf: Tensor;
  t: Tensor;
  x: Nd;
}
/** A tensor that looks like `shape` through a permuted, sliced view of a larger one; and the same for the oracle. */
function operand(shape: readonly number[], look: Look, seed: number): Operand {
  const next = random(seed);
  const { order, cut } = look;
  const base = order.map((_, d) => shape[order.indexOf(d)]);
  const stored = base.map((n, d) => (cut?.dim === d ? cut.start + n * cut.step : n));
  const data = Float64Array.from({ length: nd.size(stored) }, () => Math.fround(next() * 4 - 2));
  const leaf = engine.tensor(data, stored).setRequiresGrad();
  const whole: Nd = { shape: stored, data };
  const picked = cut
    ? nd.build(base, (i) =>
        nd.at(
          whole,
          i.map((v, d) => (d === cut.dim ? cut.start + v * cut.step : v)),
        ),
      )
    : whole;
  const sliced = cut ? ops.slice(leaf, cut.dim, cut.start, stored[cut.dim], cut.step) : leaf;
  return { leaf, t: ops.permute(sliced, order), x: nd.permute(picked, order) };
}

async function near(what: string, got: Tensor, expected: Nd, tolerance: number): Promise<void> {
  assert.equal([...got.shape], [...expected.shape], what);
  const actual = await got.data();
  for (let i = 0; i < actual.length; i++) {
    const error = Math.abs(actual[i] - expected.data[i]) / (1 + Math.abs(expected.data[i]));
    assert.ok(error <= tolerance, `${what}[${i}] of [${got.shape}]: got ${actual[i]}, expected ${expected.data[i]}`);
  }
}

/** Runs one program and drops what it recorded. */
async function program(f: () => Promise<void>): Promise<void> {
  try {
    await f();
  } finally {
    engine.tape.truncate(0);
  }
}

const numbersIn = (x: Nd, seed: number): Nd => {
  const next = random(seed);
  return { shape: x.shape, data: x.data.map(() => Math.fround(next() * 2 - 1)) };
};
const upload = (x: Nd) => engine.tensor(x.data, x.shape);
const total = (v: number[]) => v.reduce((a, b) => a + b, 0);
const average = (v: number[]) => total(v) / v.length;
/** Undoes broadcasting to `shape`. */
function summed(x: Nd, shape: readonly number[]): Nd {
  const lead = x.shape.length - shape.length;
  const dims = x.shape.flatMap((n, d) => (d < lead || (shape[d - lead] === 1 && n !== 1) ? [d] : []));
  return nd.reshape(nd.reduce(x, dims, total), shape);
}

test("addcmul of operands that broadcast, through views, with gradients", () =>
  fc.assert(
    fc.asyncProperty(
      shapes.chain((full) =>
        fc.tuple(
          fc.constant(full),
          ...["x", "a", "b"].map(() =>
            fc
              .tuple(fc.nat(full.length - 1), fc.array(fc.boolean(), { minLength: 5, maxLength: 5 }))
              .chain(([drop, ones]) => {
                const shape = full.slice(drop).map((n, d) => (ones[d] ? 1 : n));
                return fc.tuple(fc.constant(shape), looks(shape.length));
              }),
          ),
        ),
      ),
      ([, ...given]) =>
        program(async () => {
          const [x, a, b] = given.map(([shape, look], i) => operand(shape, look, 11 + i));
          const y = ops.addcmul(x.t, a.t, b.t);
          const expected = nd.map((p, q, r) => p + q * r, x.x, a.x, b.x);
          await near("y", y, expected, 1e-6);
          const dy = numbersIn(expected, 5);
          y.backward(upload(dy));
          // Through the views a gradient of 0 flows to what they leave out: compare in the view's own place.
          for (const [name, o, factor] of [
            ["x", x, undefined],
            ["a", a, b],
            ["b", b, a],
          ] as const) {
            const d = factor ? nd.map((g, f) => g * f, dy, factor.x) : dy;
            const seen = given[["x", "a", "b"].indexOf(name)][1];
            const grad = ops.permute(
              seen.cut
                ? ops.slice(o.leaf.grad!, seen.cut.dim, seen.cut.start, o.leaf.shape[seen.cut.dim], seen.cut.step)
                : o.leaf.grad!,
              seen.order,
            );
            await near(`d${name}`, grad, summed(d, o.x.shape), 1e-5);
          }
        }),
    ),
    settings(60),
  ));

const reductions = {
  sum: [(x: Tensor, d: number[], k: boolean) => ops.sum(x, d, k), total],
  mean: [(x: Tensor, d: number[], k: boolean) => ops.mean(x, d, k), average],
  max: [(x: Tensor, d: number[], k: boolean) => ops.max(x, d, k), (v: number[]) => Math.max(...v)],
  min: [(x: Tensor, d: number[], k: boolean) => ops.min(x, d, k), (v: number[]) => Math.min(...v)],
  variance: [
    (x: Tensor, d: number[], k: boolean) => ops.variance(x, d, k, 0),
    (v: number[]) => average(v.map((x) => (x - average(v)) ** 2)),
  ],
} as const;

test("reductions over any axes, through views", () =>
  fc.assert(
    fc.asyncProperty(
      shapes.chain((shape) =>
        fc.tuple(
          fc.constant(shape),
          looks(shape.length),
          fc.subarray(shape.map((_, d) => d)),
          fc.boolean(),
          fc.constantFrom(...(Object.keys(reductions) as (keyof typeof reductions)[])),
        ),
      ),
      ([shape, look, dims, keep, name]) =>
        program(async () => {
          const { t, x } = operand(shape, look, 3);
          const [run, f] = reductions[name];
          const kept = nd.reduce(x, dims, f);
          await near(
            name,
            run(t, dims, keep),
            keep
              ? kept
              : nd.reshape(
                  kept,
                  shape.filter((_, d) => !dims.includes(d)),
                ),
            1e-5,
          );
        }),
    ),
    settings(100),
  ));

test("reductions by every entry point in any number of shares", () =>
  fc.assert(
    fc.asyncProperty(
      fc.tuple(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 300 }),
        fc.constantFrom(1, 1, 3, 4, 8, 20),
        fc.constantFrom<ReduceVariant>("columns", "rows", "scalar", "group"),
        fc.integer({ min: 1, max: 20 }),
      ),
      ([outer, reduced, inner, entry, shares]) =>
        program(async () => {
          const { leaf, x } = operand([outer, reduced, inner], { order: [0, 1, 2] }, 17);
          const y = engine.empty([outer, inner]);
          launchReduce(leaf, y, { outer, reduced, inner }, "sum", 1, entry, shares);
          await near("y", y, nd.reshape(nd.reduce(x, [1], total), [outer, inner]), 1e-5);
        }),
    ),
    settings(60),
  ));

test("softmax along any axis, with its gradient", () =>
  fc.assert(
    fc.asyncProperty(
      shapes.chain((shape) => fc.tuple(fc.constant(shape), looks(shape.length), fc.nat(shape.length - 1))),
      ([shape, look, dim]) =>
        program(async () => {
          const { t, x } = operand(shape, look, 23);
          const held = ops.contiguous(t).detach().setRequiresGrad();
          const y = ops.softmax(held, dim);
          const largest = nd.reduce(x, [dim], (v) => Math.max(...v));
          const e = nd.map((v, m) => Math.exp(v - m), x, largest);
          const expected = nd.map((v, s) => v / s, e, nd.reduce(e, [dim], total));
          await near("y", y, expected, 2e-6);
          await near("through the view", ops.softmax(t, dim), expected, 2e-6);
          const dy = numbersIn(x, 6);
          y.backward(upload(dy));
          const lean = nd.reduce(
            nd.map((p, g) => p * g, expected, dy),
            [dim],
            total,
          );
          await near(
            "dx",
            held.grad!,
            nd.map((p, g, s) => p * (g - s), expected, dy, lean),
            1e-5,
          );
        }),
    ),
    settings(60),
  ));

test("norms of any rows, every way, with the gradient of x", () =>
  fc.assert(
    fc.asyncProperty(
      fc.tuple(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 2, max: 300 }),
        fc.constantFrom("rows", "group", "shares" as const),
        fc.integer({ min: 1, max: 9 }),
        fc.boolean(),
      ),
      ([rows, n, wanted, split, center]) =>
        program(async () => {
          const { leaf, x } = operand([rows, n], { order: [0, 1] }, 31);
          const variant = wanted === "rows" && n % 4 ? "shares" : wanted;
          const run = center ? norms.layerNorm : norms.rmsNorm;
          const [y] = run(
            { x: leaf },
            { eps: 1e-3, groups: 1, way: { variant: variant as "rows" | "group" | "shares", split } },
          );
          const mean = center ? nd.reduce(x, [1], average) : { shape: [1, 1], data: new Float64Array(1) };
          const rstd = nd.reduce(
            nd.map((v, m) => (v - m) ** 2, x, mean),
            [1],
            (v) => 1 / Math.sqrt(average(v) + 1e-3),
          );
          const expected = nd.map((v, m, r) => (v - m) * r, x, mean, rstd);
          await near("y", y, expected, 1e-5);
          const dy = numbersIn(x, 8);
          y.backward(upload(dy));
          const lean = nd.reduce(
            nd.map((g, h) => g * h, dy, expected),
            [1],
            average,
          );
          const level = center ? nd.reduce(dy, [1], average) : { shape: [1, 1], data: new Float64Array(1) };
          await near(
            "dx",
            leaf.grad!,
            nd.map((g, h, r, a, b) => r * (g - a - h * b), dy, expected, rstd, level, lean),
            2e-5,
          );
        }),
    ),
    settings(60),
  ));

test.after(() => engine.destroy());
test.run();
