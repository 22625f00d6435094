import { suite } from "uvu";
import * as assert from "uvu/assert";
import { conv2d, conv3d, createEngine, Key, type Tensor } from "../../engine/index.js";
import { normal, ones } from "../../model/init.js";
import { Conv2d, Conv3dPatch, Embedding, LayerNorm, Linear, Mlp } from "../../model/layers.js";
import { Module } from "../../model/module.js";
import { memorySink, openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { StateError } from "../../model/state.js";
import { AdamW, EMA } from "../../train/optim.js";
import { near } from "./compare.js";

const test = suite("module");
const engine = await createEngine();
const key = Key.from(3);

class Gate extends Module {
  static override readonly names = { toGate: "to_gate", runningMean: "running_mean" };
  readonly toGate: Linear;
  readonly steps: Linear[];
  readonly runningMean: Tensor;
  readonly note = "no tensor";
  constructor(width: number) {
    super(engine);
    this.toGate = new Linear(engine, width, width, { key: key.fold(0) });
    this.steps = [1, 2].map((i) => new Linear(engine, width, width, { key: key.fold(i), bias: i === 1 }));
    this.runningMean = this.buffer(engine.tensor(Float32Array.from({ length: width }, (_, i) => i)));
  }
  forward(x: Tensor): Tensor {
    let y = this.toGate.forward(x).sub(this.runningMean); // [B, C]
    for (const step of this.steps) y = step.forward(y, "silu"); // [B, C]
    return y; // [B, C]
  }
}

const saved = async (m: Module, prefix = "") => {
  const sink = memorySink();
  await writeSafetensors(sink, m.entries(prefix), {});
  return openSafetensors(sink.bytes());
};
const refused = async (f: () => Promise<unknown>): Promise<StateError> => {
  try {
    await f();
  } catch (error) {
    assert.instance(error, StateError);
    return error as StateError;
  }
  assert.unreachable("did not throw");
  throw new Error();
};

test("fields become names; buffers are no parameters", () => {
  const m = new Gate(4);
  assert.equal(Object.keys(m.stateDict()), [
    "to_gate.weight",
    "to_gate.bias",
    "steps.0.weight",
    "steps.0.bias",
    "steps.1.weight",
    "running_mean",
  ]);
  assert.equal(
    m.namedParameters().map(([n]) => n),
    Object.keys(m.stateDict()).slice(0, -1),
  );
  assert.equal([...m.namedModules().keys()], ["", "toGate", "steps.0", "steps.1"]);
  assert.is(m.countParameters(), 56);
  assert.ok(m.parameters().every((p) => p.requiresGrad) && !m.runningMean.requiresGrad);
  m.dispose();
});

test("parameters outlive the scope that made them", async () => {
  const m = engine.scope(() => {
    const inner = new Gate(4);
    return { get: () => inner } as unknown as never;
  }) as unknown as { get(): Gate };
  assert.is((await m.get().toGate.weight.data()).length, 16);
  const before = engine.memory().byOwner;
  assert.ok((before.parameters ?? 0) > 0 && (before.buffers ?? 0) > 0);
  m.get().dispose();
  assert.is(engine.memory().byOwner.parameters ?? 0, 0);
});

test("a tensor that is neither parameter nor buffer is refused", () => {
  class Bare extends Module {
    readonly scale = engine.ones([2]);
    forward(x: Tensor): Tensor {
      return x.mul(this.scale); // as x
    }
  }
  assert.throws(
    () => new Bare(engine).stateDict(),
    /Bare\.scale: a tensor in a module's field must be made by parameter\(\) or buffer\(\)/,
  );
});

test("saved, loaded: the same bits; in f16 and with a prefix too", async () => {
  const [a, b] = [new Gate(4), new Gate(4)];
  for (const p of b.parameters()) engine.noGrad(() => engine.write(p, new Uint8Array(p.bytes)));
  const file = await saved(a, "ema.");
  const progress: number[] = [];
  const report = await b.loadStateDict(file, {
    prefix: "ema.",
    onProgress: (done, total) => progress.push(done / total),
  });
  assert.equal(report, { loaded: Object.keys(a.stateDict()), missing: [], unexpected: [] });
  assert.is(progress.length, 6);
  assert.is(progress[5], 1);
  for (const [name, t] of Object.entries(a.stateDict()))
    assert.equal(await b.stateDict()[name].data(), await t.data(), name);
  if (engine.has("shader-f16")) {
    const half = await saved(a.to("f16"));
    assert.is(half.info("to_gate.weight").dtype, "F16");
    await b.loadStateDict(half);
    assert.is(b.toGate.weight.dtype, "f32");
    // And the other way: f32 numbers of a file rounded on the GPU.
    await a.loadStateDict(await saved(b));
    assert.is(a.toGate.weight.dtype, "f16");
    for (const [name, t] of Object.entries(a.stateDict()))
      assert.equal(await b.stateDict()[name].data(), await t.data(), name);
  }
  for (const m of [a, b]) m.dispose();
});

test("large tensors travel in chunks", async () => {
  class Wide extends Module {
    readonly weight: Tensor;
    constructor(init = normal(1)) {
      super(engine);
      this.weight = this.parameter([1027, 1031], init, { key });
    }
    forward(): void {}
  }
  const [a, b] = [new Wide(), new Wide(ones)];
  const pieces = a.entries()[0].data as AsyncIterable<Uint8Array>;
  const sizes: number[] = [];
  for await (const p of pieces) sizes.push(p.length);
  assert.ok(sizes.length === 2 && sizes[0] === 4 << 20, `${sizes}`);
  await b.loadStateDict(await saved(a));
  assert.equal(await b.weight.data(), await a.weight.data());
  await b.loadStateDict({ weight: { shape: [1027, 1031], data: new Float32Array(1027 * 1031).fill(2) } });
  assert.ok((await b.weight.data()).every((v) => v === 2));
  await b.loadStateDict({ weight: a.weight });
  assert.equal(await b.weight.data(), await a.weight.data());
  for (const m of [a, b]) m.dispose();
});

test("parameters that an optimizer moved into one buffer load and save as before", async () => {
  const [a, b] = [new Gate(4), new Gate(4)];
  const optimizer = new AdamW(Object.fromEntries(a.namedParameters()));
  const average = new EMA(Object.fromEntries(a.namedParameters()));
  const values = (m: Module) => Promise.all(Object.values(m.stateDict()).map((t) => t.data()));
  for (const p of b.parameters())
    engine.noGrad(() => engine.write(p, new Uint8Array(new Float32Array(p.size).fill(p.size).buffer)));
  const expected = await values(b);
  for (const source of [
    b.stateDict(),
    await saved(b),
    { ...b.stateDict(), "to_gate.bias": { shape: [4], data: expected[1] } },
  ]) {
    await a.loadStateDict(average.params, { strict: false });
    assert.ok((await a.toGate.weight.data()).some((v) => v !== 16));
    await a.loadStateDict(source);
    assert.equal(await values(a), expected);
  }
  // Neighbours in one buffer: each keeps to its place.
  const { "to_gate.weight": w, "steps.0.weight": s0 } = a.stateDict();
  await a.loadStateDict(
    { "to_gate.weight": s0, "steps.0.weight": { shape: [4, 4], data: new Float32Array(16).fill(3) } },
    { strict: false },
  );
  assert.ok((await w.data()).every((v) => v === 16) && (await s0.data()).every((v) => v === 3));
  assert.equal(await a.toGate.bias!.data(), expected[1]);
  assert.is(a.countParameters(), 56);
  average.dispose();
  optimizer.dispose();
  for (const m of [a, b]) m.dispose();
});

test("BF16, F64 and I32 of a file become the model's dtype", async () => {
  const m = new Gate(2);
  const sink = memorySink();
  const words = (Type: any, values: number[]) => new Uint8Array(Type.from(values).buffer);
  await writeSafetensors(
    sink,
    [
      { name: "to_gate.weight", dtype: "BF16", shape: [2, 2], data: words(Uint16Array, [0x3f80, 0xc000, 0x3fc0, 0]) },
      { name: "to_gate.bias", dtype: "F64", shape: [2], data: words(Float64Array, [0.1, 3]) },
      { name: "running_mean", dtype: "I32", shape: [2], data: words(Int32Array, [7, -8]) },
    ],
    {},
  );
  await m.loadStateDict(await openSafetensors(sink.bytes()), { strict: false });
  assert.equal([...(await m.toGate.weight.data())], [1, -2, 1.5, 0]);
  assert.equal([...(await m.toGate.bias!.data())], [Math.fround(0.1), 3]);
  assert.equal([...(await m.runningMean.data())], [7, -8]);
  m.dispose();
});

test("names and shapes that do not fit are refused before a byte is written", async () => {
  const [m, wide] = [new Gate(4), new Gate(5)];
  const before = await m.toGate.bias!.data();
  const { "to_gate.weight": weight, ...rest } = wide.stateDict();
  const source = { ...rest, "to_gate.wieght": weight, "steps.0.bias": m.steps[0].bias!, extra: weight };
  const error = await refused(() => m.loadStateDict(source));
  assert.equal(error.missing, ["to_gate.weight"]);
  assert.equal(error.unexpected, ["to_gate.wieght", "extra"]);
  assert.equal(error.mismatched, ["to_gate.bias", "steps.0.weight", "steps.1.weight", "running_mean"]);
  assert.match(error.message, /does not fit the model \(6 tensors, 5 found\)/);
  assert.match(error.message, /missing: to_gate\.weight/);
  assert.match(error.message, /to_gate\.wieght \(did you mean to_gate\.weight\?\)/);
  assert.match(error.message, /to_gate\.bias is \[5\], the model's is \[4\]/);
  // Shapes count without strictness too.
  assert.equal((await refused(() => m.loadStateDict(wide.stateDict(), { strict: false }))).missing, []);
  assert.equal(await m.toGate.bias!.data(), before);
  const own = m.stateDict();
  const loose = await m.loadStateDict(
    { "steps.0.bias": own["steps.0.bias"], "codec.mean": weight, text: weight, textual: weight },
    { strict: false, ignore: ["codec.", "text"] },
  );
  assert.equal(loose.unexpected, ["textual"]);
  assert.is(loose.missing.length, 5);
  for (const x of [m, wide]) x.dispose();
});

test("freezing by pattern, and gradients dropped", () => {
  const m = new Gate(4);
  m.setRequiresGrad(false, "steps.*.weight");
  m.forward(engine.ones([2, 4]))
    .sum()
    .backward();
  assert.equal(
    m
      .namedParameters()
      .filter(([, p]) => p.grad)
      .map(([n]) => n),
    ["to_gate.weight", "to_gate.bias", "steps.0.bias"],
  );
  m.zeroGrad();
  assert.ok(m.parameters().every((p) => p.grad === undefined));
  assert.throws(
    () => m.setRequiresGrad(true, "steps.0.biass"),
    /nothing matches "steps\.0\.biass"; did you mean "steps\.0\.bias"/,
  );
  assert.throws(() => m.setRequiresGrad(true, "step.*"), /nothing matches "step\.\*"; there are to_gate\.weight/);
  m.dispose();
});

test("layers are the ops with their parameters in the original's shapes", async () => {
  const x = normal(1)(engine, [2, 3, 4, 6, 6], key, "f32");
  const patches = new Conv3dPatch(engine, 3, 5, [2, 3, 2], { key, biasInit: normal(1) });
  assert.equal([...patches.weight.shape], [5, 3, 2, 3, 2]);
  const whole = conv3d(x, patches.weight, patches.bias, { stride: [2, 3, 2] }).permute([0, 2, 3, 4, 1]);
  await near("patches", patches.forward(x), { shape: [2, 2, 2, 3, 5], data: await whole.data() }, 1e-5);
  assert.throws(
    () => patches.forward(x.slice(4, 0, 5)),
    /must be multiples of the patch: T, H, W = 4, 6, 5 with patch 2, 3, 2; take 4, 6, 6/,
  );
  assert.throws(() => patches.forward(x.slice(1, 0, 2)), /patches: needs \[B, 3, T, H, W\]/);

  const image = x.slice(2, 0, 1).squeeze(2); // [2, 3, 6, 6]
  const conv = new Conv2d(engine, 3, 4, 3, { key, stride: 2, padding: 1, biasInit: normal(1) });
  const direct = conv2d(image, conv.weight, conv.bias, { stride: 2, padding: 1 });
  await near("conv", conv.forward(image), { shape: [2, 4, 3, 3], data: await direct.data() }, 0);
  assert.is(new Conv2d(engine, 3, 4, 1, { key, bias: false }).countParameters(), 12);

  const words = new Embedding(engine, 7, 3, { key });
  const table = await words.weight.data();
  const rows = words.forward(engine.tensor(Int32Array.of(6, 0, 6), [3, 1]));
  await near(
    "embedding",
    rows,
    { shape: [3, 1, 3], data: [6, 0, 6].flatMap((r) => [...table.slice(3 * r, 3 * r + 3)]) },
    0,
  );

  const norm = new LayerNorm(engine, 6, { key });
  assert.equal([...(await norm.weight!.data())], [1, 1, 1, 1, 1, 1]);
  const plain = new LayerNorm(engine, 6, { affine: false });
  assert.is(plain.namedParameters().length, 0);
  await near("norm", norm.forward(x), { data: await plain.forward(x).data() }, 1e-6);
  const line = await plain.forward(engine.tensor([1, 2, 3, 4, 5, 6])).data();
  await near(
    "norm by hand",
    line,
    { data: [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5].map((v) => v / Math.sqrt(35 / 12 + 1e-5)) },
    1e-6,
  );

  const mlp = new Mlp(engine, 3, 8, 2, { key });
  assert.equal(Object.keys(mlp.stateDict()), ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
  assert.equal([...mlp.forward(engine.ones([4, 3])).shape], [4, 2]);
  engine.tape.truncate(0);
});

test("activations in one launch or two give the same numbers", async () => {
  const layer = new Linear(engine, 6, 5, { key });
  const x = engine.tensor(
    Float32Array.from({ length: 18 }, (_, i) => Math.cos(i)),
    [3, 6],
  );
  for (const activation of ["silu", "geluTanh"] as const) {
    const apart = await layer.forward(x, activation).data();
    const fused = await engine.noGrad(() => layer.forward(x, activation)).data();
    assert.ok(apart.every((v, i) => Math.abs(v - fused[i]) < 1e-6));
  }
  engine.tape.truncate(0);
  layer.dispose();
});

test.after(() => engine.destroy());
test.run();
