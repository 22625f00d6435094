import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, Key, type Tensor } from "../../engine/index.js";
import { Batches } from "../../train/batch.js";
import { type ConfigInput, parseConfig } from "../../train/config.js";
import { AdamW, type AdamWOptions, EMA } from "../../train/optim.js";
import { newSetup } from "../../train/setup.js";
import { openSource } from "../../train/source.js";
import { trainStep, uploadBatch } from "../../train/step.js";

const test = suite("training steps");

const tiny: ConfigInput = {
  data: { frames: 2, size: 8 },
  codec: { kind: "pixels" },
  model: { hidden: 8, depth: 1, heads: 2, patch: [1, 4, 4], maxLength: 4 },
  train: { batchSize: 2 },
};

/** A model in training, and its data. */
async function training(engine: Engine, input: ConfigInput = tiny, options: AdamWOptions = {}) {
  const config = parseConfig(input);
  const source = await openSource(config);
  const setup = await newSetup(engine, config, source);
  const { batchSize } = config.train;
  const draws = { batchSize, conditionDropout: 0.3, languageDropout: 0, seed: 5 };
  const batches = new Batches(source.dataset, setup.text, draws);
  const parameters = Object.fromEntries(setup.model.namedParameters());
  const optimizer = new AdamW(parameters, { weightDecay: 0.01, ...options });
  const ema = new EMA(parameters, { decay: 0.99, warmup: true });
  const step = trainStep(setup, optimizer, ema, { clip: 1 });
  return {
    ...{ setup, batches, optimizer, ema, step, parameters },
    dispose: () => {
      step.dispose();
      ema.dispose();
      optimizer.dispose();
      setup.dispose();
    },
  };
}

/** Loss and norm of steps first, first + 1, …; `lr` by step. */
async function run(
  engine: Engine,
  { setup, batches, optimizer, step }: Awaited<ReturnType<typeof training>>,
  steps: number,
  lr = (i: number) => 1e-2 / (1 + i / 20),
): Promise<number[][]> {
  const numbers: Tensor[] = [];
  for (let i = 0; i < steps; i++) {
    const batch = await batches.get(i);
    optimizer.lr = lr(i);
    numbers.push(engine.scope(() => step([uploadBatch(setup, batch)], Key.from(i)).keep()));
    engine.submit();
  }
  return Promise.all(numbers.map(async (t) => [...(await t.data().finally(() => t.dispose()))]));
}

const values = async (tensors: Readonly<Record<string, Tensor>>) =>
  Object.fromEntries(await Promise.all(Object.entries(tensors).map(async ([n, t]) => [n, await t.data()] as const)));

/** Largest difference of two sets of tensors, relative to the largest number of each. */
function apart(a: Record<string, ArrayLike<number>>, b: Record<string, ArrayLike<number>>): number {
  return Math.max(
    ...Object.keys(a).map((name) => {
      const most = Math.max(1e-3, ...Array.from(a[name], Math.abs));
      return Math.max(...Array.from(a[name], (x, i) => Math.abs(x - b[name][i]) / most));
    }),
  );
}

for (const kind of ["flow", "iddpm"] as const)
  test(`50 ${kind} steps compiled equal 50 op by op: losses, weights, averages`, async () => {
    const results = [];
    for (const eager of [false, true]) {
      const engine = await createEngine({ eager });
      const state = await training(engine, { ...tiny, objective: { kind } });
      const losses = await run(engine, state, 50);
      assert.is(state.step.plans.length, eager ? 0 : 1);
      assert.is(state.optimizer.steps, 50);
      assert.is(state.ema.updates, 50);
      results.push({
        losses: { all: losses.flat() },
        weights: await values(state.parameters),
        averages: await values(state.ema.params),
        moments: await values(state.optimizer.state().tensors),
      });
      state.dispose();
      engine.destroy();
    }
    const [compiled, eager] = results;
    // Rounding of fused launches, carried through 50 steps of a changing model.
    assert.ok(apart(compiled.losses, eager.losses) < 2e-4, `losses: ${apart(compiled.losses, eager.losses)}`);
    for (const part of ["weights", "averages", "moments"] as const)
      assert.ok(apart(compiled[part], eager[part]) < 5e-3, `${part}: ${apart(compiled[part], eager[part])}`);
  });

test("a thousand compiled steps: flat memory, nothing made, and the loss falls", async () => {
  const engine = await createEngine();
  const state = await training(engine);
  const seen = () => {
    const { live, pooled } = engine.memory();
    const { bindGroups, pipelines } = engine.queue.counts;
    return { live, pooled, created: engine.memoryPool.created, bindGroups, pipelines, plans: state.step.plans.length };
  };
  const total = (rows: number[][]) => rows.reduce((s, [loss]) => s + loss, 0);
  // The same 16 batches with the same noise, before and after; at a rate of 0 nothing moves.
  const before = total(await run(engine, state, 16, () => 0));
  let reading: Promise<unknown> | undefined;
  let first: ReturnType<typeof seen> | undefined;
  for (let i = 0; i < 1000; i++) {
    const batch = await state.batches.get(i);
    state.optimizer.lr = 1e-2;
    const numbers = engine.scope(() => state.step([uploadBatch(state.setup, batch)], Key.from(1000 + i)).keep());
    engine.submit();
    // As in a run: a step's numbers are read while the next one is made.
    await reading;
    reading = numbers.data().then(([loss]) => {
      assert.ok(Number.isFinite(loss));
      numbers.dispose();
    });
    if (i % 100 !== 5) continue;
    await reading;
    first ??= seen();
    assert.equal(seen(), first, `step ${i}`);
  }
  await reading;
  assert.equal(seen(), first);
  const after = total(await run(engine, state, 16, () => 0));
  console.log(`      loss of 16 batches ${(before / 16).toFixed(3)}, then ${(after / 16).toFixed(3)}`);
  assert.ok(after < 0.95 * before, "the loss does not fall");
  state.dispose();
  engine.destroy();
});

test("batches of other shapes make plans of their own; weights that moved away make none run", async () => {
  const engine = await createEngine();
  const state = await training(engine);
  const { setup, batches, step, optimizer, ema } = state;
  const batch = await batches.get(0);
  const half = {
    ...batch,
    video: batch.video.subarray(0, batch.video.length / 2),
    shape: [...batch.shape] as typeof batch.shape,
  };
  half.shape[2] = 1;
  const once = async (b: typeof batch, n = 0) =>
    [...(await engine.scope(() => step([uploadBatch(setup, b)], Key.from(n)).keep()).data())][0];
  optimizer.lr = 0;
  const [whole, still] = [await once(batch), await once(half)];
  assert.not.equal(whole, still);
  assert.is(step.plans.length, 2);
  // At a rate of 0 nothing moved.
  assert.is(await once(batch), whole);
  await ema.use(async () => {
    assert.throws(() => optimizer.step(), /lies elsewhere now/);
  });
  assert.is(await once(half), still);
  assert.is(step.plans.length, 2);
  assert.throws(
    () =>
      engine.compile(() => {
        ema.update();
        ema.update();
      })(),
    /ema\.update: happens twice in one compiled function/,
  );
  state.dispose();
  engine.destroy();
});

test.run();
