import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import {
  addLora,
  baseState,
  grow,
  Linear,
  type LoraOptions,
  loadBase,
  loadLora,
  loraConfig,
  loraState,
  Module,
  memorySink,
  mergeLora,
  modelEntries,
  openModel,
  openSafetensors,
  removeLora,
  STDiT,
  saveLora,
  saveModel,
  unmergeLora,
  writeSafetensors,
} from "../../model/index.js";
import { saveTensors } from "../../model/state.js";
import { AdamW, EMA } from "../../train/optim.js";
import { near, relNorm } from "./compare.js";

const test = suite("lora");
const engine = await createEngine();
const key = Key.from(11);

const SMALL = {
  inChannels: 3,
  predSigma: false,
  hidden: 16,
  depth: 2,
  heads: 2,
  frames: 2,
  latent: [4, 6] as [number, number],
  captionChannels: 5,
  maxLength: 6,
};
const ATTENTION = ["blocks.*.attn.**", "blocks.*.crossAttn.**"];
const NAMES = [0, 1].flatMap((i) =>
  ["attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"].map(
    (layer) => `blocks.${i}.${layer}`,
  ),
);

/** Fills tensors that begin as zeros, so that no path hides another. */
async function fill(model: Module, names: RegExp, seed: Key): Promise<void> {
  const chosen = model.namedParameters().filter(([name]) => names.test(name));
  const values = Object.fromEntries(
    chosen.map(([n, p], i) => [n, normal(engine, seed.fold(i), p.shape, { std: 0.3 })]),
  );
  await model.loadStateDict(values, { strict: false });
  for (const t of Object.values(values)) t.dispose();
}

async function small(seed = key): Promise<STDiT> {
  const model = new STDiT(engine, SMALL, { key: seed });
  await fill(model, /\.proj\.|final_layer\.linear/, seed);
  return model;
}
const adapted = async (options: Partial<LoraOptions> = {}) => {
  const model = await small();
  addLora(model, { pattern: ATTENTION, rank: 4, alpha: 6, key, ...options });
  await fill(model, /lora_B/, key.fold(9));
  return model;
};

const inputs = () => ({
  x: normal(engine, key.fold(50), [2, 3, 2, 4, 6]),
  y: normal(engine, key.fold(51), [2, 6, 5]),
});
const forward = (model: STDiT): Tensor => {
  const { x, y } = inputs();
  return model.forward(x, [10, 600], y);
};
const output = async (model: STDiT) => {
  using out = engine.noGrad(() => engine.scope(() => forward(model)));
  return await out.data();
};

/** Values by name, and their bits for comparison. */
const bits = async (state: Readonly<Record<string, Tensor>>): Promise<Record<string, string>> => {
  const found: Record<string, string> = {};
  for (const [name, t] of Object.entries(state)) {
    const values = await t.data();
    found[name] = Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
  }
  return found;
};
const bytesOf = async (model: Module) => {
  const sink = memorySink("memory");
  await saveLora(sink, model);
  return sink.bytes();
};
const refused = async (f: () => unknown, message: string | RegExp): Promise<void> => {
  try {
    await f();
  } catch (error) {
    const got = (error as Error).message;
    if (typeof message === "string") assert.is(got, message);
    else assert.match(got, message);
    return;
  }
  assert.unreachable(`did not throw ${message}`);
};

/** A model of one layer beside a plain one. */
class Pair extends Module {
  readonly inner: Linear;
  readonly outer: Linear;
  constructor(inputs = 6, outputs = 5) {
    super(engine);
    this.inner = new Linear(engine, inputs, outputs, { key: key.fold(1) });
    this.outer = new Linear(engine, outputs, 3, { key: key.fold(2), bias: false });
  }
  forward(x: Tensor): Tensor {
    return this.outer.forward(this.inner.forward(x, "geluTanh"));
  }
}

test("adapters are parameters, all else is frozen, the base keeps its names and outputs", async () => {
  const model = await small();
  const plain = model.namedParameters().map(([name]) => name);
  const before = await output(model);
  assert.equal(addLora(model, { pattern: ATTENTION, rank: 4, key }), NAMES);
  const names = model.namedParameters().map(([name]) => name);
  assert.equal(
    names.filter((name) => !name.includes("lora_")),
    plain,
  );
  const own = NAMES.flatMap((name) => [`${name}.lora_A.weight`, `${name}.lora_B.weight`]);
  assert.equal(
    names.filter((name) => name.includes("lora_")),
    own,
  );
  const trained = model.namedParameters().flatMap(([name, p]) => (p.requiresGrad ? [name] : []));
  assert.equal(trained, own);
  assert.equal(loraConfig(model), { rank: 4, alpha: 4, targets: NAMES });
  const qkv = model.blocks[0].attn.qkv;
  assert.equal([...qkv.loraA!.weight.shape], [4, 16]);
  assert.equal([...qkv.loraB!.weight.shape], [48, 4]);
  // B is zero, so that not a bit of the output changes.
  assert.equal(await output(model), before);
  const a = await qkv.loraA!.weight.data();
  const bound = 1 / Math.sqrt(16);
  const [low, high] = [Math.min(...a), Math.max(...a)];
  assert.ok(low >= -bound && high <= bound && low < -0.8 * bound && high > 0.8 * bound, `A in ${low} … ${high}`);
  // Layers have their own numbers, decided by the key alone.
  const twin = await small();
  addLora(twin, { pattern: "**.qkv", rank: 4, key });
  assert.equal(await twin.blocks[0].attn.qkv.loraA!.weight.data(), a);
  assert.not.equal(await twin.blocks[1].attn.qkv.loraA!.weight.data(), a);
  for (const m of [model, twin]) m.dispose();
});

test("patterns: names of fields or of checkpoints, one or several", async () => {
  const names = async (pattern: LoraOptions["pattern"]) => {
    const model = await small();
    const found = addLora(model, { pattern, rank: 2, key });
    removeLora(model);
    model.dispose();
    return found;
  };
  assert.equal(await names("blocks.1.crossAttn.kvLinear"), ["blocks.1.cross_attn.kv_linear"]);
  assert.equal(await names("blocks.1.cross_attn.kv_linear"), ["blocks.1.cross_attn.kv_linear"]);
  assert.equal(await names("t_block.1"), ["t_block.1"]);
  assert.equal(await names(["final_layer.*", "blocks.0.mlp.*", "**.fc1"]), [
    "y_embedder.y_proj.fc1",
    "blocks.0.mlp.fc1",
    "blocks.0.mlp.fc2",
    "blocks.1.mlp.fc1",
    "final_layer.linear",
  ]);
});

test("output and gradients are those of the formula in float64", async () => {
  const [I, O, R, N, alpha] = [6, 5, 3, 4, 4.5];
  const layer = new Linear(engine, I, O, { key });
  addLora(layer, { pattern: "**", rank: R, alpha, key: key.fold(3) });
  assert.equal(loraConfig(layer)!.targets, [""]);
  await fill(layer, /lora_B|bias/, key.fold(4));
  const x = normal(engine, key.fold(5), [N, I]).setRequiresGrad();
  const dy = normal(engine, key.fold(6), [N, O]);
  const y = layer.forward(x);
  y.backward(dy);
  const get = async (t: Tensor) => Float64Array.from(await t.data());
  const [X, DY, W, bias, A, B] = await Promise.all(
    [x, dy, layer.weight, layer.bias!, layer.loraA!.weight, layer.loraB!.weight].map(get),
  );
  const s = alpha / R;
  const at = (rows: number, columns: number, f: (i: number, j: number) => number) =>
    Float64Array.from({ length: rows * columns }, (_, k) => f(Math.floor(k / columns), k % columns));
  const sum = (n: number, f: (k: number) => number) =>
    Array.from({ length: n }, (_, k) => f(k)).reduce((a, b) => a + b, 0);
  const whole = at(O, I, (o, i) => W[o * I + i] + s * sum(R, (r) => B[o * R + r] * A[r * I + i])); // [O, I]
  const low = at(N, R, (n, r) => sum(I, (i) => X[n * I + i] * A[r * I + i])); // [N, R]
  const back = at(N, R, (n, r) => sum(O, (o) => DY[n * O + o] * B[o * R + r])); // [N, R]
  const expected = {
    y: at(N, O, (n, o) => bias[o] + sum(I, (i) => X[n * I + i] * whole[o * I + i])),
    dx: at(N, I, (n, i) => sum(O, (o) => DY[n * O + o] * whole[o * I + i])),
    dA: at(R, I, (r, i) => s * sum(N, (n) => back[n * R + r] * X[n * I + i])),
    dB: at(O, R, (o, r) => s * sum(N, (n) => DY[n * O + o] * low[n * R + r])),
  };
  await near("y", y, { data: expected.y }, 2e-6, relNorm);
  await near("dx", x.grad!, { data: expected.dx }, 2e-6, relNorm);
  await near("dA", layer.loraA!.weight.grad!, { data: expected.dA, shape: [R, I] }, 2e-6, relNorm);
  await near("dB", layer.loraB!.weight.grad!, { data: expected.dB, shape: [O, R] }, 2e-6, relNorm);
  assert.is(layer.weight.grad, undefined);
  assert.is(layer.bias!.grad, undefined);
  // Activations come after the sum, recorded or not, and in a layer without its own bias too.
  const gelu = (v: number) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)));
  await near("gelu", layer.forward(x, "geluTanh"), { data: expected.y.map(gelu) }, 1e-5);
  await near(
    "gelu, not recorded",
    engine.noGrad(() => layer.forward(x, "geluTanh")),
    { data: expected.y.map(gelu) },
    1e-5,
  );
  const silu = expected.y.map((v) => v / (1 + Math.exp(-v)));
  await near(
    "silu",
    engine.noGrad(() => layer.forward(x, "silu")),
    { data: silu },
    1e-5,
  );
  await near("product", layer.product(x), { data: expected.y.map((v, k) => v - bias[k % O]) }, 2e-6, relNorm);
  layer.dispose();
});

test("in the first step B alone gets a gradient; training moves adapters and not a bit of the base", async () => {
  const model = await small();
  addLora(model, { pattern: ATTENTION, rank: 4, key });
  const before = await bits(baseState(model));
  const start = await bits(loraState(model));
  const own = Object.fromEntries(model.namedParameters().filter(([, p]) => p.requiresGrad));
  const optimizer = new AdamW(own, { lr: 1e-2, weightDecay: 0.1 });
  assert.equal(optimizer.names.length, 2 * NAMES.length);
  const losses: number[] = [];
  for (let step = 0; step < 3; step++) {
    const out = forward(model);
    const loss = out.mul(out).mean();
    loss.backward();
    losses.push(await loss.item());
    if (step === 0)
      for (const [name, p] of Object.entries(own)) {
        const size = Math.max(...(await p.grad!.data()).map(Math.abs));
        assert.ok(name.includes("lora_A") ? size === 0 : size > 0, `${name}: gradient ${size}`);
      }
    optimizer.step();
    optimizer.zeroGrad();
  }
  assert.ok(losses[2] < losses[0], `${losses}`);
  assert.equal(await bits(baseState(model)), before);
  for (const [name, value] of Object.entries(await bits(loraState(model)))) assert.is.not(value, start[name], name);

  // Averages swapped in are merged too, and what is set aside meanwhile survives.
  const ema = new EMA(own, {});
  await ema.use(async () => {
    const unmerged = await output(model);
    mergeLora(model);
    assert.ok(relNorm(await output(model), unmerged) < 1e-5);
    unmergeLora(model);
  });
  assert.equal(await bits(baseState(model)), before);
  removeLora(model);
  assert.equal(await bits(model.stateDict()), before);
  assert.ok(model.parameters().every((p) => p.requiresGrad));
  for (const thing of [ema, optimizer, model]) thing.dispose();
});

test("gradients pass through blocks that are run again in backward", async () => {
  const model = await adapted();
  const gradients = async () => {
    const out = forward(model);
    out.mul(out).mean().backward();
    const found = await Promise.all(model.parameters().flatMap((p) => (p.grad ? [p.grad.data()] : [])));
    model.zeroGrad();
    return found;
  };
  const kept = await gradients();
  assert.is(kept.length, 2 * NAMES.length);
  model.checkpointBlocks = true;
  assert.equal(await gradients(), kept);
  model.dispose();
});

test("merged and unmerged agree; unmerging brings every bit back", async () => {
  const model = await adapted({ pattern: "**" });
  const plain = await small();
  const trained = model.namedParameters().filter(([, p]) => p.requiresGrad);
  const before = await bits(model.stateDict());
  const unmerged = await output(model);
  assert.ok(relNorm(unmerged, await output(plain)) > 0.1, "the adapters do something");
  const [live, owned] = [engine.memory().live, baseState(model)];
  mergeLora(model);
  const merged = await output(model);
  const off = relNorm(merged, unmerged);
  console.log(`\n  merged against unmerged: ${off.toExponential(1)}`);
  assert.ok(off < 1e-5, `${off}`);
  // A merged model is a plain one.
  assert.equal(Object.keys(model.stateDict()), Object.keys(plain.stateDict()));
  assert.equal(Object.keys(model.stateDict()), Object.keys(owned));
  assert.equal(
    model.table().map(({ name }) => name),
    plain.table().map(({ name }) => name),
  );
  assert.not.equal(await bits(model.stateDict()), await bits(plain.stateDict()));
  assert.equal(Object.keys(loraState(model)).length, trained.length);
  unmergeLora(model);
  assert.equal(await bits(model.stateDict()), before);
  assert.equal(await output(model), unmerged);
  assert.equal(
    model.namedParameters().filter(([, p]) => p.requiresGrad),
    trained,
  );
  assert.is(engine.memory().live, live, "merged weights are given back");
  mergeLora(model);
  assert.equal(await output(model), merged);
  removeLora(model, { keepMerged: true });
  assert.equal(await output(model), merged);
  assert.equal(Object.keys(model.stateDict()), Object.keys(plain.stateDict()));
  assert.ok(model.parameters().every((p) => p.requiresGrad));
  for (const m of [model, plain]) m.dispose();
});

test("nothing of a merged model outlives it", async () => {
  const live = engine.memory().live;
  const model = await adapted();
  mergeLora(model);
  model.dispose();
  const removed = await adapted();
  mergeLora(removed);
  removeLora(removed);
  removed.dispose();
  assert.is(engine.memory().live, live);
});

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

test("adapters reach a projection whose heads are gated one by one", async () => {
  const more = { ...SMALL, languageChannels: 7, languageLength: 4, languageGate: "head" as const };
  const model = new STDiT(engine, more, { key });
  await fill(model, /\.proj\.|final_layer\.linear|gate_llm|y_embedder_llm/, key);
  addLora(model, { pattern: "**.crossAttnLlm.proj", rank: 4, key });
  const { x, y } = inputs();
  const language = { y: normal(engine, key.fold(52), [2, 4, 7]) };
  const run = () => engine.noGrad(() => model.forward(x, [10, 600], y, undefined, { language })).data();
  const before = await run();
  await fill(model, /lora_B/, key.fold(9));
  const after = await run();
  const moved = relNorm(after, before);
  assert.ok(moved > 1e-3, `moved ${moved}`);
  mergeLora(model);
  const off = relNorm(await run(), after);
  assert.ok(off < 1e-5, `off ${off}`);
  model.dispose();
});

test("f16 layers: f32 adapters train, and merge by the f32 sum", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const model = (await small()).to("f16");
  addLora(model, { pattern: ATTENTION, rank: 4, alpha: 6, key });
  await fill(model, /lora_B/, key.fold(9));
  const wide = await adapted();
  const layer = model.blocks[0].attn.qkv;
  assert.equal([layer.weight.dtype, layer.loraA!.weight.dtype], ["f16", "f32"]);
  const unmerged = await output(model);
  assert.ok(relNorm(unmerged, await output(wide)) < 5e-3);
  const before = await bits(model.stateDict());

  const out = forward(model);
  out.mul(out).mean().backward();
  const reference = forward(wide);
  reference.mul(reference).mean().backward();
  const gradient = await wide.blocks[0].attn.qkv.loraA!.weight.grad!.data();
  await near("dA in f16", layer.loraA!.weight.grad!, { data: gradient }, 2e-2, relNorm);
  const trained = model.namedParameters().filter(([, p]) => p.requiresGrad);
  const optimizer = new AdamW(Object.fromEntries(trained), { lr: 0 });
  optimizer.step();
  optimizer.dispose();

  const [w, a, b] = await Promise.all([layer.weight, layer.loraA!.weight, layer.loraB!.weight].map((t) => t.data()));
  mergeLora(model);
  const merged = await layer.weight.data();
  // A unit in the last place of f16: WGSL leaves the direction of rounding open.
  let worst = 0;
  for (let o = 0; o < 48; o++)
    for (let i = 0; i < 16; i++) {
      let sum = w[o * 16 + i];
      for (let r = 0; r < 4; r++) sum += 1.5 * b[o * 4 + r] * a[r * 16 + i];
      worst = Math.max(worst, Math.abs(merged[o * 16 + i] - sum) / Math.max(Math.abs(sum), 6e-5));
    }
  assert.ok(worst <= 2 ** -10 * 1.01, `${worst}`);
  assert.ok(relNorm(await output(model), unmerged) < 5e-3);
  unmergeLora(model);
  assert.equal(await bits(model.stateDict()), before);
  // Conversion takes all along, what is set aside too.
  mergeLora(model);
  model.to("f32");
  unmergeLora(model);
  assert.is(layer.weight.dtype, "f32");
  for (const m of [model, wide]) m.dispose();
});

test("what cannot be is refused with a reason, and leaves the model as it was", async () => {
  const model = await small();
  const state = model.namedParameters().map(([name, p]) => [name, p.requiresGrad]);
  const add = (options: object) => () => addLora(model, { pattern: "**.qkv", rank: 4, key, ...options } as LoraOptions);
  for (const rank of [0, -1, 1.5, Number.NaN, "4", undefined, null])
    await refused(
      add({ rank }),
      `addLora: rank must be a whole number from 1: got ${typeof rank === "string" ? '"4"' : rank}; 4 to 64 are usual.`,
    );
  await refused(
    add({ rank: 17 }),
    "addLora: rank must be at most the smaller side of every layer: got 17 for blocks.0.attn.qkv [48, 16]; take 1 to 16, or leave that layer out.",
  );
  for (const alpha of [Number.NaN, 0, -2, Number.POSITIVE_INFINITY, "8", null])
    await refused(
      add({ alpha }),
      `addLora: alpha must be a number above 0: got ${alpha === "8" ? '"8"' : alpha}; leave it out for alpha = rank.`,
    );
  await refused(
    add({ pattern: "blocks.0.attn.qvk" }),
    'addLora: "blocks.0.attn.qvk" matches no linear layer; did you mean "blocks.0.attn.qkv"?',
  );
  await refused(
    add({ pattern: ["**.qkv", "layers.*"] }),
    'addLora: "layers.*" matches no linear layer; there are t_embedder.mlp.0, t_embedder.mlp.2, t_block.1, y_embedder.y_proj.fc1, y_embedder.y_proj.fc2, blocks.0.attn.qkv, blocks.0.attn.proj, blocks.0.attn_temp.qkv and 16 more',
  );
  await refused(
    add({ pattern: "blocks.0.attn" }),
    'addLora: "blocks.0.attn" matches no linear layer; it is a SelfAttention; "blocks.0.attn.**" stands for the layers inside',
  );
  for (const pattern of [undefined, "", [], [3]])
    await refused(
      add({ pattern }),
      `addLora: pattern must be text or a list of texts: got ${JSON.stringify(pattern)}; "blocks.*.attn.**" is one, "**" is every linear layer.`,
    );
  await refused(add({ key: undefined }), "addLora: needs a key, which decides A: got none; Key.from(seed) makes one.");
  await refused(add({ dropout: 0.1 }), 'addLora: unknown option "dropout"; (pattern, rank, alpha, key)');
  const none = (subject: string) =>
    `${subject}: the model has no adapters; put them on with addLora or loadLora first.`;
  await refused(() => mergeLora(model), none("mergeLora"));
  await refused(() => unmergeLora(model), none("unmergeLora"));
  await refused(() => removeLora(model), none("removeLora"));
  await refused(() => loraState(model), none("loraState"));
  await refused(() => saveLora(memorySink("memory"), model), none("saveLora"));
  assert.equal(
    model.namedParameters().map(([name, p]) => [name, p.requiresGrad]),
    state,
  );

  add({ pattern: "blocks.0.attn.*" })();
  await refused(
    add({}),
    "addLora: the model has adapters already: blocks.0.attn.qkv, blocks.0.attn.proj; call removeLora first, and give all patterns at once.",
  );
  await refused(
    () => unmergeLora(model),
    "unmergeLora: the adapters are not merged; mergeLora merges them into the weights.",
  );
  await refused(
    () => removeLora(model, { keepMerged: true }),
    "removeLora: keepMerged: the adapters are not merged; call mergeLora first.",
  );
  await refused(() => removeLora(model, { merged: true } as object), /^removeLora: unknown option "merged"/);
  mergeLora(model);
  await refused(() => mergeLora(model), "mergeLora: the adapters are merged into the weights; call unmergeLora first.");
  await refused(add({}), /^addLora: the model has adapters already: /);
  unmergeLora(model);
  addLora(model.blocks[1], { pattern: "**.qkv", rank: 2, key });
  await refused(
    () => saveLora(memorySink("memory"), model),
    "lora: one file holds adapters of one rank and alpha: blocks.0.attn.qkv has rank 4 and alpha 4, blocks.1.attn.qkv has 2 and 2; add them with one call of addLora.",
  );
  model.dispose();
});

test.run();
