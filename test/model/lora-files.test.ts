import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  addLora,
  baseState,
  Flow,
  grow,
  loadBase,
  loadLora,
  loraConfig,
  loraState,
  memorySink,
  mergeLora,
  modelEntries,
  openModel,
  openSafetensors,
  PixelCodec,
  removeLora,
  STDiT,
  saveLora,
  saveModel,
  unmergeLora,
  writeSafetensors,
} from "../../model/index.js";
import { saveTensors } from "../../model/state.js";
import { CheckpointFolder } from "../../train/checkpoint.js";
import type { Config } from "../../train/config.js";
import { AdamW, EMA } from "../../train/optim.js";
import type { RunFolder } from "../../train/run.js";
import type { Setup } from "../../train/setup.js";
import { restoreState, saveState, type TrainState, trainedParameters } from "../../train/state.js";
import {
  ATTENTION,
  adapted,
  bits,
  bytesOf,
  engine,
  forward,
  key,
  NAMES,
  output,
  Pair,
  refused,
  SMALL,
  small,
} from "./adapted.js";

const test = suite("lora files");

test("files have PEFT's keys and its configuration; a fresh base with them gives the same", async () => {
  const folder = mkdtempSync(join(tmpdir(), "lora-"));
  try {
    const model = await adapted();
    const expected = await output(model);
    const path = join(folder, "adapter_model.safetensors");
    const written = await saveLora(path, model);
    assert.equal(written.files, [path, join(folder, "adapter_config.json")]);
    const file = await openSafetensors(path);
    assert.equal(
      [...file.tensors.keys()],
      [
        "base_model.model.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.blocks.0.attn.qkv.lora_B.weight",
        "base_model.model.blocks.0.attn.proj.lora_A.weight",
        "base_model.model.blocks.0.attn.proj.lora_B.weight",
        "base_model.model.blocks.0.cross_attn.q_linear.lora_A.weight",
        "base_model.model.blocks.0.cross_attn.q_linear.lora_B.weight",
        "base_model.model.blocks.0.cross_attn.kv_linear.lora_A.weight",
        "base_model.model.blocks.0.cross_attn.kv_linear.lora_B.weight",
        "base_model.model.blocks.0.cross_attn.proj.lora_A.weight",
        "base_model.model.blocks.0.cross_attn.proj.lora_B.weight",
        "base_model.model.blocks.1.attn.qkv.lora_A.weight",
        "base_model.model.blocks.1.attn.qkv.lora_B.weight",
        "base_model.model.blocks.1.attn.proj.lora_A.weight",
        "base_model.model.blocks.1.attn.proj.lora_B.weight",
        "base_model.model.blocks.1.cross_attn.q_linear.lora_A.weight",
        "base_model.model.blocks.1.cross_attn.q_linear.lora_B.weight",
        "base_model.model.blocks.1.cross_attn.kv_linear.lora_A.weight",
        "base_model.model.blocks.1.cross_attn.kv_linear.lora_B.weight",
        "base_model.model.blocks.1.cross_attn.proj.lora_A.weight",
        "base_model.model.blocks.1.cross_attn.proj.lora_B.weight",
      ],
    );
    assert.equal([...file.info("base_model.model.blocks.0.attn.qkv.lora_B.weight").shape], [48, 4]);
    assert.equal(file.metadata, {
      format: "pt",
      lora: JSON.stringify({ r: 4, lora_alpha: 6, target_modules: NAMES }),
    });
    await file.close();
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    assert.equal(config, {
      peft_type: "LORA",
      task_type: null,
      base_model_name_or_path: null,
      inference_mode: true,
      r: 4,
      lora_alpha: 6,
      target_modules: NAMES,
      lora_dropout: 0,
      bias: "none",
      fan_in_fan_out: false,
      init_lora_weights: true,
      modules_to_save: null,
      use_dora: false,
      use_rslora: false,
    });

    const fresh = await small();
    assert.equal(await loadLora(fresh, path), NAMES);
    assert.equal(await output(fresh), expected);
    assert.equal(await bits(fresh.stateDict()), await bits(model.stateDict()));
    assert.is(fresh.parameters().filter((p) => p.requiresGrad).length, 2 * NAMES.length);
    // Into adapters that are there already, and while the source is merged.
    const other = await small();
    addLora(other, { pattern: ATTENTION, rank: 4, alpha: 6, key: key.fold(77) });
    mergeLora(model);
    await loadLora(other, await bytesOf(model));
    assert.equal(await output(other), expected);

    // PEFT's own: no metadata of ours, halves, the adapter's name inside keys, alpha in the file beside.
    const state = loraState(fresh);
    const renamed = Object.fromEntries(
      Object.entries(state).map(([name, t]) => [name.replace(/\.weight$/, ".default.weight"), t]),
    );
    await writeSafetensors(path, saveTensors(engine, renamed), { format: "pt" });
    const peft = await small();
    await loadLora(peft, path);
    assert.equal(await output(peft), expected);
    removeLora(peft);
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, lora_alpha: 3, use_rslora: true }));
    await loadLora(peft, path);
    assert.is(loraConfig(peft)!.alpha, 6, "3 / √4 is 6 / 4");
    assert.equal(await output(peft), expected);
    removeLora(peft);
    await loadLora(peft, readFileSync(path), { alpha: 6 });
    assert.equal(await output(peft), expected);
    for (const m of [model, fresh, other, peft]) m.dispose();

    const lone = await small();
    await refused(
      () => loadLora(lone, readFileSync(path)),
      "loadLora: alpha is unknown: memory does not say it and has no adapter_config.json beside it; pass { alpha }, which is lora_alpha of PEFT's configuration.",
    );
    const say = (more: object) =>
      writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, ...more }));
    const beside = join(folder, "adapter_config.json");
    say({ r: 8 });
    await refused(
      () => loadLora(lone, path),
      `loadLora: ranks differ: ${beside} says r = 8, the tensors of ${path} have 4.`,
    );
    say({ use_dora: true });
    await refused(() => loadLora(lone, path), `loadLora: ${beside}: use_dora is not supported: got true.`);
    say({ alpha_pattern: { qkv: 3 } });
    await refused(() => loadLora(lone, path), `loadLora: ${beside}: alpha_pattern is not supported: got {"qkv":3}.`);
    say({ lora_alpha: "6" });
    await refused(() => loadLora(lone, path), `lora: ${beside}: lora_alpha must be a number above 0: got "6".`);
    writeFileSync(beside, "[]");
    await refused(() => loadLora(lone, path), `lora: ${beside} is no object: [].`);
    writeFileSync(beside, "{");
    await refused(() => loadLora(lone, path), /^lora: .*adapter_config\.json is no JSON: /);
    assert.is(loraConfig(lone), undefined);
    assert.ok(lone.parameters().every((p) => p.requiresGrad));
    lone.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("files that do not fit say why, and leave the model as it was", async () => {
  const zeros = (shape: number[]) => ({ dtype: "F32" as const, shape, data: new Uint8Array(4 * shape[0] * shape[1]) });
  const file = async (tensors: Record<string, number[]>) => {
    const sink = memorySink("memory");
    const entries = Object.entries(tensors).map(([name, shape]) => ({ name, ...zeros(shape) }));
    await writeSafetensors(sink, entries, {});
    return sink.bytes();
  };
  const base = "base_model.model.";
  const model = new Pair();
  const load = async (tensors: Record<string, number[]>) => loadLora(model, await file(tensors), { alpha: 2 });
  const good = { [`${base}inner.lora_A.weight`]: [2, 6], [`${base}inner.lora_B.weight`]: [5, 2] };
  await refused(
    () => load({ "inner.weight": [5, 6] }),
    "loadLora: memory holds no adapters: inner.weight; keys must read base_model.model.LAYER.lora_A.weight and ….lora_B.weight.",
  );
  await refused(() => load({}), /^loadLora: memory holds no adapters: nothing; /);
  await refused(
    () => load({ ...good, [`${base}inner.lora_magnitude_vector.weight`]: [5, 1] }),
    /^loadLora: memory holds more than adapters of linear layers: base_model\.model\.inner\.lora_magnitude_vector\.weight; /,
  );
  await refused(
    () => load({ [`${base}inner.lora_A.weight`]: [2, 6] }),
    "loadLora: memory lacks half of an adapter: base_model.model.inner.lora_B.weight is missing; A and B belong together.",
  );
  await refused(
    () => load({ [`${base}iner.lora_A.weight`]: [2, 6], [`${base}iner.lora_B.weight`]: [5, 2] }),
    "loadLora: memory: the model has no such linear layer: iner (did you mean inner?).",
  );
  await refused(
    () => load({ ...good, [`${base}outer.lora_A.other.weight`]: [2, 5], [`${base}outer.lora_B.other.weight`]: [3, 2] }),
    "loadLora: memory holds several adapters: (no name), other; save one of them alone.",
  );
  await refused(
    () => load({ ...good, [`${base}inner.lora_A.weight`]: [3, 6] }),
    "loadLora: memory does not fit inner [5, 6]: A is [3, 6] and B is [5, 2]; they must be [rank, 6] and [5, rank].",
  );
  await refused(
    () => load({ ...good, [`${base}outer.lora_A.weight`]: [3, 5], [`${base}outer.lora_B.weight`]: [3, 3] }),
    "loadLora: memory holds several ranks: inner has 2, outer has 3; all must be equal.",
  );
  await refused(
    async () => loadLora(model, await file(good), { alpha: Number.NaN }),
    "loadLora: alpha must be a number above 0: got NaN; leave it out for alpha = rank.",
  );
  await refused(
    async () => loadLora(model, await file(good), { scale: 2 } as object),
    'loadLora: unknown option "scale"; (alpha)',
  );
  assert.is(loraConfig(model), undefined);
  assert.ok(model.parameters().every((p) => p.requiresGrad));

  addLora(model, { pattern: "**", rank: 2, key });
  await refused(
    () => load(good),
    "loadLora: memory adapts other layers than the model's adapters: it lacks outer. removeLora first, and the file's own are put on.",
  );
  removeLora(model);
  addLora(model, { pattern: "outer", rank: 2, key });
  await refused(
    () => load(good),
    "loadLora: memory adapts other layers than the model's adapters: it lacks outer; the model has none on inner. removeLora first, and the file's own are put on.",
  );
  removeLora(model);
  addLora(model, { pattern: "inner", rank: 3, key });
  await refused(
    () => load(good),
    "loadLora: memory has adapters of rank 2 and alpha 2: those of inner have rank 3 and alpha 3; removeLora first, and the file's own are put on.",
  );
  mergeLora(model);
  await refused(() => load(good), "loadLora: the adapters are merged into the weights; call unmergeLora first.");
  model.dispose();
});

test("a model file keeps its adapters, or leaves them out", async () => {
  const model = await adapted();
  const expected = await output(model);
  const save = async (content: object = {}) => {
    const sink = memorySink("memory");
    await saveModel(sink, { model, ...content });
    return sink.bytes();
  };
  const again = await openModel(engine, await save());
  assert.equal(await output(again.model), expected);
  assert.equal(loraConfig(again.model), { rank: 4, alpha: 6, targets: NAMES });
  assert.equal(
    again.model.namedParameters().map(([name, p]) => [name, p.requiresGrad]),
    model.namedParameters().map(([name, p]) => [name, p.requiresGrad]),
  );
  removeLora(again.model);
  const plain = await small();
  assert.equal(await bits(again.model.stateDict()), await bits(plain.stateDict()));
  assert.ok(again.model.parameters().every((p) => p.requiresGrad));

  const base = await openModel(engine, await save({ adapters: false }));
  assert.is(base.metadata.lora, undefined);
  assert.equal(await bits(base.model.stateDict()), await bits(plain.stateDict()));

  // Averages of adapters are written in their place.
  const name = `${NAMES[0]}.lora_B.weight`;
  const average = engine.zeros([48, 4]);
  const { entries, metadata } = modelEntries({ model, weights: { [name]: average } });
  const sink = memorySink("memory");
  await writeSafetensors(sink, entries, metadata);
  const averaged = await openModel(engine, sink.bytes());
  assert.ok((await averaged.model.blocks[0].attn.qkv.loraB!.weight.data()).every((v) => v === 0));
  assert.equal(await output(again.model), await output(plain));

  // A merged model's file is a plain one.
  mergeLora(model);
  const merged = await openModel(engine, await save());
  assert.is(merged.metadata.lora, undefined);
  assert.equal(await output(merged.model), await output(model));
  unmergeLora(model);

  // A plain file goes into a model with adapters.
  const wanted = new STDiT(engine, SMALL, { key: key.fold(100) });
  const report = await loadBase(model, wanted.stateDict());
  assert.is(report.loaded.length, Object.keys(plain.stateDict()).length);
  assert.equal(await bits(baseState(model)), await bits(wanted.stateDict()));
  await refused(() => model.loadStateDict(plain.stateDict()), /missing: blocks\.0\.attn\.qkv\.lora_A\.weight/);
  mergeLora(model);
  await refused(
    () => loadBase(model, plain.stateDict()),
    "loadBase: the adapters are merged into the weights; call unmergeLora first.",
  );
  for (const m of [model, plain, wanted]) m.dispose();
  for (const m of [again, base, averaged, merged]) m.dispose();
});

test("what a model file says of adapters is checked; layers with adapters cannot change", async () => {
  const model = await adapted();
  const open = async (lora: string, options = {}) => {
    const { entries, metadata } = modelEntries({ model });
    const sink = memorySink("memory");
    await writeSafetensors(sink, entries, { ...metadata, lora });
    return openModel(engine, sink.bytes(), options);
  };
  const good = { r: 4, lora_alpha: 6, target_modules: NAMES };
  await refused(() => open("{"), /^lora: metadata "lora" of memory is no JSON: /);
  await refused(() => open("3"), 'lora: metadata "lora" of memory is no object: 3.');
  await refused(
    () => open(JSON.stringify({ ...good, target_modules: "qkv" })),
    'lora: metadata "lora" of memory: target_modules must list layers: got "qkv".',
  );
  await refused(
    () => open(JSON.stringify({ ...good, r: 0 })),
    'lora: metadata "lora" of memory: r must be a number above 0: got 0.',
  );
  await refused(
    () => open(JSON.stringify({ ...good, target_modules: ["blocks.0.attn.qvk"] })),
    "lora: the model has no such linear layer: blocks.0.attn.qvk (did you mean blocks.0.attn.qkv?).",
  );
  await refused(
    () => open(JSON.stringify({ ...good, r: 2 })),
    /of another shape: blocks\.0\.attn\.qkv\.lora_A\.weight is \[4, 16\], the model's is \[2, 16\]/,
  );
  const told =
    "the model has adapters (LoRA), which cannot follow layers that change; call mergeLora and removeLora with keepMerged first, or removeLora alone to drop them.";
  await refused(
    () => open(JSON.stringify(good), { grow: { mode: "insert", blocks: 1 } }),
    `model file memory: ${told}`,
  );
  await refused(() => grow(model, { mode: "suffix", blocks: 1 }), `stdit: ${told}`);
  model.dispose();
});

test("a run with adapters goes on from its checkpoint with the same losses", async () => {
  const folder = mkdtempSync(join(tmpdir(), "lora-"));
  const checkpoints = new CheckpointFolder(folder);
  const start = (model: STDiT): TrainState => {
    const own = trainedParameters(model);
    const setup = { model, codec: new PixelCodec(), objective: new Flow(), about: {} } as unknown as Setup;
    const config = { run: { seed: 3 } } as Config;
    return { setup, optimizer: new AdamW(own, { lr: 1e-2 }), ema: new EMA(own, { decay: 0.5 }), step: 0, config };
  };
  const steps = async (state: TrainState, count: number) => {
    const losses: number[] = [];
    for (let k = 0; k < count; k++) {
      const out = forward(state.setup.model as STDiT);
      const loss = out.mul(out).mean();
      loss.backward();
      losses.push(await loss.item());
      state.optimizer.step();
      state.optimizer.zeroGrad();
      state.ema.update();
      state.step++;
    }
    return losses;
  };
  try {
    const state = start(await adapted());
    await steps(state, 2);
    await saveState({ checkpoints } as unknown as RunFolder, state);
    const expected = await steps(state, 2);

    const checkpoint = (await checkpoints.latest())!;
    const { model } = await openModel(engine, checkpoint.file);
    const resumed = start(model);
    assert.equal(resumed.optimizer.names, state.optimizer.names);
    await restoreState(checkpoint, resumed);
    assert.equal(await steps(resumed, 2), expected);
    assert.equal(await bits(model.stateDict()), await bits((state.setup.model as STDiT).stateDict()));
    assert.equal(await bits(resumed.ema.params), await bits(state.ema.params));
    await checkpoint.file.close();
    for (const { ema, optimizer, setup } of [state, resumed])
      for (const thing of [ema, optimizer, setup.model as STDiT]) thing.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test.run();
