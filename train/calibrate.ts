import { type Engine, Key } from "../engine/index.js";
import { Batches } from "./batch.js";
import type { Config } from "./config.js";
import { dropoutOf } from "./loop.js";
import { languageReader, newSetup } from "./setup.js";
import type { Source } from "./source.js";
import { learnersOf } from "./state.js";
import { trainStep, uploadBatch } from "./step.js";

/**
 * Seconds that one training step of a configuration takes here, measured on a throw-away model: the first step, which
 * compiles kernels, is not counted. Gives up early when the steps are clearly slower than `limit`.
 */
export async function secondsPerStep(
  engine: Engine,
  config: Config,
  source: Source,
  limit = Number.POSITIVE_INFINITY,
  steps = 4,
): Promise<number> {
  const setup = await newSetup(engine, config, source);
  const { optimizer, ema } = learnersOf(setup, config);
  const options = { batchSize: config.train.batchSize, ...dropoutOf(config, setup), seed: config.run.seed };
  const batches = new Batches(source.dataset, setup.text, options, languageReader(setup));
  const compiled = trainStep(setup, optimizer, ema, { clip: 1 });
  optimizer.lr = 1e-4;
  const step = async (i: number) => {
    const batch = await batches.get(i);
    const start = performance.now();
    engine.scope(() => void compiled([uploadBatch(setup, batch)], Key.from(i)));
    await engine.finish();
    return (performance.now() - start) / 1000;
  };
  try {
    await step(0);
    const times: number[] = [];
    while (times.length < steps) {
      times.push(await step(times.length + 1));
      if (times.length > 1 && Math.min(...times) > 2 * limit) break;
    }
    // A shared machine only ever makes a step slower, but its usual load counts: the middle one.
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  } finally {
    compiled.dispose();
    ema.dispose();
    optimizer.dispose();
    setup.dispose();
    engine.memoryPool.trim();
  }
}
