// node .build/run.mjs test/bench/once.ts: from nothing to the second training step; prints the milliseconds as JSON.
import { createEngine, Key } from "../../engine/index.js";
import { Batches } from "../../train/batch.js";
import { parseConfig } from "../../train/config.js";
import { AdamW, dropoutOf, EMA, openSource } from "../../train/index.js";
import { PRESETS } from "../../train/presets.js";
import { newSetup } from "../../train/setup.js";
import { trainStep, uploadBatch } from "../../train/step.js";

const config = parseConfig(PRESETS.find((p) => p.name === "easy")!.config);
let last = performance.now();
const lap = () => {
  const before = last;
  last = performance.now();
  return last - before;
};

const engine = await createEngine();
const adapter = lap();
const source = await openSource(config);
const setup = await newSetup(engine, config, source);
const { batchSize } = config.train;
const batches = new Batches(source.dataset, setup.text, { batchSize, ...dropoutOf(config, setup), seed: 1 });
const batch = await batches.get(0);
const parameters = Object.fromEntries(setup.model.namedParameters());
const optimizer = new AdamW(parameters, { lr: 1e-4 });
await engine.finish();
const model = lap();
const step = trainStep(setup, optimizer, new EMA(parameters, config.ema), { clip: 1 });
const run = () => engine.scope(() => void step([uploadBatch(setup, batch)], Key.from(3)));
run();
await engine.finish();
const first = lap();
run();
await engine.finish();
console.log(JSON.stringify({ adapter, model, first, second: lap() }));
engine.destroy();
