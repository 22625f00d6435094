import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import {
  decodeConfig,
  encodeConfig,
  outChannels,
  STDIT_XL_2,
  type STDiTConfig,
  stditConfig,
} from "../../model/config.js";
import { CaptionEmbedder, timestepCode, timestepCodeOf } from "../../model/embed.js";
import { STDiT } from "../../model/stdit.js";
import { golden } from "../golden.js";
import { near, relNorm } from "./compare.js";
import { checkSTDiT, checkTables } from "./stdit-checks.js";

const test = suite("stdit");
const engine = await createEngine();
const key = Key.from(7);
const { tensors: embeddings } = await golden("embeddings");

const SMALL: Partial<STDiTConfig> = {
  inChannels: 3,
  predSigma: false,
  hidden: 16,
  depth: 2,
  heads: 2,
  frames: 2,
  latent: [4, 6],
  captionChannels: 5,
  maxLength: 6,
};

/** A small model in which nothing is zero, so that no path hides another. */
async function small(more: Partial<STDiTConfig> = {}): Promise<STDiT> {
  const model = new STDiT(engine, { ...SMALL, ...more }, { key });
  const zeros = model.namedParameters().filter(([name]) => /\.proj\.|final_layer\.linear/.test(name));
  const values = Object.fromEntries(
    zeros.map(([name, p], i) => [name, normal(engine, key.fold(i), p.shape, { std: 0.3 })]),
  );
  await model.loadStateDict(values, { strict: false });
  for (const t of Object.values(values)) t.dispose();
  return model;
}

const wave = (shape: number[], pace: number) =>
  engine.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(pace * (i + 1))),
    shape,
  );

test("the golden model: activations, outputs and every gradient", async () => {
  const [weights, io, grads] = await Promise.all(
    ["stdit_a_weights", "stdit_a_io", "stdit_a_grads"].map((name) => golden(name)),
  );
  const { checks, worst, failures } = await checkSTDiT(engine, { weights, io, grads });
  console.log(
    `\n  ${checks} checks; worst ${Object.entries(worst)
      .map(([k, v]) => `${k} ${v.toExponential(1)}`)
      .join(", ")}`,
  );
  assert.is(failures.join("\n"), "");
  assert.is(checks, 84);
});

test("position tables and timestep codes", async () => {
  const report = checkTables(embeddings);
  assert.is(report.failures.join("\n"), "");
  assert.is(report.checks, 6);
  const t = embeddings["t.in"].data;
  await near("host code against f64", timestepCode(t), embeddings["t.freq256_f64"], 1e-7);
  await near("host code against the reference's f32", timestepCode(t), embeddings["t.freq256"], 5e-5);
  await near("GPU code", timestepCodeOf(engine.tensor(t as Float32Array)), embeddings["t.freq256_f64"], 2e-6);
  // Times of rectified flow are no whole numbers.
  const times = Float32Array.from({ length: 50 }, (_, i) => 999.87 / (1 + i * 0.61));
  await near("GPU code of fractions", timestepCodeOf(engine.tensor(times)), { data: timestepCode(times) }, 5e-5);
});

// The file's limit is 1e-6; tanh of a GPU takes ten times that.
test("caption embedder: null rows in place of a dropped caption", async () => {
  const embedder = new CaptionEmbedder(engine, 32, 64, 12);
  const state = Object.fromEntries(
    Object.entries(embeddings)
      .filter(([k]) => k.startsWith("cap.weights."))
      .map(([k, v]) => [k.slice(12), v]),
  );
  await embedder.loadStateDict({ ...state, y_embedding: embeddings["cap.y_embedding"] });
  const y = engine.tensor(embeddings["cap.in"].data as Float32Array, [3, 12, 32]);
  const flat = (name: string) => ({ data: embeddings[name].data });
  await near("kept", embedder.forward(y), flat("cap.out_no_drop"), 1e-5);
  const drop = embeddings["cap.drop"].data as Int32Array;
  await near("dropped", embedder.forward(y, drop), flat("cap.out_drop"), 1e-5);
  await near("dropped by a tensor", embedder.forward(y, engine.tensor(drop)), flat("cap.out_drop"), 1e-5);
  const shorter = await embedder.forward(y.slice(1, 0, 4), [1, 1, 1]).data();
  await near("first null rows", shorter, { data: await embedder.forward(embedder.nullCaption(3, 4)).data() }, 0);
  assert.throws(
    () => embedder.forward(engine.zeros([1, 13, 32]), [1]),
    /null caption: has 12 rows: got captions of length 13/,
  );
  assert.throws(() => embedder.forward(y, [1, 0]), /one value a caption: got 2 for 3/);
});

test("initial values follow the original's scheme", async () => {
  const model = new STDiT(
    engine,
    { hidden: 64, depth: 2, heads: 4, frames: 4, latent: [8, 8], captionChannels: 32, maxLength: 12 },
    { key },
  );
  const rows = Object.entries(embeddings).filter(([k]) => k.startsWith("init_std."));
  assert.is(rows.length, model.namedParameters().length);
  for (const [name, p] of model.namedParameters()) {
    const values = Array.from(await p.data());
    const std = Math.sqrt(values.reduce((s, v) => s + v * v, 0) / values.length);
    const top = values.reduce((s, v) => Math.max(s, Math.abs(v)), 0);
    const [expected, most] = embeddings[`init_std.${name}`].data;
    if (expected === 0) assert.is(top, 0, name);
    else {
      // 64 values estimate a deviation to 9%, so that two estimates may differ by 0.3.
      assert.ok(
        Math.abs(std / expected - 1) < (values.length < 500 ? 0.3 : 0.06),
        `${name}: deviation ${std}, the original's ${expected}`,
      );
      assert.ok(top < 1.35 * most, `${name}: largest ${top}, the original's ${most}`);
    }
  }
  const nulls = Array.from(await model.yEmbedder.yEmbedding.data());
  assert.ok(Math.abs(Math.sqrt(nulls.reduce((s, v) => s + v * v, 0) / nulls.length) * Math.sqrt(32) - 1) < 0.15);
  model.dispose();
});

test("initial values for small models that must learn fast", async () => {
  const options = { patchBias: "zero", captionInit: "xavier", gateBias: 0.5 } as const;
  const [plain, quick] = [new STDiT(engine, SMALL, { key }), new STDiT(engine, SMALL, { key, ...options })];
  const differing: string[] = [];
  for (const [name, p] of plain.namedParameters()) {
    const [a, b] = [await p.data(), await quick.stateDict()[name].data()];
    if (a.some((v, i) => v !== b[i])) differing.push(name);
    if (name.endsWith("blocks.0.scale_shift_table"))
      for (let row = 0; row < 6; row++)
        for (let c = 0; c < 16; c++)
          assert.is(b[row * 16 + c], Math.fround(a[row * 16 + c] + (row === 2 || row === 5 ? 0.5 : 0)));
  }
  assert.equal(differing.sort(), [
    "blocks.0.scale_shift_table",
    "blocks.1.scale_shift_table",
    "x_embedder.proj.bias",
    "y_embedder.y_proj.fc1.weight",
    "y_embedder.y_proj.fc2.weight",
  ]);
  assert.ok((await quick.xEmbedder.bias.data()).every((v) => v === 0));
  for (const m of [plain, quick]) m.dispose();
});

test("one key, one model; another key, another", async () => {
  const models = [key, key, Key.from(8)].map((k) => new STDiT(engine, SMALL, { key: k }));
  const [a, b, c] = await Promise.all(models.map((m) => m.blocks[1].mlp.fc1.weight.data()));
  assert.equal(a, b);
  assert.ok(a.some((v, i) => v !== c[i]));
  const names = models[0].namedParameters().filter(([n]) => n.endsWith("attn.qkv.weight"));
  assert.ok((await names[0][1].data()).some((v, i) => v !== c[i]));
  for (const m of models) m.dispose();
});

test("masks of one half serve both, and masked words count for nothing", async () => {
  const model = await small();
  const x = wave([2, 3, 2, 4, 6], 0.7);
  const y = wave([2, 6, 5], 1.3);
  const mask = engine.tensor(Int32Array.of(1, 1, 0, 1, 0, 0), [1, 6]);
  const twice = engine.tensor(Int32Array.of(1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0), [2, 6]);
  const tiled = await model.forward(x, [3, 700], y, mask).data();
  await near("tiled", tiled, { data: await model.forward(x, [3, 700], y, twice).data() }, 0);
  const values = await y.data();
  const other = engine.tensor(
    values.map((v, i) => ([2, 4, 5].includes(Math.floor(i / 5) % 6) ? v + 9 : v)),
    [2, 6, 5],
  );
  await near("masked words", await model.forward(x, [3, 700], other, mask).data(), { data: tiled }, 1e-6);
  const four = await model.forward(x, [3, 700], y.unsqueeze(1), mask).data();
  await near("captions of four axes", four, { data: tiled }, 0);
  const onGpu = await model.forward(x, engine.tensor([3, 700]), y, mask).data();
  await near("times on the GPU", onGpu, { data: tiled }, 1e-5);
  model.dispose();
});

test("grids other than the configuration's", async () => {
  const model = await small();
  const sized = new STDiT(engine, { ...SMALL, frames: 3, latent: [8, 2] });
  const state = model.stateDict();
  const { posEmbed, posEmbedTemporal } = sized;
  await sized.loadStateDict({ ...state, pos_embed: posEmbed, pos_embed_temporal: posEmbedTemporal });
  const [x, y] = [wave([1, 3, 3, 8, 2], 0.9), wave([1, 6, 5], 1.3)];
  const expected = await sized.forward(x, [42], y).data();
  await near("another grid", model.forward(x, [42], y), { shape: [1, 3, 3, 8, 2], data: expected }, 0);
  engine.tape.truncate(0);
  const live = engine.memory().live;
  const again = engine.scope(() => engine.noGrad(() => model.forward(x, [42], y)));
  await near("its tables kept", again, { data: expected }, 2e-6);
  again.dispose();
  assert.is(engine.memory().live, live);
  for (const m of [model, sized]) m.dispose();
});

test("the temporal embedding reaches its owner's block alone", async () => {
  const [first, second] = [await small(), await small({ temporalOwner: 1 })];
  const [x, y] = [wave([1, 3, 2, 4, 6], 0.9), wave([1, 6, 5], 1.3)];
  const a = await first.forward(x, [42], y).data();
  const b = await second.forward(x, [42], y).data();
  assert.ok(relNorm(a, b) > 1e-3);
  for (const m of [first, second]) m.dispose();
});

test("several patch sizes unpatchify to where they came from", async () => {
  for (const patch of [
    [1, 2, 2],
    [2, 1, 3],
    [1, 4, 2],
  ] as const) {
    const model = await small({ patch, predSigma: true, temporalOwner: 0 });
    const x = wave([1, 3, 2, 4, 6], 0.9);
    const out = model.forward(x, [1], wave([1, 6, 5], 1.3));
    assert.equal([...out.shape], [1, 6, 2, 4, 6]);
    // With all weights of the last layer zero, what is left is its bias: one number for each place in a patch and channel.
    const [pt, ph, pw] = patch;
    const bias = Float32Array.from({ length: pt * ph * pw * 6 }, (_, i) => i);
    await model.loadStateDict(
      {
        "final_layer.linear.weight": { shape: [bias.length, 16], data: new Float32Array(bias.length * 16) },
        "final_layer.linear.bias": { shape: [bias.length], data: bias },
      },
      { strict: false },
    );
    const flat = await model.forward(x, [1], wave([1, 6, 5], 1.3)).data();
    let i = 0;
    for (let c = 0; c < 6; c++)
      for (let t = 0; t < 2; t++)
        for (let h = 0; h < 4; h++)
          for (let w = 0; w < 6; w++) assert.is(flat[i++], (((t % pt) * ph + (h % ph)) * pw + (w % pw)) * 6 + c);
    model.dispose();
  }
});

test("hooks see modules and attention maps; errors name the module", async () => {
  const model = await small();
  const [x, y] = [wave([1, 3, 2, 4, 6], 0.9), wave([1, 6, 5], 1.3)];
  const mask = engine.tensor(Int32Array.of(1, 0, 1, 0, 0, 0), [1, 6]);
  const seen: string[] = [];
  const maps: Tensor[] = [];
  const off = [
    model.hook("blocks.*.attn", (path, output: Tensor) => seen.push(`${path} [${output.shape}]`)),
    model.hook("blocks.1.*.weights", (path, map: Tensor) => {
      seen.push(`${path} [${map.shape}]`);
      maps.push(map.keep());
    }),
  ];
  model.forward(x, [42], y, mask);
  const all = [
    "blocks.0.attn [1,2,6,16]",
    "blocks.1.attn.weights [1,2,2,6,6]",
    "blocks.1.attn [1,2,6,16]",
    "blocks.1.attnTemp.weights [1,6,2,2,2]",
    "blocks.1.crossAttn.weights [1,2,12,6]",
  ];
  assert.equal(seen, all);
  for (const map of maps) {
    const rows = Array.from(await map.sum(-1).data());
    assert.ok(rows.every((s) => Math.abs(s - 1) < 1e-5));
  }
  const words = Array.from(await maps[2].data());
  assert.ok(
    words.every((v, i) => [0, 2].includes(i % 6) || v === 0),
    "masked words get no weight",
  );
  for (const f of off) f();
  model.forward(x, [42], y, mask);
  assert.is(seen.length, all.length);
  assert.throws(
    () => model.hook("blocks.0.atn", () => {}),
    /nothing matches "blocks.0.atn"; did you mean "blocks.0.attn"/,
  );
  assert.is(engine.modulePath, "");
  const paths = new Set(engine.tape.entries.map((e) => e.module));
  for (const path of [
    "xEmbedder",
    "blocks.0.attnTemp.qkv",
    "blocks.1.crossAttn.kvLinear",
    "blocks.1.mlp.fc2",
    "finalLayer.linear",
  ])
    assert.ok(paths.has(path), path);
  engine.tape.truncate(0);
  model.blocks[1].crossAttn.kvLinear.bias!.dispose();
  assert.throws(() => model.forward(x, [42], y, mask), /freed[\s\S]*in blocks\.1\.crossAttn\.kvLinear$/);
  engine.tape.truncate(0);
  model.dispose();
});

test("f16 storage gives the same picture", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    assert.throws(() => new STDiT(engine, SMALL, { dtype: "f16" }), /f16 is not offered/);
    return;
  }
  const model = await small();
  const [x, y] = [wave([2, 3, 2, 4, 6], 0.9), wave([2, 6, 5], 1.3)];
  const mask = engine.tensor(Int32Array.of(1, 0, 1, 0, 0, 0), [1, 6]);
  const full = engine.noGrad(() => model.forward(x, [42, 999], y, mask, { drop: [0, 1] }));
  const expected = await full.data();
  model.to("f16");
  assert.ok(Object.values(model.stateDict()).every((t) => t.dtype === "f16"));
  const half = engine.noGrad(() => model.forward(x, [42, 999], y, mask, { drop: [0, 1] }));
  assert.is(half.dtype, "f32");
  await near("f16", half, { data: expected }, 1e-2, relNorm);
  model.to("f32");
  await near(
    "f32 again",
    engine.noGrad(() => model.forward(x, [42, 999], y, mask, { drop: [0, 1] })),
    { data: expected },
    1e-2,
    relNorm,
  );
  model.dispose();
});

test("blocks re-run in backward give the same gradients", async () => {
  const model = await small();
  const [x, y] = [wave([1, 3, 2, 4, 6], 0.9), wave([1, 6, 5], 1.3)];
  const grads = async () => {
    model.zeroGrad();
    model.forward(x, [42], y).square().mean().backward();
    return Promise.all(model.parameters().map((p) => p.grad!.data()));
  };
  const plain = await grads();
  model.checkpointBlocks = true;
  assert.equal(await grads(), plain);
  model.dispose();
});

test("a compiled function runs blocks again in backward: the same loss and gradients, in less memory", async () => {
  const model = await small();
  const [x, y] = [wave([1, 3, 2, 4, 6], 0.9), wave([1, 6, 5], 1.3)];
  const step = (x: Tensor, y: Tensor) => {
    const loss = model.forward(x, [42], y).square().mean();
    loss.backward();
    const grads = model.parameters().map((p) => p.grad!.mul(1));
    model.zeroGrad();
    return [loss.detach(), ...grads];
  };
  const results = async (f: (x: Tensor, y: Tensor) => Tensor[]) => {
    const tensors = engine.scope(() => f(x, y));
    const numbers = await Promise.all(tensors.map((t) => t.data()));
    for (const t of tensors) t.dispose();
    return numbers;
  };
  const expected = await results(step);
  const bytes: number[] = [];
  for (const again of [false, true]) {
    model.checkpointBlocks = again;
    const compiled = engine.compile(step);
    for (let call = 0; call < 2; call++)
      for (const [i, got] of (await results(compiled)).entries())
        await near(`${again} ${i}`, Array.from(got), { data: Array.from(expected[i]) }, 1e-5, relNorm);
    bytes.push(compiled.plans[0].bytes);
    compiled.dispose();
  }
  assert.ok(bytes[1] < bytes[0], `${bytes}`);
  model.dispose();
});

test("parameters are named and counted as the original's", () => {
  const model = new STDiT(engine, { ...SMALL, predSigma: true });
  const C = 16;
  const block = 16 * C * C + 16 * C + 8 * C * C + 5 * C - 4 * C * C - 4 * C + 6 * C;
  const rest =
    3 * 4 * C +
    C +
    (256 * C + C) +
    (C * C + C) +
    (6 * C * C + 6 * C) +
    (5 * C + C) +
    (C * C + C) +
    2 * C +
    (24 * C + 24);
  assert.is(model.countParameters(), 2 * block + rest);
  const names = model.namedParameters().map(([n]) => n);
  for (const name of [
    "x_embedder.proj.weight",
    "t_embedder.mlp.2.bias",
    "t_block.1.weight",
    "y_embedder.y_proj.fc1.weight",
    "final_layer.scale_shift_table",
    "blocks.1.cross_attn.kv_linear.weight",
    "blocks.0.attn_temp.qkv.bias",
  ])
    assert.ok(names.includes(name), name);
  assert.equal(
    Object.keys(model.stateDict()).filter((n) => !names.includes(n)),
    ["y_embedder.y_embedding", "pos_embed", "pos_embed_temporal"],
  );
  assert.match(model.describe(), /blocks\.\*\.attn\.qkv\.weight +2 x \[48, 16\] +f32 +1,536/);
  model.dispose();
});

test("configurations: checked, written and read back", () => {
  assert.equal(stditConfig(), STDIT_XL_2);
  assert.is(outChannels(STDIT_XL_2), 8);
  const config = stditConfig(SMALL);
  assert.equal(decodeConfig(encodeConfig(config)), config);
  assert.match(encodeConfig(config), /"caption_channels":5/);
  const refused: [Partial<STDiTConfig>, RegExp][] = [
    [{ hiden: 64 } as object, /unknown option "hiden"; did you mean "hidden"/],
    [{ heads: 5 }, /heads must divide hidden 1152: got 5/],
    [{ hidden: 18, heads: 2 }, /hidden must divide by 4/],
    [{ depth: 0 }, /depth must be a whole number from 1: got 0/],
    [{ patch: [1, 2] as unknown as [number, number, number] }, /patch must be 3 whole numbers/],
    [{ latent: [7, 8] }, /patch must divide frames and latent 16, 7, 8/],
    [{ temporalOwner: 28 }, /temporalOwner must be a block from 0 to 27/],
    [{ predSigma: 1 as unknown as boolean }, /predSigma must be true or false/],
  ];
  for (const [bad, message] of refused) assert.throws(() => stditConfig(bad), message);
  assert.throws(() => decodeConfig("{"), /no JSON/);
  assert.throws(() => decodeConfig('{"hidden": 64}'), /lacks in_channels/);
  assert.throws(
    () => decodeConfig(encodeConfig(config).replace('"out_channels":3', '"out_channels":6')),
    /out_channels must be 3/,
  );
  assert.throws(() => decodeConfig(encodeConfig(config).replace("mlp_ratio", "mlp_rate")), /did you mean "mlp_ratio"/);
  assert.throws(() => new STDiT(engine, SMALL, { gateBais: 1 } as object), /did you mean "gateBias"/);
});

test("inputs that do not fit are refused before GPU work", () => {
  const model = new STDiT(engine, SMALL, { key });
  const [x, y] = [engine.zeros([2, 3, 2, 4, 6]), engine.zeros([2, 6, 5])];
  const { launches } = engine.queue.counts;
  const refused: [() => unknown, RegExp][] = [
    [
      () => model.forward(engine.zeros([2, 3, 2, 5, 6]), [1, 2], y),
      /must be multiples of the patch: got 2, 5, 6 with patch 1, 2, 2; take 2, 6, 6/,
    ],
    [
      () => model.forward(engine.zeros([2, 4, 2, 4, 6]), [1, 2], y),
      /x must be \[B, 3, T, H, W\]: got \[2, 4, 2, 4, 6\]/,
    ],
    [() => model.forward(x, [1], y), /one timestep a sample: got 1 for a batch of 2/],
    [() => model.forward(x, [1, 2], engine.zeros([2, 6, 4])), /captions must be \[2, L, 5\].*got \[2, 6, 4\]/],
    [() => model.forward(x, [1, 2], engine.zeros([1, 6, 5])), /captions must be \[2, L, 5\]/],
    [() => model.forward(x, [1, 2], y, engine.zeros([2, 5], "i32")), /mask must be \[M, 6\].*got \[2, 5\]/],
    [() => model.forward(x, [1, 2], y, engine.zeros([3, 6], "i32")), /M dividing the batch 2: got \[3, 6\]/],
  ];
  for (const [f, message] of refused) assert.throws(f, message);
  assert.is(engine.queue.counts.launches, launches);
  model.dispose();
});

test.after(() => engine.destroy());
test.run();
