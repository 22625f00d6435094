import { execFileSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  contactSheet,
  encodeAnimatedWebp,
  encodeGif,
  toBytes,
  upscaleFor,
  type VideoClip,
  writeAnimatedWebp,
  writeContactSheet,
  writeGif,
  writeMp4,
} from "../../train/media.js";
import { rejects } from "../files/throws.js";

const test = suite("media");
let folder = "";
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "media-"));
});
test.after(() => rm(folder, { recursive: true }));

/** A bright square that moves right over a coloured ground. */
function clipOf(frames: number, height: number, width: number): VideoClip {
  const ground = [-0.6, -0.2, 0.65];
  const video = new Float32Array(3 * frames * height * width);
  for (let c = 0; c < 3; c++)
    for (let t = 0; t < frames; t++)
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const inside = y >= 2 && y < 6 && x >= t && x < t + 4;
          video[((c * frames + t) * height + y) * width + x] = inside ? 1.5 : ground[c];
        }
  return { video, frames, height, width };
}

async function decoded(bytes: Uint8Array) {
  const image = sharp(bytes, { animated: true });
  const { data, info } = await image.removeAlpha().raw().toBuffer({ resolveWithObject: true });
  return { data, info, about: await image.metadata() };
}

const clip = clipOf(5, 10, 14);

test("numbers become bytes: clamped, rounded, enlarged", () => {
  const small = { video: Float32Array.of(-1, 0, 1, 7, -7, 0.5), frames: 1, height: 1, width: 2 };
  assert.equal([...toBytes(small, 1, 3)], [0, 255, 0, 128, 255, 191]);
  assert.equal(
    [...toBytes(small, 2, 4)].slice(0, 16),
    [0, 255, 0, 255, 0, 255, 0, 255, 128, 255, 191, 255, 128, 255, 191, 255],
  );
  assert.is(toBytes(small, 2, 4).length, 32);
  assert.equal([...toBytes({ ...small, video: small.video.fill(Number.NaN) }, 1, 3)], [0, 0, 0, 0, 0, 0]);
  assert.equal(
    [32, 64, 16, 20, 128, 256, 1].map((side) => upscaleFor({ height: side, width: 1 })),
    [5, 3, 10, 8, 1, 1, 160],
  );
});

test("WebP keeps every pixel, the frames and their time", async () => {
  const path = join(folder, "clip.webp");
  await writeAnimatedWebp(path, clip, { fps: 10, upscale: 3 });
  const { data, about } = await decoded(await readFile(path));
  assert.is(Buffer.compare(data, toBytes(clip, 3, 3)), 0);
  assert.equal([about.pages, about.pageHeight, about.width, about.loop], [5, 30, 42, 0]);
  assert.equal(about.delay, [100, 100, 100, 100, 100]);
});

test("GIF keeps frames, time and colours to 8 of 255", async () => {
  const path = join(folder, "clip.gif");
  await writeGif(path, clip, { fps: 5, upscale: 2 });
  const { data, about } = await decoded(await readFile(path));
  const want = toBytes(clip, 2, 3);
  assert.is(data.length, want.length);
  let worst = 0;
  for (let i = 0; i < want.length; i++) worst = Math.max(worst, Math.abs(want[i] - data[i]));
  assert.ok(worst <= 8, `worst ${worst}`);
  assert.equal([about.pages, about.pageHeight, about.width, about.loop], [5, 20, 28, 0]);
  assert.equal(about.delay, [200, 200, 200, 200, 200]);
});

test("one frame and the default enlargement", async () => {
  const still = clipOf(1, 32, 32);
  assert.is((await decoded(encodeGif(still))).info.width, 160);
  assert.is((await decoded(await encodeAnimatedWebp(still))).info.width, 160);
});

test("MP4 plays the frames, or says why there is none", async () => {
  const path = join(folder, "clip.mp4");
  const odd = clipOf(5, 11, 15);
  const result = await writeMp4(path, odd, { fps: 10, upscale: 9 });
  if (!result.written) {
    assert.is(result.reason, "ffmpeg is not installed");
    return;
  }
  const raw = execFileSync("ffmpeg", ["-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
  assert.is(raw.length, 5 * 136 * 100 * 3, "sides are padded to even");
  const want = toBytes(odd, 9, 3);
  for (let t = 0; t < 5; t++)
    for (const [y, x] of [
      [40, 9 * (t + 2)],
      [90, 20],
    ])
      for (let c = 0; c < 3; c++) {
        const got = raw[((t * 100 + y) * 136 + x) * 3 + c];
        assert.ok(Math.abs(got - want[((t * 99 + y) * 135 + x) * 3 + c]) <= 12, `frame ${t} at ${y}, ${x}: ${got}`);
      }
});

test("MP4 without ffmpeg, or into no folder, is a reason and no file", async () => {
  const path = join(folder, "none.mp4");
  const without = { written: false, reason: "no-such-ffmpeg is not installed" };
  assert.equal(await writeMp4(path, clip, { ffmpeg: "no-such-ffmpeg" }), without);
  const failed = await writeMp4(join(folder, "missing", "clip.mp4"), clip);
  assert.ok(!failed.written && failed.reason.length > 0);
  assert.not((await readdir(folder)).some((name) => name.includes("none")));
});

test("a contact sheet has a row for each clip and a column for each frame", async () => {
  const path = join(folder, "sheet.png");
  await writeContactSheet(path, [clip, clipOf(3, 10, 14)], { upscale: 2, gap: 3 });
  const { data, info } = await sharp(await readFile(path))
    .raw()
    .toBuffer({ resolveWithObject: true });
  assert.equal([info.width, info.height], [5 * 31 + 3, 2 * 23 + 3]);
  const at = (y: number, x: number) => [...data.subarray((y * info.width + x) * 3, (y * info.width + x) * 3 + 3)];
  assert.equal(at(0, 0), [32, 32, 32]);
  for (let t = 0; t < 5; t++) assert.equal(at(3 + 6, 3 + t * 31 + 2 * (t + 1)), [255, 255, 255], `frame ${t}`);
  assert.equal(at(3 + 23 + 6, 3 + 4 * 31 + 10), [32, 32, 32], "the second clip has no fifth frame");
});

test("clips that contradict their shape are refused", async () => {
  assert.throws(
    () => encodeGif({ ...clip, frames: 6 }),
    /^DataError: gif: wrong length: 2100 numbers; \[3, 6, 10, 14\] has 2520$|gif: wrong length/,
  );
  assert.throws(() => encodeGif(clip, { fps: 0 }), /gif: bad fps: 0/);
  await rejects(() => encodeAnimatedWebp(clip, { upscale: 1.5 }), "DataError: webp: bad upscale: 1.5");
  await rejects(() => contactSheet([]), "DataError: contact sheet: no clips");
  await rejects(() => contactSheet([clip, clipOf(1, 4, 4)]), "sizes differ: clip 1 is 4 x 4, the first 14 x 10");
});

test.run();
