import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cat, createEngine, flip, pad, permute, slice, split, type Tensor } from "../engine/index.js";
import type { Nd } from "./ops/case.js";
import * as nd from "./ops/nd.js";
import { cut } from "./ops/slice.js";

/** Moving elements on random shapes: values are numbered, so that each one's way can be followed. */
const test = suite("join and slice");
const engine = await createEngine();
const settings = { seed: 20240, numRuns: 60 };

const sizes = fc
  .array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 6 })
  .filter((s) => nd.size(s) <= 1500);
/** A shape, an order of its axes, and one of its axes. */
const scenes = sizes.chain((shape) =>
  fc.record({
    shape: fc.constant(shape),
    order: fc.shuffledSubarray([...shape.keys()], { minLength: shape.length, maxLength: shape.length }),
    dim: fc.nat(shape.length - 1),
  }),
);

const numbered = (shape: readonly number[], from = 0): Nd => {
  const data = Float64Array.from({ length: nd.size(shape) }, (_, i) => from + i);
  return { shape, data };
};
const upload = (x: Nd): Tensor => engine.tensor(x.data, x.shape).setRequiresGrad();

async function same(got: Tensor, expected: Nd, what: string): Promise<void> {
  assert.equal([...got.shape], [...expected.shape], what);
  assert.equal([...(await got.data())], [...expected.data], what);
}

test("pieces of a permuted view, joined in another order; gradients find their way back", async () => {
  await fc.assert(
    fc.asyncProperty(scenes, fc.nat(1000), async ({ shape, order, dim }, seed) => {
      const x = numbered(shape);
      const t = upload(x);
      const seen = nd.permute(x, order);
      const n = seen.shape[dim];
      const first = seed % (n + 1);
      const [a, b] = split(permute(t, order), [first, n - first], dim);
      const y = cat([b, a], dim);
      const expected = nd.build(seen.shape, (index) =>
        nd.at(
          seen,
          index.map((v, i) => (i === dim ? (v + first) % n : v)),
        ),
      );
      await same(y, expected, "joined");
      // dy = y: each element's gradient is its own number.
      y.backward(y.detach());
      await same(t.grad!, x, "gradient");
      t.dispose();
    }),
    settings,
  );
});

test("slices with steps up and down", async () => {
  const steps = fc.constantFrom(-3, -2, -1, 1, 2, 3);
  await fc.assert(
    fc.asyncProperty(scenes, steps, fc.nat(1000), async ({ shape, order, dim }, step, seed) => {
      const x = numbered(shape, 1);
      const t = upload(x);
      const seen = nd.permute(x, order);
      const n = seen.shape[dim];
      const start = seed % n;
      const y = slice(permute(t, order), dim, start, undefined, step);
      const picked = Array.from({ length: n }, (_, i) => start + i * step).filter((p) => p >= 0 && p < n);
      const expected = nd.build(
        seen.shape.map((size, i) => (i === dim ? picked.length : size)),
        (index) =>
          nd.at(
            seen,
            index.map((v, i) => (i === dim ? picked[v] : v)),
          ),
      );
      await same(y, expected, "slice");
      y.backward(y.detach());
      const back = nd.build(seen.shape, (index) => (picked.includes(index[dim]) ? nd.at(seen, index) : 0));
      const inverse = order.map((_, i) => order.indexOf(i));
      await same(t.grad!, nd.permute(back, inverse), "gradient");
      t.dispose();
    }),
    settings,
  );
});

test("a padded view holds what it held, and turned twice is itself", async () => {
  const amounts = fc.array(fc.tuple(fc.nat(2), fc.nat(2)), { minLength: 6, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(scenes, amounts, async ({ shape, order, dim }, all) => {
      const x = numbered(shape);
      const t = upload(x);
      const seen = nd.permute(x, order);
      const around = all.slice(0, shape.length);
      const y = pad(permute(t, order), around, -1);
      const expected = nd.build(
        seen.shape.map((n, i) => n + around[i][0] + around[i][1]),
        (index) => {
          const from = index.map((v, i) => v - around[i][0]);
          return from.every((v, i) => v >= 0 && v < seen.shape[i]) ? nd.at(seen, from) : -1;
        },
      );
      await same(y, expected, "padded");
      y.backward(y.detach());
      await same(t.grad!, x, "gradient");
      const once = flip(permute(t, order), dim);
      await same(flip(once, dim), seen, "turned twice");
      await same(slice(once, dim, 0, 1), cut(seen, dim, seen.shape[dim] - 1, 1), "the last comes first");
      t.dispose();
    }),
    settings,
  );
});

test.after(() => engine.destroy());
test.run();
