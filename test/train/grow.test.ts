import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key } from "../../engine/index.js";
import { openModel, saveModel } from "../../model/checkpoint.js";
import { PCACodec } from "../../model/codec.js";
import { Flow } from "../../model/diffusion/flow.js";
import { openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { languageOf } from "../../model/text/branch.js";
import { run } from "../../train/commands/grow.js";
import { encoderAssets } from "../../train/data/assets.js";
import { equalBits, inputsOf, outputOf, randomize, SMALL } from "../model/grown.js";
import { printed } from "./command.js";

const test = suite("grow");
const folder = mkdtempSync(join(tmpdir(), "espalier-grow-"));
const at = (name: string) => join(folder, name);
const engine = await createEngine();
const base = at("base.safetensors");
const inputs = inputsOf(engine, { ...SMALL, languageChannels: 7 });

test.before(async () => {
  const model = new STDiT(engine, { ...SMALL, depth: 2 }, { key: Key.from(1) });
  await randomize(model, Key.from(2));
  const numbers = (n: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i + 1));
  const codec = new PCACodec(engine, {
    patch: 4,
    channels: 2,
    mean: numbers(48),
    basis: numbers(96),
    scale: numbers(2),
  });
  await saveModel(base, {
    model,
    codec,
    objective: new Flow({ shift: 3 }),
    text: { type: "vocabulary", words: ["an", "ox"] },
    vectors: { shape: [2, 3], data: numbers(6) },
    metadata: { train: '{"step": 9}', licence: "MIT" },
  });
  model.dispose();
  codec.dispose();
});
test.after(() => {
  engine.destroy();
  rmSync(folder, { recursive: true });
});

/** Fails unless the two models of files say the same. */
async function sameOutputs(a: string, b: string): Promise<void> {
  const outputs: Float32Array[] = [];
  for (const path of [a, b]) {
    const loaded = await openModel(engine, path);
    outputs.push(await outputOf(loaded.model, inputs));
    loaded.dispose();
  }
  assert.ok(equalBits(outputs[0], outputs[1]));
}

test("grows, adds the branch, checks, and keeps what lies beside the model", async () => {
  writeFileSync(at("llm.json"), JSON.stringify({ channels: 7, maxLength: 5, gate: "head" }));
  const out = at("grown.safetensors");
  const { text, code, error } = await printed(
    run,
    ...[base, "--mode", "insert", "--blocks", "2", "--language", at("llm.json"), "--out", out],
  );
  assert.is(error, undefined);
  assert.is(code, 0);
  for (const line of [
    /^base {5}.*base\.safetensors: [\d,]+ parameters in 2 blocks, f32$/m,
    /^grown {4}[\d,]+ parameters in 4 blocks$/m,
    /^blocks {3}4 blocks, 2 of them new \(\* insert 2\)\n +0 0\* 1 1\*\n +frames' positions enter at index 0: block 0$/m,
    /^branch {3}7 channels, up to 5 tokens, head gates at 0, copied from the attention to the caption$/m,
    /^checked {2}all 128 outputs on random inputs are equal bit for bit$/m,
    /^written .*grown\.safetensors/m,
  ])
    assert.match(text, line);
  await sameOutputs(base, out);
  const [a, b] = [await openSafetensors(base), await openSafetensors(out)];
  for (const key of ["objective", "codec", "text", "licence"]) assert.is(b.metadata[key], a.metadata[key]);
  assert.is(b.metadata.train, undefined);
  const kept = [...a.tensors.keys()].filter((n) => /^(codec|text)\./.test(n));
  assert.is(kept.length, 4);
  for (const name of kept) assert.equal((await b.tensor(name)).data, (await a.tensor(name)).data, name);
  const loaded = await openModel(engine, out);
  assert.equal(loaded.model.growth!.steps, [{ mode: "insert", blocks: 2 }]);
  assert.equal(loaded.model.language, { gate: "head", duplicated: true });
  assert.instance(loaded.codec, PCACodec);
  loaded.dispose();
  await Promise.all([a.close(), b.close()]);

  // A grown model grows again; a prefix keeps the frames' positions where they were.
  const again = at("again.safetensors");
  const more = await printed(run, out, "--mode", "prefix", "--blocks", "1", "--out", again);
  assert.match(more.text, /\(\* insert 2, \*\* prefix 1\)\n +0\*\* 0 0\* 1 1\*\n.*at index 1: block 0$/m);
  await sameOutputs(base, again);
});

test("a base with training state, in shards; the branch alone", async () => {
  const file = await openSafetensors(base);
  const entries = await Promise.all([...file.tensors.keys()].map((name) => file.tensor(name)));
  const state = { ...entries[0], name: "train.optimizer.mean" };
  const { path } = await writeSafetensors(at("shards.safetensors"), [...entries, state], file.metadata, {
    maxShardBytes: 20_000,
  });
  await file.close();
  assert.match(path, /index\.json$/);
  const out = at("spoken.safetensors");
  const { text, error } = await printed(run, path, "--language-channels", "7", "--no-duplicate", "--out", out);
  assert.is(error, undefined);
  assert.match(text, /2 blocks\n +0 1\n/);
  assert.match(text, /7 channels, up to 256 tokens, scalar gates at 0, drawn by Xavier's rule/);
  const written = await openSafetensors(out);
  assert.not.ok([...written.tensors.keys()].some((n) => n.startsWith("train.")));
  await written.close();
  await sameOutputs(base, out);
});

test("a language model that is named gives the width, and the file says which it was", async () => {
  const out = at("named.safetensors");
  const encoder = { encoder: "language", layer: -2, form: "SL" };
  writeFileSync(at("named.json"), JSON.stringify({ encoder, maxLength: 24 }));
  const { error } = await printed(run, base, "--language", at("named.json"), "--out", out);
  assert.is(error, undefined);
  const loaded = await openModel(engine, out);
  const branch = await languageOf(engine, loaded.model, encoderAssets);
  assert.is(loaded.model.config.languageChannels, branch!.encoder.dim);
  assert.is(loaded.model.config.languageLength, 24);
  assert.equal({ ...branch!.said }, { ...encoder, maxLength: 24, fingerprint: branch!.said.fingerprint });
  branch!.encoder.dispose?.();
  loaded.dispose();
  const wrong = await printed(
    run,
    ...[base, "--language", at("named.json"), "--language-channels", "9", "--out", at("wrong.safetensors")],
  );
  assert.match(wrong.error!.message, /channels must be \d+, the width of language's vectors: got 9; leave it out/);
});

test("positions moved on purpose, an untrained base, f16", async () => {
  const moved = await printed(
    run,
    ...[base, "--mode", "prefix", "--blocks", "1", "--owner", "first", "--out", at("moved.safetensors")],
  );
  assert.is(moved.code, 0);
  assert.match(moved.text, /outputs on random inputs differ, by up to .*: --owner first moved the frames' positions/);
  const fresh = new STDiT(engine, SMALL, { key: Key.from(3) });
  await saveModel(at("fresh.safetensors"), { model: fresh });
  fresh.dispose();
  const flags = ["--mode", "suffix", "--blocks", "2"];
  const silent = await printed(run, at("fresh.safetensors"), ...flags, "--out", at("silent.safetensors"));
  assert.match(silent.text, /are 0 before and after: the base is untrained/);
  if (!engine.has("shader-f16")) return;
  const half = await printed(run, base, ...flags, "--dtype", "f16", "--out", at("half.safetensors"));
  assert.match(half.text, /equal bit for bit/);
  const more = await printed(run, at("half.safetensors"), ...flags, "--out", at("halves.safetensors"));
  assert.match(more.text, /blocks, f16$/m);
});

test("what cannot be is refused before work, and nothing is overwritten", async () => {
  const out = at("kept.safetensors");
  writeFileSync(out, "mine");
  writeFileSync(at("list.json"), "[4096]");
  writeFileSync(at("misspelt.json"), '{"chanels": 4096}');
  writeFileSync(at("weights.pth"), new Uint8Array([0x80, 2, 0x7d, 0x71, 0x2e]));
  const grow = ["--mode", "insert", "--blocks", "2"];
  const fresh = ["--out", at("new.safetensors")];
  const before = readdirSync(folder).sort();
  for (const [args, message] of [
    [[], /grow: no model given; espalier grow BASE/],
    [[base, ...grow], /--out missing/],
    [[base, "other", ...grow, ...fresh], /takes one model/],
    [[base, ...fresh], /nothing to do; give --mode and --blocks, --language/],
    [[base, ...grow, "--out", out], /kept\.safetensors is there already; add --force/],
    [[base, ...grow, "--out", base, "--force"], /--out is the base itself/],
    [[base, ...grow, "--out", folder], /must end in \.safetensors/],
    [[base, "--mode", "insert", ...fresh], /--blocks missing: it says how many/],
    [[base, "--blocks", "2", ...fresh], /--mode missing: it says where/],
    [[base, "--mode", "insert", "--blocks", "0", ...fresh], /blocks must be a whole number from 1: got 0/],
    [[base, "--mode", "insert", "--blocks=-2", ...fresh], /blocks must be a whole number from 1: got -2/],
    [[base, "--mode", "insert", "--blocks", "1.5", ...fresh], /got 1\.5/],
    [[base, "--mode", "insert", "--blocks", "many", ...fresh], /--blocks takes a number: got "many"/],
    [[base, "--mode", "insert", "--blocks", "NaN", ...fresh], /--blocks takes a number: got "NaN"/],
    [[base, "--mode", "sufix", "--blocks", "2", ...fresh], /unknown mode "sufix"; did you mean "suffix"/],
    [[base, ...grow, "--owner", "last", ...fresh], /temporalOwner must be "original" or "first": got "last"/],
    [[base, ...grow, "--dtype", "f64", ...fresh], /--dtype must be f32 or f16: got "f64"/],
    [[base, ...grow, "--frce", ...fresh], /unknown option --frce; did you mean --force/],
    [[base, "--language", at("none.json"), ...fresh], /language: cannot read .*none\.json/],
    [[base, "--language", at("list.json"), ...fresh], /must hold an object/],
    [[base, "--language", at("misspelt.json"), ...fresh], /unknown option "chanels"; did you mean "channels"/],
    [[base, "--language-gate", "head", ...fresh], /channels missing: the width of the language model's vectors/],
    [
      [base, "--language-channels", "7", "--language-gate", "had", ...fresh],
      /languageGate must be scalar, head, channel/,
    ],
    [[base, "--language-channels", "0", ...fresh], /channels must be the width .*: got 0/],
    [[at("fresh.safetensors"), "--language-channels", "7", ...fresh], /cross_attn\.proj is zero in every block/],
    [[at("weights.pth"), ...grow, ...fresh], /a pickle is a program.*weights\.pth; convert it once/],
    [[at("nothing.safetensors"), ...grow, ...fresh], /nothing\.safetensors/],
  ] as [string[], RegExp][]) {
    const { error } = await printed(run, ...args);
    assert.match(error?.message ?? "no error", message, args.join(" "));
  }
  assert.is(readFileSync(out, "utf8"), "mine");
  assert.equal(readdirSync(folder).sort(), before);
  assert.not.ok(existsSync(at("new.safetensors")));
  assert.is((await printed(run, base, ...grow, "--out", out, "--force")).code, 0);
  await sameOutputs(base, out);
  const { text } = await printed(run, "--help");
  for (const flag of ["--out", "--force", "--mode", "--blocks", "--owner", "--language", "--seed", "--dtype"])
    assert.ok(text.includes(`\n  ${flag}`), flag);
});

test.run();
