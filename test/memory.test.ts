import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  checkpoint,
  createEngine,
  DeviceLostError,
  DisposedError,
  dropout,
  type Engine,
  normal,
  OutOfMemoryError,
  type Tensor,
} from "../engine/index.js";
import { AdamW, EMA } from "../train/optim.js";

const test = suite("memory");
const engine = await createEngine();

/** A small training run; `each` is called after every step. */
function train(e: Engine, steps: number, each: (step: number) => void): void {
  const keys = e.key().split(3);
  const params: Record<string, Tensor> = {};
  for (const [i, shape] of [[8, 16], [16], [16, 8]].entries())
    params[i] = normal(e, keys[0].fold(i), shape).setRequiresGrad();
  const optimizer = new AdamW(params, { lr: 1e-3 });
  const ema = new EMA(params, { decay: 0.9, warmup: true });
  for (let s = 0; s < steps; s++) {
    e.scope(() => {
      const x = normal(e, keys[1].fold(s), [12, 8, 1]);
      const block = (t: Tensor) => dropout(t.mul(params[0]).add(params[1]).tanh(), 0.1, keys[2].fold(s)).sum(1);
      const h = checkpoint(block, x);
      // Two batches add up.
      h.square().mean().backward();
      h.detach().mul(params[1]).add(params[2].sum(1)).square().mean().backward();
      optimizer.step({ clip: 1 });
      ema.update();
      optimizer.zeroGrad();
    });
    if (s % 10 === 9) e.submit();
    each(s);
  }
  ema.dispose();
  optimizer.dispose();
  for (const p of Object.values(params)) p.dispose();
}

test("100 steps of training: live bytes are flat to the byte, and no buffer is created after the first", async () => {
  const before = engine.memory();
  const seen = { live: new Set<number>(), pooled: new Set<number>(), created: new Set<number>() };
  train(engine, 100, (s) => {
    if (s < 1) return;
    const { live, pooled } = engine.memory();
    seen.live.add(live);
    seen.pooled.add(pooled);
    seen.created.add(engine.memoryPool.created);
  });
  await engine.finish();
  for (const [name, values] of Object.entries(seen)) assert.is(values.size, 1, `${name}: ${[...values].join(", ")}`);
  assert.is(engine.memory().live, before.live);
  assert.is(engine.tape.entries.length, 0);
});

test("a scope frees what was made inside, keeps what it returns, and undoes itself when it throws", () => {
  const { live } = engine.memory();
  const { kept, list } = engine.scope(() => {
    const a = engine.ones([100]);
    const b = a.add(1).mul(3);
    return { kept: b.exp().keep(), list: [b] };
  });
  assert.is(engine.memory().live, live + 2 * 512);
  kept.dispose();
  list[0].dispose();
  assert.is(engine.memory().live, live);
  assert.throws(
    () =>
      engine.scope(() => {
        engine.ones([1000]).mul(2);
        throw new Error("stop");
      }),
    /stop/,
  );
  assert.is(engine.memory().live, live);
  const outer = engine.scope(() => engine.scope(() => engine.ones([5])).add(1));
  assert.is(outer.isDisposed, false);
  outer.dispose();
  assert.is(engine.memory().live, live);
});

test("a refused op leaves nothing behind", () => {
  const a = engine.ones([2, 3]);
  const { live } = engine.memory();
  assert.throws(() => a.add(engine.scope(() => engine.ones([4]))), /shapes do not broadcast/);
  engine.memoryPool.trim();
  assert.ok(engine.memory().live <= live + 256);
  a.dispose();
});

test("use after free names the op that made the tensor, and its module", () => {
  const leaked = engine.scope(() => {
    const inner = engine.inModule("blocks.2.attn", () => engine.ones([2, 3]).exp());
    return { f: () => inner.sin() };
  });
  assert.throws(
    leaked.f,
    (e: Error) =>
      e instanceof DisposedError &&
      /^sin: uses a tensor after it was freed: \[2, 3\] f32 from exp in blocks\.2\.attn; return it from the scope/.test(
        e.message,
      ),
  );
  const t = engine.ones([1]);
  t.dispose();
  t.dispose();
  assert.throws(() => t.backward(), /backward: uses a tensor after it was freed/);
});

test("beyond the budget: what was asked, what is live by owner, what to lower", async () => {
  const small = await createEngine({ budget: 4 << 20 });
  const p = small.zeros([200_000]).setRequiresGrad();
  const optimizer = new AdamW([p]);
  assert.throws(
    () => small.zeros([1_000_000]),
    (e: Error) => {
      assert.ok(e instanceof OutOfMemoryError);
      assert.match(
        e.message,
        /^memory: zeros \[1000000\] f32 needs 3\.81 MiB beyond the budget of 4\.00 MiB: live are \d\.\d\d MiB \(optimizer 1\.\d\d MiB, parameters 0\.\d\d MiB, gradients 0\.\d\d MiB\); lower the batch size/,
      );
      return true;
    },
  );
  // Freed buffers of another size make room.
  optimizer.dispose();
  p.dispose();
  for (let i = 0; i < 5; i++) small.zeros([700_000 + 50_000 * i]).dispose();
  await small.finish();
  assert.ok(small.memory().pooled <= 4 << 20);
  small.destroy();
});

test("one tensor beyond what the adapter allows", () => {
  const { maxBufferSize } = engine.limits;
  assert.throws(
    () => engine.empty([Math.min(2 ** 31 - 1, Math.ceil(maxBufferSize / 4) + 64)]),
    (e: Error) => e instanceof OutOfMemoryError || /2\^31/.test(e.message),
  );
});

test("a lost device: typed errors in a run, and a new engine in the same process", async () => {
  const lost = await createEngine();
  const x = lost.ones([64]);
  let y = x.mul(2);
  lost.device.destroy();
  const error = await (async () => {
    for (let i = 0; i < 1000; i++) {
      y = y.mul(1.001);
      if (i % 10 === 0) await y.data();
    }
  })().then(
    () => undefined,
    (e: Error) => e,
  );
  assert.instance(error, DeviceLostError);
  assert.match(
    error!.message,
    /device: the GPU was lost \(.+\); tensors of this engine are gone: make a new engine and load the last checkpoint/,
  );
  assert.throws(
    () => x.add(1),
    (e: Error) => e instanceof DeviceLostError,
  );
  lost.destroy();
  const next = await createEngine();
  assert.equal([...(await next.ones([3]).mul(2).data())], [2, 2, 2]);
  next.destroy();
  assert.throws(() => next.ones([1]), /engine: was destroyed; make a new one/);
});

test.after(() => engine.destroy());
test.run();
