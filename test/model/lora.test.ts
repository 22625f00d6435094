import { suite } from "uvu";
import * as assert from "uvu/assert";
import { normal, type Tensor } from "../../engine/index.js";
import {
  addLora,
  baseState,
  Linear,
  type LoraOptions,
  loraConfig,
  loraState,
  memorySink,
  mergeLora,
  removeLora,
  STDiT,
  saveLora,
  unmergeLora,
} from "../../model/index.js";
import { AdamW, EMA } from "../../train/optim.js";
import {
  ATTENTION,
  adapted,
  bits,
  engine,
  fill,
  forward,
  inputs,
  key,
  NAMES,
  output,
  refused,
  SMALL,
  small,
} from "./adapted.js";
import { near, relNorm } from "./compare.js";

const test = suite("lora");

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
