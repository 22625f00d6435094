import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, dequantizeWeight, Key, linear, linearQuantized, quantizeWeight } from "../../engine/index.js";
import { SelfAttention } from "../../model/attention.js";
import { type Init, normal } from "../../model/init.js";
import { LayerNorm, Linear, Mlp } from "../../model/layers.js";
import { Module } from "../../model/module.js";
import {
  openQuantized,
  QuantizedLinear,
  quantizationError,
  quantize,
  quantized,
  quantizeLinear,
  saveQuantized,
} from "../../model/quantize.js";
import {
  encodeFloat32,
  memorySink,
  openSafetensors,
  type SafetensorsDtype,
  writeSafetensors,
} from "../../model/safetensors.js";
import { StateError } from "../../model/state.js";
import { STDiT } from "../../model/stdit.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { openLanguage } from "../../model/text/language.js";
import { languageModel } from "../../train/data/assets.js";
import { rejects } from "../files/throws.js";
import { relNorm, worstAbs } from "./compare.js";

const test = suite("quantize");
const engine = await createEngine();
const key = Key.from(11);

/** N(0, 1 / inputs). */
const gaussian: Init = (e, shape, k, dtype) => normal(1 / Math.sqrt(shape[1]))(e, shape, k, dtype);
/** A block of a transformer encoder, norms first. */
class Layer extends Module {
  static override readonly names = { norm1: "norm_1", norm2: "norm_2" };
  readonly norm1: LayerNorm;
  readonly attn: SelfAttention;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;
  constructor(width: number, k?: Key) {
    super(engine);
    this.norm1 = new LayerNorm(engine, width, { key: k });
    this.attn = new SelfAttention(engine, width, 4, { key: k?.fold(1) });
    this.norm2 = new LayerNorm(engine, width, { key: k });
    this.mlp = new Mlp(engine, width, 4 * width, width, { key: k?.fold(2), weightInit: gaussian });
  }
  forward(x: any): any {
    const h = x.add(this.attn.forward(this.norm1.forward(x), 1)); // [B, L, C]
    return h.add(this.mlp.forward(this.norm2.forward(h))); // [B, L, C]
  }
}
/** Gaussian weights of the usual size, residual connections, a norm at the end: what rounding meets in practice. */
class Encoder extends Module {
  readonly layers: Layer[];
  readonly norm: LayerNorm;
  constructor(width: number, depth: number, k?: Key) {
    super(engine);
    this.layers = Array.from({ length: depth }, (_, i) => new Layer(width, k?.fold(i)));
    this.norm = new LayerNorm(engine, width, { key: k });
  }
  forward(x: any): any {
    for (const layer of this.layers) x = layer.forward(x); // [B, L, C]
    return this.norm.forward(x); // [B, L, C]
  }
}

const random = (n: number, seed: number) => engine.noGrad(() => normal(1)(engine, [n], key.fold(seed), "f32"));
const bytesOf = async (m: Module) => {
  const sink = memorySink();
  await saveQuantized(sink, m);
  return sink.bytes();
};
const live = () => engine.memory().live;

test("relative errors of an encoder's outputs; memory", async () => {
  const [width, depth] = [128, 6];
  const x = random(2 * 40 * width, 1).reshape([2, 40, width]);
  const lines: string[] = [];
  for (const [form, limit] of [
    [{ bits: 8 }, 0.01],
    [{ bits: 8, group: 0 }, 0.016],
    [{ bits: 4 }, 0.15],
    [{ bits: 4, group: 64, scale: "f16" }, 0.17],
  ] as const) {
    if ("scale" in form && !engine.has("shader-f16")) continue;
    const before = live();
    const encoder = new Encoder(width, depth, key);
    const reference = engine.noGrad(() => engine.scope(() => encoder.forward(x)));
    const full = live();
    const report = quantize(encoder, form);
    assert.is(report.layers.length, 4 * depth);
    assert.is(full - live() >= 0.95 * (report.before - report.after), true, "the full weights were freed");
    const y = engine.noGrad(() => engine.scope(() => encoder.forward(x)));
    const error = await quantizationError(y, reference);
    assert.ok(error.relative < limit, `${JSON.stringify(form)}: ${error.relative}`);
    assert.ok(error.cosine > 1 - limit ** 2 * 2, `${error.cosine}`);
    lines.push(
      `${form.bits} bits, ${"group" in form ? (form.group ? `groups of ${form.group}` : "whole rows") : "groups of 32"}: ${(100 * error.relative).toFixed(2)}% (worst row ${(100 * error.worstRow).toFixed(2)}%), weights ${(report.before / report.after).toFixed(1)} times smaller`,
    );
    encoder.dispose();
    for (const t of [reference, y]) t.dispose();
    assert.is(live(), before, "nothing is left behind");
  }
  console.log(`\n  ${lines.join("\n  ")}`);
});

test("f16 activations", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const encoder = new Encoder(64, 2, key);
  const x = random(30 * 64, 2).reshape([1, 30, 64]);
  const reference = engine.noGrad(() => encoder.forward(x));
  encoder.to("f16");
  quantize(encoder, { bits: 8, scale: "f16" });
  const y = engine.noGrad(() => encoder.forward(x.to("f16")));
  assert.is(y.dtype, "f16");
  const { relative } = await quantizationError(y.to("f32"), reference);
  assert.ok(relative < 0.012, `${relative}`);
  encoder.dispose();
});

test("saved and loaded bit for bit, and the layers are those of the file", async () => {
  const encoder = new Encoder(64, 2, key);
  quantize(encoder, { bits: 8, group: 32, pattern: ["layers.*.attn.**"] });
  quantize(encoder, { bits: 4, pattern: "layers.1.mlp.fc1" });
  const bytes = await bytesOf(encoder);
  const file = await openSafetensors(bytes);
  assert.equal(JSON.parse(file.metadata.quantization), [
    {
      bits: 8,
      group: 32,
      scale: "f32",
      layers: ["layers.0.attn.qkv", "layers.0.attn.proj", "layers.1.attn.qkv", "layers.1.attn.proj"],
    },
    { bits: 4, group: 32, scale: "f32", layers: ["layers.1.mlp.fc1"] },
  ]);
  assert.equal(file.info("layers.1.mlp.fc1.weight").shape, [256, 8]);
  assert.is(file.info("layers.1.mlp.fc1.weight").dtype, "U32");
  const again = await openQuantized(() => new Encoder(64, 2), bytes);
  assert.instance(again.layers[0].attn.qkv, QuantizedLinear);
  assert.instance(again.layers[0].mlp.fc1, Linear);
  assert.equal(await bytesOf(again), bytes);
  const x = random(5 * 64, 3).reshape([1, 5, 64]);
  const [a, b] = engine.noGrad(() => [encoder.forward(x), again.forward(x)]);
  assert.equal(await a.data(), await b.data());
  encoder.dispose();
  again.dispose();
});

test("full weights are rounded as they are read, from any source and float type", async () => {
  const encoder = new Encoder(64, 2, key);
  const state = encoder.stateDict();
  const entries = [];
  for (const [name, t] of Object.entries(state)) {
    const dtype: SafetensorsDtype = name.endsWith("weight") ? "BF16" : "F32";
    const values = (await t.data()) as Float32Array;
    entries.push({ name: `enc.${name}`, dtype, shape: t.shape, data: encodeFloat32(values, dtype as "F32") });
  }
  const sink = memorySink();
  await writeSafetensors(sink, entries, {});
  const file = await openSafetensors(sink.bytes());
  await encoder.loadStateDict(file, { prefix: "enc." });
  const host = Object.fromEntries(
    await Promise.all(
      Object.entries(state).map(async ([name, t]) => [name, { shape: t.shape, data: await t.data() }] as const),
    ),
  );
  for (const bits of [8, 4] as const) {
    const build = () => quantized(() => new Encoder(64, 2), { bits });
    const models = { file: build(), host: build(), tensors: build() };
    const report = await models.file.loadStateDict(file, { prefix: "enc." });
    assert.equal([report.missing, report.unexpected], [[], []]);
    await models.host.loadStateDict(host);
    await models.tensors.loadStateDict(state);
    const other = new Encoder(64, 2);
    await other.loadStateDict(state);
    quantize(other, { bits });
    const expected = await bytesOf(other);
    for (const [from, m] of Object.entries(models)) {
      assert.equal(await bytesOf(m), expected, `${bits} bits from ${from}`);
      m.dispose();
    }
    other.dispose();
  }
  encoder.dispose();
});

test("a quantised build never holds the full weights", async () => {
  const [width, count] = [1024, 6];
  class Tower extends Module {
    readonly steps: Linear[];
    constructor() {
      super(engine);
      this.steps = Array.from({ length: count }, () => new Linear(engine, width, width, { bias: false }));
    }
    forward(x: any): any {
      for (const s of this.steps) x = s.forward(x); // [B, C]
      return x; // [B, C]
    }
  }
  const data = new Float32Array(width * width).fill(0.25);
  const source = Object.fromEntries(
    Array.from({ length: count }, (_, i) => [`steps.${i}.weight`, { shape: [width, width], data }]),
  );
  await engine.finish();
  engine.memoryPool.resetPeak();
  const before = live();
  const tower = quantized(() => new Tower(), { bits: 8 });
  await tower.loadStateDict(source);
  const { peak } = engine.memory();
  const [codes, chunk] = [count * width * width, 4 * width * width];
  assert.ok(peak - before < codes + 1.3 * chunk, `${peak - before} bytes at most, ${codes} of codes`);
  const y = engine.noGrad(() => tower.steps[5].forward(engine.ones([1, width])));
  assert.ok(worstAbs(await y.data(), new Float32Array(width).fill(width / 4)) < 1e-2);
  tower.dispose();
});

test("gradients pass through a frozen quantised layer to what lies below, and to the bias", async () => {
  const [below, above] = [1, 2].map((i) => new Linear(engine, 48, 48, { key: key.fold(i) }));
  const q = quantizeLinear(above, { bits: 4, group: 32 });
  const w = dequantizeWeight({ codes: q.weight, scale: q.weightScale }, 48, q.form);
  const x = random(20 * 48, 5).reshape([20, 48]);
  const grads = [];
  for (const top of [(t: any) => q.forward(t, "silu"), (t: any) => linear(t, w, above.bias).silu()]) {
    top(below.forward(x)).square().mean().backward();
    grads.push(await below.weight.grad!.data(), await above.bias!.grad!.data());
    below.zeroGrad();
    above.zeroGrad();
  }
  assert.ok(relNorm(grads[0], grads[2]) < 1e-5);
  assert.ok(relNorm(grads[1], grads[3]) < 1e-5);
  assert.is(q.parameters().length, 1, "the bias alone is a parameter");
});

test("weights that are unpacked in several bands", async () => {
  const [inputs, outputs] = [16384, 600];
  const w = random(inputs * outputs, 6).reshape([outputs, inputs]);
  const form = { bits: 8, group: 0 } as const;
  const { codes, scale } = quantizeWeight(w, form);
  w.dispose();
  const full = dequantizeWeight({ codes, scale }, inputs, form);
  const x = random(3 * inputs, 7)
    .reshape([3, inputs])
    .setRequiresGrad();
  const bias = random(outputs, 8);
  const y = linearQuantized(x, codes, scale, { ...form, bias, plan: "bands" });
  const expected = engine.noGrad(() => linear(x, full, bias));
  assert.ok(relNorm(await y.data(), await expected.data()) < 1e-5);
  const dy = random(3 * outputs, 9).reshape([3, outputs]);
  y.backward(dy);
  assert.ok(relNorm(await x.grad!.data(), await engine.noGrad(() => dy.matmul(full)).data()) < 1e-5);
  for (const t of [codes, scale, full, x, y]) t.dispose();
});

test("NaN and infinity in a weight show in the outputs of their group's row", async () => {
  for (const bits of [8, 4] as const)
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const w = engine.tensor([...Array(33).fill(1), bad, ...Array(30).fill(2)], [2, 32]);
      const { codes, scale } = quantizeWeight(w, { bits, group: 0 });
      const y = await linearQuantized(engine.ones([1, 32]), codes, scale, { bits, group: 0 }).data();
      assert.ok(Math.abs(y[0] - 32) < 1e-4 && Number.isNaN(y[1]), `${y}`);
    }
});

test("the language model that ships, quantised as it is read", async () => {
  const prompts = ["a red fox moving up", "a blue ox spinning over a green cat"];
  const full = await openLanguage(engine, languageModel());
  const reference = await full.encode(prompts);
  const rows = (e: typeof reference) => engine.tensor(e.embeddings, e.shape);
  const lines: string[] = [];
  for (const [bits, limit] of [
    [8, 0.01],
    [4, 0.15],
  ] as const) {
    const encoder = await openLanguage(engine, languageModel(), { bits });
    assert.ok(encoder.model.parameters().length < full.model.parameters().length / 2);
    assert.is.not(encoder.fingerprint, full.fingerprint);
    const error = await quantizationError(rows(await encoder.encode(prompts)), rows(reference));
    assert.ok(error.relative < limit, `${bits} bits: ${error.relative}`);
    lines.push(`${bits} bits: ${(100 * error.relative).toFixed(2)}%`);
    encoder.dispose();
  }
  full.dispose();
  console.log(`\n  the language model's states: ${lines.join(", ")}`);
});

test("a T5 from bf16, quantised as it is read, is one that was loaded and then quantised", async () => {
  const config = { vocabSize: 50, hidden: 64, headDim: 16, heads: 4, intermediate: 96, depth: 2 };
  const random = new T5Encoder(engine, config, { key });
  const entries = [];
  for (const [name, t] of Object.entries(random.stateDict()))
    entries.push({
      name,
      dtype: "BF16" as const,
      shape: t.shape,
      data: encodeFloat32((await t.data()) as Float32Array, "BF16"),
    });
  const sink = memorySink();
  await writeSafetensors(sink, entries, {});
  const file = await openSafetensors(sink.bytes());
  await random.loadStateDict(file);
  const ids = engine.tensor(
    Int32Array.from({ length: 12 }, (_, i) => (7 * i) % 50),
    [2, 6],
  );
  const reference = engine.noGrad(() => random.forward(ids));
  const streamed = quantized(() => new T5Encoder(engine, config), { bits: 8 });
  const report = await streamed.loadStateDict(file);
  assert.equal([report.missing, report.unexpected], [[], []]);
  quantize(random, { bits: 8 });
  const [a, b] = engine.noGrad(() => [streamed.forward(ids), random.forward(ids)]);
  assert.equal(await a.data(), await b.data());
  const { relative } = await quantizationError(a, reference);
  assert.ok(relative < 0.01, `${relative}`);
  const again = await openQuantized(() => new T5Encoder(engine, config), await bytesOf(streamed));
  assert.equal(await engine.noGrad(() => again.forward(ids)).data(), await a.data());
  for (const m of [random, streamed, again]) m.dispose();
});

test("a whole STDiT, all of its linears", async () => {
  const config = {
    hidden: 32,
    depth: 2,
    heads: 2,
    frames: 2,
    latent: [4, 4],
    captionChannels: 24,
    maxLength: 5,
  } as const;
  const model = new STDiT(engine, config, { key });
  const [x, y] = [random(4 * 2 * 16, 12).reshape([1, 4, 2, 4, 4]), random(5 * 24, 13).reshape([1, 5, 24])];
  const run = () => engine.noGrad(() => engine.scope(() => model.forward(x, [400], y)));
  for (const name of ["weight", "bias"] as const) {
    const t = model.finalLayer.linear[name]!;
    const values = random(t.size, 14).reshape(t.shape).mul(0.2);
    t.point(values.storage, 0);
  }
  const reference = run();
  const { layers } = quantize(model, { bits: 8 });
  assert.ok(layers.includes("t_embedder.mlp.0") && layers.includes("blocks.1.cross_attn.kv_linear"));
  const { relative } = await quantizationError(run(), reference);
  assert.ok(relative > 0 && relative < 0.02, `${relative}`);
  model.dispose();
});

test("bad input", async () => {
  const encoder = new Encoder(64, 1, key);
  const refuse = (options: any, message: RegExp) => assert.throws(() => quantize(encoder, options), message);
  refuse({ bits: 5 }, /quantize: bits must be 8 or 4: got 5/);
  refuse({ bits: 4, group: 20 }, /group must be a multiple of 32/);
  refuse(
    { bits: 8, pattern: "layers.0.attn.qk" },
    /no linear layer matches "layers.0.attn.qk"; did you mean "layers.0.attn.qkv"/,
  );
  refuse({ bits: 8, pattern: "head.**" }, /no linear layer matches "head.\*\*"; there are layers.0.attn.qkv, /);
  refuse({ bits: 8, patern: "**" }, /unknown option "patern"; did you mean "pattern"/);
  refuse({ bits: 8, scale: "f64" }, /scale must be "f32" or "f16": got "f64"/);
  assert.instance(encoder.layers[0].attn.qkv, Linear, "nothing was replaced");
  const sink = memorySink();
  await writeSafetensors(sink, encoder.entries(), {});
  await rejects(() => openQuantized(() => new Encoder(64, 1), sink.bytes()), 'its metadata has no "quantization"');
  quantize(encoder, { bits: 8 });
  const bytes = await bytesOf(encoder);
  await rejects(() => openQuantized(() => new Encoder(32, 1), bytes), "of another shape");
  await rejects(() => new Encoder(64, 1).loadStateDict({}), "missing");
  const other = quantized(() => new Encoder(64, 1), { bits: 4 });
  try {
    await other.loadStateDict(await openSafetensors(bytes));
    assert.unreachable("codes of another form were taken");
  } catch (error) {
    assert.instance(error, StateError);
    assert.match((error as Error).message, /layers.0.attn.qkv.weight is \[192, 16\], the model's is \[192, 8\]/);
  }
});

test.after(() => engine.destroy());
test.run();
