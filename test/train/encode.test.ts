import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, type Tensor } from "../../engine/index.js";
import { CHAT_TEMPLATE, TOKENIZER_CONFIG, tokenizerJson, vocabularyOf } from "../../examples/pieces.js";
import { encodeLlamaConfig, llamaConfig } from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import { encodeFloat32, writeSafetensors } from "../../model/safetensors.js";
import { encodeT5Config, t5Config } from "../../model/t5/config.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { openLlama } from "../../model/text/language.js";
import { RuleRecaptioner } from "../../model/text/recaption.js";
import { type EncoderSpec, findEncoder, openEncoder } from "../../model/text/spec.js";
import { openT5 } from "../../model/text/t5.js";
import { vaeConfig } from "../../model/vae/config.js";
import { saveVae } from "../../model/vae/open.js";
import { AutoencoderKL } from "../../model/vae/vae.js";
import { LatentDataset } from "../../train/cache/latents.js";
import { openCodecAt } from "../../train/cache/sources.js";
import { CachedTextEncoder } from "../../train/cache/text.js";
import { run } from "../../train/commands/encode.js";
import { embeddedDir, wordTable } from "../../train/data/assets.js";
import { FolderDataset } from "../../train/data/folder.js";

const test = suite("espalier encode");
const root = await mkdtemp(join(tmpdir(), "espalier-encode-"));
const engine = await createEngine();
test.after(async () => {
  engine.destroy();
  await rm(root, { recursive: true });
});
const MODEL = "examples/checkpoints/easy.safetensors";
const CAPTIONS = ["an ox moving left on a blue background", "a red fox", "an owl"];
const assets = {
  words: wordTable,
  language: () => assert.unreachable("the embedded language model was opened") as never,
  t5: () => assert.unreachable("the embedded T5 was opened") as never,
};

/** Runs the command in this process and gives what it said. */
async function encode(...args: string[]): Promise<{ out: string; err: string }> {
  const said = { out: "", err: "" };
  const { log, error } = console;
  const hear = (to: "out" | "err") => (line: string) => {
    said[to] += `${line}\n`;
  };
  console.log = hear("out");
  console.error = hear("err");
  const write = process.stderr.write;
  process.stderr.write = () => true;
  try {
    assert.is(await run(args), 0);
  } finally {
    Object.assign(console, { log, error });
    process.stderr.write = write;
  }
  return said;
}
async function refused(args: string[], text: RegExp): Promise<void> {
  const error = await encode(...args).then(
    () => assert.unreachable(`nothing was refused: ${args.join(" ")}`) as never,
    (e: Error) => e,
  );
  assert.match(error.message, text);
}

const clips = join(root, "clips");
await mkdir(clips);
for (const name of ["ox", "fox", "owl"])
  await copyFile(join(embeddedDir(), `emoji/clips/${name}.webp`), join(clips, `${name}.webp`));
await writeFile(
  join(clips, "captions.jsonl"),
  ["ox", "fox", "owl"].map((n, i) => JSON.stringify({ file: `${n}.webp`, text: CAPTIONS[i] })).join("\n"),
);

const WORDS = ["an", "ox", "moving", "left", "on", "a", "blue", "background", "red", "fox", "owl", "clip", "the"];

/** A Llama's folder as Hugging Face lays it out. */
async function llamaFolder(seed: number): Promise<string> {
  const folder = await mkdtemp(join(root, "llama-"));
  const config = llamaConfig({
    ...{ vocabSize: 128, hidden: 16, intermediate: 24, depth: 1, heads: 2, kvHeads: 1, maxPositions: 64 },
  });
  const model = new Llama(engine, config, { key: Key.from(seed) });
  await writeWeights(folder, model.stateDict());
  model.dispose();
  await writeFile(join(folder, "config.json"), JSON.stringify(encodeLlamaConfig(config)));
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizerJson(vocabularyOf(WORDS, new Map(), 128))));
  await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(TOKENIZER_CONFIG));
  return folder;
}

async function writeWeights(folder: string, state: Record<string, Tensor>): Promise<void> {
  const entries = [];
  for (const [name, t] of Object.entries(state)) {
    const data = encodeFloat32((await t.data()) as Float32Array, "F32");
    entries.push({ name, dtype: "F32" as const, shape: t.shape, data });
  }
  await writeSafetensors(join(folder, "model.safetensors"), entries);
}

/** A T5's folder likewise. */
async function t5Folder(): Promise<string> {
  const folder = await mkdtemp(join(root, "t5-"));
  const config = t5Config({ vocabSize: 64, hidden: 24, headDim: 8, heads: 2, intermediate: 40, depth: 1, buckets: 32 });
  const model = new T5Encoder(engine, config, { key: Key.from(5) });
  await writeWeights(folder, model.stateDict());
  model.dispose();
  await writeFile(join(folder, "config.json"), JSON.stringify(encodeT5Config(config)));
  const pieces = [...WORDS.map((word) => `▁${word}`), ..."▁abcdefghijklmnopqrstuvwxyz"];
  const vocab = [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ...pieces.map((word, i) => [word, -1 - i / 10])];
  const added_tokens = ["<pad>", "</s>", "<unk>"].map((content, id) => ({
    id,
    content,
    special: true,
    normalized: false,
  }));
  const metaspace = { type: "Metaspace", replacement: "▁" };
  const tokenizer = {
    added_tokens,
    normalizer: null,
    pre_tokenizer: { ...metaspace, prepend_scheme: "always" },
    post_processor: null,
    decoder: metaspace,
    model: { type: "Unigram", unk_id: 2, vocab },
  };
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  return folder;
}

test("captions and clips of a folder: a second run finds everything, and opens no GPU for captions", async () => {
  const cache = join(root, "all");
  const first = await encode(clips, "--text", `words, ${MODEL}`, "--codec", MODEL, "--out", cache, "--variants", "2");
  assert.match(first.out, /text {3}words: 3 captions, 3 of them new/);
  assert.match(first.out, /text {3}examples\/checkpoints\/easy\.safetensors: 3 captions, 0 of them new/);
  assert.match(first.out, /clips .*: 3 clips in 2 variants, 6 latents \[8, 8, 8, 8\] new/);
  const again = await encode(clips, "--text", "words", "--codec", MODEL, "--out", cache, "--variants", "2");
  assert.match(again.out, /3 captions, 0 of them new/);
  assert.match(again.out, /3 clips in 2 variants, 0 latents/);
  const captions = await encode(clips, "--text", "words", "--out", cache);
  assert.is(captions.err, "");

  // What training reads: the same numbers as from the codec itself, and none is encoded.
  const codec = await openCodecAt(engine, MODEL);
  const set = await FolderDataset.open(clips, {
    frames: 8,
    height: 32,
    width: 32,
    frameInterval: 3,
    variants: 2,
    seed: 9,
  });
  const latents = await LatentDataset.open(cache, set, engine, codec);
  for (let i = 0; i < 6; i++) {
    const { video, caption } = await latents.sample(i);
    const clip = await set.sample(i);
    assert.is(caption, clip.caption);
    assert.equal(video, await codec.encode(engine.tensor(clip.video, [1, 3, 8, 32, 32])).data());
  }
  assert.is(latents.encoded, 0);
  await latents.close();
});

test("a T5 and a Llama from folders: found without loading, encoded once, as they encode by themselves", async () => {
  const [t5, llama] = [await t5Folder(), await llamaFolder(3)];
  const cache = join(root, "folders");
  const first = await encode(clips, "--text", `${t5},${llama}`, "--max-length", "20", "--out", cache);
  assert.match(first.err, /^adapter: /);
  assert.is(first.out.match(/3 captions, 3 of them new/g)?.length, 2);
  const again = await encode(clips, "--text", `${t5},${llama}`, "--max-length", "20", "--out", cache);
  assert.is(again.out.match(/3 captions, 0 of them new/g)?.length, 2);
  assert.is(again.err, "");
  for (const [folder, open] of [
    [t5, openT5],
    [llama, openLlama],
  ] as const) {
    const found = await findEncoder({ encoder: folder, maxLength: 20 }, assets);
    const lazy = { fingerprint: found.fingerprint, open: () => assert.unreachable("it was loaded") as never };
    const cached = await CachedTextEncoder.open(cache, lazy);
    const encoder = await open(engine, folder, { maxLength: 20 });
    const [got, wanted] = [await cached.encode(CAPTIONS), await encoder.encode(CAPTIONS)];
    assert.equal(got.embeddings, wanted.embeddings);
    assert.equal(got.mask, wanted.mask);
    assert.is(cached.fingerprint, encoder.fingerprint);
    await cached.close();
    const opened = await openEncoder(engine, { encoder: folder, maxLength: 20 }, assets);
    assert.equal((await opened.encode(CAPTIONS)).embeddings, wanted.embeddings);
    opened.dispose?.();
    encoder.dispose();
  }
  // Other options, or other weights of the same sizes, are another encoder.
  const specs: EncoderSpec[] = [
    { encoder: llama, maxLength: 20 },
    { encoder: llama, maxLength: 20, layer: 0 },
    { encoder: llama, maxLength: 20, template: false },
    { encoder: t5, maxLength: 20 },
    { encoder: t5, maxLength: 20, clean: false },
  ];
  const prints = new Set<string>();
  // What is said and is the default anyway makes no other one.
  specs.push({ encoder: llama, template: true, maxLength: 20, layer: -1 });
  for (const spec of specs) prints.add((await findEncoder(spec, assets)).fingerprint);
  await writeFile(join(llama, "chat_template.jinja"), `${CHAT_TEMPLATE}<!-- -->`);
  prints.add((await findEncoder(specs[0], assets)).fingerprint);
  assert.is(prints.size, 6);
});

test("latents of an autoencoder are samples, one for each variant, and the same in every run", async () => {
  const config = vaeConfig({ channels: [8, 16], groups: 4, layersPerBlock: 1, latentChannels: 4 });
  const vae = new AutoencoderKL(engine, config, { key: Key.from(2) });
  const file = join(root, "vae.safetensors");
  await saveVae(file, vae);
  vae.dispose();
  const size = { frames: 2, height: 16, width: 16, frameInterval: 3, flip: false, imageFraction: 1 };
  const flags = ["--frames", "2", "--size", "16", "--no-flip", "--image-fraction", "1", "--variants", "2"];
  const latentsIn = async (cache: string) => {
    assert.match((await encode(clips, "--codec", file, ...flags, "--out", cache)).out, /6 latents \[4, 2, 8, 8\] new/);
    const codec = await openCodecAt(engine, file);
    const set = await FolderDataset.open(clips, { ...size, variants: 2 });
    const latents = await LatentDataset.open(cache, set, engine, codec);
    const all = await Promise.all(Array.from({ length: 6 }, (_, i) => latents.sample(i)));
    assert.is(latents.encoded, 0);
    await latents.close();
    codec.dispose();
    return all;
  };
  const [a, b] = [await latentsIn(join(root, "vae-a")), await latentsIn(join(root, "vae-b"))];
  assert.equal(a, b);
  // Both variants of the owl: the frames may be alike, the draws are not.
  const [first, second] = a.filter(({ caption }) => caption === "an owl").map(({ video }) => video);
  assert.is(first.length, 4 * 2 * 8 * 8);
  const differ = first.filter((x, i) => x !== second[i]).length;
  assert.ok(differ > 0.9 * first.length, `${differ} of ${first.length} differ`);
});

test("long captions by rules, captions files, f16", async () => {
  const list = join(root, "list.txt");
  await writeFile(list, `${CAPTIONS.join("\n\n")}\n`);
  const cache = join(root, "forms");
  const { out } = await encode(
    list,
    "--text",
    "words",
    "--form",
    "SL",
    "--max-length",
    "60",
    "--dtype",
    "f16",
    "--out",
    cache,
  );
  assert.match(out, /3 captions, 3 of them new/);
  const found = await findEncoder({ encoder: "words", maxLength: 60 }, assets);
  const cached = await CachedTextEncoder.open(cache, {
    fingerprint: found.fingerprint,
    open: () => found.open(undefined),
  });
  const long = new RuleRecaptioner().describe(CAPTIONS[0]);
  assert.ok(cached.has(`${CAPTIONS[0]}. ${long}`));
  assert.not(cached.has(CAPTIONS[0]));
  await cached.close();
  await refused(
    [list, "--text", "words", "--max-length", "60", "--dtype", "f32", "--out", cache],
    /holds f16: f32 was asked/,
  );
});

test("killed with -9 or interrupted while an endpoint writes captions, it goes on after those that came", async () => {
  const list = join(root, "many.jsonl");
  const count = 100;
  await writeFile(list, Array.from({ length: count }, (_, i) => JSON.stringify({ text: `a thing ${i}` })).join("\n"));
  let asked = 0;
  let onAsked = () => {};
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => {
      body += chunk;
    });
    request.on("end", () => {
      asked++;
      onAsked();
      const content = `long ${JSON.parse(body).messages[1].content}`;
      setTimeout(() => response.end(JSON.stringify({ choices: [{ message: { content } }] })), 5);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const cache = join(root, "killed");
  const args = [list, "--text", "words", "--form", "L", "--recaption", url, "--recaption-model", "m", "--out", cache];
  const start = (signal: NodeJS.Signals | undefined) =>
    new Promise<{ code: number | null; text: string }>((resolve) => {
      const child = spawn(process.execPath, [".build/run.mjs", "train/main.ts", "encode", ...args]);
      let text = "";
      onAsked = () => {
        // The first 32 are stored by then.
        if (signal && asked % 100 === 45) child.kill(signal);
      };
      child.stdout.on("data", (chunk) => {
        text += chunk;
      });
      child.stderr.on("data", (chunk) => {
        text += chunk;
      });
      child.on("close", (code) => resolve({ code, text }));
    });
  assert.is((await start("SIGKILL")).code, null);
  assert.ok(asked < 64, `${asked} were asked`);
  asked = 0;
  const stopped = await start("SIGINT");
  assert.is(stopped.code, 1, stopped.text);
  assert.match(stopped.text, /recaption: stopped while captions were asked for/);
  assert.ok(asked < 64, `${asked} were asked`);
  asked = 0;
  const done = await start(undefined);
  assert.is(done.code, 0, done.text);
  assert.match(done.text, /text {3}words: 100 captions, 100 of them new/);
  assert.ok(asked <= 68 && asked > 0, `${asked} were asked again`);
  assert.is((await readdir(cache)).filter((name) => name.startsWith("captions-")).length, 1);
  asked = 0;
  assert.match((await start(undefined)).text, /100 captions, 0 of them new/);
  assert.is(asked, 0);
  server.close();
});

test("each mistake is told before anything is written", async () => {
  const cache = join(root, "nothing");
  const out = ["--out", cache];
  const llama = await llamaFolder(4);
  const empty = join(root, "empty");
  await mkdir(empty);
  await writeFile(join(root, "bert.json"), "");
  const bert = join(root, "bert");
  await mkdir(bert);
  await writeFile(join(bert, "config.json"), '{"model_type":"bert"}');
  await writeFile(join(root, "none.txt"), "\n\n");
  const cases: [string[], RegExp][] = [
    [[], /one set is needed: none was given/],
    [[clips, "more", "--text", "words", ...out], /one set is needed: got/],
    [[clips, ...out], /nothing to encode with: give --text/],
    [[clips, "--text", "words"], /--out is missing/],
    [[clips, "--txt", "words"], /unknown option --txt; did you mean --text/],
    [[clips, "--text", "words,", ...out], /an encoder that is empty/],
    [[clips, "--text", "wrods", ...out], /no encoder at wrods: there is no config\.json; give "words"/],
    [[clips, "--text", bert, ...out], /model_type "bert"; t5 and llama are known/],
    [[clips, "--text", `words,${llama}`, "--layer=-2", ...out], /layer has no use: words is word vectors/],
    [[clips, "--text", llama, "--layer=-9", ...out], /layer must be a whole number/],
    [[clips, "--text", MODEL, "--max-length", "9", ...out], /maxLength has no use/],
    [[clips, "--text", llama, "--weights", "f8", ...out], /--weights takes f32 or f16: got "f8"/],
    [[clips, "--text", "words", "--dtype", "bf16", ...out], /--dtype takes f32 or f16/],
    [[clips, "--text", "words", "--batch", "0", ...out], /batch must be a whole number from 1/],
    [[clips, "--text", "words", "--frames", "4", ...out], /--frames has no use without --codec/],
    [[clips, "--codec", MODEL, "--form", "L", ...out], /--form has no use without --text/],
    [[clips, "--text", "words", "--form", "XL", ...out], /must be S, L or SL/],
    [[clips, "--text", "words", "--recaption", "http://x", ...out], /give --form L or SL/],
    [[clips, "--text", "words", "--form", "L", "--recaption", "http://x", ...out], /give --recaption-model/],
    [[clips, "--text", "words", "--form", "L", "--recaption-model", "m", ...out], /give --recaption URL/],
    [[clips, "--codec", join(root, "gone"), ...out], /--codec must exist/],
    [[clips, "--codec", empty, ...out], /vae: no weights/],
    [[clips, "--codec", MODEL, "--variants", "0", ...out], /--variants must be at least 1/],
    [[clips, "--codec", MODEL, "--size", "30", ...out], /must be multiples of the patch/],
    [[join(root, "none.txt"), "--text", "words", ...out], /no captions: .*none\.txt is empty/],
    [[join(root, "none.txt"), "--codec", MODEL, ...out], /--codec needs clips/],
    [[join(root, "gone"), "--text", "words", ...out], /the set must exist/],
  ];
  for (const [args, text] of cases) await refused(args, text);
  const left = existsSync(cache) ? await readdir(cache, { recursive: true }) : [];
  assert.not(
    left.some((name) => String(name).endsWith(".safetensors") || String(name).endsWith("lock")),
    `${left}`,
  );
});

test("the help names every option", async () => {
  const { out } = await encode("--help");
  const error = await encode("--nonsense").catch((e: Error) => e.message);
  const names = String(error)
    .match(/--[a-z-]+/g)!
    .filter((name) => name !== "--nonsense" && name !== "--help");
  assert.ok(names.length > 15);
  for (const name of names) assert.ok(out.includes(name), name);
});
test.run();
