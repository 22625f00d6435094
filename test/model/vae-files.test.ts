import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal } from "../../engine/index.js";
import { openModel, saveModel } from "../../model/checkpoint.js";
import {
  decodeFloat32,
  encodeFloat32,
  memorySink,
  openSafetensors,
  type SafetensorsEntry,
  writeSafetensors,
} from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { VAECodec } from "../../model/vae/codec.js";
import { encodeVaeConfig, vaeConfig } from "../../model/vae/config.js";
import { openVae, saveVae, vaeFingerprint } from "../../model/vae/open.js";
import { AutoencoderKL } from "../../model/vae/vae.js";
import { rejects } from "../files/throws.js";
import { near } from "./compare.js";

const test = suite("vae files");
const engine = await createEngine();
const config = vaeConfig({ channels: [8, 16], groups: 4, layersPerBlock: 1, latentChannels: 4, scalingFactor: 0.7 });
const vae = new AutoencoderKL(engine, config, { key: Key.from(11) });
const root = await mkdtemp(join(tmpdir(), "espalier-vae-"));
const json = JSON.stringify(encodeVaeConfig(config));
const video = normal(engine, Key.from(1), [2, 3, 3, 8, 6], { std: 0.5 });

/** The autoencoder's tensors as a file of another type, or of other names. */
async function entries(dtype: "F32" | "F16" | "BF16", rename = (name: string) => name): Promise<SafetensorsEntry[]> {
  return Promise.all(
    Object.entries(vae.stateDict()).map(async ([name, t]) => ({
      name: rename(name),
      dtype,
      shape: t.shape,
      data: encodeFloat32(Float32Array.from(await t.data()), dtype),
    })),
  );
}
async function folder(name: string, list: readonly SafetensorsEntry[], maxShardBytes?: number): Promise<string> {
  const path = join(root, name);
  await mkdir(path, { recursive: true });
  await writeFile(join(path, "config.json"), json);
  await writeSafetensors(join(path, "diffusion_pytorch_model.safetensors"), list, {}, { maxShardBytes });
  return path;
}
const old = (name: string) =>
  name
    .replace(".to_q.", ".query.")
    .replace(".to_k.", ".key.")
    .replace(".to_v.", ".value.")
    .replace(".to_out.0.", ".proj_attn.");

const plain = await folder("plain", await entries("F32"));
const codec = await openVae(engine, plain);
const latent = codec.encode(video);
const expected = { latent: await latent.data(), video: await codec.decode(latent).data() };

test("a folder of diffusers: latents by shape, samples by key", async () => {
  assert.is(codec.report?.loaded.length, vae.parameters().length);
  assert.is(codec.channels, 4);
  assert.equal(latent.shape, [2, 4, 3, 4, 3]);
  assert.equal(codec.latentShape(video.shape), [2, 4, 3, 4, 3]);
  assert.equal(await codec.encode(video).data(), expected.latent, "the same every time");
  // The formula, clip by clip and frame by frame.
  const keys = [Key.from(5), Key.from(6)];
  const got = codec.encode(video, keys);
  const one = video.slice(0, 1, 2);
  const alone = codec.encode(one, [keys[1]]);
  await near("a clip alone", alone, { data: (await got.data()).slice(got.size / 2) }, 1e-5);
  const frame = one.slice(2, 1, 2).reshape([1, 3, 8, 6]).contiguous();
  const { mean, logvar } = vae.encode(frame);
  const eps = normal(engine, keys[1], [3, 4, 4, 3]).slice(0, 1, 2);
  const formula = mean.add(logvar.mul(0.5).exp().mul(eps)).mul(0.7);
  await near("formula", alone.slice(2, 1, 2), { data: await formula.data() }, 1e-5);
  const again = codec.decode(latent);
  assert.equal(again.shape, video.shape);
  assert.ok(expected.video.every((v) => Math.abs(v) <= 1));
});

test("the mode, other seeds, parts", async () => {
  const [mode, other, parts] = [
    new VAECodec(vae, { mode: true }),
    new VAECodec(vae, { seed: 4 }),
    new VAECodec(vae, { framesAtOnce: 1, tile: 8, overlap: 2 }),
  ];
  const mean = vae.encode(video.slice(2, 0, 1).reshape([2, 3, 8, 6])).mean;
  await near("mode", mode.encode(video).slice(2, 0, 1), { data: await mean.mul(0.7).data() }, 1e-5);
  assert.not.equal(await other.encode(video).data(), expected.latent);
  await near("parts", parts.encode(video), { data: expected.latent }, 1e-5);
  await near("parts", parts.decode(latent), { data: expected.video }, 1e-5);
});

test("old names, shards, halves, a pipeline's folder, one file", async () => {
  const shards = await folder("shards", await entries("F32", old), 20_000);
  const pipeline = join(root, "pipeline");
  await mkdir(pipeline);
  await writeFile(join(pipeline, "model_index.json"), "{}");
  await folder("pipeline/vae", await entries("F32"));
  const alone = join(root, "alone.safetensors");
  await saveVae(alone, vae, { note: "kept" });
  for (const from of [shards, pipeline, alone, join(plain, "diffusion_pytorch_model.safetensors")]) {
    const same = await openVae(engine, from);
    assert.is(same.fingerprint, codec.fingerprint, from);
    assert.equal(await same.encode(video).data(), expected.latent, from);
    same.dispose();
  }
  for (const [dtype, limit] of [
    ["F16", 5e-3],
    ["BF16", 5e-2],
  ] as const) {
    const half = await openVae(engine, await folder(dtype, await entries(dtype)));
    await near(dtype, half.encode(video), { data: expected.latent }, limit);
    if (dtype === "F16") assert.is(half.fingerprint, codec.fingerprint, "halves have the fingerprint of the f32 file");
    half.dispose();
  }
  const file = await openSafetensors(alone);
  assert.is(file.metadata.note, "kept");
  await file.close();
});

test("f16 storage of an f32 file", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const half = await openVae(engine, plain, { dtype: "f16", mode: true });
  const mode = new VAECodec(vae, { mode: true });
  await near("latents", half.encode(video), { data: await mode.encode(video).data() }, 1e-2);
  assert.is(half.encode(video).dtype, "f32");
  half.dispose();
});

const tiny = { inChannels: 4, hidden: 16, depth: 1, heads: 2, captionChannels: 8, maxLength: 4, frames: 2 };
const model = new STDiT(engine, { ...tiny, latent: [4, 4] }, { key: Key.from(2) });

test("a model file holds a small autoencoder whole", async () => {
  const sink = memorySink();
  await saveModel(sink, { model, codec: new VAECodec(vae, { seed: 0 }) });
  const loaded = await openModel(engine, sink.bytes());
  assert.ok(loaded.codec instanceof VAECodec);
  assert.equal(await loaded.codec.encode(video).data(), expected.latent);
  assert.equal(await loaded.codec.decode(latent).data(), expected.video);
  loaded.dispose();
  await rejects(() => openModel(engine, sink.bytes(), { codec }), "holds its own autoencoder; give none");
});

test("a model file names a large one, and only that one fits", async () => {
  const large = await openVae(engine, plain, { embed: false });
  const sink = memorySink();
  await saveModel(sink, { model, codec: large });
  const file = await openSafetensors(sink.bytes());
  assert.is([...file.tensors.keys()].filter((name) => name.startsWith("codec.")).length, 0);
  const info = JSON.parse(file.metadata.codec);
  assert.is(info.type, "vae");
  const weights = await openSafetensors(join(plain, "diffusion_pytorch_model.safetensors"));
  assert.is(info.fingerprint, await vaeFingerprint(weights));
  await weights.close();
  assert.equal(info.config.block_out_channels, [8, 16]);
  const without = await openModel(engine, sink.bytes());
  assert.is(without.codec, undefined);
  without.dispose();
  const loaded = await openModel(engine, sink.bytes(), { codec: large });
  assert.is(loaded.codec, large);
  loaded.dispose();
  assert.equal(await large.encode(video).data(), expected.latent, "a codec that was given stays the caller's");
  const other = await entries("F32");
  const changed = other.map((e) =>
    e.name === "decoder.conv_in.bias" ? { ...e, data: encodeFloat32(new Float32Array(16), "F32") } : e,
  );
  const wrong = await openVae(engine, await folder("wrong", changed));
  await rejects(
    () => openModel(engine, sink.bytes(), { codec: wrong }),
    `whose fingerprint is ${info.fingerprint}: the one given has`,
  );
  wrong.dispose();
  large.dispose();
});

test("what cannot be opened is refused with what would do", async () => {
  const empty = join(root, "empty");
  await mkdir(empty);
  await rejects(() => openVae(engine, empty), "vae: no weights");
  await writeFile(join(empty, "diffusion_pytorch_model.bin"), "x");
  await rejects(() => openVae(engine, empty), "weights_only=True");
  await rejects(() => openVae(engine, join(empty, "vae.ckpt")), "s.save_file");
  await rejects(() => openVae(engine, join(root, "nowhere")), "vae: no weights");
  const bare = join(empty, "vae.safetensors");
  await writeSafetensors(bare, await entries("F32"));
  await rejects(() => openVae(engine, bare), "no config.json beside it");
  const given = await openVae(engine, bare, { config });
  assert.equal(await given.encode(video).data(), expected.latent);
  given.dispose();
  await rejects(() => openVae(engine, bare, { config: { ...config, channels: [8, 8] } }), "of another shape");
  await rejects(() => openVae(engine, bare, { config, seeds: 3 } as never), 'unknown option "seeds"');
  const all = await entries("F32");
  const less = await folder("less", all.slice(1));
  await rejects(() => openVae(engine, less), `missing: ${all[0].name}`);
  assert.throws(() => new VAECodec(vae, { embed: false }), /need a fingerprint; open them with openVae/);
  assert.throws(() => new VAECodec(vae, { seed: -1 }), /Key.from/);
  assert.throws(() => codec.encode(engine.zeros([1, 3, 2, 7, 8])), /multiples of 2: got 7 x 8; take 8 x 8/);
  assert.throws(() => codec.encode(video, [Key.from(1)]), /needs one key for each of 2 clips: got 1/);
  assert.throws(() => codec.decode(engine.zeros([1, 3, 2, 4, 4])), /a latent must be \[B, 4, T, h, w\]/);
  assert.throws(() => codec.latentShape([1, 4, 2, 8, 8]), /a video must be \[B, 3, T, H, W\]/);
});

test("what a file holds comes back bit for bit", async () => {
  const halves = await entries("F16");
  const loaded = new AutoencoderKL(engine, config, { dtype: engine.has("shader-f16") ? "f16" : "f32" });
  const file = await openSafetensors(join(root, "F16", "diffusion_pytorch_model.safetensors"));
  await loaded.loadStateDict(file);
  await file.close();
  for (const { name, data } of halves)
    assert.equal(
      Array.from(await loaded.stateDict()[name].data()),
      Array.from(decodeFloat32(data as Uint8Array, "F16")),
      name,
    );
  loaded.dispose();
});

test.after(async () => {
  codec.dispose();
  vae.dispose();
  model.dispose();
  engine.destroy();
  await rm(root, { recursive: true });
});
test.run();
