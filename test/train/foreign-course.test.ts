import { copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { openModel, openModelText, saveModel } from "../../model/checkpoint.js";
import type { STDiTConfig } from "../../model/config.js";
import { posTable2d } from "../../model/embed.js";
import { openOpenSora, saveOpenSora } from "../../model/foreign/opensora.js";
import { initFromPixArt } from "../../model/foreign/pixart.js";
import { quantize } from "../../model/quantize.js";
import { openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { openT5 } from "../../model/text/t5.js";
import { openVae } from "../../model/vae/open.js";
import { run as encode } from "../../train/commands/encode.js";
import { run as grow } from "../../train/commands/grow.js";
import { run as inspect } from "../../train/commands/inspect.js";
import { run as sample } from "../../train/commands/sample.js";
import { run as train } from "../../train/commands/train.js";
import { embeddedDir } from "../../train/data/assets.js";
import { readLog } from "../../train/log.js";
import { randomize } from "../model/grown.js";
import { printed } from "./command.js";
import { llamaFolder, t5Folder, vaeFolder } from "./folders.js";

const test = suite("from Open-Sora's own file to samples");
const root = await mkdtemp(join(tmpdir(), "espalier-foreign-course-"));
const at = (...names: string[]) => join(root, ...names);
const engine = await createEngine();
test.after(async () => {
  engine.destroy();
  await rm(root, { recursive: true });
});

const names = ["ox", "fox", "owl", "cat"];
const WORDS = ["the", "moving", "left", ...names];
const CONFIG: Partial<STDiTConfig> = {
  ...{ hidden: 32, depth: 2, heads: 16, mlpRatio: 2, frames: 2, latent: [8, 8] },
  ...{ captionChannels: 24, maxLength: 12, spaceScale: 1 },
};
const [t5, llm, vae] = [at("t5"), at("llama"), at("vae")];
const [base, pixart, csv] = [at("opensora", "model.safetensors"), at("pixart.safetensors"), at("clips.csv")];
/** How the model's clips are cut. */
const CUT = ["--frames", "2", "--size", "16", "--variants", "1", "--no-flip"];
const DATA = ["--data.kind", "csv", "--data.path", csv, ...CUT];

test.before(async () => {
  await mkdir(at("opensora"));
  await Promise.all([t5Folder(engine, t5, WORDS), llamaFolder(engine, llm, WORDS), vaeFolder(engine, vae)]);
  const model = new STDiT(engine, CONFIG, { key: Key.from(1) });
  await randomize(model, Key.from(2), 0.1);
  await saveOpenSora(base, model, { maxShardBytes: 50_000, dtype: "BF16" });
  // PixArt's names and shapes: images, without time, and positions of its own grid.
  const whole = at("whole.safetensors");
  await saveOpenSora(whole, model);
  model.dispose();
  const file = await openSafetensors(whole);
  const images = file.mapped(({ name, shape }) => {
    if (name.includes("attn_temp") || name.startsWith("pos_embed")) return undefined;
    return name === "x_embedder.proj.weight" ? { name, shape: [shape[0], shape[1], shape[3], shape[4]] } : { name };
  });
  const entries = await Promise.all([...images.tensors.keys()].map((name) => images.tensor(name)));
  const table = new Uint8Array(posTable2d(32, 8, 8, 1).buffer);
  await writeSafetensors(pixart, [{ name: "pos_embed", dtype: "F32", shape: [1, 64, 32], data: table }, ...entries]);
  await file.close();
  for (const name of names) await copyFile(join(embeddedDir(), `emoji/clips/${name}.webp`), at(`${name}.webp`));
  const rows = names.map((name) => `${name}.webp,the ${name} moving left`);
  await writeFile(csv, ["path,text", ...rows].join("\n"));
});

/** Runs a command that must succeed and gives what it printed. */
async function does(run: (args: string[]) => Promise<number>, ...args: string[]): Promise<string> {
  const { text, error } = await printed(run, ...args);
  assert.is(error, undefined, error?.stack);
  return text;
}

async function refused(run: (args: string[]) => Promise<number>, args: string[], message: RegExp): Promise<void> {
  const { error } = await printed(run, ...args);
  const said = error?.message ?? "no error";
  assert.ok(message.test(said), `${args.join(" ")}\n  said ${said}\n  not ${message}`);
}

/** Overwrites tensors of a safetensors file with NaN beyond their first numbers, which fingerprints take in. */
async function spoil(path: string, pattern: RegExp): Promise<void> {
  const file = await openSafetensors(path);
  const bytes = await readFile(path);
  let spoilt = 0;
  for (const [name, { begin, end }] of file.tensors) {
    if (!pattern.test(name) || end - begin <= 256) continue;
    bytes.fill(0xff, begin + 256, end);
    spoilt++;
  }
  await file.close();
  assert.ok(spoilt > 0);
  await writeFile(path, bytes);
}

/** Names of everything that a cache holds. */
const kept = async (cache: string) => (await readdir(cache, { recursive: true })).filter((n) => n.includes("shard-"));
const losses = (out: string) => readLog(join(out, "log.jsonl")).map((line) => line.loss as number);

const grown = at("grown.safetensors");
const language = at("llm.json");
const PROMPT = "the ox moving left";

test("inspect says whose files they are", async () => {
  assert.match(await does(inspect, `${base}.index.json`), /the STDiT of Open-Sora 1\.0: espalier grow makes/);
  assert.match(await does(inspect, pixart), /PixArt-alpha, which a STDiT can begin from/);
});

test("grow: the folder of Open-Sora's file becomes a model file that names its autoencoder and its T5", async () => {
  await writeFile(language, JSON.stringify({ encoder: llm, maxLength: 20 }));
  const flags = ["--mode", "insert", "--blocks", "2", "--language", language, "--codec", vae, "--t5", t5];
  const text = await does(grow, at("opensora"), ...flags, "--out", grown);
  for (const line of [
    /^foreign .*matched \d+ tensors.*BF16/m,
    /note: heads: 16, STDiT's/,
    /^base .* in 2 blocks, f32$/m,
    /^grown .* in 4 blocks$/m,
    /^branch {3}16 channels, up to 20 tokens/m,
    /^checked {2}all [\d,]+ outputs on random inputs are equal bit for bit$/m,
    /^codec .*vae \([0-9a-f]{8}\)$/m,
    /^text .*t5 \(t5 [0-9a-f]{8}\)$/m,
  ])
    assert.match(text, line);
  const file = await openSafetensors(grown);
  const said = Object.fromEntries(
    ["objective", "codec", "text"].map((key) => [key, JSON.parse(file.metadata[key])] as const),
  );
  await file.close();
  assert.equal([said.objective.type, said.objective.loss], ["iddpm", "mse+vb"]);
  assert.equal([said.codec.type, said.codec.embedded, said.codec.location], ["vae", false, vae]);
  assert.equal([said.text.type, said.text.encoder, said.text.maxLength], ["t5", t5, 12]);
  // Identified from headers, they are what they are when loaded.
  const [encoder, codec] = [await openT5(engine, t5, { maxLength: 12 }), await openVae(engine, vae)];
  assert.equal([said.text.fingerprint, said.codec.fingerprint], [encoder.fingerprint, codec.fingerprint]);
  encoder.dispose();
  codec.dispose();

  // Converted alone, it says the same as Open-Sora's own.
  const alone = at("alone.safetensors");
  assert.match(await does(grow, at("opensora"), "--out", alone), /will need --codec\n.*will need --t5$/);
  const [own, theirs] = [await openModel(engine, alone), await openOpenSora(engine, at("opensora"))];
  const [a, b] = [own.model.stateDict(), theirs.model.stateDict()];
  for (const name of Object.keys(b)) assert.equal(await a[name].data(), await b[name].data(), name);
  own.dispose();
  theirs.model.dispose();
  // And named later, it names them.
  const later = at("later.safetensors");
  await does(grow, alone, "--codec", vae, "--t5", t5, "--t5-bits", "8", "--out", later);
  const { text: captions, codec: from } = await openModelText(later);
  assert.equal([captions.info!.bits, captions.info!.encoder, from!.location], [8, t5, vae]);
});

test("encode, then train from the cache, which opens neither encoder; resumed, with everything moved", async () => {
  const cache = at("cache");
  const clips = [...CUT, "--codec", grown];
  assert.match(
    await does(encode, csv, "--text", grown, ...clips, "--out", cache),
    /4 captions, 4 of them new[\s\S]*4 latents \[4, 2, 8, 8\] new/,
  );
  assert.match(await does(encode, csv, "--text", llm, "--max-length", "20", "--out", cache), /4 captions, 4 of them/);
  const before = await kept(cache);

  const run = ["--from", grown, ...DATA, "--train.steps", "2", "--batchSize", "2"];
  const quick = ["--sample.steps", "2", "--count", "1", "--sampleEvery", "0", "--logEvery", "1"];
  const plain = at("plain");
  await does(train, ...run, ...quick, "--schedule", "constant", "--out", plain);
  // From here on what reads captions or encodes clips gives NaN.
  const weights = ["t5/model.safetensors", "llama/model.safetensors", "vae/diffusion_pytorch_model.safetensors"];
  const whole = await Promise.all(weights.map((name) => readFile(at(name))));
  await spoil(at(weights[0]), /SelfAttention\.[qkvo]\.weight/);
  await spoil(at(weights[1]), /_proj\.weight/);
  await spoil(at(weights[2]), /^encoder\..*conv1?\.weight/);
  const out = at("run");
  await does(
    train,
    ...run,
    ...quick,
    "--schedule",
    "constant",
    "--checkpointEvery",
    "1",
    "--cache",
    cache,
    "--out",
    out,
  );
  const first = losses(out);
  assert.is(first.length, 2);
  assert.ok(first.every(Number.isFinite), `${first}`);
  assert.equal(await kept(cache), before);
  assert.ok(losses(plain).every(Number.isFinite));
  await Promise.all(weights.map((name, i) => writeFile(at(name), whole[i])));

  // The second step once more, after a kill, with the encoders in other places.
  for (const name of await readdir(join(out, "checkpoints")))
    if (/0*2\b/.test(name)) await rm(join(out, "checkpoints", name), { recursive: true });
  const [t5b, llmb, vaeb] = [t5, llm, vae].map((place) => `${place}-moved`);
  const move = async (back: boolean) => {
    for (const [from, to] of [
      [t5, t5b],
      [llm, llmb],
      [vae, vaeb],
    ])
      await (back ? rename(to, from) : rename(from, to));
  };
  await move(false);
  await refused(train, ["--resume", "--out", out], /the autoencoder that the model's file names is not here.*--codec/);
  await refused(train, ["--resume", "--out", out, "--codec", vaeb], /the model's file names .*t5: .*give --t5/);
  const moved = ["--codec", vaeb, "--t5", t5b];
  await refused(train, ["--resume", "--out", out, ...moved], /the model's file names .*llama: .*give --llm/);
  await does(train, "--resume", "--out", out, ...moved, "--llm", llmb);
  assert.equal(losses(out), first);
  const result = join(out, "model.safetensors");
  assert.is((await openModelText(result)).text.info!.encoder, t5b);
  const clip = await does(sample, result, PROMPT, "--steps", "2", "--out", at("samples"));
  assert.match(clip, /the-ox-moving-left-0\.webp/);
  await move(true);
  await refused(sample, [result, PROMPT], /autoencoder that the model's file names is not here.*--codec/);
  await refused(sample, [result, PROMPT, "--codec", vae], /names .*t5-moved: if it lies elsewhere, give --t5/);
  await refused(sample, [result, PROMPT, "--codec", vae, "--t5", t5], /names .*llama-moved: .*give --llm/);
  const places = ["--codec", vae, "--t5", t5, "--llm", llm];
  const open = ["--sampler", "ddpm", "--steps", "2", "--cfg-channels", "4", "--guidance", "7", "--llm-scale", "12.5"];
  await does(sample, result, PROMPT, ...places, ...open, "--out", at("samples"));
});

test("Open-Sora's own file: sampled and trained as it lies", async () => {
  const places = ["--codec", vae, "--t5", t5];
  const flags = ["--sampler", "ddpm", "--steps", "3", "--cfg-channels", "4", "--out", at("raw")];
  await refused(sample, [at("opensora"), PROMPT, "--steps", "2"], /names none.*\(--codec\)/);
  await refused(sample, [at("opensora"), PROMPT, "--codec", vae], /which encoder reads the model's captions.*--t5/);
  const said = await does(sample, at("opensora"), PROMPT, ...places, "--t5-bits", "8", ...flags);
  assert.match(said, /the-ox-moving-left-0\.webp/);
  assert.ok((await readdir(at("raw"))).includes("the-ox-moving-left-0.gif"));
  const run = [...DATA, "--train.steps", "1", "--batchSize", "1", "--schedule", "constant", "--sample.steps", "1"];
  const quick = ["--count", "1", "--sampleEvery", "0", "--logEvery", "1"];
  const index = `${base}.index.json`;
  await refused(train, ["--from", index, ...run, "--out", at("no")], /what makes its latents\?.*\(--codec\)/);
  await refused(train, ["--from", index, ...run, "--codec", vae, "--out", at("no")], /--t5/);
  const wrong = ["--sample.sampler", "euler", ...places];
  await refused(train, ["--from", index, ...run, ...wrong, "--out", at("no")], /"euler" does not fit a model trained/);
  await does(
    train,
    "--from",
    index,
    ...run,
    ...quick,
    ...places,
    "--mode",
    "suffix",
    "--blocks",
    "1",
    "--out",
    at("own"),
  );
  const { config } = (await openModelText(at("own", "model.safetensors"))).model;
  assert.equal([config.depth, config.captionChannels], [3, 24]);

  // A model of one's own on the same encoders.
  const fresh = ["--codec.kind", "vae", ...places, "--maxLength", "12", "--hidden", "16", "--heads", "8"];
  await does(train, ...run, ...quick, ...fresh, "--depth", "1", "--objective.kind", "v", "--out", at("fresh"));
  const about = await openModelText(at("fresh", "model.safetensors"));
  assert.equal([about.text.info!.type, about.codec!.location, about.model.config.captionChannels], ["t5", vae, 24]);
  await does(sample, at("fresh", "model.safetensors"), PROMPT, "--steps", "1", "--out", at("raw"));
});

test("PixArt: converted, and trained from as it lies", async () => {
  const out = at("from-pixart.safetensors");
  const size = ["--frames", "2", "--size", "16"];
  const text = await does(grow, pixart, "--codec", vae, "--t5", t5, ...size, "--seed", "3", "--out", out);
  assert.match(text, /missing \d+: .*blocks\.\*\.attn_temp\.qkv\.weight x 2/);
  assert.match(text, /spaceScale: 0\.5, so that positions span those of the images' 8 x 8 places/);
  assert.match(text, /each frame is what PixArt makes of it/);
  const loaded = await openModel(engine, out, { codec: await openVae(engine, vae) });
  assert.equal(
    [loaded.model.config.frames, loaded.model.config.latent, loaded.model.config.spaceScale],
    [2, [8, 8], 0.5],
  );
  const other = new STDiT(engine, { ...CONFIG, spaceScale: 0.5 });
  await initFromPixArt(other, pixart, { key: Key.from(3).fold(2) });
  const [a, b] = [loaded.model.stateDict(), other.stateDict()];
  for (const name of Object.keys(b)) assert.equal(await a[name].data(), await b[name].data(), name);
  other.dispose();

  const run = [...DATA, "--train.steps", "1", "--batchSize", "1", "--schedule", "constant", "--sample.steps", "1"];
  const quick = ["--count", "1", "--sampleEvery", "0", "--codec", vae, "--t5", t5, "--out", at("pixart-run")];
  await does(train, "--from", pixart, ...run, ...quick);
  assert.equal((await openModelText(at("pixart-run", "model.safetensors"))).model.config.latent, [8, 8]);

  quantize(loaded.model, { bits: 8 });
  let message = "";
  try {
    saveModel(at("rounded.safetensors"), { model: loaded.model });
  } catch (error) {
    message = (error as Error).message;
  }
  assert.match(message, /model files hold full weights: \d+ linear layers are quantised, .*saveQuantized/);
  loaded.dispose();
});

test("what cannot be is told with what would do", async () => {
  const out = ["--out", at("no.safetensors")];
  const [otherT5, otherVae] = [at("t5-other"), at("vae-other")];
  await t5Folder(engine, otherT5, WORDS, 32);
  await vaeFolder(engine, otherVae, 9);
  const data = [...DATA, "--train.steps", "1", "--out", at("no")];
  for (const [run, args, message] of [
    [grow, [at("opensora"), "--t5", otherT5, ...out], /captions are 24 wide: those of .*t5-other are 32/],
    [grow, [at("opensora"), "--t5", at("gone"), ...out], /no encoder at .*gone/],
    [grow, [at("opensora"), "--codec", at("gone"), ...out], /vae: no weights/],
    [grow, [at("opensora"), "--t5-bits", "8", ...out], /--t5-bits has no use without --t5/],
    [grow, [at("opensora"), "--t5", t5, "--t5-bits", "3", ...out], /takes 8 or 4: got "3"/],
    [grow, [at("opensora"), "--size", "32", ...out], /give --codec/],
    [grow, [at("opensora"), "--heads", "5", ...out], /heads must divide hidden 32/],
    [grow, [grown, ...out], /nothing to do/],
    [grow, [grown, "--codec", otherVae, ...out], /trained with the autoencoder .*give the one/],
    [grow, [grown, "--frames", "4", ...out], /--frames has no use/],
    [sample, [grown, PROMPT, "--codec", otherVae], /trained with the autoencoder .*vae-other is/],
    [sample, [grown, PROMPT, "--t5", t5, "--t5-bits", "4"], /--t5-bits has no use: .*says how/],
    [train, ["--from", grown, ...data, "--text.bits", "8"], /text\.bits has no use: text\.t5 is not set/],
    [train, ["--codec.kind", "vae", ...data], /codec\.vae missing: .*say where/],
    [train, ["--codec", vae, ...data], /codec\.vae has no use: codec\.kind is pca/],
    [train, ["--from", "examples/checkpoints/easy.safetensors", "--codec", vae, ...data], /holds its own codec, .*pca/],
    [encode, [csv, "--text", t5, "--bits", "5", "--out", at("none")], /--bits takes 8 or 4/],
  ] as [(args: string[]) => Promise<number>, string[], RegExp][])
    await refused(run, args, message);
  const eight = ["--max-length", "12", "--out", at("bits")];
  assert.match(await does(encode, csv, "--text", t5, "--bits", "8", ...eight), /4 captions, 4 of them new/);
  assert.match(await does(encode, csv, "--text", t5, ...eight), /4 captions, 4 of them new/);
  for (const [run, flags] of [
    [grow, ["--codec", "--t5", "--t5-bits", "--t5-weights", "--frames", "--size", "--heads"]],
    [sample, ["--codec", "--t5-bits"]],
    [encode, ["--bits"]],
    [train, ["--codec", "--codec.vae", "--text.t5, --t5", "--text.llm, --llm", "--text.bits", "--text.weights"]],
  ] as [(args: string[]) => Promise<number>, string[]][]) {
    const help = await does(run, "--help");
    for (const flag of flags) assert.ok(help.includes(`\n  ${flag}`), flag);
  }
});
test.run();
