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
  let next = 0;
  /** Seconds a step over `count` of them, recorded without waiting for one another, as the loop does. */
  const time = async (count: number) => {
    const start = performance.now();
    for (const end = next + count; next < end; next++) {
      const batch = await batches.get(next);
      engine.scope(() => void compiled([uploadBatch(setup, batch)], Key.from(next)));
      engine.submit();
    }
    await engine.finish();
    return (performance.now() - start) / 1000 / count;
  };
  try {
    await time(1);
    const one = await time(1);
    return one > 2 * limit ? one : await time(steps);
  } finally {
    compiled.dispose();
    ema.dispose();
    optimizer.dispose();
    setup.dispose();
    engine.memoryPool.trim();
  }
}
