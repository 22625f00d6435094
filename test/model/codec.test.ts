import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal } from "../../engine/index.js";
import { PCACodec, PixelCodec } from "../../model/codec.js";
import { near, relNorm } from "./compare.js";

const test = suite("codec");
const engine = await createEngine();
const [p, k, n] = [2, 5, 12];
const wave = (count: number, pace: number) => Float32Array.from({ length: count }, (_, i) => Math.sin(pace * (i + 1)));
const numbers = {
  patch: p,
  channels: k,
  mean: wave(n, 0.31),
  basis: wave(n * k, 1.7),
  scale: Float32Array.of(0.5, 1, 2, 3, 0.25),
};
const codec = new PCACodec(engine, numbers);

test("encoding and decoding are the stated formulas", async () => {
  const [B, T, H, W] = [2, 3, 4, 6];
  const video = wave(B * 3 * T * H * W, 0.77);
  const shape = codec.latentShape([B, 3, T, H, W]);
  assert.equal(shape, [2, 5, 3, 2, 3]);
  const pixel = (b: number, c: number, t: number, y: number, x: number) => (((b * 3 + c) * T + t) * H + y) * W + x;
  const expected = new Float64Array(B * k * T * 2 * 3);
  const again = new Float64Array(video.length);
  for (let b = 0; b < B; b++)
    for (let t = 0; t < T; t++)
      for (let i = 0; i < 2; i++)
        for (let j = 0; j < 3; j++) {
          // Row, column, channel within the patch.
          const places = Array.from({ length: n }, (_, e) =>
            pixel(b, e % 3, t, i * p + Math.floor(e / 3 / p), j * p + (Math.floor(e / 3) % p)),
          );
          const z = Array.from(
            { length: k },
            (_, q) =>
              places.reduce((s, at, e) => s + (video[at] - numbers.mean[e]) * numbers.basis[e * k + q], 0) /
              numbers.scale[q],
          );
          z.forEach((v, q) => {
            expected[(((b * k + q) * T + t) * 2 + i) * 3 + j] = v;
          });
          places.forEach((at, e) => {
            const v = z.reduce((s, zq, q) => s + zq * numbers.scale[q] * numbers.basis[e * k + q], numbers.mean[e]);
            again[at] = Math.max(-1, Math.min(1, v));
          });
        }
  const latent = codec.encode(engine.tensor(video, [B, 3, T, H, W]));
  await near("latent", latent, { shape, data: expected }, 1e-5);
  const back = codec.decode(latent);
  await near("video", back, { shape: [B, 3, T, H, W], data: again }, 1e-5);
  assert.ok(again.some((v) => v === 1) && again.some((v) => Math.abs(v) < 0.9), "clamped and unclamped values");
});

test("an orthonormal basis of all components loses nothing", async () => {
  const basis = new Float32Array(144);
  for (let i = 0; i < 12; i++) basis[i * 12 + ((i * 5) % 12)] = i % 2 ? 1 : -1;
  const whole = new PCACodec(engine, {
    patch: 2,
    channels: 12,
    mean: wave(12, 0.2),
    basis,
    scale: wave(12, 0.4).map((v) => 1.5 + v),
  });
  const video = normal(engine, Key.from(1), [1, 3, 2, 4, 4], { std: 0.2 });
  await near("round trip", whole.decode(whole.encode(video)), { data: await video.data() }, 1e-5, relNorm);
  whole.dispose();
});

test("pixels are their own latents, limited when decoded", async () => {
  const pixels = new PixelCodec();
  assert.equal(pixels.latentShape([2, 3, 4, 5, 6]), [2, 3, 4, 5, 6]);
  const video = engine.tensor([-3, 0.5, 2], [1, 3, 1, 1, 1]);
  assert.equal([...(await pixels.encode(video).data())], [-3, 0.5, 2]);
  assert.equal([...(await pixels.decode(video).data())], [-1, 0.5, 1]);
});

test("what cannot be coded is refused", () => {
  assert.throws(
    () => codec.encode(engine.zeros([1, 3, 2, 5, 4])),
    /must be multiples of the patch: got 5 x 4 with patch 2; take 6 x 4/,
  );
  assert.throws(() => codec.latentShape([1, 4, 2, 4, 4]), /a video must be \[B, 3, T, H, W\]: got \[1, 4, 2, 4, 4\]/);
  assert.throws(() => codec.decode(engine.zeros([1, 4, 2, 2, 2])), /a latent must be \[B, 5, T, h, w\]/);
  assert.throws(
    () => new PCACodec(engine, { ...numbers, channels: 4 }),
    /sizes disagree: patch 2 and 4 channels need mean \[12\], basis \[12, 4\] and scale \[4\]: got 12, 60 and 5/,
  );
});

test.after(() => {
  codec.dispose();
  engine.destroy();
});
test.run();
