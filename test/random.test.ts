import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, dropout, Key, normal, randint, randomBits, uniform } from "../engine/index.js";
import { philox4x32 } from "../engine/random/philox.js";

const test = suite("random");
const engine = await createEngine();

test("keys: values of their seed and path, none repeats", () => {
  const root = Key.from(42);
  assert.is(`${root}`, `${Key.from(42)}`);
  assert.is(`${Key.parse(`${root}`)}`, `${root}`);
  assert.equal(root.split(3).map(String).slice(0, 2), root.split(2).map(String));
  const all = new Set<string>([`${root}`]);
  let expected = 1;
  for (const seed of [0, 1, 2 ** 32, 2 ** 53 - 1]) {
    const k = Key.from(seed);
    for (const child of [
      k,
      ...k.split(50),
      ...Array.from({ length: 50 }, (_, i) => k.fold(i)),
      k.fold(2 ** 40),
      k.fold(1).fold(2),
      k.fold(2).fold(1),
    ])
      all.add(`${child}`);
    expected += 104;
  }
  assert.is(all.size, expected);
  // A derived key is none of the words that its parent draws.
  const drawn = new Set(Array.from({ length: 256 }, (_, i) => philox4x32([i, 0, 0, 0], root.words)).flat());
  for (const k of [...root.split(64), ...Array.from({ length: 64 }, (_, i) => root.fold(i))])
    for (const w of k.words) assert.not(drawn.has(w));
});

test("keys: bad seeds, indices and texts are refused", () => {
  assert.throws(() => Key.from(-1), /Key\.from: needs a whole number from 0 to 2\^53 - 1: got -1/);
  assert.throws(() => Key.from(1.5), /got 1\.5/);
  assert.throws(() => Key.from(1).fold(Number.NaN), /Key\.fold: .*got NaN/);
  assert.throws(() => Key.parse("12"), /Key\.parse: needs 16 hexadecimal digits: got "12"/);
});

test("bits of the GPU equal the known answers of Random123 and philox.ts over many blocks", async () => {
  const zero = Key.parse("0000000000000000");
  const first = await randomBits(engine, zero, [4]).data();
  assert.equal(
    [...first].map((w) => w.toString(16)),
    ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"],
  );
  const key = Key.from(7);
  const n = 40_000;
  const words = await randomBits(engine, key, [n]).data();
  for (let i = 0; i < n / 4; i += 97)
    assert.equal([...words.slice(4 * i, 4 * i + 4)], philox4x32([i, 0, 0, 0], key.words));
});

test("a draw depends on its position, not on the shape", async () => {
  const key = Key.from(3);
  const long = await normal(engine, key, [1000]).data();
  const short = await normal(engine, key, [10, 7]).data();
  assert.equal([...short], [...long.slice(0, 70)]);
});

test("seeded random keys and shapes: bits equal philox.ts, dropout keeps the same values in backward", async () => {
  const cases = fc.record({
    seed: fc.nat(),
    fold: fc.nat(),
    shape: fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 3 }),
    p: fc.double({ min: 0, max: 1, noNaN: true }),
  });
  await fc.assert(
    fc.asyncProperty(cases, async ({ seed, fold, shape, p }) => {
      const key = Key.from(seed).fold(fold);
      const bits = await randomBits(engine, key, shape).data();
      for (let i = 0; i < bits.length; i++) assert.is(bits[i], philox4x32([i >> 2, 0, 0, 0], key.words)[i & 3]);
      const x = engine.full(shape, 3).setRequiresGrad();
      const y = dropout(x, p, key);
      y.sum().backward();
      const [out, grad] = [await y.data(), await x.grad!.data()];
      for (let i = 0; i < out.length; i++) {
        const scale = bits[i] >= Math.round(p * 2 ** 32) && p < 1 ? 1 / (1 - p) : 0;
        for (const [got, want] of [
          [out[i], 3 * scale],
          [grad[i], scale],
        ])
          assert.ok(Math.abs(got - want) <= 1e-6 * want);
      }
      for (const t of [x, y]) t.dispose();
    }),
    { seed: 7, numRuns: 25 },
  );
});

const N = 1 << 18;

/** Mean, variance, skewness and kurtosis. */
function moments(x: ArrayLike<number>): [number, number, number, number] {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i];
  const mean = sum / x.length;
  let [m2, m3, m4] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    const d = x[i] - mean;
    m2 += d * d;
    m3 += d * d * d;
    m4 += d * d * d * d;
  }
  [m2, m3, m4] = [m2 / x.length, m3 / x.length, m4 / x.length];
  return [mean, m2, m3 / m2 ** 1.5, m4 / m2 ** 2];
}

/** Each estimate within five of its standard errors. */
function near(subject: string, got: number, wanted: number, error: number): void {
  assert.ok(
    Math.abs(got - wanted) < (5 * error) / Math.sqrt(N),
    `${subject}: ${got}, expected ${wanted} within ${(5 * error) / Math.sqrt(N)}`,
  );
}

test("normal: moments, tails, and no correlation between neighbours", async () => {
  const z = Float64Array.from(await normal(engine, Key.from(11), [N]).data());
  const [mean, variance, skew, kurtosis] = moments(z);
  near("mean", mean, 0, 1);
  near("variance", variance, 1, Math.sqrt(2));
  near("skewness", skew, 0, Math.sqrt(6));
  near("kurtosis", kurtosis, 3, Math.sqrt(24));
  const beyond = (limit: number) => z.reduce((n, v) => n + (Math.abs(v) > limit ? 1 : 0), 0) / N;
  near("beyond 1", beyond(1), 0.3173105, 0.4654);
  near("beyond 2", beyond(2), 0.0455003, 0.2084);
  near("beyond 3", beyond(3), 0.0026998, 0.0519);
  for (const lag of [1, 2, 3, 4]) near(`lag ${lag}`, z.reduce((s, v, i) => s + v * (z[i + lag] ?? 0), 0) / N, 0, 1);
});

test("uniform and randint: moments and even counts", async () => {
  const u = Float64Array.from(await uniform(engine, Key.from(5), [N]).data());
  const [mean, variance] = moments(u);
  near("mean", mean, 0.5, Math.sqrt(1 / 12));
  near("variance", variance, 1 / 12, Math.sqrt(1 / 180));
  assert.ok(u.every((v) => v >= 0 && v < 1));
  const r = await randint(engine, Key.from(6), [N], 0, 10);
  const counts = new Array<number>(10).fill(0);
  for (const v of await r.data()) counts[v]++;
  for (const c of counts) near("share", c / N, 0.1, 0.3);
});

test.after(() => engine.destroy());
test.run();
