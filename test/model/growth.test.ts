import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal } from "../../engine/index.js";
import { openModel, saveModel } from "../../model/checkpoint.js";
import { STDIT_XL_2, type STDiTConfig } from "../../model/config.js";
import { parameterCount } from "../../model/count.js";
import {
  decodeGrowth,
  describeGrowth,
  encodeGrowth,
  grow,
  grownSource,
  growthPlan,
  newParameters,
  setTrained,
} from "../../model/growth.js";
import { addLanguage } from "../../model/language.js";
import { memorySink } from "../../model/safetensors.js";
import { StateError } from "../../model/state.js";
import { STDiT } from "../../model/stdit.js";
import { AdamW } from "../../train/optim.js";
import { golden } from "../golden.js";
import { relNorm } from "./compare.js";
import { checkExpand } from "./expand-checks.js";
import { equalBits, inputsOf, outputOf, randomize, SMALL, thrown } from "./grown.js";

const test = suite("growth");
const engine = await createEngine();
const key = Key.from(11);

const drawn = (depth: number, options: Parameters<typeof growthPlan>[1]) =>
  growthPlan(depth, options)
    .blocks.map((b) => `${b.source}${b.isNew ? "*" : ""}`)
    .join(" ");

test("the order of blocks: m new on n old by m/n = p/q in lowest terms", () => {
  const insert = (depth: number, blocks: number) => drawn(depth, { mode: "insert", blocks });
  const news = (depth: number, blocks: number) =>
    growthPlan(depth, { mode: "insert", blocks }).blocks.flatMap((b, i) => (b.isNew ? [i] : []));
  const range = (n: number) => Array.from({ length: n }, (_, i) => i);
  assert.equal(
    news(28, 28),
    range(28).map((i) => 2 * i + 1),
  );
  assert.equal(
    news(28, 14),
    range(14).map((i) => 3 * i + 2),
  );
  assert.equal(
    news(28, 56),
    range(84).filter((i) => i % 3 > 0),
  );
  assert.ok(insert(28, 28).startsWith("0 0* 1 1* 2") && insert(28, 28).endsWith("27 27*"));
  assert.ok(insert(28, 14).startsWith("0 1 1* 2 3 3*") && insert(28, 14).endsWith("26 27 27*"));
  assert.ok(insert(28, 56).startsWith("0 0* 0* 1 1* 1*"));
  assert.ok(insert(28, 4).startsWith("0 1 2 3 4 5 6 6* 7"));
  assert.ok(insert(28, 7).startsWith("0 1 2 3 3* 4"));
  assert.ok(insert(28, 12).startsWith("0 1 2 3 4 5 6 6* 6* 6* 7"));
  assert.ok(insert(28, 42).startsWith("0 1 1* 1* 1* 2 3 3*"));
  assert.is(insert(28, 9), drawn(28, { mode: "suffix", blocks: 9 }));
  assert.is(insert(4, 6), "0 1 1* 1* 1* 2 3 3* 3* 3*");
  assert.is(insert(4, 2), "0 1 1* 2 3 3*");
  assert.is(insert(4, 3), "0 1 2 3 3* 3* 3*");
  assert.is(insert(4, 1), "0 1 2 3 3*");
  assert.is(drawn(3, { mode: "prefix", blocks: 2 }), "0* 0* 0 1 2");
  assert.is(drawn(3, { mode: "suffix", blocks: 2 }), "0 1 2 2* 2*");
  assert.is(growthPlan(3, { mode: "prefix", blocks: 2 }).temporalOwner, 2);
  assert.is(growthPlan(3, { mode: "prefix", blocks: 2, temporalOwner: "first" }).temporalOwner, 0);
  assert.is(growthPlan(3, { mode: "insert", blocks: 3 }, 2).temporalOwner, 4);
});

test("the golden model: every scheme keeps its output; gradients at growth, three steps of training", async () => {
  const { checks, worst, failures } = await checkExpand(engine, await golden("expand"));
  console.log(`\n  ${checks} checks; worst ${JSON.stringify(worst)}`);
  assert.is(failures.join("\n"), "");
  assert.is(checks, 77);
});

/** Without the keys' part of an attention's bias, whose gradient is rounding alone. */
function withoutKeys(name: string, values: ArrayLike<number>, C: number): number[] {
  const [from, to] = name.endsWith("qkv.bias") ? [C, 2 * C] : name.endsWith("kv_linear.bias") ? [0, C] : [0, 0];
  return Array.from(values).filter((_, i) => i < from || i >= to);
}

test("50 random growths of random models: outputs equal to the last bit", async () => {
  // Philox by a key decides, so that a failure comes again.
  const draws = await normal(engine, key, [400]).data();
  let at = 0;
  const below = (n: number) => Math.floor(Math.abs(draws[at++]) * 1e4) % n;
  const inputs = inputsOf(engine, { ...SMALL, languageChannels: 3 });
  const seen = new Set<string>();
  for (let i = 0; i < 50; i++) {
    const depth = 1 + below(i < 6 ? 6 : 4);
    const heads = 1 + below(2);
    const hidden = heads * 4 * (1 + below(2));
    const language: Partial<STDiTConfig> =
      i % 3
        ? {}
        : {
            languageChannels: 3,
            languageLength: 4,
            languageGate: (["scalar", "head", "channel"] as const)[(i % 9) / 3],
          };
    const config = { ...SMALL, depth, hidden, heads, temporalOwner: below(depth), ...language };
    const base = new STDiT(engine, config, { key: key.fold(i) });
    await randomize(base, key.fold(100 + i));
    const before = await outputOf(base, inputs);
    for (const mode of ["insert", "prefix", "suffix"] as const) {
      const blocks = 1 + below(i < 6 ? 7 : 4);
      const grown = await grow(base, { mode, blocks });
      assert.is(grown.blocks.length, depth + blocks);
      assert.ok(equalBits(await outputOf(grown, inputs), before), `${mode} ${blocks} on ${JSON.stringify(config)}`);
      assert.is(grown.countParameters(), parameterCount(grown.config));
      seen.add(`${mode} ${depth} ${blocks}`);
      grown.dispose();
    }
    base.dispose();
  }
  assert.ok(seen.size > 40, `${seen.size} different growths`);
});

test("gradient at growth: in new blocks the last linears alone", async () => {
  const zeroed = /\.(attn\.proj|attn_temp\.proj|cross_attn\.proj|mlp\.fc2)\.(weight|bias)$/;
  const base = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  await randomize(base, key);
  const inputs = inputsOf(engine, base.config);
  const gradients = async (model: STDiT) => {
    model.zeroGrad();
    engine.scope(() => model.forward(inputs.x, inputs.t, inputs.y, inputs.mask).square().mean().backward());
    const list = await Promise.all(model.namedParameters().map(async ([n, p]) => [n, await p.grad!.data()] as const));
    model.zeroGrad();
    return Object.fromEntries(list);
  };
  const before = await gradients(base);
  const grown = await grow(base, { mode: "insert", blocks: 2 });
  const after = await gradients(grown);
  let zeros = 0;
  for (const [name, grad] of Object.entries(after)) {
    const block = /^blocks\.(\d+)\.(.*)/.exec(name);
    const index = Number(block?.[1] ?? 0);
    if (block && index % 2 === 1) {
      assert.is(
        grad.some((v) => v !== 0),
        zeroed.test(name),
        name,
      );
      if (!zeroed.test(name)) zeros++;
      continue;
    }
    const old = before[block ? `blocks.${index / 2}.${block[2]}` : name];
    assert.ok(relNorm(withoutKeys(name, grad, 8), withoutKeys(name, old, 8)) < 1e-5, name);
  }
  assert.is(zeros, 2 * 11);
  for (const m of [base, grown]) m.dispose();
});

test("growing again, and back from a file: the same record and output", async () => {
  const base = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  await randomize(base, key);
  const inputs = inputsOf(engine, base.config);
  const before = await outputOf(base, inputs);
  assert.is(base.growth, undefined);
  const once = await grow(base, { mode: "prefix", blocks: 1 });
  assert.equal(once.growth, {
    steps: [{ mode: "prefix", blocks: 1 }],
    blocks: [
      { from: 0, step: 1 },
      { from: 0, step: 0 },
      { from: 1, step: 0 },
    ],
  });
  const twice = await grow(once, { mode: "insert", blocks: 3 });
  assert.is(
    describeGrowth(twice),
    "6 blocks, 4 of them new (* prefix 1, ** insert 3)\n0* 0** 0 0** 1 1**\nframes' positions enter at index 2: block 0",
  );
  assert.ok(equalBits(await outputOf(twice, inputs), before));
  const { growth } = twice;
  assert.equal(decodeGrowth(encodeGrowth(growth!), 6), growth);

  const sink = memorySink();
  await saveModel(sink, { model: twice });
  const again = await openModel(engine, sink.bytes());
  assert.equal(again.model.growth, growth);
  assert.equal(again.model.config, twice.config);
  assert.ok(equalBits(await outputOf(again.model, inputs), before));
  again.dispose();

  // Straight from the base's file: the base itself is never on the GPU.
  const small = memorySink();
  await saveModel(small, { model: base });
  const { live } = engine.memory();
  const direct = await openModel(engine, small.bytes(), { grow: { mode: "suffix", blocks: 4 } });
  assert.is(direct.model.countParameters(), parameterCount({ ...base.config, depth: 6 }));
  assert.ok(equalBits(await outputOf(direct.model, inputs), before));
  direct.dispose();
  assert.is(engine.memory().live, live);

  const edited = (change: (r: { steps: unknown; blocks: { from: number }[] }) => void) => {
    const record = JSON.parse(encodeGrowth(growth!));
    change(record);
    return JSON.stringify(record);
  };
  assert.throws(() => decodeGrowth("{", 6, "m.safetensors"), /growth: the record in m\.safetensors is no JSON/);
  assert.throws(() => decodeGrowth("null", 6), /must have lists "steps" and "blocks"/);
  assert.throws(() => decodeGrowth(encodeGrowth(growth!), 5), /is of 6 blocks, the model has 5/);
  assert.throws(
    () =>
      decodeGrowth(
        edited((r) => (r.blocks[3].from = 1)),
        6,
      ),
    /says of block 3 {"from":1,"step":2}/,
  );
  assert.throws(
    () =>
      decodeGrowth(
        edited((r) => (r.steps = [{ mode: "isert", blocks: 4 }])),
        6,
      ),
    /did you mean "insert"/,
  );
  assert.throws(
    () =>
      decodeGrowth(
        edited((r) => (r.steps = [{ mode: "insert", blocks: 6 }])),
        6,
      ),
    /adds 6 blocks/,
  );
  for (const m of [base, once, twice]) m.dispose();
});

test("only what is new may be trained", async () => {
  const base = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  await randomize(base, key);
  assert.throws(() => newParameters(base), /nothing new/);
  const grown = await grow(base, { mode: "insert", blocks: 2 });
  const names = (model: STDiT) => newParameters(model).map(([n]) => n);
  assert.is(names(grown).length, 2 * 19);
  assert.ok(names(grown).every((n) => /^blocks\.[13]\./.test(n)));
  const both = await addLanguage(grown, { channels: 3, maxLength: 4, key });
  assert.is(names(both).length, 2 * 19 + 4 * 7 + 4);
  setTrained(both, "new");
  assert.ok(both.namedParameters().every(([n, p]) => p.requiresGrad === names(both).includes(n)));
  const before = await base.blocks[1].mlp.fc1.weight.data();
  const inputs = inputsOf(engine, both.config);
  const optimizer = new AdamW(Object.fromEntries(both.namedParameters()), { lr: 1e-2 });
  assert.equal([...optimizer.names], names(both));
  const { x, t, y, mask, language } = inputs;
  both.forward(x, t, y, mask, { language }).square().mean().backward();
  optimizer.step();
  assert.ok(equalBits(await both.blocks[2].mlp.fc1.weight.data(), before));
  assert.ok((await both.blocks[3].mlp.fc2.weight.data()).some((v) => v !== 0));
  setTrained(both, "all");
  assert.ok(both.parameters().every((p) => p.requiresGrad));
  assert.throws(() => setTrained(both, "old" as "new"), /must be "all" or "new": got "old"/);
  for (const m of [base, grown, both]) m.dispose();
});

test("the paper's sizes", () => {
  const size = (depth: number, more: Partial<STDiTConfig> = {}) => parameterCount({ ...STDIT_XL_2, depth, ...more });
  assert.is(size(28), 759_620_768);
  assert.is(size(42), 1_131_580_832);
  assert.is(size(56), 1_503_540_896);
  assert.is(size(84), 2_247_461_024);
  assert.is(size(56, { languageChannels: 4096 }), 1_807_118_296);
  for (const blocks of [14, 28, 56]) assert.is(growthPlan(28, { mode: "insert", blocks }).blocks.length, 28 + blocks);
});

test("what is no growth is refused, and nothing is changed", async () => {
  const base = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  const { live } = engine.memory();
  for (const [options, message] of [
    [{ mode: "insert", blocks: 0 }, /growth: blocks must be a whole number from 1: got 0; .*the 2 there are/],
    [{ mode: "insert", blocks: -3 }, /got -3/],
    [{ mode: "insert", blocks: 1.5 }, /got 1\.5/],
    [{ mode: "insert", blocks: Number.NaN }, /got NaN/],
    [{ mode: "insert", blocks: Number.POSITIVE_INFINITY }, /got Infinity/],
    [{ mode: "insert", blocks: "4" }, /got "4"/],
    [{ mode: "insert" }, /got undefined/],
    [
      { mode: "inserts", blocks: 2 },
      /growth: unknown mode "inserts"; did you mean "insert"\? \(insert, prefix, suffix\)/,
    ],
    [{ mode: 3, blocks: 2 }, /unknown mode 3/],
    [{ mode: "insert", block: 2 }, /unknown option "block"; did you mean "blocks"/],
    [{ mode: "insert", blocks: 2, temporalOwner: "last" }, /temporalOwner must be "original" or "first": got "last"/],
  ] as const)
    assert.match((await thrown(() => grow(base, options as never))).message, message);
  assert.throws(() => growthPlan(0, { mode: "insert", blocks: 1 }), /whole number of blocks from 1: got 0/);

  const plan = growthPlan(3, { mode: "insert", blocks: 3 });
  const state = base.stateDict();
  const lacking = await thrown(() => grownSource(state, plan));
  assert.instance(lacking, StateError);
  assert.match(lacking.message, /growth: the given tensors lacks block 2 of 0 to 2: growing needs all of them/);
  const { "blocks.1.mlp.fc1.bias": _, ...less } = state;
  const two = growthPlan(2, { mode: "insert", blocks: 2 });
  assert.match(
    (await thrown(() => grownSource(less, two))).message,
    /lacks blocks\.1\.mlp\.fc1\.bias: other blocks have it/,
  );
  const one = growthPlan(1, { mode: "insert", blocks: 2 });
  assert.match((await thrown(() => grownSource(state, one))).message, /holds block 1, its configuration says 1 blocks/);
  assert.is(engine.memory().live, live);
  base.dispose();
});

test.after(() => engine.destroy());
test.run();
