import { suite } from "uvu";
import * as assert from "uvu/assert";
import { compose } from "../../train/data/compose.js";
import { drawsOf } from "../../train/data/draws.js";
import { symmetricEigen } from "../../train/data/eigen.js";
import { fitPatches, reconstruct } from "../../train/data/pca.js";
import { loadSprites } from "../../train/data/sprites.js";
import { WorldDataset } from "../../train/data/stream.js";
import { COLOURS, combinations, world } from "../../train/data/world.js";
import { judge, mark } from "../../train/judge/judge.js";
import { SpriteJudge } from "../../train/judge/sprite.js";

const test = suite("judges and patch codec");
const shape = { frames: 8, height: 32, width: 32 };
const hard = world("hard");
const fresh = world("new", { jitter: true });
const sprites = await loadSprites([...hard.classes, ...fresh.classes]);
const streams = [new WorldDataset(hard, sprites, { part: "all" }), new WorldDataset(fresh, sprites, { part: "all" })];
const clips = Array.from({ length: 64 }, (_, i) => streams[i % 2].sample(i).video);
const fit = fitPatches(clips, shape);

test("eigenvectors of a symmetric matrix: A v = lambda v, orthonormal, falling values", () => {
  const n = 12;
  const draws = drawsOf(3, 0, 0);
  const a = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      a[i * n + j] = draws.between(-1, 1);
      a[j * n + i] = a[i * n + j];
    }
  const { values, vectors } = symmetricEigen(a, n);
  for (let k = 0; k < n; k++) {
    if (k > 0) assert.ok(values[k] <= values[k - 1]);
    for (let i = 0; i < n; i++) {
      let av = 0;
      let dot = 0;
      for (let j = 0; j < n; j++) {
        av += a[i * n + j] * vectors[k * n + j];
        dot += vectors[i * n + j] * vectors[k * n + j];
      }
      assert.ok(Math.abs(av - values[k] * vectors[k * n + i]) < 1e-12);
      assert.ok(Math.abs(dot - (i === k ? 1 : 0)) < 1e-12);
    }
  }
  assert.throws(() => symmetricEigen(Float64Array.of(Number.NaN), 1), /the matrix must be finite/);
});

test("the codec keeps 97 % of the variance and 26 dB in 8 channels", () => {
  assert.ok(Math.abs(fit.explained - 0.971) < 0.004, `${fit.explained}`);
  assert.ok(Math.abs(fit.psnr - 26.2) < 0.5, `${fit.psnr}`);
});

test("channels of the codec are half-whitened: variances average 1 and rise as sd", () => {
  const { basis, mean, scale, channels } = fit;
  const squares = new Float64Array(channels);
  let count = 0;
  for (const video of clips)
    for (let t = 0; t < 8; t++)
      for (let y = 0; y < 32; y += 4)
        for (let x = 0; x < 32; x += 4) {
          count++;
          for (let j = 0; j < channels; j++) {
            let z = 0;
            for (let i = 0; i < 48; i++) {
              const at = ((i % 3) * 8 + t) * 1024 + (y + Math.floor(i / 12)) * 32 + x + (Math.floor(i / 3) % 4);
              z += ((video[at] - mean[i]) * basis[i * channels + j]) / scale[j];
            }
            squares[j] += z * z;
          }
        }
  const variances = squares.map((s) => s / count);
  assert.ok(Math.abs(variances.reduce((a, b) => a + b, 0) / channels - 1) < 1e-4);
  // var(z) = sd / mean(sd) and scale = sqrt(sd mean(sd)), so their ratio is scale squared over mean(sd) squared.
  const ratio = variances.map((v, j) => v / scale[j] ** 2);
  assert.ok(ratio.every((r) => Math.abs(r / ratio[0] - 1) < 1e-3));
});

test("what the fit refuses", () => {
  assert.throws(() => fitPatches([], shape), /clips are needed to fit the codec/);
  assert.throws(() => fitPatches(clips, shape, 5), /must divide by the patch: 32 x 32 by 5/);
  assert.throws(() => fitPatches(clips, shape, 4, 49), /channels must be 1..48/);
  assert.throws(() => fitPatches([new Float32Array(clips[0].length)], shape), /vary too little for 8 channels/);
});

for (const [name, count] of [
  ["easy", 24],
  ["base", 24],
  ["hard", 24],
  ["new", 24],
] as const)
  test(`world ${name}: colours, motion and class are read from real clips and from reconstructions`, () => {
    const of = world(name);
    const classes = new SpriteJudge(sprites.only(of.classes));
    const right = { real: [0, 0, 0], again: [0, 0, 0] };
    const all = combinations(of);
    for (let i = 0; i < count; i++) {
      const spec = all[Math.floor((i * all.length) / count) + (i % 5)];
      const real = compose(spec, of, sprites, drawsOf(9, i, 1));
      for (const [key, video] of [
        ["real", real],
        ["again", reconstruct(real, shape, fit)],
      ] as const) {
        const marks = mark(judge(video, of, classes), spec);
        right[key][0] += Number(marks.colour && marks.colourPair);
        right[key][1] += Number(marks.motion);
        right[key][2] += Number(marks.class);
      }
    }
    assert.equal(right, { real: [count, count, count], again: [count, count, count] });
  });

test("wrong and empty clips are told from right ones", () => {
  const of = world("easy");
  const classes = new SpriteJudge(sprites.only(of.classes));
  const spec = { class: "ox", motion: "moving left" as const, colours: ["blue"] };
  const video = compose(spec, of, sprites);
  assert.equal(mark(judge(video, of, classes), { ...spec, class: "pig", motion: "moving up", colours: ["red"] }), {
    colour: false,
    colourPair: false,
    motion: false,
    class: false,
  });
  // Played backwards the sprite goes the other way.
  const area = 32 * 32;
  const back = video.map((_, i) => {
    const t = Math.floor(i / area) % 8;
    return video[i + (7 - 2 * t) * area];
  });
  assert.is(judge(back, of, classes).motion, "moving right");
  const empty = new Float32Array(video.length);
  for (let c = 0; c < 3; c++) empty.fill(COLOURS.green[c] / 127.5 - 1, c * 8 * area, (c + 1) * 8 * area);
  assert.equal(judge(empty, of, classes), { colours: ["green"], motion: "standing still", class: "nothing" });
  const two = world("new");
  const swapped = { class: "zebra", motion: "moving up" as const, colours: ["red", "blue"] };
  const verdict = judge(compose(swapped, two, sprites), two, new SpriteJudge(sprites.only(two.classes)));
  const marks = mark(verdict, { ...swapped, colours: ["blue", "red"] });
  assert.not.ok(marks.colour);
  assert.ok(marks.colourPair);
  assert.throws(() => judge(video.subarray(1), of, classes), /the clip must be \[3, 8, 32, 32\] as in world "easy"/);
});

test.run();
