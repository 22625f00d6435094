import { statSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { embeddedDir } from "../../train/data/assets.js";
import { compose, placeOf, resizeSprite, Sprites } from "../../train/data/compose.js";
import { drawsOf, shuffled } from "../../train/data/draws.js";
import { loadSprites } from "../../train/data/sprites.js";
import { WorldDataset } from "../../train/data/stream.js";
import { CLASSES, captionOf, combinations, isHeldOut, type Spec, WORLDS, world } from "../../train/data/world.js";

const test = suite("worlds");
const easy = world("easy");
const sprites = await loadSprites(easy.classes);
const frameOf = (video: Float32Array, t: number, frames: number) => {
  const area = video.length / 3 / frames;
  return [0, 1, 2].flatMap((c) => [...video.subarray((c * frames + t) * area, (c * frames + t + 1) * area)]);
};

test("the embedded set has every class, its licence, and under 3 MB", async () => {
  const folder = join(embeddedDir(), "emoji");
  const files = await readdir(join(folder, "clips"));
  const bytes = files.reduce((sum, f) => sum + statSync(join(folder, "clips", f)).size, 0);
  assert.ok(bytes < 3e6, `${bytes} bytes`);
  assert.is(files.length, CLASSES.length);
  const words = (await readFile(join(folder, "captions.jsonl"), "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).word);
  assert.equal(words, [...CLASSES]);
  assert.match(await readFile(join(folder, "LICENSE"), "utf8"), "Microsoft Corporation");
});

test("combinations and how many are held out", () => {
  const counts = Object.keys(WORLDS).map((name) => [
    name,
    combinations(world(name)).length,
    combinations(world(name), "heldOut").length,
  ]);
  assert.equal(counts, [
    ["easy", 96, 8],
    ["base", 288, 25],
    ["wide", 576, 52],
    ["hard", 1152, 105],
    ["new", 288, 26],
  ]);
  assert.is(combinations(easy, "trained").length, 88);
  assert.not(isHeldOut({ class: "ox", colours: ["red"] }), "images are never held out");
});

test("captions", () => {
  const of = (spec: Spec) => captionOf(spec);
  assert.is(of({ class: "ox", motion: "moving left", colours: ["blue"] }), "an ox moving left on a blue background");
  assert.is(of({ class: "star", motion: "growing", colours: ["red"] }), "a star growing on a red background");
  assert.is(of({ class: "umbrella", colours: ["gray"] }), "an umbrella on a gray background");
  assert.is(
    of({ class: "zebra", motion: "moving left", colours: ["blue", "red"] }),
    "a zebra moving left the upper half is blue and the lower half is red",
  );
});

test("left is right mirrored, in whole pixels, and the path is the known one", () => {
  const path = (motion: Spec["motion"]) =>
    Array.from({ length: 8 }, (_, t) => {
      const draw = { sizes: [21, 21] as [number, number], start: -6.35, travel: 11, across: 1.5 };
      return placeOf({ class: "ox", motion, colours: ["red"] }, draw, t, 8, 32);
    });
  assert.equal(
    path("moving right").map((p) => p.x),
    [-1, 1, 2, 4, 5, 7, 9, 10],
  );
  assert.equal(
    path("moving left").map((p) => 11 - p.x),
    path("moving right").map((p) => p.x),
  );
  assert.ok(path("moving right").every((p) => p.y === 7 && p.size === 21));
});

test("the box filter weighs premultiplied colour", () => {
  // Left half opaque red, right half transparent white: the edge must not turn pink.
  const rgba = new Uint8ClampedArray(4 * 4 * 4);
  for (let p = 0; p < 16; p++) rgba.set(p % 4 < 1 ? [255, 0, 0, 255] : [255, 255, 255, 0], 4 * p);
  const small = resizeSprite(rgba, 4, 2).rgba;
  assert.equal([...small.subarray(0, 8)], [0.5, 0, 0, 0.5, 0, 0, 0, 0]);
  assert.equal([...resizeSprite(rgba, 4, 8).rgba.subarray(0, 12)], [1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]);
});

test("a composed clip: background, range, sprite frames, and other sizes", () => {
  const spec: Spec = { class: "pig", motion: "moving up", colours: ["blue"] };
  const video = compose(spec, easy, sprites);
  assert.is(video.length, 3 * 8 * 32 * 32);
  assert.ok(video.every((v) => v >= -1 && v <= 1));
  const corner = [0, 1, 2].map((c) => Math.round((video[c * 8 * 1024] + 1) * 127.5));
  assert.equal(corner, [50, 90, 210]);
  assert.not.equal(frameOf(video, 0, 8), frameOf(video, 7, 8));
  assert.equal(compose(spec, easy, sprites), video);
  const large = world("easy", { size: 48, frames: 16 });
  assert.is(compose(spec, large, sprites).length, 3 * 16 * 48 * 48);
  const halves = compose({ ...spec, colours: ["red", "black"] }, easy, sprites);
  assert.is(Math.round((halves[0] + 1) * 127.5), 205);
  assert.is(Math.round((halves[31 * 32] + 1) * 127.5), 20);
});

test("samples are a pure function of seed and position, and never held out", () => {
  const set = new WorldDataset(easy, sprites, { seed: 7 });
  const again = new WorldDataset(easy, sprites, { seed: 7 });
  const far = 2 ** 40 + 3;
  assert.equal(again.sample(far), set.sample(far));
  assert.equal(again.sample(5), set.sample(5));
  const captions = Array.from({ length: 800 }, (_, i) => set.sample(i).caption);
  assert.is(new Set(captions).size, 88, "800 draws meet each of 88 combinations");
  const held = new Set(combinations(easy, "heldOut").map(captionOf));
  assert.not.ok(captions.some((c) => held.has(c)));
  const other = new WorldDataset(easy, sprites, { seed: 8 });
  assert.not.equal(
    Array.from({ length: 20 }, (_, i) => other.sample(i).caption),
    captions.slice(0, 20),
  );
});

test("jitter varies clips of one caption; without it they are equal", () => {
  const spec: Spec = { class: "ox", motion: "moving left", colours: ["red"] };
  const loose = world("easy", { jitter: true });
  const clip = (of: typeof easy, i: number) => compose(spec, of, sprites, drawsOf(0, i, 1));
  assert.not.equal(clip(loose, 0), clip(loose, 1));
  assert.equal(clip(easy, 0), clip(easy, 1));
});

test("image samples hold one frame and say nothing of motion", () => {
  const set = new WorldDataset(easy, sprites, { imageFraction: 0.5 });
  const samples = Array.from({ length: 100 }, (_, i) => set.sample(i));
  const images = samples.filter((s) => s.spec?.motion === undefined);
  assert.ok(images.length > 35 && images.length < 65, `${images.length} images`);
  for (const s of images.slice(0, 5)) {
    assert.equal(frameOf(s.video, 0, 8), frameOf(s.video, 7, 8));
    assert.not.match(s.caption, /moving/);
  }
});

test("orders are permutations, one a pass", () => {
  const a = shuffled(50, 1, 0, 2);
  assert.equal(
    [...a].sort((x, y) => x - y),
    Array.from({ length: 50 }, (_, i) => i),
  );
  assert.equal(shuffled(50, 1, 0, 2), a);
  assert.not.equal(shuffled(50, 1, 1, 2), a);
});

test("what a world refuses", () => {
  assert.throws(() => world("esy"), /world: unknown name: "esy"; did you mean "easy"\?/);
  assert.throws(() => world("easy", { classes: ["pigg"] }), /unknown class: "pigg"; did you mean "pig"\?/);
  assert.throws(() => world("easy", { colours: ["grey"] }), /unknown colour: "grey"; did you mean "gray"\?/);
  assert.throws(() => world("easy", { motions: [] }), /at least one motion is needed/);
  assert.throws(() => world("easy", { sizes: 32 } as object), /unknown field: "sizes"; did you mean "size"\?/);
  assert.throws(() => world("easy", { size: 7.5 }), /size must be a whole number from 8: 7.5/);
  assert.throws(() => world("new", { colours: ["red"] }), /two-colour backgrounds need two colours/);
  assert.throws(() => world("easy", { classes: ["ox", "ox"] }), /each class counts once/);
  assert.throws(
    () => new WorldDataset(world("easy", { classes: ["ox"], colours: ["red"] }), sprites, { part: "heldOut" }).size,
    /no combination is left/,
  );
  assert.throws(() => new WorldDataset(easy, sprites, { imageFraction: 2 }), /imageFraction must lie in 0..1: 2/);
  assert.throws(() => sprites.at("whale", 0, 8, 21), /the class is not loaded: "whale"/);
  const wide = { frames: [new Uint8ClampedArray(8)], width: 2, height: 1 };
  assert.throws(() => new Sprites(new Map([["flat", wide]])), /clips must be square: "flat" is 2 x 1/);
});

test.run();
