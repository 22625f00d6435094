import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, Key, type Tensor } from "../../engine/index.js";
import { Batches } from "../../train/batch.js";
import { openCheckpoint } from "../../train/checkpoint.js";
import { type ConfigInput, parseConfig } from "../../train/config.js";
import { readLog } from "../../train/log.js";
import { train } from "../../train/loop.js";
import { mergeConfigs } from "../../train/options.js";
import { RunFolder } from "../../train/run.js";
import { newSetup } from "../../train/setup.js";
import { openSource } from "../../train/source.js";
import { learnersOf } from "../../train/state.js";
import { trainStep, uploadBatch } from "../../train/step.js";

const test = suite("mixed precision, and averages in fewer bits");
const engine = await createEngine();
const mixes = engine.has("shader-f16");

const tiny: ConfigInput = {
  data: { frames: 2, size: 8 },
  codec: { kind: "pixels" },
  model: { hidden: 8, depth: 1, heads: 2, patch: [1, 4, 4], maxLength: 4 },
  optim: { lr: 1e-2, schedule: "constant" },
  train: { batchSize: 2 },
};

async function training(input: ConfigInput) {
  const config = parseConfig(input);
  const source = await openSource(config);
  const setup = await newSetup(engine, config, source);
  const { optimizer, ema } = learnersOf(setup, config);
  const options = { batchSize: config.train.batchSize, conditionDropout: 0.1, languageDropout: 0, seed: 5 };
  const batches = new Batches(source.dataset, setup.text, options);
  const step = trainStep(setup, optimizer, ema, { clip: 1 });
  return {
    ...{ setup, optimizer, batches },
    /** Step n: loss, norm, and what is said of the scale. `spoil` may change the batch. */
    async run(n: number, spoil?: (video: Float32Array) => void): Promise<number[]> {
      const batch = await batches.get(n);
      spoil?.(batch.video);
      const numbers = engine.scope(() => step([uploadBatch(setup, batch)], Key.from(n)).keep());
      return [...(await numbers.data().finally(() => numbers.dispose()))];
    },
    dispose() {
      step.dispose();
      ema.dispose();
      optimizer.dispose();
      setup.dispose();
    },
  };
}
const host = async (tensors: Readonly<Record<string, Tensor>>) =>
  Object.fromEntries(await Promise.all(Object.entries(tensors).map(async ([n, t]) => [n, [...(await t.data())]])));
const setScale = (e: Engine, scaling: Tensor, ...numbers: [scale: number, good: number, skipped: number]) =>
  e.write(scaling, new Uint8Array(Float32Array.from(numbers).buffer));

if (mixes) {
  test("an overflow is skipped: nothing moves, the scale is halved, and training goes on", async () => {
    const run = await training({ ...tiny, train: { batchSize: 2, precision: "mixed" } });
    const { optimizer, setup } = run;
    const parameters = Object.fromEntries(setup.model.namedParameters());
    const whole = async () => ({ ...(await host(parameters)), ...(await host(optimizer.state().tensors)) });
    const first = await run.run(0);
    assert.equal(first.slice(2), [65536, 1, 0]);
    assert.ok(first.every(Number.isFinite));

    // A gradient beyond what f16 holds, by a scale that is far too large.
    setScale(engine, optimizer.scaling!, 2 ** 24, 7, 0);
    const { loss_scale: _, ...before } = await whole();
    const [loss, norm, ...scaling] = await run.run(1);
    assert.ok(Number.isFinite(loss) && !Number.isFinite(norm), `${loss}, ${norm}`);
    assert.equal(scaling, [2 ** 23, 0, 1]);
    const { loss_scale: __, ...after } = await whole();
    assert.equal(after, before);
    // It is halved until gradients fit, and then weights move.
    let n = 2;
    let last = await run.run(n++);
    while (!Number.isFinite(last[1]) && n < 30) last = await run.run(n++);
    assert.ok(n > 2 && n < 30);
    assert.is(last[2], 2 ** 24 / 2 ** last[4]);
    assert.not.equal(await host(parameters), before);

    // A batch that is no number: skipped once, and the next one trains.
    setScale(engine, optimizer.scaling!, 1024, 3, 0);
    const kept = await host(parameters);
    const bad = await run.run(n++, (video) => video.fill(Number.NaN));
    assert.ok(Number.isNaN(bad[0]));
    assert.equal(bad.slice(2), [512, 0, 1]);
    assert.equal(await host(parameters), kept);
    const good = await run.run(n++);
    assert.ok(good.every(Number.isFinite));
    assert.equal(good.slice(2), [512, 1, 1]);
    run.dispose();
  });

  test("the scale is doubled after a window of good steps, up to 2^24", async () => {
    const run = await training({ ...tiny, train: { batchSize: 2, precision: "mixed" } });
    setScale(engine, run.optimizer.scaling!, 4096, 198, 0);
    assert.equal((await run.run(0)).slice(2), [4096, 199, 0]);
    assert.equal((await run.run(1)).slice(2), [8192, 0, 0]);
    run.dispose();
  });

  test("mixed steps follow those in f32, with norms of the gradient alike", async () => {
    const [full, mixed] = [
      await training(tiny),
      await training({ ...tiny, train: { batchSize: 2, precision: "mixed" } }),
    ];
    const [a, b]: number[][][] = [[], []];
    for (let i = 0; i < 120; i++) {
      a.push(await full.run(i));
      b.push(await mixed.run(i));
    }
    const mean = (rows: number[][], k: number, from: number) =>
      rows.slice(from).reduce((s, r) => s + r[k], 0) / (rows.length - from);
    const [loss, norm] = [0, 1].map((k) => mean(b, k, k ? 0 : 60) / mean(a, k, k ? 0 : 60) - 1);
    console.log(`      mean loss ${(100 * loss).toFixed(3)}% off f32's, mean norm ${(100 * norm).toFixed(3)}%`);
    assert.ok(Math.abs(loss) < 0.02, `loss ${loss}`);
    assert.ok(Math.abs(norm) < 0.05, `norm ${norm}`);
    // It computes in f16: the same numbers would mean that it does not.
    assert.not.equal(a, b);
    const { model } = full.setup;
    assert.is(
      model.parameters().every((p) => p.dtype === "f32"),
      true,
    );
    full.dispose();
    mixed.dispose();
  });
}

for (const [state, precision] of [
  ["8bit", mixes ? "mixed" : "f32"],
  ["f16", "f32"],
] as const)
  test(`a resumed run has the numbers of one that was not: averages in ${state}, ${precision}`, async () => {
    const root = mkdtempSync(join(tmpdir(), "espalier-mixed-"));
    const go = async (name: string, stopAt?: number) => {
      const config = parseConfig({
        ...tiny,
        run: { out: join(root, name), logEvery: 1, checkpointEvery: 3, sampleEvery: 0 },
        optim: { ...tiny.optim, state, accumulate: 2 },
        train: { batchSize: 2, steps: 6, precision },
        sample: { steps: 1, count: 1 },
      });
      const { folder, latest } = await RunFolder.open(config.run.out, 3, existsSync(config.run.out));
      const stop = new AbortController();
      const given = latest ? mergeConfigs(latest.state.config, { run: { resume: true } }) : config;
      const done = train(engine, parseConfig(given), await openSource(config), folder, latest, {
        progress: false,
        signal: stop.signal,
        onStep: ({ step }) => step === stopAt && stop.abort(),
      });
      await done.then(
        (s) => {
          s.ema.dispose();
          s.optimizer.dispose();
          s.setup.dispose();
        },
        (error) => {
          if (error.name !== "AbortedError") throw error;
        },
      );
      folder.close();
    };
    try {
      await go("whole");
      await go("cut", 2);
      await go("cut");
      const log = (name: string) => readLog(join(root, name, "log.jsonl"));
      assert.is(log("cut").length, 6);
      assert.equal(log("cut"), log("whole"));
      if (precision === "mixed") assert.is(log("whole")[5].scale, 65536);
      const { file } = await openCheckpoint(join(root, "whole", "checkpoints", "checkpoint-000006.safetensors"));
      const names = [...file.tensors.keys()].filter((n) => n.startsWith("train.optimizer."));
      assert.ok(names.some((n) => n.includes("exp_avg_scale.")));
      assert.is(file.info(names.find((n) => n.includes("exp_avg_sq."))!).dtype, "U32");
      assert.is(names.includes("train.optimizer.loss_scale"), precision === "mixed");
      await file.close();
    } finally {
      rmSync(root, { recursive: true });
    }
  });

test("an adapter without f16 says what to do, before anything is made", async () => {
  const config = parseConfig({ ...tiny, train: { precision: "mixed" } });
  const plain = await createEngine();
  Object.defineProperty(plain, "has", { value: () => false });
  const source = await openSource(config);
  await newSetup(plain, config, source).then(
    () => assert.unreachable(),
    (e) =>
      assert.match(
        e.message,
        /train\.precision: mixed needs f16 .* does not offer; leave it at f32, or choose another/,
      ),
  );
  plain.destroy();
});

test.after(() => engine.destroy());
test.run();
