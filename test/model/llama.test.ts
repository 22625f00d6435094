import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, crossEntropy, Key } from "../../engine/index.js";
import {
  encodeLlamaConfig,
  type LlamaConfig,
  llamaConfig,
  llamaConfigOf,
  type RopeScaling,
} from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import { ropeFrequencies } from "../../model/llama/rope.js";
import { AdamW } from "../../train/optim.js";
import { type Golden, golden } from "../golden.js";
import { near, relNorm } from "./compare.js";
import { checkLlama, goldenConfig } from "./llama-checks.js";

const test = suite("llama");
const engine = await createEngine();
const { tensors, metadata } = await golden("llama");
const config = goldenConfig(metadata);

/** Golden tensors whose names begin with `prefix`, without it. */
const part = (prefix: string): Record<string, Golden> =>
  Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), t]] : [])),
  );
const upload = (t: Golden) => engine.tensor(t.data, t.shape);

test("the golden model: states by layer, and every gradient", async () => {
  const { checks, worst, failures } = await checkLlama(engine, { tensors, metadata });
  console.log(`\n  ${checks} checks; worst ${JSON.stringify(worst)}`);
  assert.is(failures.join("\n"), "");
  assert.is(checks, 26);
});

test("rotary frequencies of every scaling, against the formulas in f64", () => {
  const of = (ropeScaling: RopeScaling, length = 10, headDim = 16) =>
    ropeFrequencies(llamaConfig({ hidden: 64, heads: 4, headDim, maxPositions: 100, theta: 5e5, ropeScaling }), length);
  const plain = (base: number) => Array.from({ length: 8 }, (_, i) => 1 / base ** ((2 * i) / 16));
  const close = (got: Float64Array, expected: number[]) =>
    expected.forEach((x, i) => {
      assert.ok(Math.abs(got[i] / x - 1) < 1e-12, `frequency ${i}: ${got[i]} for ${x}`);
    });
  close(of({ type: "default" }), plain(5e5));
  close(
    of({ type: "linear", factor: 4 }),
    plain(5e5).map((f) => f / 4),
  );
  // Up to the trained length nothing changes; beyond, the base grows.
  close(of({ type: "dynamic", factor: 2 }, 100), plain(5e5));
  close(of({ type: "dynamic", factor: 2 }, 250), plain(5e5 * ((2 * 250) / 100 - 1) ** (16 / 14)));
  const llama3 = {
    type: "llama3",
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 8192,
  } as const;
  const expected = plain(5e5).map((f) => {
    const wave = (2 * Math.PI) / f;
    if (wave < 8192 / 4) return f;
    if (wave > 8192 / 1) return f / 8;
    const smooth = (8192 / wave - 1) / (4 - 1);
    return ((1 - smooth) * f) / 8 + smooth * f;
  });
  close(of(llama3), expected);
  const ratios = expected.map((f, i) => plain(5e5)[i] / f);
  assert.ok(ratios[0] === 1 && ratios[7] > 7.99 && ratios.some((r) => r > 1.01 && r < 7.9), `${ratios}`);
});

test("config.json there and back, and what it may not say", () => {
  const scaled = llamaConfig({
    ...config,
    ropeScaling: { type: "llama3", factor: 32, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 },
  });
  for (const c of [config, scaled]) assert.equal(llamaConfigOf(JSON.stringify(encodeLlamaConfig(c))), c);
  const json = encodeLlamaConfig(config);
  const old = { ...json, head_dim: undefined, rope_scaling: { type: "linear", factor: 2 } };
  assert.equal(llamaConfigOf(old).ropeScaling, { type: "linear", factor: 2 });
  assert.is(llamaConfigOf(old).headDim, 8);
  const bad: [object, RegExp][] = [
    [{ rope_scaling: { rope_type: "yarn", factor: 2 } }, /unknown type "yarn"/],
    [{ rope_scaling: { rope_type: "lama3" } }, /did you mean "llama3"/],
    [{ rope_scaling: { rope_type: "linear" } }, /factor must be a number from 1/],
    [{ model_type: "qwen2" }, /only "llama" is read here/],
    [{ hidden_act: "gelu" }, /hidden_act must be "silu"/],
    [{ num_key_value_heads: 3 }, /kvHeads must divide heads 4/],
    [{ vocab_size: undefined }, /lacks "vocab_size"/],
  ];
  for (const [change, message] of bad) assert.throws(() => llamaConfigOf({ ...json, ...change }), message);
  assert.throws(() => llamaConfig({ kvheads: 2 } as Partial<LlamaConfig>), /did you mean "kvHeads"/);
});

test("half storage: states near those of f32", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const model = new Llama(engine, config, { head: false, dtype: "f16" });
  await model.loadStateDict(part("weights."));
  const states = engine.noGrad(() => model.hiddenStates(upload(tensors["in.ids"]), upload(tensors["in.mask"])));
  assert.is(states.dtype, "f16");
  const { data } = tensors["out.last_hidden_state"];
  const off = await near("f16", states, { data }, 5e-3, relNorm);
  console.log(`\n  f16: norm ${off.toExponential(1)}`);
});

test("three steps on one batch lower the loss; its own head or the embeddings'", async () => {
  for (const tied of [true, false]) {
    const model = new Llama(engine, { ...config, tied }, { key: Key.from(1) });
    assert.is("lm_head.weight" in model.stateDict(), !tied);
    const optimizer = new AdamW(Object.fromEntries(model.namedParameters()), { lr: 3e-3 });
    const ids = upload(tensors["in.ids"]);
    const next = engine.tensor(Int32Array.from(tensors["in.ids"].data).map((_, i, all) => all[(i + 1) % all.length]));
    const losses: number[] = [];
    for (let step = 0; step < 4; step++) {
      const loss = engine.scope(() => {
        const y = crossEntropy(model.forward(ids).reshape([-1, 50]), next);
        y.backward();
        optimizer.step();
        optimizer.zeroGrad();
        return y.detach();
      });
      losses.push(await loss.item());
    }
    // At first all words are nearly equally likely.
    assert.ok(Math.abs(losses[0] - Math.log(50)) < 0.3, `${losses}`);
    for (let i = 1; i < 4; i++) assert.ok(losses[i] < losses[i - 1] - 0.01, `${losses}`);
    optimizer.dispose();
    model.dispose();
  }
});

test("bad layers, shapes and heads are refused", async () => {
  const model = new Llama(engine, config, { head: false });
  const ids = engine.zeros([1, 3], "i32");
  assert.throws(() => model.hiddenStates(ids, undefined, 3), /layer must be a whole number from -3 to 2: got 3/);
  assert.throws(() => model.hiddenStates(ids, engine.zeros([3], "i32")), /mask must have the ids' shape/);
  assert.throws(() => model.hiddenStates(engine.zeros([3], "i32")), /ids must be \[B, L\]/);
  assert.throws(() => model.forward(ids), /made without a head/);
});

test.run();
