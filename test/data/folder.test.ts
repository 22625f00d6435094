import { spawnSync } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ConfigError, DataError } from "../../engine/errors.js";
import { embeddedDir } from "../../train/data/assets.js";
import { readClip } from "../../train/data/clip.js";
import { drawsOf } from "../../train/data/draws.js";
import { FolderDataset, type FolderOptions } from "../../train/data/folder.js";
import { fitFrames, sampleFrames } from "../../train/data/frames.js";
import { parseCsv } from "../../train/data/rows.js";
import { countFrames, readVideo } from "../../train/data/video.js";

const test = suite("recorded clips");
const place = await mkdtemp(join(tmpdir(), "espalier-data-"));
test.after(() => rm(place, { recursive: true }));
const strip = join(embeddedDir(), "emoji/clips/ox.webp");
const size = { frames: 8, height: 32, width: 32 };
const hasFfmpeg = spawnSync("ffmpeg", ["-version"]).error === undefined;
if (!hasFfmpeg) console.log("ffmpeg is not installed: 3 tests of videos are left out");
const withFfmpeg = hasFfmpeg ? test : test.skip;

async function folder(name: string, files: Record<string, string | Uint8Array>): Promise<string> {
  const path = join(place, name);
  await mkdir(path);
  for (const [file, content] of Object.entries(files)) await writeFile(join(path, file), content);
  return path;
}
const jsonLines = (...rows: object[]) => rows.map((r) => JSON.stringify(r)).join("\n");
async function refusal(promise: Promise<unknown>, kind: typeof DataError | typeof ConfigError): Promise<string> {
  try {
    await promise;
  } catch (error) {
    assert.instance(error, kind);
    return (error as Error).message;
  }
  throw new Error("nothing was refused");
}

/** Frames whose red value is 10 i and whose right half has green 255, as GIF or animated WebP. */
async function animation(format: "gif" | "webp", frames: number): Promise<Buffer> {
  const pixels = Buffer.alloc(frames * 16 * 16 * 3);
  for (let p = 0; p < frames * 256; p++) {
    pixels[3 * p] = 10 * Math.floor(p / 256);
    pixels[3 * p + 1] = p % 16 < 8 ? 0 : 255;
  }
  const image = sharp(pixels, { raw: { width: 16, height: 16 * frames, channels: 3, pageHeight: 16 } });
  return format === "gif" ? image.gif().toBuffer() : image.webp({ lossless: true }).toBuffer();
}

/** A lossless video, 24 wide, with red value 5 i and a green right half. */
function film(path: string, frames: number): void {
  const pixels = Buffer.alloc(frames * 24 * 16 * 3);
  for (let p = 0; p < frames * 384; p++) {
    pixels[3 * p] = 5 * Math.floor(p / 384);
    pixels[3 * p + 1] = p % 24 < 12 ? 0 : 255;
  }
  const args = "-v error -y -f rawvideo -pix_fmt rgb24 -s 24x16 -r 30 -i - -c:v ffv1 -pix_fmt bgr0".split(" ");
  const done = spawnSync("ffmpeg", [...args, path], { input: pixels });
  assert.is(done.status, 0, String(done.stderr));
}

test("strips, GIF and animated WebP are read as frames", async () => {
  const ox = await readClip(strip);
  assert.equal([ox.frames.length, ox.width, ox.height], [16, 64, 64]);
  assert.ok(
    ox.frames[0].some((v, i) => i % 4 === 3 && v === 0) && ox.frames[0].some((v, i) => i % 4 === 3 && v === 255),
  );
  assert.is((await readClip(strip, 4)).height, 256);
  for (const format of ["gif", "webp"] as const) {
    const path = join(place, `moving.${format}`);
    await writeFile(path, await animation(format, 10));
    const clip = await readClip(path);
    assert.equal([clip.frames.length, clip.width, clip.height], [10, 16, 16]);
    assert.equal(
      clip.frames.map((f) => f[0]),
      [0, 10, 20, 30, 40, 50, 60, 70, 80, 90],
    );
  }
  const tall = join(place, "tall.png");
  const gray = { create: { width: 8, height: 16, channels: 3 as const, background: "#808080" } };
  await sharp(gray).toColourspace("b-w").png().toFile(tall);
  const still = await readClip(tall);
  assert.equal([still.frames.length, still.height, [...still.frames[0].subarray(0, 4)]], [1, 16, [128, 128, 128, 255]]);
  assert.match(
    await refusal(readClip(strip, 5), DataError),
    /height must divide by its frames: 64 x 1024 and 5 frames/,
  );
});

test("places of frames: a random window, evenly spread, truncated", () => {
  const draws = drawsOf(1, 2, 3);
  for (let i = 0; i < 50; i++) {
    const places = sampleFrames(100, 16, 3, draws);
    assert.is(places[15] - places[0], 47);
    assert.ok(places[0] >= 0 && places[15] < 100);
    assert.equal(
      places.map((p) => p - places[0]),
      [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47],
    );
  }
  assert.equal(sampleFrames(10, 8, 3, draws), [0, 1, 2, 3, 5, 6, 7, 9]);
  assert.equal(sampleFrames(1, 4, 1, draws), [0, 0, 0, 0]);
});

test("frames are scaled by the short side, cropped in the middle, flipped and laid over the background", () => {
  // 4 x 2: columns 0 1 2 3, the last transparent.
  const rgba = new Uint8ClampedArray(4 * 2 * 4);
  for (let p = 0; p < 8; p++) rgba.set([60 * (p % 4), 0, 0, p % 4 === 3 ? 0 : 255], 4 * p);
  const clip = { frames: [rgba], width: 4, height: 2 };
  const red = (options: Partial<Parameters<typeof fitFrames>[1]>) => {
    const to = { height: 2, width: 4, flip: false, background: [255, 255, 255] as const, ...options };
    return [...fitFrames(clip, to).subarray(0, to.width)].map((v) => Math.round((v + 1) * 127.5));
  };
  assert.equal(red({}), [0, 60, 120, 255]);
  assert.equal(red({ flip: true }), [255, 120, 60, 0]);
  assert.equal(red({ width: 2 }), [60, 120]);
  // Twice the size, corners not aligned: quarter steps.
  assert.equal(red({ height: 4, width: 8 }), [0, 15, 45, 75, 105, 154, 221, 255]);
});

test("a folder: bad lines and missing or broken clips are skipped, counted and named", async () => {
  const path = await folder("mixed", {
    "captions.jsonl": [
      jsonLines({ file: "ox.webp", text: "an ox", frames: 16 }, { file: "moving.gif", caption: "colours" }),
      "{broken",
      jsonLines({ file: "gone.webp", text: "gone" }, { text: "no file" }, { file: "ox.webp" }),
      jsonLines({ file: "cut.webp", name: "cut off" }, { file: "ox.webp", name: "ox", frames: -1 }),
    ].join("\n"),
    "moving.gif": await animation("gif", 10),
    "cut.webp": (await readFile(strip)).subarray(0, 9000),
  });
  await copyFile(strip, join(path, "ox.webp"));
  const set = await FolderDataset.open(path, size);
  const seen = new Set<string>();
  for (let i = 0; i < 12; i++) {
    const sample = await set.sample(i);
    assert.is(sample.video.length, 3 * 8 * 32 * 32);
    assert.ok(sample.video.every((v) => v >= -1 && v <= 1));
    seen.add(sample.caption);
  }
  assert.equal([...seen].sort(), ["an ox", "colours"]);
  assert.is(set.size, 2);
  assert.is(set.skips.count, 6);
  const said = `${set.skips}`;
  assert.match(said, /^6 skipped: captions.jsonl line 3: not JSON: \{broken/);
  assert.match(said, /line 5: no "file"/);
  assert.match(said, /line 6: no "text", "caption" or "name" for ox.webp/);
  assert.match(said, /line 8: "frames" must be a whole number from 1: -1/);
  assert.match(said, /gone.webp: missing; and 1 more$/);
  const again = await FolderDataset.open(path, size);
  assert.equal(await again.sample(7), await set.sample(7), "a pure function of the position");
});

test("each pass holds every clip once; images are held frames", async () => {
  const path = await folder("passes", { "moving.gif": await animation("gif", 10) });
  await copyFile(strip, join(path, "ox.webp"));
  const rows = Array.from({ length: 6 }, (_, i) => ({ file: i % 2 ? "moving.gif" : "ox.webp", text: `clip ${i}` }));
  await writeFile(join(path, "captions.jsonl"), jsonLines(...rows));
  const set = await FolderDataset.open(path, { ...size, imageFraction: 1, seed: 4 });
  for (const pass of [0, 1]) {
    const captions: string[] = [];
    for (let i = 0; i < 6; i++) {
      const { video, caption } = await set.sample(6 * pass + i);
      captions.push(caption);
      assert.equal(video.subarray(0, 1024), video.subarray(7 * 1024, 8 * 1024));
    }
    assert.equal(
      captions.sort(),
      rows.map((r) => r.text),
    );
  }
});

test("what a set refuses", async () => {
  const open = (path: string, options: Partial<FolderOptions> = {}) =>
    FolderDataset.open(path, { ...size, ...options });
  assert.match(await refusal(open(join(place, "nowhere")), DataError), /the set must exist: there is nothing at/);
  assert.match(await refusal(open(await folder("empty", {})), DataError), /the set is empty: no clips are listed/);
  const blank = await folder("blank", { "captions.jsonl": "\n" });
  assert.match(await refusal(open(blank), DataError), /the set is empty/);
  const bad = await folder("bad", {
    "captions.jsonl": jsonLines({ file: "a.webp", text: "a" }),
    "a.webp": "no picture",
  });
  assert.match(
    await refusal(open(bad), DataError),
    /no clip of the set can be used: 1 skipped: clip: the file cannot be/,
  );
  const none = await folder("none", { "captions.jsonl": "[]\nnull" });
  assert.match(
    await refusal(open(none), DataError),
    /no clip of the set can be used: 2 skipped: captions.jsonl line 1/,
  );
  const short = await folder("short", {
    "captions.jsonl": jsonLines({ file: "a.gif", text: "a" }),
    "a.gif": await animation("gif", 4),
  });
  assert.match(await refusal(open(short), DataError), /8 frames are needed: .*a.gif has 4; lower "frames"/);
  assert.match(await refusal(open(bad, { frames: 0 }), ConfigError), /frames must be a whole number from 1: 0/);
  assert.match(
    await refusal(open(bad, { frame_interval: 3 } as object), ConfigError),
    /unknown option "frame_interval"; did you mean "frameInterval"/,
  );
  const csv = await folder("csv", { "set.csv": "file,caption\na,b\n" });
  assert.match(await refusal(open(join(csv, "set.csv")), DataError), /first line must name the columns path and text/);
});

test("CSV cells", () => {
  assert.equal(parseCsv('path,text\r\na.mp4,"a ""big"" ox, left\nright"\n\nb,c'), [
    ["path", "text"],
    ["a.mp4", 'a "big" ox, left\nright'],
    ["b", "c"],
  ]);
});

test("without ffmpeg a set of videos is refused at once, with what to do", async () => {
  const path = await folder("toolless", { "a.mp4": "", "a.txt": "a film" });
  const tools = { ffmpeg: "no-such-ffmpeg", ffprobe: "no-such-ffprobe" };
  const said = await refusal(FolderDataset.open(path, { ...size, tools }), DataError);
  assert.match(said, /no-such-ffprobe is needed to read videos: it cannot be started \(ENOENT\); install ffmpeg/);
});

withFfmpeg("chosen frames of a video are exactly those", async () => {
  const path = join(place, "film.mkv");
  film(path, 20);
  assert.is(await countFrames(path), 20);
  const clip = await readVideo(path, [0, 5, 5, 19]);
  assert.equal([clip.width, clip.height], [24, 16]);
  assert.equal(
    clip.frames.map((f) => [f[0], f[1], f[4 * 23 + 1]]),
    [
      [0, 0, 255],
      [25, 0, 255],
      [25, 0, 255],
      [95, 0, 255],
    ],
  );
  assert.match(await refusal(readVideo(path, [3, 40]), DataError), /frames 3..40 must decode: 1 of 2 did/);
});

withFfmpeg("a CSV of videos and images", async () => {
  const path = await folder("films", {
    "set.csv": 'path,text,extra\nfilm.mkv,"a film, long",1\nstill.png,a still,2\n',
  });
  film(join(path, "film.mkv"), 40);
  const still = { create: { width: 20, height: 10, channels: 3 as const, background: "#ff0000" } };
  await sharp(still).png().toFile(join(path, "still.png"));
  const set = await FolderDataset.open(join(path, "set.csv"), { frames: 4, height: 8, width: 8, frameInterval: 3 });
  const samples = [await set.sample(0), await set.sample(1)];
  const find = (caption: string) => samples.find((s) => s.caption === caption)?.video ?? new Float32Array();
  const reds = [0, 1, 2, 3].map((t) => Math.round((find("a film, long")[t * 64] + 1) * 25.5));
  assert.equal(
    reds.map((r) => r - reds[0]),
    [0, 3, 7, 11],
    "12 source frames, 4 of them",
  );
  assert.ok(find("a still").every((v, i) => v === (i < 256 ? 1 : -1)));
});

withFfmpeg("a folder of videos with text files; what is no video is skipped", async () => {
  const path = await folder("sidecars", {
    "good.txt": "a good film\n",
    "bad.mp4": "no video",
    "bad.txt": "a bad film",
    "mute.mp4": "",
  });
  film(join(path, "good.mkv"), 12);
  const set = await FolderDataset.open(path, size);
  for (let i = 0; i < 4; i++) assert.is((await set.sample(i)).caption, "a good film");
  assert.match(`${set.skips}`, /^2 skipped: mute.mp4: no caption in mute.txt; video: the file holds no readable video/);
});

test.run();
