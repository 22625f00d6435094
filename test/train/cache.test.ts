import { execFileSync, spawn } from "node:child_process";
import {
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { halfBits, halfValue } from "../../engine/dtype.js";
import { AbortedError, ConfigError, createEngine, EspalierError } from "../../engine/index.js";
import { PCACodec, PixelCodec } from "../../model/codec.js";
import type { Encoded, TextEncoder } from "../../model/text/encoder.js";
import type { WordEncoder } from "../../model/text/words.js";
import { codecFingerprint, LatentDataset } from "../../train/cache/latents.js";
import { CacheStore } from "../../train/cache/store.js";
import { CachedTextEncoder } from "../../train/cache/text.js";
import { embeddedDir, wordEncoder } from "../../train/data/assets.js";
import { FolderDataset } from "../../train/data/folder.js";
import { random } from "../ops/loop.js";

const engine = await createEngine();
const root = await mkdtemp(join(tmpdir(), "espalier-cache-"));
let folders = 0;
const fresh = () => join(root, `cache-${folders++}`);
const warnings: string[] = [];
const warn = (message: string) => void warnings.push(message);

async function refused(promise: Promise<unknown>, kind: new (...args: never[]) => Error, text: RegExp): Promise<void> {
  const error = await promise.then(
    () => assert.unreachable("nothing was refused") as never,
    (e: Error) => e,
  );
  assert.instance(error, kind, String(error));
  assert.match(error.message, text);
}

const opened: { close(): Promise<void> }[] = [];
async function open(...given: Parameters<typeof CachedTextEncoder.open>): Promise<CachedTextEncoder> {
  const cached = await CachedTextEncoder.open(...given);
  opened.push(cached);
  return cached;
}

/** Word vectors that count how often they were asked. */
class Counted implements TextEncoder {
  opened = 0;
  prompts: string[] = [];
  readonly words: WordEncoder;
  readonly dim: number;
  readonly maxLength: number;
  constructor(maxLength = 4) {
    this.words = wordEncoder({ maxLength });
    this.dim = this.words.dim;
    this.maxLength = maxLength;
  }
  encode(prompts: string[]): Encoded {
    this.prompts.push(...prompts);
    return this.words.encode(prompts);
  }
  lazy(fingerprint = "words") {
    return {
      fingerprint,
      open: () => {
        this.opened++;
        return this;
      },
    };
  }
}
const captions = ["an ox moving left", "a qwx frog", "one two three four five six", "an ox moving left"];

const text = suite("a cache of text embeddings");
text.before.each(() => void warnings.splice(0));

text("gives what the encoder gives, asks it once for each prompt, and a second run never opens it", async () => {
  const folder = fresh();
  const first = new Counted();
  const cached = await open(folder, first.lazy(), { batch: 2 });
  const wanted = first.words.encode(captions);
  const got = await cached.encode(captions);
  assert.equal(got.embeddings, wanted.embeddings);
  assert.equal(got.mask, wanted.mask);
  assert.equal(got.shape, wanted.shape);
  assert.equal(got.truncated, wanted.truncated);
  assert.equal(got.unknown, wanted.unknown);
  assert.equal(got.warnings, wanted.warnings);
  assert.equal(first.prompts, captions.slice(0, 3));
  await cached.encode(captions);
  assert.is(first.prompts.length, 3);
  await cached.close();

  const second = new Counted();
  const again = await open(folder, second.lazy());
  assert.equal(await again.encode(captions), got);
  assert.is(again.isOpened, false);
  assert.equal([again.dim, again.maxLength, again.size], [64, 4, 3]);
  assert.is(second.opened, 0);
  await again.encode(["a new one"]);
  assert.is(second.opened, 1);
  assert.equal(second.prompts, ["a new one"]);
  await again.close();
});

text("in f16 the first run sees the numbers that the second will, and the files are half as large", async () => {
  const folder = fresh();
  const cached = await open(folder, new Counted().lazy(), { dtype: "f16" });
  const { embeddings } = await cached.encode(captions);
  const exact = new Counted().words.encode(captions).embeddings;
  assert.equal(
    embeddings,
    exact.map((x) => halfValue(halfBits(x))),
  );
  assert.not.equal(embeddings, exact);
  await cached.close();
  const again = await open(folder, new Counted().lazy());
  assert.equal((await again.encode(captions)).embeddings, embeddings);
  await refused(open(folder, new Counted().lazy(), { dtype: "f32" }), ConfigError, /holds f16: f32 was asked/);
});

text("another fingerprint shares nothing, and one that lies is found out", async () => {
  const folder = fresh();
  const a = await open(folder, new Counted(4).lazy("a"));
  await a.encode(captions);
  await a.close();
  const other = new Counted(6);
  const b = await open(folder, other.lazy("b"));
  assert.is((await b.encode(captions)).shape[1], 6);
  assert.equal(other.prompts, captions.slice(0, 3));
  await b.close();
  const liar = await open(folder, new Counted(6).lazy("a"));
  assert.is((await liar.encode(captions)).shape[1], 4);
  await refused(liar.encode(["a new one"]), ConfigError, /the encoder is another: 6 x 64 .* holds 4 x 64/);
});

text("a refused prompt is named by its place in the caller's batch, and the others are kept", async () => {
  const encoder = new Counted();
  const cached = await open(fresh(), encoder.lazy(), { batch: 1 });
  await cached.encode(captions);
  await refused(cached.encode(["an ox moving left", "a frog", "!!!"]), ConfigError, /^prompt 2: must hold a word/);
  assert.ok(cached.has("a frog"));
  await refused(cached.encode([""]), ConfigError, /must not be empty/);
  await refused(open(fresh(), encoder.lazy(""), {}), ConfigError, /fingerprint/);
});

text("numbers that are none, or that f16 cannot hold, are not kept", async () => {
  const of = (x: number) => ({
    dim: 1,
    maxLength: 1,
    encode: (): Encoded => ({
      embeddings: Float32Array.of(x),
      mask: Int32Array.of(1),
      shape: [1, 1, 1],
      ...{ unknown: [], truncated: [], warnings: [] },
    }),
  });
  for (const [x, dtype, text] of [
    [Number.NaN, "f32", /gave NaN, which is no result/],
    [Number.NEGATIVE_INFINITY, "f16", /gave -Infinity/],
    [65520, "f16", /too large for f16: the encoder gave 65520; take dtype f32/],
    [65520, "f32", undefined],
    [-65519, "f16", undefined],
  ] as const) {
    const cached = await open(fresh(), { fingerprint: "x", open: () => of(x) }, { dtype });
    if (text) await refused(cached.encode(["a"]), EspalierError, text);
    else assert.is((await cached.encode(["a"])).embeddings[0], dtype === "f16" ? -65504 : x);
    assert.is(cached.has("a"), text === undefined);
  }
});

text("closing gives an opened encoder's memory back, and opens none for it", async () => {
  const folder = fresh();
  let disposed = 0;
  const encoder = Object.assign(new Counted(), { dispose: () => void disposed++, settings: { layer: -2 } });
  for (const prompts of [["a dog"], ["a dog"], ["a cat"]]) {
    const cached = await CachedTextEncoder.open(folder, encoder.lazy());
    await cached.encode(prompts);
    assert.equal(cached.settings, { layer: -2 });
    await cached.close();
  }
  assert.equal([encoder.opened, disposed], [2, 2]);
});

text("batches that run at once encode no prompt twice", async () => {
  const encoder = new Counted();
  const cached = await open(fresh(), encoder.lazy());
  await Promise.all([cached.encode(captions), cached.encode(captions), cached.encode(["a dog", ...captions])]);
  assert.is(encoder.prompts.length, 4);
  assert.is(encoder.opened, 1);
});

text("a mask with holes and zero rows at the end come back as they were", async () => {
  const encoded: Encoded = {
    embeddings: Float32Array.of(1, 2, 0, 0, 3, 4, 0, 0),
    mask: Int32Array.of(1, 0, 1, 0),
    shape: [1, 4, 2],
    unknown: [],
    truncated: [],
    warnings: [],
  };
  const encoder = { dim: 2, maxLength: 4, encode: () => encoded };
  const cached = await open(fresh(), { fingerprint: "holes", open: () => encoder });
  assert.equal(await cached.encode(["x"]), encoded);
});

/** The only part of a cache, with its files. */
async function partOf(folder: string) {
  const [part] = await readdir(folder);
  const place = join(folder, part);
  const files = await readdir(place);
  return { place, files, shards: files.filter((f) => f.startsWith("shard-")).sort() };
}

/** A cache of two shards: two prompts, then one. */
async function twoShards(): Promise<string> {
  const folder = fresh();
  const cached = await open(folder, new Counted().lazy());
  await cached.fill(captions.slice(0, 2));
  await new Promise((resolve) => setTimeout(resolve, 5));
  await cached.fill(captions);
  await cached.close();
  assert.is((await partOf(folder)).shards.length, 2);
  return folder;
}

/** Encodes all and says which prompts had to be encoded anew. */
async function redone(folder: string): Promise<string[]> {
  const encoder = new Counted();
  const cached = await open(folder, encoder.lazy(), { warn });
  assert.equal((await cached.encode(captions)).embeddings, encoder.words.encode(captions).embeddings);
  await cached.close();
  return encoder.prompts;
}

text("a torn, missing or foreign index is made again from the shards", async () => {
  const folder = await twoShards();
  const { place, files } = await partOf(folder);
  assert.equal(
    files.filter((f) => !f.startsWith("shard-")),
    ["index.json"],
  );
  const index = await readFile(join(place, "index.json"), "utf8");
  for (const broken of [
    index.slice(0, 100),
    "[]",
    index.replace('"fingerprint":"words"', '"fingerprint":"x"'),
    undefined,
  ]) {
    warnings.splice(0);
    if (broken === undefined) await rm(join(place, "index.json"));
    else await writeFile(join(place, "index.json"), broken);
    assert.equal(await redone(folder), []);
    assert.is(warnings.length, broken === undefined ? 0 : 1);
    if (broken !== undefined) assert.match(warnings[0], /index not readable, made again from the shards/);
  }
});

text("a torn or missing shard costs its own entries, which are made again", async () => {
  const folder = await twoShards();
  const { place, shards } = await partOf(folder);
  await truncate(join(place, shards[1]), (await stat(join(place, shards[1]))).size - 10);
  assert.equal(await redone(folder), [captions[2]]);
  assert.is(warnings.length, 1);
  assert.match(warnings[0], /skipped, not readable: .*the file is cut.*made again, remove it/);
  await rm(join(place, shards[1]));
  await rm(join(place, shards[0]));
  warnings.splice(0);
  assert.equal(await redone(folder), captions.slice(0, 2));
  assert.match(warnings.join(), /skipped, missing/);
});

text("one damaged entry is found by its sum, made again, and wins over the damaged one from then on", async () => {
  const folder = await twoShards();
  const { place, shards } = await partOf(folder);
  const bytes = await readFile(join(place, shards[0]));
  bytes[bytes.length - 5] ^= 0x40;
  await writeFile(join(place, shards[0]), bytes);
  assert.is((await redone(folder)).length, 1);
  assert.match(warnings.join(), /damaged entry/);
  warnings.splice(0);
  assert.equal(await redone(folder), []);
  assert.equal(warnings, []);
});

text("what killed processes left aside is swept; a living one's lock keeps a second encode out", async () => {
  const folder = await twoShards();
  const { place } = await partOf(folder);
  const left = join(place, `.shard-x.safetensors.${2 ** 22 + 1}-0123abcd.tmp`);
  await writeFile(left, "half");
  const cached = await open(folder, new Counted().lazy());
  const sleeper = spawn(process.execPath, ["-e", "setTimeout(() => {}, 60000)"]);
  await writeFile(join(place, "lock"), `${sleeper.pid}\n`);
  await refused(
    open(folder, new Counted().lazy(), { exclusive: true }),
    ConfigError,
    /process \d+ is writing into .*; wait for it/,
  );
  // A trainer still stores: shards need no lock, and the index is made up later.
  await cached.fill(["a new one"]);
  const before = await readFile(join(place, "index.json"), "utf8");
  sleeper.kill("SIGKILL");
  await new Promise((resolve) => sleeper.on("exit", resolve));
  const alone = await open(folder, new Counted().lazy(), { exclusive: true });
  await alone.fill(["another"]);
  await alone.close();
  await cached.close();
  assert.not.equal(await readFile(join(place, "index.json"), "utf8"), before);
  assert.equal(
    (await partOf(folder)).files.filter((f) => !f.startsWith("shard-")),
    ["index.json"],
  );
  assert.is((await open(folder, new Counted().lazy())).size, 5);
});

text("two processes that fill one cache lose nothing of each other's", async () => {
  const folder = fresh();
  const [a, b] = await Promise.all([0, 1].map(() => open(folder, new Counted().lazy())));
  await Promise.all([a.fill(["a dog", "a cat"]), b.fill(["a cow", "a cat"])]);
  await Promise.all([a.close(), b.close()]);
  assert.is((await open(folder, new Counted().lazy(), { warn })).size, 3);
  assert.equal(warnings, []);
});

/** A program that fills a cache with entries of 3 KB each, slowly where asked, and says how it went. */
async function filler(): Promise<string> {
  const program = join(root, "fill.mjs");
  const contents = `import { CacheStore } from "./train/cache/store.ts";
const [folder, count, wait] = process.argv.slice(2);
const store = await CacheStore.open(folder, { kind: "text", fingerprint: "x" }, { seconds: wait ? 0.02 : 3600 });
store.describe({});
console.log("there " + store.size);
try {
  for (let i = 0; i < Number(count); i++) {
    const key = String(i).padStart(32, "0");
    if (store.has(key)) continue;
    if (wait) await new Promise((resolve) => setTimeout(resolve, Number(wait)));
    await store.put(key, { tensors: { t: { shape: [750], data: new Float32Array(750).fill(i) } } });
    if (!wait && i % 16 === 15) await store.flush();
  }
  await store.close();
  console.log("done " + store.size);
} catch (error) {
  console.log(error.name + " " + error.message);
}`;
  await build({
    stdin: { contents, resolveDir: process.cwd(), loader: "ts" },
    bundle: true,
    format: "esm",
    platform: "node",
    packages: "external",
    outfile: program,
    logLevel: "error",
  });
  return program;
}

text("killed with -9 at random moments, a cache opens without a word, keeps what it had and is finished", async () => {
  const folder = fresh();
  const program = await filler();
  const next = random(5);
  let kills = 0;
  let known = 0;
  for (let done = false; !done; ) {
    const child = spawn(process.execPath, [program, folder, "120", "4"], { stdio: ["ignore", "pipe", "pipe"] });
    let out = "";
    let timer: NodeJS.Timeout | undefined;
    const hear = (chunk: Buffer) => {
      out += chunk;
      if (kills < 6) timer ??= setTimeout(() => child.kill("SIGKILL"), 30 + 100 * next());
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    const code = await new Promise((resolve) => child.on("close", resolve));
    clearTimeout(timer);
    if (code === null) kills++;
    const lines = out.trim().split("\n");
    const there = Number(/^there (\d+)$/.exec(lines[0])?.[1]);
    assert.ok(there >= known, out);
    known = there;
    done = lines[1] === "done 120";
    assert.is(lines.length, done ? 2 : 1, out);
  }
  assert.ok(kills >= 4 && known > 0, `${kills} kills, ${known} at the last start`);
  const store = await CacheStore.open(folder, { kind: "text", fingerprint: "x" }, { warn });
  for (let i = 0; i < 120; i++) {
    const entry = await store.get(String(i).padStart(32, "0"));
    assert.equal(entry?.tensors.t.data, new Float32Array(750).fill(i));
  }
  await store.close();
  assert.equal(warnings, []);
  assert.not((await readdir(store.folder)).some((name) => name.endsWith(".tmp")));
});

text("a full disk says so, keeps what was stored, and the same work goes on with more space", async () => {
  const folder = fresh();
  await mkdir(folder);
  const program = await filler();
  const fill = `"${process.execPath}" "${program}" "${folder}" 160`;
  const script = `mount -t tmpfs -o size=256k none "${folder}" && ${fill}; mount -o remount,size=4m "${folder}" && ${fill} && ${fill}`;
  let out: string;
  try {
    out = execFileSync("unshare", ["-rm", "sh", "-c", script], { encoding: "utf8" });
  } catch (error) {
    console.log(`\n  no small file system can be mounted here (${String(error).split("\n")[0]})`);
    return;
  }
  const lines = out.trim().split("\n");
  assert.is(lines[0], "there 0");
  assert.match(
    lines[1],
    /^FileError write: disk full: .*cache: the \d+ entries stored before are whole; .*same command/,
  );
  const stored = Number(/the (\d+) entries/.exec(lines[1])![1]);
  assert.ok(stored >= 16 && stored < 160, lines[1]);
  assert.equal(lines.slice(2), [`there ${stored}`, "done 160", "there 160", "done 160"]);
});
text.after(async () => {
  for (const cached of opened) await cached.close();
});

const latents = suite("a cache of latents");
latents.before.each(() => void warnings.splice(0));
const size = { frames: 4, height: 16, width: 16, frameInterval: 2, seed: 3 };

/** A folder of three clips, of which one is damaged on request. */
async function clipFolder(broken = false): Promise<string> {
  const folder = join(root, `clips-${folders++}`);
  await mkdir(folder);
  const names = ["ox", "fox", "owl"];
  for (const name of names)
    await copyFile(join(embeddedDir(), `emoji/clips/${name}.webp`), join(folder, `${name}.webp`));
  if (broken) await writeFile(join(folder, "fox.webp"), "no picture");
  const lines = names.map((name) => JSON.stringify({ file: `${name}.webp`, text: `the ${name}` }));
  await writeFile(join(folder, "captions.jsonl"), lines.join("\n"));
  return folder;
}

/** Principal components that are none, but whose latents differ from pixels. */
const numbers = (patch: number) => {
  const n = patch * patch * 3;
  const basis = Float32Array.from({ length: n * 2 }, (_, i) => (i % 2 === Math.floor(i / 2) % 2 ? 0.5 : 0));
  return { patch, channels: 2, mean: new Float32Array(n).fill(0.1), basis, scale: Float32Array.of(1, 2) };
};
latents.after(() => engine.destroy());

latents("give what the codec gives, once for each variant of each clip, and then without reading clips", async () => {
  const folder = await clipFolder();
  const cache = fresh();
  const clips = await FolderDataset.open(folder, { ...size, variants: 2 });
  const codec = new PCACodec(engine, numbers(4));
  const set = await LatentDataset.open(cache, clips, engine, codec);
  assert.equal([set.size, set.frames, set.height, set.latentShape], [3, 4, 16, [2, 4, 4, 4]]);
  const first = await Promise.all(Array.from({ length: 12 }, (_, i) => set.sample(i)));
  for (const [i, sample] of first.entries()) {
    const { video, caption } = await clips.sample(i);
    const z = codec.encode(engine.tensor(video, [1, 3, 4, 16, 16]));
    assert.equal(sample.video, await z.data());
    assert.is(sample.caption, caption);
  }
  assert.is(set.encoded, 6);
  await set.close();

  // Other bytes of equal size and time: were they read, they would be refused.
  for (const name of ["ox", "fox", "owl"]) {
    const path = join(folder, `${name}.webp`);
    const about = await stat(path);
    await writeFile(path, new Uint8Array(about.size));
    await utimes(path, about.atime, about.mtime);
  }
  const again = await LatentDataset.open(cache, clips, engine, new PCACodec(engine, numbers(4)));
  for (const [i, sample] of first.entries()) assert.equal(await again.sample(i), sample);
  assert.is(again.encoded, 0);
  await again.close();
});

latents("variants depend on the clip alone: another seed, order or place of the set has the same ones", async () => {
  const folder = await clipFolder();
  const cache = fresh();
  const codec = new PixelCodec();
  const openSet = async (at: string, more = {}) =>
    LatentDataset.open(cache, await FolderDataset.open(at, { ...size, variants: 3, ...more }), engine, codec, {
      dtype: "f16",
    });
  const set = await openSet(folder);
  const progress: number[] = [];
  await set.fill((done) => progress.push(done));
  await set.close();
  assert.equal(progress, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const moved = join(root, `moved-${folders++}`);
  await rename(folder, moved);
  const other = await openSet(moved, { seed: 99 });
  for (let i = 0; i < 18; i++) await other.sample(i);
  assert.is(other.encoded, 0);
  const videos = new Set<string>();
  for (let i = 0; i < 9; i++) videos.add(`${(await other.sample(i)).video}`);
  assert.ok(videos.size > 3, "all variants are alike");
  await other.close();
  for (const more of [{ flip: false }, { frameInterval: 1 }, { imageFraction: 1 }, { background: [0, 0, 0] }]) {
    const cut = await openSet(moved, more);
    await cut.sample(0);
    assert.is(cut.encoded, 1, JSON.stringify(more));
    await cut.close();
  }
  // A clip that was changed is encoded anew.
  await copyFile(join(embeddedDir(), "emoji/clips/cat.webp"), join(moved, "ox.webp"));
  const changed = await openSet(moved);
  await changed.fill();
  assert.is(changed.encoded, 3);
  await changed.close();
});

latents("broken clips are skipped; a set without variants and a stopped one are told", async () => {
  const folder = await clipFolder(true);
  const clips = await FolderDataset.open(folder, { ...size, variants: 1 });
  const cache = fresh();
  const set = await LatentDataset.open(cache, clips, engine, new PixelCodec());
  await set.fill();
  assert.is(set.encoded, 2);
  assert.match(String(clips.skips), /1 skipped: .*fox\.webp/);
  await refused(
    set.fill(() => {}, AbortSignal.abort()),
    AbortedError,
    /stopped after 0 of 3 clips; the same command/,
  );
  await set.close();
  const endless = await FolderDataset.open(folder, size);
  await refused(
    LatentDataset.open(cache, endless, engine, new PixelCodec()),
    ConfigError,
    /variants is 0; give the set/,
  );
  await refused(FolderDataset.open(folder, { ...size, variants: 1.5 }), ConfigError, /variants must be a whole number/);
});

latents("codecs are told apart by what they are", async () => {
  const print = (patch: number) => codecFingerprint(new PCACodec(engine, numbers(patch)));
  assert.is(await print(4), await print(4));
  const other = numbers(4);
  other.mean[7] += 1e-3;
  const prints = [
    await print(4),
    await print(2),
    await codecFingerprint(new PCACodec(engine, other)),
    await codecFingerprint(new PixelCodec()),
  ];
  assert.is(new Set(prints).size, 4);
});
text.run();
latents.run();
