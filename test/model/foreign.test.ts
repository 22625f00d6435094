import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, type Tensor } from "../../engine/index.js";
import type { STDiTConfig } from "../../model/config.js";
import { posTable1d, posTable2d } from "../../model/embed.js";
import { type OpenSoraOptions, openOpenSora, saveOpenSora } from "../../model/foreign/opensora.js";
import { initFromPixArt } from "../../model/foreign/pixart.js";
import { describeImport } from "../../model/foreign/report.js";
import { normal } from "../../model/init.js";
import {
  copyEntries,
  decodeFloat32,
  encodeFloat32,
  memorySink,
  openSafetensors,
  type SafetensorsDtype,
  type SafetensorsEntry,
  writeSafetensors,
} from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { rejects } from "../files/throws.js";
import { random } from "../ops/loop.js";
import { worstAbs } from "./compare.js";

const test = suite("foreign checkpoints");
const engine = await createEngine();
const key = Key.from(21);
let folder = "";
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "foreign-"));
});
test.after(async () => {
  engine.destroy();
  await rm(folder, { recursive: true });
});

/** Small sizes in place of XL/2's 1152, 4096, 120; the grid is square as in its files. */
const [C, D, L, DEPTH, S, T] = [64, 24, 6, 3, 16, 4];

/** Names and shapes of one block of PixArt-alpha, in the order of its state dict. */
const pixartBlock = (i: number): [string, number[]][] =>
  (
    [
      ["scale_shift_table", [6, C]],
      ["attn.qkv.weight", [3 * C, C]],
      ["attn.qkv.bias", [3 * C]],
      ["attn.proj.weight", [C, C]],
      ["attn.proj.bias", [C]],
      ["cross_attn.q_linear.weight", [C, C]],
      ["cross_attn.q_linear.bias", [C]],
      ["cross_attn.kv_linear.weight", [2 * C, C]],
      ["cross_attn.kv_linear.bias", [2 * C]],
      ["cross_attn.proj.weight", [C, C]],
      ["cross_attn.proj.bias", [C]],
      ["mlp.fc1.weight", [4 * C, C]],
      ["mlp.fc1.bias", [4 * C]],
      ["mlp.fc2.weight", [C, 4 * C]],
      ["mlp.fc2.bias", [C]],
    ] as [string, number[]][]
  ).map(([name, shape]) => [`blocks.${i}.${name}`, shape]);
const temporal = (i: number): [string, number[]][] => [
  [`blocks.${i}.attn_temp.qkv.weight`, [3 * C, C]],
  [`blocks.${i}.attn_temp.qkv.bias`, [3 * C]],
  [`blocks.${i}.attn_temp.proj.weight`, [C, C]],
  [`blocks.${i}.attn_temp.proj.bias`, [C]],
];
const around: [string, number[]][] = [
  ["x_embedder.proj.bias", [C]],
  ["t_embedder.mlp.0.weight", [C, 256]],
  ["t_embedder.mlp.0.bias", [C]],
  ["t_embedder.mlp.2.weight", [C, C]],
  ["t_embedder.mlp.2.bias", [C]],
  ["t_block.1.weight", [6 * C, C]],
  ["t_block.1.bias", [6 * C]],
  ["y_embedder.y_embedding", [L, D]],
  ["y_embedder.y_proj.fc1.weight", [C, D]],
  ["y_embedder.y_proj.fc1.bias", [C]],
  ["y_embedder.y_proj.fc2.weight", [C, C]],
  ["y_embedder.y_proj.fc2.bias", [C]],
  ["final_layer.scale_shift_table", [2, C]],
  ["final_layer.linear.weight", [32, C]],
  ["final_layer.linear.bias", [32]],
];
const blockList = (f: (i: number) => [string, number[]][]) => Array.from({ length: DEPTH }, (_, i) => f(i)).flat();
const openSora: [string, number[]][] = [
  ["pos_embed", [1, S, C]],
  ["pos_embed_temporal", [1, T, C]],
  ["x_embedder.proj.weight", [C, 4, 1, 2, 2]],
  ...around,
  ...blockList((i) => [...pixartBlock(i), ...temporal(i)]),
];
const pixart: [string, number[]][] = [
  ["pos_embed", [1, 64, C]],
  ["x_embedder.proj.weight", [C, 4, 2, 2]],
  ...around,
  ...blockList(pixartBlock),
];

type Tables = Record<string, Float32Array>;
/** A state dict with small random numbers, each tensor of a type of its own. */
function entriesOf(list: [string, number[]][], tables: Tables = {}, prefix = ""): SafetensorsEntry[] {
  const next = random(5);
  const kinds: ("F32" | "F16" | "BF16")[] = ["BF16", "F16", "F32"];
  return list.map(([name, shape], i) => {
    const n = shape.reduce((a, b) => a * b, 1);
    const values =
      tables[name] ?? Float32Array.from({ length: n }, () => (next() - 0.5) * (2 / Math.sqrt(shape.at(-1)!)));
    const dtype = kinds[i % 3];
    return { name: prefix + name, dtype, shape, data: encodeFloat32(values, dtype) };
  });
}
const tablesOf = (spaceScale: number, timeScale: number): Tables => ({
  pos_embed: posTable2d(C, 4, 4, spaceScale),
  pos_embed_temporal: posTable1d(C, T, timeScale),
});
const bytesOf = async (entries: SafetensorsEntry[], metadata: Record<string, string> = { format: "pt" }) => {
  const sink = memorySink();
  await writeSafetensors(sink, entries, metadata);
  return sink.bytes();
};
const inputs = (frames: number, size = 8): [Tensor, number[], Tensor] => [
  engine.noGrad(() => normal(1)(engine, [1, 4, frames, size, size], key, "f32")),
  [321],
  engine.noGrad(() => normal(1)(engine, [1, L, D], key.fold(1), "f32")),
];
const run = (model: STDiT, frames = T, size = 8) => engine.noGrad(() => model.forward(...inputs(frames, size))).data();
/** The numbers that the entries hold, as a model loads them by itself. */
async function modelOf(entries: SafetensorsEntry[], config: Partial<STDiTConfig>): Promise<STDiT> {
  const model = new STDiT(engine, config);
  await model.loadStateDict(
    Object.fromEntries(
      entries.map(({ name, dtype, shape, data }) => [name, { shape, data: decodeFloat32(data as Uint8Array, dtype) }]),
    ),
  );
  return model;
}
const CONFIG: Partial<STDiTConfig> = {
  hidden: C,
  depth: DEPTH,
  heads: 16,
  frames: T,
  latent: [8, 8],
  captionChannels: D,
  maxLength: L,
};

test("Open-Sora: names of XL/2, sharded, three float types, the configuration read off the tensors", async () => {
  const entries = entriesOf(openSora, tablesOf(0.5, 2 / 3));
  const written = await writeSafetensors(join(folder, "model.safetensors"), entries, {}, { maxShardBytes: 200_000 });
  assert.ok(written.files.length > 3);
  assert.match(written.path, /model\.safetensors\.index\.json$/);
  for (const location of [written.path, folder]) {
    const { model, report } = await openOpenSora(engine, location);
    const { spaceScale, timeScale, ...config } = model.config;
    assert.ok(Math.abs(spaceScale - 0.5) < 1e-12 && Math.abs(timeScale - 2 / 3) < 1e-12, `${spaceScale} ${timeScale}`);
    for (const [name, value] of Object.entries(CONFIG)) assert.equal(config[name as "hidden"], value, name);
    assert.equal([config.mlpRatio, config.predSigma, config.inChannels, config.patch], [4, true, 4, [1, 2, 2]]);
    assert.equal([report.missing, report.ignored], [[], []]);
    assert.equal([...report.matched].sort(), openSora.map(([name]) => name).sort());
    const expected = await modelOf(entries, { ...CONFIG, spaceScale, timeScale });
    assert.equal(await run(model), await run(expected));
    const text = describeImport(report);
    const bytes = entries.reduce((n, e) => n + (e.data as Uint8Array).length, 0);
    assert.is(report.bytes, bytes);
    assert.match(
      text,
      new RegExp(`matched ${openSora.length} tensors, ${(bytes / 1024).toFixed(1)} KiB \\(\\d+ F32, \\d+ `),
    );
    assert.match(text, /missing 0\n {2}ignored 0\n {2}note: heads: 16, STDiT's/);
    assert.match(text, /timeScale: 0\.666\d*, read off pos_embed_temporal/);
    model.dispose();
    expected.dispose();
  }
});

test("Open-Sora: config.json, names with a prefix, another grid", async () => {
  const inner = await mkdtemp(join(folder, "inner-"));
  const entries = entriesOf(openSora, tablesOf(1, 1), "module.");
  const path = join(inner, "ema.safetensors");
  await writeSafetensors(path, entries, {});
  const json = { model_type: "STDiT", num_heads: 4, space_scale: 1, enable_flashattn: true, qk_norm: false };
  await writeFile(join(inner, "config.json"), JSON.stringify(json));
  const { model, report } = await openOpenSora(engine, path);
  assert.equal([model.config.heads, model.config.spaceScale, model.config.timeScale], [4, 1, 1]);
  assert.ok(report.notes.includes('names begin with "module." in the file'));
  assert.ok(report.notes.includes('config.json: "qk_norm" means nothing here'));

  const wide = await openOpenSora(engine, path, { config: { frames: 2, latent: [4, 12] } });
  assert.equal(wide.report.ignored, ["pos_embed", "pos_embed_temporal"]);
  assert.equal(wide.report.missing, ["pos_embed", "pos_embed_temporal"]);
  assert.ok(wide.report.notes.includes("computed for the grid of 2 x 4 x 12: pos_embed, pos_embed_temporal"));
  assert.ok(worstAbs(await wide.model.posEmbed.data(), posTable2d(C, 2, 6, 1)) < 1e-6);
  wide.model.dispose();
  model.dispose();
  const half = await openOpenSora(engine, await bytesOf(entriesOf(openSora, tablesOf(0.25, 1))), {
    json: { time_scale: 2 },
  });
  assert.is(half.model.config.spaceScale, 0.25);
  assert.ok(
    half.report.notes.some((n) =>
      /timeScale: 2 does not give the file's pos_embed_temporal, which looks like 1/.test(n),
    ),
  );
  half.model.dispose();
});

test("Open-Sora: load and save keep every bit, name and type; by copy, and through the model", async () => {
  const entries = entriesOf(openSora, tablesOf(0.5, 1));
  const bytes = await bytesOf(entries);
  const file = await openSafetensors(bytes);
  assert.equal(await bytesOf(copyEntries(file)), bytes);
  const { model } = await openOpenSora(engine, file);
  const sink = memorySink();
  await saveOpenSora(sink, model, { like: file });
  assert.equal(sink.bytes(), bytes);
  const halves = memorySink();
  await saveOpenSora(halves, model, { dtype: "BF16" });
  const again = await openSafetensors(halves.bytes());
  assert.equal([...again.tensors.keys()].sort(), openSora.map(([name]) => name).sort());
  for (const { name, dtype, data } of entries)
    if (dtype === "BF16") assert.equal((await again.tensor(name)).data, data, name);
  const sharded = await saveOpenSora(join(folder, "saved.safetensors"), model, { maxShardBytes: 300_000 });
  assert.match(sharded.path, /saved\.safetensors\.index\.json$/);
  const back = await openOpenSora(engine, sharded.path);
  assert.equal(await run(back.model), await run(model));
  back.model.dispose();
  model.dispose();
});

test("Open-Sora: what does not fit is told before anything is built on it", async () => {
  const entries = entriesOf(openSora, tablesOf(0.5, 1));
  const without = (pattern: RegExp) => entries.filter(({ name }) => !pattern.test(name));
  const opened = async (list: SafetensorsEntry[], options: OpenSoraOptions = {}) =>
    openOpenSora(engine, await bytesOf(list), options);
  const before = engine.memory().live;
  await rejects(
    () => opened(without(/attn_temp\.proj/)),
    "missing: blocks.*.attn_temp.proj.weight x 3, blocks.*.attn_temp.proj.bias x 3",
  );
  const odd: SafetensorsEntry = { name: "rope.freqs", dtype: "F32", shape: [1], data: new Uint8Array(4) };
  await rejects(() => opened([...entries, odd]), "unexpected: rope.freqs\n  strict: false");
  await rejects(() => opened(without(/x_embedder/)), "is no STDiT of Open-Sora 1.0: it lacks x_embedder.proj.weight");
  await rejects(async () => opened(entriesOf(pixart)), "embeds images, not clips");
  await rejects(() => opened(entries, { json: { model_type: "STDiT3" } }), 'another model: model_type "STDiT3"');
  await rejects(() => opened(entries, { json: { depth: 28 } }), "depth is said to be 28, the tensors of memory say 3");
  await rejects(() => opened(entries, { config: { heads: 7 } }), "heads must divide hidden 64: got 7");
  await rejects(() => opened(without(/^pos_embed/)), "frames cannot be told");
  assert.is(engine.memory().live, before);
  const loose = await opened([...without(/attn_temp\.proj\.bias/), odd], { strict: false });
  assert.equal(loose.report.ignored, ["rope.freqs"]);
  assert.ok(loose.report.notes.includes("drawn anew: blocks.*.attn_temp.proj.bias x 3"));
  assert.equal([...(await loose.model.blocks[0].attnTemp.proj.bias!.data())], Array(C).fill(0));
  loose.model.dispose();
});

test("an index that names a missing file, and pickles", async () => {
  const inner = await mkdtemp(join(folder, "gone-"));
  const entries = entriesOf(openSora, tablesOf(0.5, 1));
  const { path, files } = await writeSafetensors(
    join(inner, "model.safetensors"),
    entries,
    {},
    { maxShardBytes: 300_000 },
  );
  await rm(files[2]);
  await rejects(() => openOpenSora(engine, path), `shard missing: ${path} names "model-00002-of-`);
  await rejects(() => openOpenSora(engine, inner), "shard missing: ");
  const pickle = join(inner, "OpenSora-v1-HQ-16x256x256.pth");
  await writeFile(pickle, new Uint8Array([0x50, 0x4b, 3, 4, ...new TextEncoder().encode("archive/data.pkl")]));
  await rejects(() => openOpenSora(engine, pickle), "a pickle is a program, and none is run here");
  await rejects(() => openOpenSora(engine, join(inner, "nothing")), "no weights: none of model.safetensors, ");
  assert.ok((await readdir(inner)).includes("OpenSora-v1-HQ-16x256x256.pth"));
});

test("PixArt: its names, sharded; the model is PixArt applied to each frame", async () => {
  const inner = await mkdtemp(join(folder, "pixart-"));
  const entries = entriesOf(pixart);
  const { path } = await writeSafetensors(join(inner, "pixart.safetensors"), entries, {}, { maxShardBytes: 300_000 });
  const model = new STDiT(engine, CONFIG, { key });
  const other = new STDiT(engine, CONFIG);
  const report = await initFromPixArt(model, path, { key: key.fold(9) });
  await initFromPixArt(other, path, { key: key.fold(9) });
  assert.is(report.matched.length, pixart.length - 1);
  assert.equal(report.ignored, ["pos_embed"]);
  assert.equal(
    [...report.missing].sort(),
    ["pos_embed", "pos_embed_temporal", ...blockList(temporal).map(([name]) => name)].sort(),
  );
  const text = describeImport(report);
  assert.match(text, /missing 14: .*blocks\.\*\.attn_temp\.qkv\.weight x 3/);
  assert.match(text, /ignored 1: pos_embed\n/);
  const state = model.stateDict();
  for (const { name, dtype, shape, data } of entries) {
    if (name === "pos_embed") continue;
    assert.is(
      state[name].size,
      shape.reduce((a, b) => a * b, 1),
    );
    assert.equal(await state[name].data(), decodeFloat32(data as Uint8Array, dtype), name);
  }
  assert.equal(state["x_embedder.proj.weight"].shape, [C, 4, 1, 2, 2]);
  for (let i = 0; i < DEPTH; i++) {
    assert.ok((await state[`blocks.${i}.attn_temp.proj.weight`].data()).every((v) => v === 0));
    assert.ok((await state[`blocks.${i}.attn_temp.qkv.weight`].data()).some((v) => v !== 0));
  }
  // Each frame alone gives what it gives among others; and nothing was left undefined.
  const [x, t, y] = inputs(T);
  const clip = await engine.noGrad(() => model.forward(x, t, y)).data();
  assert.equal(await engine.noGrad(() => other.forward(x, t, y)).data(), clip);
  const frames = await Promise.all(
    Array.from({ length: T }, (_, f) => engine.noGrad(() => model.forward(x.slice(2, f, f + 1), t, y)).data()),
  );
  let worst = 0;
  for (let c = 0; c < 8; c++)
    for (let f = 0; f < T; f++)
      for (let i = 0; i < 64; i++)
        worst = Math.max(worst, Math.abs(frames[f][c * 64 + i] - clip[(c * T + f) * 64 + i]));
  assert.ok(worst < 1e-5, `${worst}`);
  model.dispose();
  other.dispose();
});

test("PixArt: what does not fit leaves the model as it was", async () => {
  const model = new STDiT(engine, CONFIG, { key });
  const before = await run(model);
  const entries = entriesOf(pixart);
  const init = async (list: SafetensorsEntry[], into = model) => initFromPixArt(into, await bytesOf(list));
  await rejects(
    () => init(entries.filter(({ name }) => !name.startsWith("blocks.2."))),
    "does not fit the model of 3 blocks:\n  missing: blocks.2.scale_shift_table, ",
  );
  const more = { ...entries.at(-1)!, name: "blocks.3.mlp.fc2.bias" };
  await rejects(() => init([...entries, more]), "unexpected: blocks.3.mlp.fc2.bias");
  const diffusers = { ...more, name: "transformer_blocks.0.attn1.to_q.bias" };
  await rejects(() => init([...entries, diffusers]), "has diffusers' names");
  const wrong = entries.map((e) =>
    e.name === "t_block.1.bias"
      ? { ...e, shape: [2], data: (e.data as Uint8Array).slice(0, 2 * (e.dtype === "F32" ? 4 : 2)) }
      : e,
  );
  await rejects(() => init(wrong), "t_block.1.bias is [2], the model's is [384]");
  assert.equal(await run(model), before);
  const deep = new STDiT(engine, { ...CONFIG, patch: [2, 2, 2] });
  await rejects(() => init(entries, deep), "images fill patches of one frame");
  const bytes = await bytesOf(entries);
  const kinds = new Set<SafetensorsDtype>(entries.map(({ dtype }) => dtype));
  assert.is(kinds.size, 3);
  assert.equal(await bytesOf(copyEntries(await openSafetensors(bytes))), bytes);
  model.dispose();
  deep.dispose();
});

test.run();
