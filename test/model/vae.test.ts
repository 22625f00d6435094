import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal, upsampleNearest } from "../../engine/index.js";
import { attend } from "../../model/vae/blocks.js";
import { encodeVaeConfig, SD_VAE, vaeConfig, vaeConfigOf } from "../../model/vae/config.js";
import { axisTiles, inTiles, shares } from "../../model/vae/tiles.js";
import { AutoencoderKL, klDivergence } from "../../model/vae/vae.js";
import { AdamW } from "../../train/optim.js";
import { rejects } from "../files/throws.js";
import { golden } from "../golden.js";
import { near, relNorm } from "./compare.js";
import { checkVae, goldenVae } from "./vae-checks.js";

const test = suite("vae");
const engine = await createEngine();
const [weights, io, grads] = await Promise.all(["vae_weights", "vae_io", "vae_grads"].map((name) => golden(name)));
const { config, weights: own } = goldenVae(weights);
const upload = (name: string) => engine.tensor(io.tensors[name].data, io.tensors[name].shape);

const vae = new AutoencoderKL(engine, config);
await vae.loadStateDict(own);

test("the golden autoencoder: moments, latents, pictures, layers and every gradient", async () => {
  const { checks, worst, failures } = await checkVae(engine, { weights, io, grads });
  console.log(`\n  ${Object.entries(worst).map(([kind, off]) => `${kind} ${off.toExponential(1)}`)}`);
  assert.is(failures.join("\n"), "");
  assert.is(checks, 8 + 2 + 124);
});

test("old names of the attention's layers give the same pictures", async () => {
  const old = Object.fromEntries(
    Object.entries(own).map(([name, t]) => [
      name
        .replace(".to_q.", ".query.")
        .replace(".to_k.", ".key.")
        .replace(".to_v.", ".value.")
        .replace(".to_out.0.", ".proj_attn."),
      t,
    ]),
  );
  assert.is(Object.keys(old).filter((name) => /query|key|value|proj_attn/.test(name)).length, 16);
  const other = new AutoencoderKL(engine, config);
  await other.loadStateDict(old);
  const z = upload("in.latent_scaled");
  const [a, b] = engine.noGrad(() => [vae.decode(z), other.decode(z)]);
  assert.equal(await a.data(), await b.data());
  other.dispose();
});

test("f16 storage", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const half = new AutoencoderKL(engine, config, { dtype: "f16" });
  await half.loadStateDict(own);
  const moments = engine.noGrad(() => half.encode(upload("in.image")));
  const again = engine.noGrad(() => half.decode(upload("in.latent_scaled")));
  assert.is(again.dtype, "f32");
  const off = [
    await near("mean", moments.mean, io.tensors["out.mean"], 1e-2, relNorm),
    await near("decoded", again, io.tensors["out.decoded"], 1e-2, relNorm),
  ];
  console.log(`\n  norm ${off.map((v) => v.toExponential(1)).join(" ")}`);
  half.dispose();
});

test("frames in parts: the same numbers, less memory", async () => {
  const x = normal(engine, Key.from(5), [6, 3, 32, 32]);
  const measured = async (framesAtOnce: number) => {
    const moments = engine.noGrad(() => vae.encode(x, { framesAtOnce }));
    const z = engine.noGrad(() => vae.latent(moments));
    await engine.finish();
    engine.memoryPool.resetPeak();
    const before = engine.memory().live;
    const again = engine.noGrad(() => vae.decode(z, { framesAtOnce }));
    const peak = engine.memory().peak - before;
    return { data: await again.data(), peak, latent: await z.data() };
  };
  const [whole, parts] = [await measured(6), await measured(1)];
  await near("latents", parts.latent, { data: whole.latent }, 1e-5);
  await near("pictures", parts.data, { data: whole.data }, 1e-5);
  assert.ok(parts.peak < whole.peak / 2, `peak ${parts.peak} in parts, ${whole.peak} at once`);
});

test("attention with heads too wide for one kernel", async () => {
  const [q, k, v] = [1, 2, 3].map((i) => normal(engine, Key.from(i), [2, 15, 24]));
  const fused = attend(q, k, v);
  await near("rows in parts", attend(q, k, v, 60, 8), { data: await fused.data() }, 1e-5);
  await near("all rows", attend(q, k, v, 1e6, 8), { data: await fused.data() }, 1e-5);
});

test("tiles cover the picture and their shares add up to 1", () => {
  for (const [length, tile, overlap] of [
    [20, 8, 2],
    [9, 8, 3],
    [8, 8, 0],
    [17, 4, 0],
    [31, 6, 5],
  ]) {
    const tiles = axisTiles(length, tile, overlap);
    const sum = new Float64Array(3 * length);
    shares(tiles, overlap, 3).forEach((w, i) => {
      w.forEach((v, p) => {
        sum[3 * tiles.starts[i] + p] += v;
      });
    });
    assert.ok(
      sum.every((v) => Math.abs(v - 1) < 1e-6),
      `${length} by ${tile}`,
    );
    for (let i = 1; i < tiles.starts.length; i++)
      assert.ok(tiles.starts[i - 1] + tile - tiles.starts[i] >= overlap, "overlap");
    assert.is(tiles.starts.at(-1)! + tiles.tile, length);
  }
});

test("tiles of something local are the whole, away from seams to the bit", async () => {
  const x = normal(engine, Key.from(9), [2, 3, 20, 14]);
  const whole = await upsampleNearest(x, 2).data();
  const cut = await inTiles(engine, x, { tile: 8, overlap: 2 }, 1, 2, (t) => upsampleNearest(t, 2)).data();
  await near("everywhere", cut, { data: whole }, 1e-6);
  // Rows 0 to 5 of the first tile lie in no other one.
  for (let row = 0; row < 10; row++)
    for (let column = 0; column < 10; column++) assert.is(cut[row * 28 + column], whole[row * 28 + column]);
});

test("tiled encode and decode: one tile is the whole, more are near it", async () => {
  const z = normal(engine, Key.from(3), [1, 4, 32, 24]);
  const picture = normal(engine, Key.from(4), [1, 3, 64, 48]);
  const [whole, one, tiled, moments, cut] = engine.noGrad(() => [
    vae.decode(z),
    vae.decodeTiled(z, { tile: 64 }),
    vae.decodeTiled(z, { tile: 32, overlap: 16 }),
    vae.encode(picture).mean,
    vae.encodeTiled(picture, { tile: 32, overlap: 16 }).mean,
  ]);
  assert.equal(await one.data(), await whole.data());
  // Norms and the attention see a tile instead of the picture: random weights on noise, the hardest case.
  const off = [
    await near("decoded", tiled, { data: await whole.data() }, 0.2, relNorm),
    await near("encoded", cut, { data: await moments.data() }, 0.2, relNorm),
  ];
  console.log(`\n  norm ${off.map((v) => v.toExponential(1)).join(" ")}`);
});

test("two steps of training lower the loss", async () => {
  const small = new AutoencoderKL(
    engine,
    { channels: [8, 16], groups: 4, layersPerBlock: 1, latentChannels: 4 },
    { key: Key.from(1) },
  );
  const optimizer = new AdamW(Object.fromEntries(small.namedParameters()), { lr: 1e-3, weightDecay: 0 });
  const x = normal(engine, Key.from(2), [2, 3, 8, 8], { std: 0.5 });
  const losses: number[] = [];
  for (let step = 0; step < 3; step++) {
    const loss = engine.scope(() => {
      const out = small.forward(x, Key.from(3));
      return out.again.sub(x).square().mean().add(klDivergence(out).mul(1e-4));
    });
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
    loss.dispose();
  }
  assert.ok(losses[1] < losses[0] && losses[2] < losses[1], losses.join(", "));
  optimizer.dispose();
  small.dispose();
});

test("Stable Diffusion's sizes, there and back through a config.json", () => {
  const json = {
    _class_name: "AutoencoderKL",
    _diffusers_version: "0.4.2",
    act_fn: "silu",
    block_out_channels: [128, 256, 512, 512],
    down_block_types: Array(4).fill("DownEncoderBlock2D"),
    in_channels: 3,
    latent_channels: 4,
    layers_per_block: 2,
    norm_num_groups: 32,
    out_channels: 3,
    sample_size: 256,
    up_block_types: Array(4).fill("UpDecoderBlock2D"),
  };
  const read = vaeConfigOf(JSON.stringify(json));
  assert.equal(read, SD_VAE);
  assert.equal(vaeConfigOf(encodeVaeConfig(read)), SD_VAE);
  const model = new AutoencoderKL(engine, read);
  assert.is(model.countParameters(), 83_653_863);
  assert.is(model.factor, 8);
  model.dispose();
  engine.memoryPool.trim();
});

test("what cannot be is refused", async () => {
  const { data } = own["encoder.conv_in.bias"];
  assert.throws(() => vae.encode(engine.zeros([1, 3, 9, 8])), /must be multiples of 2: got 9 x 8; take 10 x 8/);
  assert.throws(() => vae.encode(engine.zeros([1, 4, 8, 8])), /pictures must be \[N, 3, H, W\].*got \[1, 4, 8, 8\]/);
  assert.throws(() => vae.decode(engine.zeros([1, 3, 8, 8])), /a latent must be \[N, 4, h, w\]/);
  assert.throws(() => vae.decodeTiled(engine.zeros([1, 4, 8, 8]), { tile: 7 }), /multiples of 2: got 7/);
  assert.throws(() => vae.decodeTiled(engine.zeros([1, 4, 8, 8]), { tile: 8, overlap: 8 }), /below the side of a tile/);
  assert.throws(() => vae.decode(engine.zeros([1, 4, 8, 8]), { overlap: 8 }), /an overlap of 8 needs tiles/);
  assert.throws(() => vae.decode(engine.zeros([1, 4, 8, 8]), { framesAtOnce: 0 }), /framesAtOnce must be .* got 0/);
  const huge = engine.zeros([1, 4, 1, 1]).expand([1, 4, 8192, 8192]);
  assert.throws(
    () => vae.decode(huge),
    /16384 x 16384 are too large to run whole: .*; give a smaller tile, such as 256/,
  );
  assert.throws(() => vaeConfig({ channels: [16, 20], groups: 8 }), /channels must all be multiples of groups 8/);
  assert.throws(() => vaeConfig({ chanels: [16] } as never), /unknown option "chanels"; did you mean "channels"/);
  const sizes = { block_out_channels: [8, 8] };
  assert.throws(() => vaeConfigOf("{"), /config.json is no JSON/);
  assert.throws(() => vaeConfigOf({}), /lacks "block_out_channels"/);
  assert.throws(() => vaeConfigOf({ ...sizes, _class_name: "VQModel" }), /another class: config.json says "VQModel"/);
  assert.throws(() => vaeConfigOf({ ...sizes, act_fn: "relu" }), /act_fn must be "silu": got "relu"/);
  assert.throws(
    () => vaeConfigOf({ ...sizes, down_block_types: ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"] }),
    /down_block_types must be 2 times "DownEncoderBlock2D"/,
  );
  const { "encoder.conv_in.bias": _, ...less } = own;
  await rejects(
    () => vae.loadStateDict({ ...less, "encoder.conv_inn.bias": { shape: [16], data } }),
    "encoder.conv_inn.bias (did you mean encoder.conv_in.bias?)",
  );
});

test.after(() => {
  vae.dispose();
  engine.destroy();
});
test.run();
