// Trains the base checkpoint that the demonstration goes on from: 24 classes, 6 colours and 4 motions at 32 x 32 pixels,
// 3425 steps of 16 clips (30 TFLOP; 50 minutes on two cores). Stopped, it goes on where it was when started again.
//
//   node .build/run.mjs examples/base.ts FOLDER
//
// Writes base.safetensors (averaged weights, f16), base.json (judges' figures) and base.log.jsonl into FOLDER.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createEngine } from "../engine/index.js";
import { openModel, saveModel } from "../model/checkpoint.js";
import { parseConfig } from "../train/config.js";
import { evaluate } from "../train/evaluate.js";
import { heldOutLoss } from "../train/heldout.js";
import { readLog } from "../train/log.js";
import { train } from "../train/loop.js";
import { RunFolder } from "../train/run.js";
import { openSource } from "../train/source.js";

/** Sampled clips that are judged: nearly every unseen combination once. */
const JUDGED = 96;

const out = process.argv[2];
if (!out) {
  console.error("examples/base: where to? give a folder");
  process.exit(2);
}
const config = parseConfig({
  run: { out, seed: 42, checkpointEvery: 100, sampleEvery: 500, logEvery: 5, resume: true },
  data: { world: "wide" },
  // The codec sees the clips that the demonstration goes on with, so that their colours have a place in it.
  codec: { alsoFit: "new" },
  model: { hidden: 96, depth: 4 },
  optim: { lr: 2e-3, warmupSteps: 50 },
  ema: { decay: 0.998 },
  train: { steps: 3425, batchSize: 16 },
});
const engine = await createEngine({ seed: config.run.seed });
const { folder, latest } = await RunFolder.open(out, config.run.keep, true);
const source = await openSource(config);
const state = await train(engine, config, source, folder, latest);

const { heldOut, judged } = await state.ema.use(async () => ({
  heldOut: await heldOutLoss(state.setup, source),
  judged: await evaluate(state.setup, config, source, JUDGED),
}));
const loaded = await openModel(engine, folder.file("model.safetensors"));
loaded.model.to("f16");
const { metadata } = loaded;
await saveModel(join(out, "base.safetensors"), {
  model: loaded.model,
  codec: loaded.codec,
  objective: loaded.objective,
  text: loaded.text.info,
  metadata: { train: metadata.train },
});
const log = readLog(folder.file("log.jsonl"));
const last = log.slice(-40).reduce((sum, line) => sum + (line.loss as number) / Math.min(40, log.length), 0);
const figures = {
  steps: state.step,
  clips: state.step * config.train.batchSize,
  trainLoss: Number(last.toFixed(4)),
  heldOutLoss: Number(heldOut.toFixed(4)),
  judged: JUDGED,
  right: judged.right,
  adapter: engine.info.name,
};
writeFileSync(join(out, "base.json"), `${JSON.stringify(figures, null, 2)}\n`);
writeFileSync(join(out, "base.log.jsonl"), readFileSync(folder.file("log.jsonl")));
console.log(figures);
folder.close();
state.setup.dispose();
engine.destroy();
