import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Tensor } from "../../engine/index.js";
import { openSafetensors } from "../../model/safetensors.js";
import { openVae } from "../../model/vae/open.js";
import { loadSprites } from "../../train/data/sprites.js";
import { WorldDataset } from "../../train/data/stream.js";
import { world } from "../../train/data/world.js";

const PATH = "examples/checkpoints/vae.safetensors";
const test = suite("the trained autoencoder");
const engine = await createEngine();
const codec = await openVae(engine, PATH, { mode: true });

/** Clips of held-out combinations, [n, 3, frames, size, size]. */
async function heldOut(name: string, n: number, size: number, frames: number): Promise<Tensor> {
  const of = world(name, { size, frames });
  const set = new WorldDataset(of, await loadSprites(of.classes), { seed: 42, part: "heldOut" });
  const clips = Array.from({ length: n }, (_, i) => set.sample(i).video);
  const all = new Float32Array(n * clips[0].length);
  clips.forEach((clip, i) => {
    all.set(clip, i * clip.length);
  });
  return engine.tensor(all, [n, 3, frames, size, size]);
}
const decibels = async (a: Tensor, b: Tensor) => 10 * Math.log10(4 / (await a.sub(b).square().mean().item()));

test("its file says how near it comes on unseen combinations, and it does", async () => {
  const file = await openSafetensors(PATH);
  const { heldOutPsnr, parameters } = JSON.parse(file.metadata.figures);
  await file.close();
  assert.is(codec.vae.countParameters(), parameters);
  for (const name of ["wide", "new"]) {
    const clips = await heldOut(name, 6, 32, 8);
    const got = await decibels(clips, codec.decode(codec.encode(clips)));
    console.log(`\n  ${name}: ${got.toFixed(2)} dB of 6 clips, stated ${heldOutPsnr[name].vae} of 32`);
    // Six clips differ from 32 by chance.
    assert.ok(Math.abs(got - heldOutPsnr[name].vae) < 2, `${got}`);
  }
});

test("its latents have the spread that diffusion takes", async () => {
  const z = codec.encode(await heldOut("wide", 4, 32, 8));
  const square = await z.square().mean().item();
  assert.ok(square > 0.7 && square < 1.4, `${square}`);
});

test("tiles of a larger picture: how far from the whole, and how much the picture loses", async () => {
  const clip = await heldOut("wide", 2, 64, 1);
  const picture = clip.reshape([2, 3, 64, 64]);
  const { vae } = codec;
  const z = vae.latent(vae.encode(picture));
  const whole = vae.decode(z);
  const sizes = { tile: 32, overlap: 16 };
  const tiled = vae.decodeTiled(z, sizes);
  const both = vae.decodeTiled(vae.latent(vae.encodeTiled(picture, sizes)), sizes);
  const [apart, exact, cut] = [
    await decibels(tiled, whole),
    await decibels(whole, picture),
    await decibels(both, picture),
  ];
  console.log(
    `\n  tiled from whole ${apart.toFixed(1)} dB; from the picture: whole ${exact.toFixed(1)}, tiled both ways ${cut.toFixed(1)}`,
  );
  // Not equal away from seams either: every norm and the attention see a tile of a quarter of the picture. Measured:
  // 25.4 dB from the whole, and 1.8 dB lost. The limits tell a broken blend, which loses far more, from that.
  assert.ok(apart > 22, `${apart}`);
  assert.ok(cut > exact - 2.5, `${cut} and ${exact}`);
});

test.after(() => {
  codec.dispose();
  engine.destroy();
});
test.run();
