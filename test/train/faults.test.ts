import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { AbortedError, createEngine, DeviceLostError, type Engine, OutOfMemoryError } from "../../engine/index.js";
import { sampleClips } from "../../model/pipeline.js";
import { parseConfig } from "../../train/config.js";
import { readLog } from "../../train/log.js";
import { type StepInfo, train } from "../../train/loop.js";
import { RunFolder } from "../../train/run.js";
import { newSetup } from "../../train/setup.js";
import { openSource } from "../../train/source.js";

const faults = suite("faults in a run");
const root = mkdtempSync(join(tmpdir(), "espalier-faults-"));

const configOf = (out: string, more: Record<string, object> = {}) =>
  parseConfig({
    run: { out: join(root, out), checkpointEvery: 4, sampleEvery: 0, logEvery: 1, ...more.run },
    data: { frames: 4, size: 16, ...more.data },
    model: { hidden: 16, depth: 1, heads: 2 },
    optim: { warmupSteps: 2, ...more.optim },
    train: { steps: 12, batchSize: 2, ...more.train },
    sample: { steps: 2, count: 1 },
  });

/** Trains by a configuration, resuming what is there; `onStep` may do harm. */
async function run(
  engine: Engine,
  out: string,
  options: { onStep?: (s: StepInfo) => void; signal?: AbortSignal; more?: Record<string, object> } = {},
): Promise<number[]> {
  const config = configOf(out, options.more);
  const { folder, latest } = await RunFolder.open(config.run.out, config.run.keep, true);
  try {
    const state = await train(engine, config, await openSource(config), folder, latest, {
      progress: false,
      ...options,
    });
    state.ema.dispose();
    state.optimizer.dispose();
    state.setup.dispose();
    return readLog(folder.file("log.jsonl")).map((l) => l.loss as number);
  } finally {
    await latest?.file.close();
    folder.close();
  }
}

async function failure(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  return assert.unreachable("it did not fail") as never;
}

let whole: number[];

faults("two runs with one seed have equal losses, bit for bit", async () => {
  const engine = await createEngine();
  whole = await run(engine, "a");
  assert.equal(await run(engine, "b"), whole);
  assert.is(whole.length, 12);
  const other = await run(engine, "c", { more: { run: { seed: 7 } } });
  assert.not.equal(other, whole);
  engine.destroy();
});

faults("a lost device names the last checkpoint, and a new engine goes on to the same losses", async () => {
  const engine = await createEngine();
  const error = await failure(run(engine, "lost", { onStep: ({ step }) => step === 6 && engine.device.destroy() }));
  assert.instance(error, DeviceLostError);
  assert.match(error.message, /the last checkpoint is .*checkpoint-000004\.safetensors; --resume goes on from it/);
  engine.destroy();
  const next = await createEngine();
  assert.equal(await run(next, "lost"), whole);
  next.destroy();
});

faults("a device lost before the first checkpoint says to begin again", async () => {
  const engine = await createEngine();
  const error = await failure(run(engine, "early", { onStep: () => engine.device.destroy() }));
  assert.instance(error, DeviceLostError);
  assert.match(error.message, /no checkpoint was written yet/);
  engine.destroy();
});

faults("a device lost while sampling is a typed error, and a new engine in this process works", async () => {
  const config = configOf("sampling");
  const source = await openSource(config);
  for (const lose of [true, false]) {
    const engine = await createEngine();
    const setup = await newSetup(engine, config, source);
    const walk = async () => {
      let steps = 0;
      for await (const progress of sampleClips(setup, {
        prompts: ["an ox moving left on a blue background"],
        steps: 3,
      })) {
        steps++;
        if (lose && steps === 1) engine.device.destroy();
        if (progress.step === progress.steps) assert.ok((await progress.video()).every(Number.isFinite));
      }
      return steps;
    };
    if (lose) assert.instance(await failure(walk()), DeviceLostError);
    else assert.is(await walk(), 3);
    engine.destroy();
  }
});

faults("interrupted, it keeps a checkpoint of the step that it reached and goes on to the same losses", async () => {
  const engine = await createEngine();
  const controller = new AbortController();
  const error = await failure(
    run(engine, "stop", { signal: controller.signal, onStep: ({ step }) => step === 5 && controller.abort("test") }),
  );
  assert.instance(error, AbortedError);
  assert.match(error.message, /stopped after step \d+ of 12; --resume goes on from .*checkpoint-/);
  assert.equal(await run(engine, "stop"), whole);
  engine.destroy();
});

faults("options that differ from the run's are refused, naming them", async () => {
  const engine = await createEngine();
  const error = await failure(run(engine, "a", { more: { optim: { lr: 1e-4 } } }));
  assert.match(error.message, /options differ from the run's: optim\.lr is 0\.0001, was 0\.003/);
  engine.destroy();
});

faults("a second process is kept out of a run, and a run that is there is not overwritten", async () => {
  const config = configOf("a");
  const refused = await failure(RunFolder.open(config.run.out, 2, false));
  assert.match(refused.message, /a run is already there: .*step 12; go on with --resume/);
  assert.not.ok(existsSync(join(config.run.out, "lock")));
});

faults("out of memory says what was asked, what is live by owner and what to lower", async () => {
  const engine = await createEngine({ budget: 6 * 2 ** 20 });
  const error = await failure(
    run(engine, "memory", { more: { data: { frames: 8, size: 32 }, train: { batchSize: 32 } } }),
  );
  assert.instance(error, OutOfMemoryError);
  assert.match(
    error.message,
    /beyond the budget of 6\.00 MiB: live are .*MiB \(.*(saved|activations).*\); lower the batch size/,
  );
  engine.destroy();
  const next = await createEngine();
  assert.equal(await run(next, "after"), whole);
  next.destroy();
});

faults("a loss that is no number for long stops the run and says what to lower", async () => {
  const engine = await createEngine();
  const error = await failure(
    run(engine, "nan", { more: { optim: { lr: 1e30, gradClip: 0, warmupSteps: 0 }, train: { steps: 60 } } }),
  );
  assert.match(error.message, /the loss was no number in 20 steps in a row.*lower --lr/);
  engine.destroy();
});

faults("clears up", () => rmSync(root, { recursive: true, force: true }));
faults.run();
