import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, Key, normal, type Tensor, where } from "../engine/index.js";

const test = suite("compile");
let engine: Engine;
test.before(async () => {
  engine = await createEngine();
});
test.after(() => engine.destroy());

/** Whole numbers below n from a seed, in the order in which they are asked for. */
function dice(seed: number): (n: number) => number {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

// Cheap ones: nearly every program is a kernel of its own, and adapters take long to compile much code.
const unary: ((x: Tensor) => Tensor)[] = [
  (x) => x.relu(),
  (x) => x.mul(0.7),
  (x) => x.add(0.3),
  (x) => x.neg(),
  (x) => x.square().mul(0.25),
  (x) => x.clamp(-1, 1),
  (x) => x.abs(),
  (x) => x.to("f16").to("f32"),
  (x) => where(x.greater(0), x, x.mul(0.1)),
];
const HALF = 7;
const rows: ((x: Tensor) => Tensor)[] = [
  (x) => x.softmax(-1),
  (x) => x.layerNorm(),
  (x) => x.sub(x.mean(-1, true)),
  (x) => x.mul(x.sum(1, true).clamp(-1, 1)),
  (x) => x.add(x.mean([0, 1], true)),
  (x) => x.add(x.max(-1, true).mul(0.1)),
];

/** A random expression of x [B, N, C], a row [C], a gate [B, 1, C] and a matrix [C, C], of the same shape as x. */
function program(seed: number, f16: boolean): (x: Tensor, row: Tensor, gate: Tensor, w: Tensor) => Tensor {
  const choices = dice(seed);
  const steps = 3 + choices(8);
  const plan = Array.from({ length: steps }, () => [choices(9), choices(1000), choices(1000), choices(1000)]);
  return (x, row, gate, w) => {
    const values = [x];
    for (const [kind, a, b, c] of plan) {
      const p = values[a % values.length];
      const q = values[b % values.length];
      const simple = unary[c % unary.length];
      let y: Tensor;
      if (kind < 3) y = c % unary.length === HALF && !f16 ? p.mul(0.9) : simple(p);
      else if (kind === 3) y = p.add(q);
      else if (kind === 4) y = p.mul(q.clamp(-1, 1));
      else if (kind === 5) y = [p.add(row), p.mul(gate), p.addcmul(gate, q), p.mul(gate.add(1)).add(row)][c % 4];
      else if (kind === 6) y = p.matmul(w);
      else if (kind === 7) y = rows[c % rows.length](p);
      else y = p.permute([1, 0, 2]).contiguous().mul(0.5).permute([1, 0, 2]).add(q);
      values.push(y);
    }
    return values.slice(-3).reduce((u, v) => u.add(v));
  };
}

const numbers = async (list: readonly Tensor[]) => Promise.all(list.map((t) => t.data()));

/** Largest difference over the largest value of each tensor. */
function difference(a: ArrayLike<number>[], b: ArrayLike<number>[]): number {
  let worst = 0;
  a.forEach((values, k) => {
    const size = Math.max(1e-3, ...Array.from(b[k], Math.abs));
    for (let i = 0; i < values.length; i++) worst = Math.max(worst, Math.abs(values[i] - b[k][i]) / size);
  });
  return worst;
}

/** Runs programs compiled and op by op, twice with other inputs, and gives the number of launches saved. */
async function compare(engine: Engine, from: number, to: number): Promise<number> {
  const f16 = engine.has("shader-f16");
  let fused = 0;
  for (let seed = from; seed < to; seed++) {
    const f = program(seed, f16);
    const sizes = dice(seed + 7000);
    const [B, N, C] = [1 + sizes(3), 1 + sizes(5), [3, 4, 8, 12, 5][sizes(5)]];
    const keys = Key.from(seed).split(5);
    const [x, row, gate, w] = [[B, N, C], [C], [B, 1, C], [C, C]].map((shape, i) =>
      normal(engine, keys[i], shape)
        .keep()
        .setRequiresGrad(i > 0),
    );
    const leaves = [row, gate, w];
    const run = (given: Tensor) => {
      const y = f(given, row, gate, w);
      const loss = y.mul(y).mean();
      if (loss.requiresGrad) loss.backward();
      return { y: y.detach(), loss: loss.detach() };
    };
    const step = engine.compile(run);
    const other = normal(engine, keys[4], [B, N, C]);
    for (const given of [x, other]) {
      const results = [];
      for (const eager of [false, true]) {
        engine.eager = eager;
        const { y, loss } = step(given);
        engine.eager = false;
        const grads = leaves.map((t) => t.grad).filter((g) => g !== undefined);
        results.push(await numbers([y, loss, ...grads]));
        for (const t of [y, loss, ...grads]) t.dispose();
        for (const t of leaves) t.grad = undefined;
      }
      assert.is(results[0].length, results[1].length, `seed ${seed}`);
      // f16 in the middle is kept as f32 where it is fused.
      const error = difference(results[0], results[1]);
      assert.ok(error < 4e-3, `seed ${seed}: differs by ${error}`);
      if (error > 2e-5) assert.ok(usesHalf(seed), `seed ${seed}: differs by ${error} without f16`);
    }
    assert.is(step.plans.length, 1, `seed ${seed}`);
    fused += step.plans[0].traced - step.plans[0].commands.length;
    step.dispose();
    for (const t of [x, row, gate, w, other]) t.dispose();
  }
  return fused;
}

test("200 random programs and their gradients equal the same op by op", async () => {
  // lavapipe takes four times as long as SwiftShader to compile a kernel, and nearly every program brings its own.
  const slow = engine.info.name.includes("lavapipe") && !process.env.ESPALIER_COMPLETE;
  const other = slow ? await createEngine({ adapter: "swiftshader" }) : engine;
  try {
    const fused = await compare(other, 0, 200);
    assert.ok(fused > 1000, `${fused} launches saved`);
    if (slow) await compare(engine, 0, 16);
  } finally {
    if (other !== engine) other.destroy();
  }
});

/** Whether a program rounds to f16 in the middle. */
function usesHalf(seed: number): boolean {
  const choices = dice(seed);
  const steps = 3 + choices(8);
  return Array.from({ length: steps }, () => [choices(9), choices(1000), choices(1000), choices(1000)]).some(
    ([kind, , , c]) => kind < 3 && c % unary.length === HALF,
  );
}

test("each call has its own inputs, keys and results", async () => {
  const step = engine.compile((x: Tensor, key: Key) => ({ sum: x.add(normal(engine, key, [3])), twice: [x.mul(2)] }));
  const results = [1, 2, 1].map((v) => step(engine.full([3], v), Key.from(v)));
  const [a, b, c] = await numbers(results.map((r) => r.sum));
  assert.equal(a, c);
  assert.not.equal(a, b);
  const eager = engine.full([3], 2).add(normal(engine, Key.from(2), [3]));
  assert.equal(b, await eager.data());
  assert.equal([...(await results[1].twice[0].data())], [4, 4, 4]);
  assert.is(step.plans.length, 1);
  step(engine.ones([3]), Key.from(1).split()[0]);
  assert.is(step.plans.length, 1);
});

test("new shapes, types and plain values make new plans, of which sixteen are kept", async () => {
  const step = engine.compile((x: Tensor, by: number) => x.mul(by));
  for (let n = 1; n <= 20; n++) assert.equal([...(await step(engine.ones([n]), n).data())], Array(n).fill(n));
  assert.is(step.plans.length, 16);
  assert.equal([...(await step(engine.ones([1]), 1).data())], [1]);
});

test("a steady call makes no buffer and no bind group, and holds no more memory", async () => {
  const w = normal(engine, Key.from(1), [8, 8]).keep().setRequiresGrad();
  const step = engine.compile((x: Tensor) => {
    const loss = x.matmul(w).relu().square().mean();
    loss.backward();
    w.grad = undefined;
    return loss;
  });
  const x = engine.ones([4, 8]);
  const call = async () => {
    const loss = step(x);
    const value = await loss.item();
    loss.dispose();
    return value;
  };
  const first = await call();
  await call();
  const before = { ...engine.memory(), created: engine.memoryPool.created, groups: engine.queue.counts.bindGroups };
  for (let i = 0; i < 50; i++) assert.is(await call(), first);
  const after = { ...engine.memory(), created: engine.memoryPool.created, groups: engine.queue.counts.bindGroups };
  assert.equal(after, before);
  const held = engine.memory().byOwner.plan!;
  step.dispose();
  assert.ok((engine.memory().byOwner.plan ?? 0) < held);
});

test("gradients that a function leaves are there after each call", async () => {
  const w = engine.tensor([1, 2]).keep().setRequiresGrad();
  const step = engine.compile((x: Tensor) => {
    x.mul(w).sum().backward();
  });
  for (const v of [3, 4]) {
    step(engine.full([2], v));
    assert.equal([...(await w.grad!.data())], [v, v]);
    w.grad!.dispose();
    w.grad = undefined;
  }
  assert.is(step.plans.length, 1);
});

test("weights that move are followed", async () => {
  const w = engine.tensor([1, 2]).keep();
  const [a, b] = [engine.tensor([5, 6]).keep(), engine.tensor([7, 8]).keep()];
  const step = engine.compile((x: Tensor) => x.mul(w));
  const one = engine.ones([2]);
  assert.equal([...(await step(one).data())], [1, 2]);
  w.point(a.storage, 0);
  assert.equal([...(await step(one).data())], [5, 6]);
  w.point(b.storage, 0);
  assert.equal([...(await step(one).data())], [7, 8]);
  engine.write(w, new Uint8Array(Float32Array.of(9, 9).buffer));
  assert.equal([...(await step(one).data())], [9, 9]);
});

test("host work wrapped in eachCall happens in each call", async () => {
  const rate = engine.tensor([0]).keep();
  let n = 0;
  const step = engine.compile((x: Tensor) => {
    engine.eachCall(() => engine.write(rate, new Uint8Array(Float32Array.of(++n).buffer)));
    return x.mul(rate);
  });
  const x = engine.ones([1]);
  for (const expected of [1, 2, 3]) assert.is(await step(x).item(), expected);
});

test("inside a compiled function others are parts of it", async () => {
  const inner = engine.compile((x: Tensor) => x.mul(2).add(1));
  const outer = engine.compile((x: Tensor) => inner(x).mul(inner(x)));
  assert.is(await outer(engine.full([], 3)).item(), 49);
  assert.is(inner.plans.length, 0);
});

const refused: [string, () => unknown, RegExp][] = [
  [
    "an asynchronous function",
    () => engine.compile((async (x: Tensor) => x.mul(2)) as unknown as (x: Tensor) => Tensor)(engine.ones([1])),
    /function is asynchronous/,
  ],
  [
    "numbers in an array",
    () => engine.compile((x: Float32Array) => x.length)(new Float32Array(2)),
    /array of numbers, which would be fixed/,
  ],
  [
    "a result that still wants a gradient",
    () => {
      const w = engine.ones([2]).keep().setRequiresGrad();
      return engine.compile((x: Tensor) => x.mul(w))(engine.ones([2]));
    },
    /could still be differentiated; call backward\(\) inside, or return it with detach/,
  ],
  [
    "freeing what is not its own",
    () => {
      const w = engine.ones([2]).keep();
      return engine.compile((x: Tensor) => {
        const y = x.mul(w);
        w.dispose();
        return y;
      })(engine.ones([2]));
    },
    /frees a tensor that it did not make/,
  ],
  [
    "an argument that depends on a parameter",
    () => {
      const w = engine.ones([2]).keep().setRequiresGrad();
      return engine.compile((x: Tensor) => x.mul(2))(w.mul(3));
    },
    /cannot flow through a compiled function/,
  ],
  [
    "a shape error, as it is op by op",
    () => engine.compile((x: Tensor) => x.matmul(engine.ones([3, 3])))(engine.ones([2, 2])),
    /matmul: inner dimensions differ/,
  ],
];
for (const [what, run, message] of refused)
  test(`refused: ${what}`, () => {
    assert.throws(run, message);
    assert.is(engine.trace, undefined);
  });

test("values cannot be read while a function is traced", async () => {
  let reading: Promise<unknown> | undefined;
  engine.compile((x: Tensor) => {
    const y = x.mul(2);
    reading = y.data();
    reading.catch(() => {});
    return y;
  })(engine.ones([1]));
  const error = await reading!.then(
    () => undefined,
    (e: Error) => e,
  );
  assert.match(error!.message, /made by a function while that was traced; return it from the function to read it/);
});

test.run();
