// Trains the small autoencoder of checkpoints/vae.safetensors on single frames of the composed clips and compares it with
// the linear codec of 4x4 patches, which has latents of the same size. Stopped, it goes on where it was when started again.
//
//   node .build/run.mjs examples/vae.ts FOLDER [STEPS]
//
// Writes vae.safetensors (averaged weights, f16, with its figures in the metadata) and vae.json into FOLDER.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createEngine, type Engine, Key, type Tensor } from "../engine/index.js";
import { type Codec, PCACodec } from "../model/codec.js";
import { saveTensors } from "../model/state.js";
import { VAECodec } from "../model/vae/codec.js";
import { encodeVaeConfig, vaeConfig } from "../model/vae/config.js";
import { openVae, saveVae } from "../model/vae/open.js";
import { AutoencoderKL, klDivergence } from "../model/vae/vae.js";
import { type Checkpoint, CheckpointFolder, type Json } from "../train/checkpoint.js";
import type { Sample } from "../train/data/dataset.js";
import { drawsOf } from "../train/data/draws.js";
import { MixedDataset } from "../train/data/mixed.js";
import { fitPatches } from "../train/data/pca.js";
import { loadSprites } from "../train/data/sprites.js";
import { WorldDataset } from "../train/data/stream.js";
import { world } from "../train/data/world.js";
import { AdamW, EMA } from "../train/optim.js";
import { rateOf } from "../train/rate.js";

const SEED = 42;
/** Pictures of a step, each from a clip of its own. */
const PICTURES = 8;
/** Held-out clips of each world that are judged. */
const JUDGED = 32;
const KL = 1e-5;
/** Stream of the draws that choose frames. */
const PICK = 0x46524d45;
const [out, count = "1000"] = process.argv.slice(2);
const steps = Number(count);
if (!out || !(Number.isInteger(steps) && steps >= 1)) {
  console.error("examples/vae: give a folder and, if you like, a number of steps");
  process.exit(2);
}

const worlds = await Promise.all(
  ["wide", "new"].map(async (name) => {
    const of = world(name);
    const sprites = await loadSprites(of.classes);
    const open = (part: "trained" | "heldOut") => new WorldDataset(of, sprites, { seed: SEED, part });
    return { name, trained: open("trained"), heldOut: open("heldOut") };
  }),
);
const { frames: T, height: H, width: W } = worlds[0].trained;
const area = H * W;
const data = new MixedDataset(worlds[0].trained, worlds[1].trained, 0.5);
const config = vaeConfig({
  channels: [16, 16, 32],
  layersPerBlock: 1,
  latentChannels: 8,
  groups: 8,
  scalingFactor: 1,
  sampleSize: W,
});

/** Pictures of a step, a function of its number alone: [PICTURES, 3, H, W]. */
function batch(engine: Engine, step: number): Tensor {
  const pictures = new Float32Array(PICTURES * 3 * area);
  for (let i = 0; i < PICTURES; i++) {
    const index = step * PICTURES + i;
    const { video } = data.sample(index) as Sample;
    const t = drawsOf(SEED, index, PICK).below(T);
    for (let c = 0; c < 3; c++)
      pictures.set(video.subarray((c * T + t) * area, (c * T + t + 1) * area), (i * 3 + c) * area);
  }
  return engine.tensor(pictures, [PICTURES, 3, H, W]);
}

/** Peak signal to noise ratio in dB of clips that were coded and decoded, peak 2 (values in [-1, 1]). */
async function psnr(engine: Engine, codec: Codec, clips: readonly Float32Array[]): Promise<number> {
  let error = 0;
  for (const [i, clip] of clips.entries()) {
    const again = engine.noGrad(() =>
      engine.scope(() => codec.decode(codec.encode(engine.tensor(clip, [1, 3, T, H, W]), [Key.from(i)]))),
    );
    const values = await again.data();
    again.dispose();
    for (let p = 0; p < clip.length; p++) error += (clip[p] - values[p]) ** 2;
  }
  return 10 * Math.log10((4 * clips.length * clips[0].length) / error);
}

const clipsOf = (from: WorldDataset, n: number) => Array.from({ length: n }, (_, i) => from.sample(i).video);

const rate = rateOf({ schedule: "cosine", lr: 3e-3, steps, warmupSteps: Math.min(50, steps - 1), finalFraction: 0.02 });
const engine = await createEngine({ seed: SEED });
const key = engine.key();
const vae = new AutoencoderKL(engine, config, { key: key.fold(0) });
// Samples begin close to their means: noise as large as they are would drown what the decoder is to learn from.
const { latentChannels } = config;
const bias = Float32Array.from({ length: 2 * latentChannels }, (_, i) => (i < latentChannels ? 0 : -6));
await vae.loadStateDict({ "quant_conv.bias": { shape: [bias.length], data: bias } }, { strict: false });
const parameters = Object.fromEntries(vae.namedParameters());
const optimizer = new AdamW(parameters, { lr: 3e-3, betas: [0.9, 0.99], weightDecay: 0 });
const ema = new EMA(parameters, { decay: 0.99, warmup: true });
const folder = new CheckpointFolder(join(out, "checkpoints"), 2);
const plan = { steps, seed: SEED, config: encodeVaeConfig(config) } as unknown as Json;

async function save(step: number): Promise<void> {
  await folder.save(step, {
    tensors: [
      ...vae.entries("model."),
      ...saveTensors(engine, ema.state().tensors, "ema."),
      ...saveTensors(engine, optimizer.state().tensors, "optimizer."),
    ],
    state: { plan, optimizerSteps: optimizer.steps, emaUpdates: ema.updates },
  });
}

async function restore({ file, state, step, path }: Checkpoint): Promise<number> {
  if (JSON.stringify(state.plan) !== JSON.stringify(plan))
    throw new Error(`examples/vae: ${path} is of another run (other steps or sizes); take another folder.`);
  await vae.loadStateDict(file, { prefix: "model." });
  await ema.load(state.emaUpdates as number, file, "ema.");
  await optimizer.load(state.optimizerSteps as number, file, "optimizer.");
  await file.close();
  return step;
}

mkdirSync(out, { recursive: true });
console.log(`${vae.countParameters().toLocaleString("en")} parameters on ${engine.info.name}`);
const latest = await folder.latest();
let step = latest ? await restore(latest) : 0;
let began = performance.now();
for (; step < steps; step++) {
  const loss = engine.scope(() => {
    const x = batch(engine, step); // [N, 3, H, W]
    const out = vae.forward(x, key.fold(1).fold(step));
    const error = out.again.sub(x).square().mean(); // []
    const total = error.add(klDivergence(out).mul(KL)); // []
    total.backward();
    return error.detach();
  });
  optimizer.lr = rate(step);
  optimizer.step({ clip: 1 }).norm.dispose();
  optimizer.zeroGrad();
  ema.update();
  const value = await loss.item();
  loss.dispose();
  if (!Number.isFinite(value)) throw new Error(`examples/vae: the loss of step ${step} is ${value}.`);
  if (step % 20 === 19) {
    const pace = (performance.now() - began) / 20;
    console.log(
      `step ${step + 1}  error ${value.toFixed(5)}  ${(10 * Math.log10(4 / value)).toFixed(1)} dB  ${pace.toFixed(0)} ms`,
    );
    began = performance.now();
  }
  if (step % 50 === 49) await save(step + 1);
}

ema.swap();
// Latents of the linear codec's spread, about 1: diffusion mixes them with noise of that size.
let [squares, numbers] = [0, 0];
const plain = new VAECodec(vae, { mode: true });
for (const clip of worlds.flatMap(({ trained }) => clipsOf(trained, 32))) {
  const z = engine.noGrad(() => plain.encode(engine.tensor(clip, [1, 3, T, H, W])));
  for (const v of await z.data()) squares += v * v;
  numbers += z.size;
  z.dispose();
}
const scaled = new AutoencoderKL(engine, { ...config, scalingFactor: Math.sqrt(numbers / squares) });
await scaled.loadStateDict(vae.stateDict());
const path = join(out, "vae.safetensors");
await saveVae(path, scaled.to("f16"));

// What is in the file is judged, on combinations that no training clip shows.
const linear = new PCACodec(
  engine,
  fitPatches(
    worlds.flatMap(({ trained }) => clipsOf(trained, 192)),
    worlds[0].trained,
    4,
    8,
  ),
);
const [mode, sample] = [await openVae(engine, path, { mode: true }), await openVae(engine, path)];
const figures: Record<string, Record<string, number>> = {};
for (const { name, heldOut } of worlds) {
  const clips = clipsOf(heldOut, JUDGED);
  const row: Record<string, number> = {};
  for (const [what, codec] of [
    ["vae", mode],
    ["vaeSampled", sample],
    ["pca", linear],
  ] as const)
    row[what] = Number((await psnr(engine, codec, clips)).toFixed(2));
  figures[name] = row;
}
const about = {
  parameters: vae.countParameters(),
  steps,
  pictures: steps * PICTURES,
  heldOutPsnr: figures,
  adapter: engine.info.name,
};
const written = await saveVae(path, scaled, { figures: JSON.stringify(about) });
writeFileSync(join(out, "vae.json"), `${JSON.stringify(about, null, 2)}\n`);
console.log(about, `${written.bytes} bytes`);
engine.destroy();
