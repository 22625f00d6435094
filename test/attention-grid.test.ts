import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type DType, type Engine, scaledDotProductAttention, type Tensor } from "../engine/index.js";
import { type AttentionVariant, attentionVariantsOf } from "../engine/ops/attend.js";
import { derivatives, type Problem } from "./ops/attention-grid.js";
import { random } from "./ops/loop.js";

// Attention at the sizes that transformers have, forward and all gradients, against sums in float64. The product of all
// values takes minutes: by default a seeded choice of it holds every pair of values; ESPALIER_COMPLETE=1 runs all.

const lengths = [1, 15, 16, 17, 64, 257, 1024] as const;
const depths = [16, 24, 40, 64, 72, 96, 128] as const;
const masks = ["none", "padding", "causal", "hidden rows"] as const;
interface Cell {
  length: number;
  depth: number;
  mask: (typeof masks)[number];
  dtype: DType;
}

/** Cells of the product, chosen until no pair of values is missing. */
function pairwise(axes: { [K in keyof Cell]: readonly Cell[K][] }, seed: number): Cell[] {
  const names = Object.keys(axes) as (keyof Cell)[];
  const next = random(seed);
  const pairs = (c: Cell) => names.flatMap((a, i) => names.slice(i + 1).map((b) => `${a} ${c[a]} ${b} ${c[b]}`));
  const missing = new Set<string>();
  for (const [i, a] of names.entries())
    for (const b of names.slice(i + 1))
      for (const x of axes[a]) for (const y of axes[b]) missing.add(`${a} ${x} ${b} ${y}`);
  const cells: Cell[] = [];
  while (missing.size) {
    // The best of some cells drawn at random, each forced to hold one pair that is missing.
    const [a, x, b, y] = /^(\S+) (.+) (length|depth|mask|dtype) (.+)$/.exec([...missing][0])!.slice(1);
    const draws = Array.from({ length: 40 }, () => {
      const c = Object.fromEntries(
        names.map((n) => [n, axes[n][Math.floor(next() * axes[n].length)]]),
      ) as unknown as Cell;
      const set = (name: string, text: string) => {
        const n = name as keyof Cell;
        Object.assign(c, { [n]: (axes[n] as readonly unknown[]).find((v) => `${v}` === text) });
      };
      set(a, x);
      set(b, y);
      return c;
    });
    const gain = (c: Cell) => pairs(c).filter((p) => missing.has(p)).length;
    const best = draws.reduce((u, v) => (gain(v) > gain(u) ? v : u));
    for (const p of pairs(best)) missing.delete(p);
    cells.push(best);
  }
  return cells;
}

function product(axes: { [K in keyof Cell]: readonly Cell[K][] }): Cell[] {
  return axes.length.flatMap((length) =>
    axes.depth.flatMap((depth) =>
      axes.mask.flatMap((mask) => axes.dtype.map((dtype) => ({ length, depth, mask, dtype }))),
    ),
  );
}

/** Largest error over 1 + |expected|. */
function worst(got: ArrayLike<number>, expected: Float64Array): number {
  assert.is(got.length, expected.length);
  let most = 0;
  for (let i = 0; i < expected.length; i++) {
    const e = Math.abs(got[i] - expected[i]) / (1 + Math.abs(expected[i]));
    if (!(e <= most)) most = e;
  }
  return most;
}

/**
 * Limits of that error. f32: rounding of sums of up to 1024 terms of size about 1. f16: results and gradients are rounded
 * to 11 bits, and so is the y that backward takes its row sums from.
 */
const limits = { f32: { y: 4e-6, gradient: 2e-5 }, f16: { y: 2e-3, gradient: 1e-2 } };

/** One cell, by the adapter's own choice of kernels or by those of a variant. */
async function run(engine: Engine, cell: Cell, variant?: AttentionVariant): Promise<string | undefined> {
  const { length, depth, mask, dtype } = cell;
  const half = dtype === "f16";
  const next = random(length * 1000 + depth);
  // Short sequences get as many heads as it takes to be given all gradients by one launch where there is such a kernel.
  const [heads, batch] = length <= 64 ? [4, 8] : [1, 1];
  const draw = async () => {
    const t = engine.tensor(
      Float64Array.from({ length: batch * heads * length * depth }, () => next() * 2 - 1),
      [batch, heads, length, depth],
      dtype,
    );
    return { t, values: Float64Array.from(await t.data()) };
  };
  const [q, k, v, dy] = [await draw(), await draw(), await draw(), await draw()];
  const hides = mask === "padding" || mask === "hidden rows";
  // The last keys of each batch are padding, of the first batch all of them where rows are hidden as a whole.
  const keep = Float64Array.from({ length: batch * length }, (_, i) => {
    const b = Math.floor(i / length);
    if (mask === "hidden rows" && b === 0) return 0;
    return i % length < Math.ceil((length * (2 + (b % 3))) / 4) ? 1 : 0;
  });
  const problem: Problem = {
    batch,
    heads,
    length,
    depth,
    causal: mask === "causal",
    keep: hides ? keep : undefined,
    q: q.values,
    k: k.values,
    v: v.values,
    dy: dy.values,
  };
  const expected = derivatives(problem);
  for (const { t } of [q, k, v]) t.setRequiresGrad();
  const hidden = hides ? engine.tensor(keep, [batch, 1, 1, length], "u32") : undefined;
  const y = scaledDotProductAttention(q.t, k.t, v.t, { mask: hidden, causal: mask === "causal", variant });
  y.backward(dy.t);
  const limit = limits[half ? "f16" : "f32"];
  const wrong: string[] = [];
  const compare = async (name: string, t: Tensor, right: Float64Array, most: number) => {
    const error = worst(await t.data(), right);
    if (!(error <= most)) wrong.push(`${name} off by ${error.toExponential(1)} (limit ${most})`);
  };
  await compare("y", y, expected.y, limit.y);
  await compare("dq", q.t.grad!, expected.dq, limit.gradient);
  await compare("dk", k.t.grad!, expected.dk, limit.gradient);
  await compare("dv", v.t.grad!, expected.dv, limit.gradient);
  for (const t of [q.t, k.t, v.t, dy.t, y, ...(hidden ? [hidden] : [])]) t.dispose();
  return wrong.length ? `${variant ?? "chosen"} ${length} x ${depth} ${mask} ${dtype}: ${wrong.join(", ")}` : undefined;
}

async function runAll(engine: Engine, cells: readonly Cell[], variant?: AttentionVariant): Promise<void> {
  const failures: string[] = [];
  for (const cell of cells) {
    const failure = await run(engine, cell, variant);
    if (failure) failures.push(failure);
  }
  assert.is(failures.join("\n"), "");
}

const test = suite("attention grid");
const engine = await createEngine();
const complete = process.env.ESPALIER_COMPLETE === "1";
const dtypes: DType[] = engine.has("shader-f16") ? ["f32", "f16"] : ["f32"];
const all = { length: lengths, depth: depths, mask: masks, dtype: dtypes };

test(`${engine.info.name}: ${complete ? "all" : "every pair of"} lengths, head dimensions, masks and types`, async () => {
  await runAll(engine, complete ? product(all) : pairwise(all, 5));
});

test("the same without subgroups", async () => {
  const plain = await createEngine({ without: ["subgroups"] });
  try {
    assert.not.ok(plain.has("subgroups"));
    assert.not.ok(attentionVariantsOf(plain).includes("lanes"));
    // On lavapipe each of these kernels compiles for ten seconds: one set of them, unless all is asked for.
    const isSlow = /lavapipe/.test(plain.info.name);
    const isFew = isSlow && !complete;
    const few = isFew ? { ...all, dtype: ["f32"] as const } : all;
    const cells = complete && !isSlow ? product(all) : pairwise(few, 6);
    await runAll(
      plain,
      isFew ? cells.filter((c) => c.depth <= 24 && (c.mask === "none" || c.mask === "causal")) : cells,
    );
  } finally {
    plain.destroy();
  }
});

test("the definition's own kernels, which the others are compared with", async () => {
  const short = { ...all, length: lengths.slice(0, 4), dtype: ["f32"] as const };
  await runAll(engine, complete ? product(short) : pairwise(short, 7).slice(0, 16), "naive");
});

test.after(() => engine.destroy());
test.run();
