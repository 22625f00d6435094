import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, mse, type Tensor } from "../../engine/index.js";
import { memorySink, openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { encodeT5Config, type T5Config, t5Config, t5ConfigOf } from "../../model/t5/config.js";
import { bucketIndex, positionBucket } from "../../model/t5/position.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { AdamW } from "../../train/optim.js";
import { rejects } from "../files/throws.js";
import { type Golden, golden } from "../golden.js";
import { near, relNorm, worstAbs } from "./compare.js";

const test = suite("t5");
const engine = await createEngine();
const { tensors, metadata } = await golden("t5_encoder");
const GOLDEN = JSON.parse(metadata.cfg);
const config: T5Config = t5Config({
  vocabSize: GOLDEN.vocab,
  hidden: GOLDEN.d_model,
  headDim: GOLDEN.d_kv,
  heads: GOLDEN.heads,
  intermediate: GOLDEN.d_ff,
  depth: GOLDEN.layers,
  buckets: GOLDEN.buckets,
  maxDistance: GOLDEN.max_distance,
  eps: GOLDEN.eps,
});

/** Golden tensors whose names begin with `prefix`, without it. */
const part = (prefix: string): Record<string, Golden> =>
  Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), t]] : [])),
  );
const upload = (t: Golden) => engine.tensor(t.data, t.shape);

test("buckets of distances, exactly", () => {
  const { data: distances } = tensors["bucket.relative_position"];
  assert.equal(
    Array.from(distances, (d) => positionBucket(d, config)),
    Array.from(tensors["bucket.bucket"].data),
  );
  // Query 2 of 4: keys 2 and 1 before, itself, 1 after.
  assert.equal([...bucketIndex(4, config).subarray(8, 12)], [2, 1, 0, 17]);
});

test("the golden model: states by layer, and every gradient", async () => {
  const model = new T5Encoder(engine, config);
  const report = await model.loadStateDict(part("weights."));
  assert.is(report.loaded.length, 21);
  const worst: string[] = [];
  const [ids, mask] = [upload(tensors["in.ids"]), upload(tensors["in.mask"])];
  const states: [string, Float32Array][] = [];
  const waiting: Promise<void>[] = [];
  const off = model.hook("encoder.block.*", (path, out) => {
    const name = `out.hidden_${Number(path.split(".").at(-1)) + 1}`;
    waiting.push(out.data().then((data: Float32Array) => void states.push([name, data])));
  });
  const plain = engine.noGrad(() => model.forward(ids, mask));
  worst.push((await near("last", plain, tensors["out.last_hidden_state"], 2e-5)).toExponential(1));
  await Promise.all(waiting);
  off();
  assert.is(states.length, 2);
  for (const [name, data] of states) worst.push((await near(name, data, tensors[name], 2e-5)).toExponential(1));
  plain.dispose();

  const out = model.forward(ids, mask);
  await near("recorded", out, tensors["out.last_hidden_state"], 2e-5);
  out.mul(upload(tensors["in.loss_rand"])).mean().backward();
  for (const [name, p] of model.namedParameters())
    worst.push((await near(name, p.grad!, tensors[`grad.${name}`], 1e-4, relNorm)).toExponential(1));
  console.log(`\n  ${worst.join(" ")}`);
  model.dispose();
});

test("padding changes nothing of what precedes it", async () => {
  const model = new T5Encoder(engine, config);
  await model.loadStateDict(part("weights."));
  const { data: ids } = tensors["in.ids"];
  const short = engine.tensor(ids.slice(24, 33), [1, 9], "i32");
  const alone = engine.noGrad(() => model.forward(short));
  const { data, shape } = tensors["out.last_hidden_state"];
  const rows = data.slice(24 * shape[2], 33 * shape[2]);
  await near("nine tokens", alone, { shape: [1, 9, shape[2]], data: rows }, 2e-5);
  model.dispose();
});

test("f16 storage: states stay near, also where the feed-forward is beyond f16", async () => {
  if (!engine.has("shader-f16")) {
    console.log(`\n  ${engine.info.name} has no f16: not checked`);
    return;
  }
  const wide = new T5Encoder(engine, config);
  const half = new T5Encoder(engine, config, { dtype: "f16" });
  const weights = part("weights.");
  // With both times 1e3 their product, and what block 0 adds to the sum, are beyond 65504.
  const grown = (name: string, by: number) => ({ ...weights[name], data: weights[name].data.map((x) => x * by) });
  const [gate, up] = ["wi_0", "wi_1"].map((n) => `encoder.block.0.layer.1.DenseReluDense.${n}.weight`);
  const [ids, mask] = [upload(tensors["in.ids"]), upload(tensors["in.mask"])];
  for (const scale of [1, 1e3]) {
    const given = { ...weights, [up]: grown(up, scale), [gate]: grown(gate, scale) };
    await wide.loadStateDict(given);
    await half.loadStateDict(given);
    let top!: Tensor;
    const off = wide.hook("encoder.block.0", (_, out) => {
      top = engine.noGrad(() => out.abs().max().keep());
    });
    const [a, b] = await Promise.all([wide, half].map((m) => engine.noGrad(() => m.forward(ids, mask)).data()));
    off();
    const first = 24 * config.hidden;
    const worst = relNorm(b.subarray(0, first), a.subarray(0, first));
    console.log(
      `  f16, times ${scale}: states up to ${(await top.item()).toExponential(1)}, norm ${worst.toExponential(1)}`,
    );
    assert.ok(worst < 5e-3, `off by ${worst}`);
    assert.is((await top.item()) > 65504, scale > 1);
  }
  assert.is(half.shared.weight.dtype, "f16");
  half.dispose();
  wide.dispose();
});

test("trained from a random start, the loss falls", async () => {
  const model = new T5Encoder(engine, { ...config, depth: 1 }, { key: Key.from(5) });
  const optimizer = new AdamW(model.parameters(), { lr: 0.01 });
  const [ids, mask] = [upload(tensors["in.ids"]), upload(tensors["in.mask"])];
  const target = upload(tensors["in.loss_rand"]);
  const before = await model.encoder.block[0].layer[0].selfAttention.relativeAttentionBias!.weight.data();
  const losses: number[] = [];
  for (let step = 0; step < 3; step++) {
    const loss = engine.scope(() => mse(model.forward(ids, mask), target));
    losses.push(await loss.item());
    loss.backward();
    for (const [name, p] of model.namedParameters()) assert.ok(p.grad, `${name} has a gradient`);
    optimizer.step();
    model.zeroGrad();
  }
  console.log(`  losses ${losses.map((l) => l.toFixed(4)).join(", ")}`);
  assert.ok(losses[1] < losses[0] && losses[2] < losses[1], `${losses}`);
  const after = await model.encoder.block[0].layer[0].selfAttention.relativeAttentionBias!.weight.data();
  assert.ok(worstAbs(after, before) > 1e-3, "the table of positions is trained too");
  optimizer.dispose();
  model.dispose();
});

test("the configuration from config.json, and what is refused", async () => {
  const json = encodeT5Config(config);
  assert.equal(t5ConfigOf(json), config);
  const refused: [change: object, part: string][] = [
    [
      { feed_forward_proj: "relu" },
      'the feed-forward must be gated: config.json says feed_forward_proj "relu", "gated-gelu" is read',
    ],
    [{ feed_forward_proj: undefined }, '"relu" (by leaving it out)'],
    [{ feed_forward_proj: "gated-silu" }, 'feed_forward_proj "gated-silu"'],
    [{ model_type: "mt5" }, 'another family: config.json says model_type "mt5"'],
    [{ d_ff: undefined }, 'config.json lacks "d_ff"'],
    [{ num_heads: 0 }, "heads must be a whole number from 1: got 0"],
    [{ relative_attention_num_buckets: 30 }, "buckets must divide by 4"],
    [{ relative_attention_max_distance: 8 }, "maxDistance must be above the exact distances, 8"],
    [{ layer_norm_epsilon: 0 }, "eps must be a number above 0"],
  ];
  for (const [change, part] of refused) await rejects(() => t5ConfigOf({ ...json, ...change }), part);
  await rejects(() => t5Config({ dModel: 4 } as object), 't5: unknown option "dModel"');
});

test("names of a whole T5 load too, and others are told", async () => {
  const model = new T5Encoder(engine, config);
  const { "shared.weight": table, ...rest } = part("weights.");
  const whole = {
    ...rest,
    "encoder.embed_tokens.weight": table,
    "decoder.final_layer_norm.weight": table,
    "lm_head.weight": table,
  };
  assert.is((await model.loadStateDict(whole)).loaded.length, 21);
  assert.equal([...(await model.shared.weight.data())], [...table.data]);
  // What is saved has the names of an encoder alone, and every bit.
  const sink = memorySink();
  await writeSafetensors(sink, model.entries());
  const saved = await openSafetensors(sink.bytes());
  assert.equal([...saved.tensors.keys()].sort(), Object.keys(part("weights.")).sort());
  for (const [name, { data }] of Object.entries(part("weights."))) assert.equal(await saved.float32(name), data, name);
  const { "encoder.final_layer_norm.weight": norm, ...short } = whole as Record<string, Golden>;
  await rejects(() => model.loadStateDict(short), "missing: encoder.final_layer_norm.weight");
  await rejects(() => model.loadStateDict({ ...whole, "encoder.final_layer_norm.wieght": norm }), "did you mean");
  const ids = engine.tensor([1, 2], [2], "i32");
  await rejects(() => model.forward(ids), "ShapeError: t5: ids must be [B, L]");
  await rejects(() => model.forward(ids.reshape([1, 2]), ids), "the mask must have the ids' shape");
  model.dispose();
});

test.run();
