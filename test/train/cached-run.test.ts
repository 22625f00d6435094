import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { TOKENIZER_CONFIG, tokenizerJson, vocabularyOf } from "../../examples/pieces.js";
import { encodeLlamaConfig, llamaConfig } from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import { encodeFloat32, writeSafetensors } from "../../model/safetensors.js";
import { parseConfig } from "../../train/config.js";
import { embeddedDir } from "../../train/data/assets.js";
import { readLog } from "../../train/log.js";
import { train } from "../../train/loop.js";
import { RunFolder } from "../../train/run.js";
import { openSource } from "../../train/source.js";

const test = suite("a run that reads a cache");
const root = await mkdtemp(join(tmpdir(), "espalier-cached-run-"));
const engine = await createEngine();
test.after(async () => {
  engine.destroy();
  await rm(root, { recursive: true });
});

const clips = join(root, "clips");
await mkdir(clips);
const names = ["ox", "fox", "owl", "cat"];
for (const name of names) await copyFile(join(embeddedDir(), `emoji/clips/${name}.webp`), join(clips, `${name}.webp`));
await writeFile(
  join(clips, "captions.jsonl"),
  names.map((name) => JSON.stringify({ file: `${name}.webp`, text: `the ${name} moving left` })).join("\n"),
);

/** A Llama's folder as Hugging Face lays it out. */
async function llama(): Promise<string> {
  const folder = join(root, "llama");
  await mkdir(folder);
  const words = ["the", "moving", "left", ...names];
  const config = llamaConfig({
    ...{ vocabSize: 128, hidden: 16, intermediate: 24, depth: 1, heads: 2, kvHeads: 1, maxPositions: 64 },
  });
  const model = new Llama(engine, config, { key: Key.from(1) });
  const entries = [];
  for (const [name, t] of Object.entries(model.stateDict()))
    entries.push({
      name,
      dtype: "F32" as const,
      shape: t.shape,
      data: encodeFloat32((await t.data()) as Float32Array, "F32"),
    });
  await writeSafetensors(join(folder, "model.safetensors"), entries);
  model.dispose();
  await writeFile(join(folder, "config.json"), JSON.stringify(encodeLlamaConfig(config)));
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizerJson(vocabularyOf(words, new Map(), 128))));
  await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(TOKENIZER_CONFIG));
  return folder;
}
const encoder = await llama();

/** Trains four steps with a language branch and gives the losses. */
async function losses(out: string, cache: string | undefined): Promise<number[]> {
  const config = parseConfig({
    run: { out: join(root, out), sampleEvery: 0, logEvery: 1 },
    data: { kind: "folder", path: clips, variants: 2, flip: false, ...(cache && { cache }) },
    model: { from: "examples/checkpoints/easy.safetensors" },
    language: { encoder, tokens: 24 },
    optim: { warmupSteps: 2 },
    train: { steps: 4, batchSize: 2 },
    sample: { steps: 2, count: 1 },
  });
  const { folder } = await RunFolder.open(config.run.out, 1, false);
  try {
    const state = await train(engine, config, await openSource(config), folder, undefined, { progress: false });
    state.ema.dispose();
    state.optimizer.dispose();
    state.setup.dispose();
    return readLog(folder.file("log.jsonl")).map((line) => line.loss as number);
  } finally {
    folder.close();
  }
}

/** Shards of a cache by kind. */
async function shards(cache: string): Promise<Record<string, number>> {
  const found: Record<string, number> = {};
  for (const part of await readdir(cache))
    found[part.split("-")[0]] = (await readdir(join(cache, part))).filter((name) => name.startsWith("shard-")).length;
  return found;
}

test("has the losses of one without, and a second one encodes nothing", async () => {
  const cache = join(root, "cache");
  const plain = await losses("plain", undefined);
  const first = await losses("first", cache);
  assert.is(plain.length, 4);
  // One clip at a time or a whole batch: the codec's sums may differ in their last bits.
  for (const [i, loss] of plain.entries()) assert.ok(Math.abs(first[i] - loss) < 1e-4 * loss, `${first} ${plain}`);
  console.log(`\n  ${first.filter((loss, i) => loss === plain[i]).length} of 4 losses are equal bit for bit`);
  await new Promise((resolve) => setTimeout(resolve, 500));
  const before = await shards(cache);
  assert.equal(Object.keys(before).sort(), ["latents", "text"]);
  assert.equal(await losses("second", cache), first);
  assert.equal(await shards(cache), before);
});
test.run();
