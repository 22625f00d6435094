import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { saveModel } from "../../model/checkpoint.js";
import { Flow } from "../../model/diffusion/flow.js";
import { grow } from "../../model/growth.js";
import { addLanguage } from "../../model/language.js";
import { addLora } from "../../model/lora.js";
import { encodeFloat32, type SafetensorsEntry, writeSafetensors } from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { run } from "../../train/commands/inspect.js";
import { randomize, SMALL } from "../model/grown.js";
import { printed } from "./command.js";

const test = suite("inspect");
const folder = mkdtempSync(join(tmpdir(), "espalier-inspect-"));
const at = (name: string) => join(folder, name);
const key = Key.from(1);
const engine = await createEngine();
test.after(() => {
  engine.destroy();
  rmSync(folder, { recursive: true });
});

const entry = (name: string, shape: number[], dtype: "F32" | "F16" | "BF16" = "F32"): SafetensorsEntry => {
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i);
  return { name, dtype, shape, data: encodeFloat32(values, dtype) };
};

test("a grown model with a branch: blocks, gates, configuration, metadata", async () => {
  const base = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  await randomize(base, key);
  const twice = await grow(await grow(base, { mode: "insert", blocks: 2 }), { mode: "prefix", blocks: 1 });
  const model = await addLanguage(twice, { channels: 5, maxLength: 3, key, gate: "head" });
  await model.loadStateDict({ "blocks.3.gate_llm": { shape: [2], data: Float32Array.of(0.5, -1) } }, { strict: false });
  const path = at("model.safetensors");
  const train = JSON.stringify({ step: 7, config: { a: 1 } });
  await saveModel(path, { model, objective: new Flow({ shift: 3 }), metadata: { train } });
  const { text, code } = await printed(run, path);
  assert.is(code, 0);
  for (const line of [
    /^ {2}STDiT: 5 blocks, width 8, 2 heads, .*; language branch: 5 channels, up to 3 tokens, a gate a head$/m,
    new RegExp(`^ {2}${model.countParameters().toLocaleString("en")} parameters$`, "m"),
    /^ {2}objective {2}rectified-flow, shift 3/m,
    /^ {2}train {6}step 7, config \{…\}$/m,
    /^ {2}5 blocks, 3 of them new \(\* insert 2, \*\* prefix 1\)\n {2}0\*\* 0 0\* 1 1\*\n.*at index 1: block 0$/m,
    /^gates, tanh of alpha by block\n {2}0 {2}0\.0000 0\.0000$/m,
    /^ {2}3 {2}0\.4621 -0\.7616$/m,
    /^ {2}blocks\.\*\.attn\.qkv\.weight +5 x \[24, 8\] +F32 +960 +3\.8 KiB$/m,
  ])
    assert.match(text, line);
  const json = JSON.parse((await printed(run, path, "--json")).text);
  assert.is(json.parameters, model.countParameters());
  assert.equal(json.growth, model.growth);
  assert.is(json.config.temporalOwner, 1);
  assert.equal(json.metadata.train, JSON.parse(train));
  assert.is(json.gates[3].values[1], Math.tanh(-1));
  assert.is(json.names, undefined);
  const names = JSON.parse((await printed(run, path, "--json", "--names")).text).names;
  assert.equal(names.map((n: { name: string }) => n.name).sort(), Object.keys(model.stateDict()).sort());
  const rows = (await printed(run, path, "--names")).text;
  assert.match(rows, /^ {2}blocks\.4\.mlp\.fc2\.bias +\[8\] +F32 +32 B$/m);

  // A record that does not fit is told, and the rest is shown.
  await saveModel(at("odd.safetensors"), { model: Object.assign(base, { growth: twice.growth }) });
  const odd = await printed(run, at("odd.safetensors"));
  assert.match(odd.text, /warning: growth: the record in .* is of 5 blocks, the model has 2/);
  assert.match(odd.text, /^blocks\n {2}2$/m);
});

test("adapters, in a model and alone", async () => {
  const model = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  addLora(model, { pattern: ["blocks.*.attn.**", "blocks.*.mlp.fc1"], rank: 3, alpha: 6, key });
  await saveModel(at("adapted.safetensors"), { model });
  const { text } = await printed(run, at("adapted.safetensors"));
  assert.match(text, /^adapters \(LoRA\) on 6 layers: rank 3, alpha 6, [\d,]+ values$/m);
  for (const layer of ["attn.qkv", "attn.proj", "mlp.fc1"]) assert.ok(text.includes(`\n  blocks.*.${layer}\n`), layer);
  await writeSafetensors(at("peft.safetensors"), [
    entry("base_model.model.q.lora_A.weight", [4, 8]),
    entry("base_model.model.q.lora_B.weight", [16, 4]),
  ]);
  assert.match((await printed(run, at("peft.safetensors"))).text, /on 1 layer: rank 4, 96 values\n {2}q\n/);
  model.dispose();
});

test("files of others, in shards; blocks that lack", async () => {
  const entries = [
    ...[0, 1, 2].map((i) => entry(`model.layers.${i}.self_attn.q_proj.weight`, [4, 4], "BF16")),
    entry("model.embed_tokens.weight", [10, 4], "F16"),
    entry("blocks.0.attn.qkv.weight", [2, 2]),
    entry("blocks.2.attn.qkv.weight", [2, 2]),
  ];
  const { path } = await writeSafetensors(at("llm.safetensors"), entries, { format: "pt" }, { maxShardBytes: 100 });
  const { text } = await printed(run, path);
  assert.match(text, /6 tensors, 96 values, 208 B/);
  assert.match(text, /BF16 {2}3 tensors, 48 values, 96 B/);
  assert.match(text, /^ {2}model\.layers\.\*\.self_attn\.q_proj\.weight +3 x \[4, 4\] +BF16/m);
  assert.match(text, /warning: blocks that are not there: 1 of 0 to 2/);
  assert.match(text, /^ {2}format {2}pt$/m);
  await writeSafetensors(at("stray.safetensors"), entries, { model: "{}" });
  const stray = (await printed(run, at("stray.safetensors"))).text;
  assert.match(stray, /warning: stdit: the configuration lacks in_channels/);
  assert.match(stray, /^ {2}model {2}$|^ {2}model$/m);
});

test("what is no such file", async () => {
  writeFileSync(at("weights.pth"), new Uint8Array([0x80, 2, 0x7d, 0x71, 0x2e]));
  writeFileSync(at("short.safetensors"), "short");
  writeFileSync(
    at("lost.safetensors.index.json"),
    JSON.stringify({ weight_map: { a: "model-00001-of-00002.safetensors" } }),
  );
  for (const [args, message] of [
    [[], /inspect: no file given; espalier inspect FILE/],
    [["a", "b"], /takes one file: got a, b/],
    [[at("weights.pth")], /a pickle is a program.*weights\.pth; convert it once.*\n {2}python3 -c/],
    [[at("short.safetensors")], /short\.safetensors/],
    [[at("nothing.safetensors")], /nothing\.safetensors/],
    [[at("lost.safetensors.index.json")], /model-00001-of-00002\.safetensors/],
    [["a", "--jsn"], /unknown option --jsn; did you mean --json/],
  ] as [string[], RegExp][])
    assert.match((await printed(run, ...args)).error?.message ?? "no error", message, args.join(" "));
  const { text } = await printed(run, "--help");
  for (const word of ["--names", "--json", "index", "Pickle".toLowerCase()]) assert.ok(text.includes(word), word);
});

test.run();
