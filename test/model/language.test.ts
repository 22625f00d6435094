import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, type Tensor } from "../../engine/index.js";
import { openModel, saveModel } from "../../model/checkpoint.js";
import type { STDiTConfig } from "../../model/config.js";
import { parameterCount } from "../../model/count.js";
import { grow } from "../../model/growth.js";
import { addLanguage, decodeLanguage, encodeLanguage } from "../../model/language.js";
import { memorySink } from "../../model/safetensors.js";
import { STDiT } from "../../model/stdit.js";
import { AdamW } from "../../train/optim.js";
import { equalBits, type Inputs, inputsOf, outputOf, randomize, SMALL, thrown } from "./grown.js";

const test = suite("language");
const engine = await createEngine();
const key = Key.from(23);
const BRANCH = { channels: 5, maxLength: 6, key };
const inputs = inputsOf(engine, { ...SMALL, languageChannels: 5 });

/** A base in which nothing is zero. */
async function trained(more: Partial<STDiTConfig> = {}): Promise<STDiT> {
  const model = new STDiT(engine, { ...SMALL, depth: 2, ...more }, { key });
  await randomize(model, key);
  return model;
}
const read = async (t: Tensor) => (await t.data()) as Float32Array;
const isZero = async (t: Tensor) => (await read(t)).every((v) => v === 0);

/** Gradients by name of a run with both captions. */
async function gradients(model: STDiT, { x, t, y, mask, language }: Inputs): Promise<Record<string, Float32Array>> {
  engine.scope(() => model.forward(x, t, y, mask, { language }).square().mean().backward());
  const list = await Promise.all(model.namedParameters().map(async ([n, p]) => [n, await read(p.grad!)] as const));
  model.zeroGrad();
  return Object.fromEntries(list);
}

test("gates of three shapes at 0: outputs equal to the last bit, and of the branch they alone get a gradient", async () => {
  const base = await trained();
  const before = await outputOf(base, inputs);
  for (const [gate, size] of [
    ["scalar", 1],
    ["head", 2],
    ["channel", 8],
  ] as const) {
    const model = await addLanguage(base, { ...BRANCH, gate });
    assert.equal([...model.blocks[1].gateLlm!.shape], [size]);
    assert.ok(equalBits(await outputOf(model, inputs), before), gate);
    assert.is(model.countParameters(), parameterCount(model.config));
    assert.equal(model.language, { gate, duplicated: true });
    const found = await gradients(model, inputs);
    for (const [name, grad] of Object.entries(found)) {
      if (/cross_attn_llm|y_embedder_llm/.test(name))
        assert.ok(
          grad.every((v) => v === 0),
          name,
        );
      else if (name.endsWith("gate_llm"))
        assert.ok(
          grad.every((v) => v !== 0),
          name,
        );
    }
    model.dispose();
  }
  base.dispose();
});

test("the branch is a copy of each block's own attention, its embedder and null caption are its own", async () => {
  const base = await trained();
  const model = await addLanguage(base, BRANCH);
  for (const [i, block] of model.blocks.entries())
    for (const layer of ["qLinear", "kvLinear", "proj"] as const)
      for (const part of ["weight", "bias"] as const)
        assert.ok(
          equalBits(await read(block.crossAttnLlm![layer][part]!), await read(base.blocks[i].crossAttn[layer][part]!)),
        );
  const spread = async (t: Tensor) => {
    const values = await read(t);
    return Math.sqrt(values.reduce((n, v) => n + v * v, 0) / values.length);
  };
  const { yProj, yEmbedding } = model.yEmbedderLlm!;
  assert.ok(Math.abs((await spread(yProj.fc1.weight)) / 0.02 - 1) < 0.35);
  assert.ok(Math.abs((await spread(yProj.fc2.weight)) / 0.02 - 1) < 0.35);
  assert.ok((await isZero(yProj.fc1.bias!)) && (await isZero(yProj.fc2.bias!)));
  assert.equal([...yEmbedding.shape], [6, 5]);
  assert.ok(Math.abs((await spread(yEmbedding)) * Math.sqrt(5) - 1) < 0.4);
  assert.not.ok(yEmbedding.requiresGrad);
  assert.ok(equalBits(await read(model.yEmbedder.yEmbedding), await read(base.yEmbedder.yEmbedding)));
  const wide = await addLanguage(base, { ...BRANCH, captionInit: "xavier" });
  const top = (await read(wide.yEmbedderLlm!.yProj.fc2.weight)).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  assert.ok(top > 0.4 && top <= Math.sqrt(6 / 16));

  const again = await addLanguage(base, BRANCH);
  assert.ok(equalBits(await read(again.yEmbedderLlm!.yEmbedding), await read(yEmbedding)), "one key, one branch");
  const other = await addLanguage(base, { ...BRANCH, key: Key.from(24) });
  assert.not.ok(equalBits(await read(other.yEmbedderLlm!.yEmbedding), await read(yEmbedding)));
  for (const m of [base, model, wide, again, other]) m.dispose();
});

test("a branch added to a model that just grew: new blocks copy the nearest that does anything", async () => {
  for (const [mode, from] of [
    ["insert", [0, 0, 1, 1]],
    ["prefix", [0, 0, 0, 1]],
    ["suffix", [0, 1, 1, 1]],
  ] as const) {
    const base = await trained();
    const before = await outputOf(base, inputs);
    const grown = await grow(base, { mode, blocks: 2 });
    const model = await addLanguage(grown, BRANCH);
    assert.ok(equalBits(await outputOf(model, inputs), before), mode);
    assert.equal(model.growth, grown.growth);
    for (const [i, block] of model.blocks.entries())
      assert.ok(
        equalBits(await read(block.crossAttnLlm!.proj.weight), await read(base.blocks[from[i]].crossAttn.proj.weight)),
        `${mode}: block ${i}`,
      );
    const found = await gradients(model, inputs);
    for (let i = 0; i < 4; i++) assert.ok(found[`blocks.${i}.gate_llm`][0] !== 0, `${mode}: gate ${i} is dead`);
    for (const m of [base, grown, model]) m.dispose();
  }
});

test("a model with the branch grows: projections are zero unless the gate is, and nothing is dead", async () => {
  const base = await trained();
  const fresh = await addLanguage(base, BRANCH);
  // At gates of 0 the branch of a new block is silent anyway; with a projection of zero it would stay so for ever.
  const silent = await grow(fresh, { mode: "insert", blocks: 2 });
  assert.ok(equalBits(await outputOf(silent, inputs), await outputOf(base, inputs)));
  assert.not.ok(await isZero(silent.blocks[1].crossAttnLlm!.proj.weight));
  const found = await gradients(silent, inputs);
  for (let i = 0; i < 4; i++) assert.ok(found[`blocks.${i}.gate_llm`][0] !== 0, `gate ${i}`);

  const optimizer = new AdamW(Object.fromEntries(fresh.namedParameters()), { lr: 1e-2 });
  for (let step = 0; step < 2; step++) {
    engine.scope(() => {
      const { x, t, y, mask, language } = inputs;
      fresh.forward(x, t, y, mask, { language }).square().mean().backward();
      optimizer.step();
      optimizer.zeroGrad();
    });
  }
  const { yProj } = fresh.yEmbedderLlm!;
  assert.ok(!(await isZero(fresh.blocks[0].gateLlm!)) && !(await isZero(yProj.fc1.bias!)), "it learns from step 2 on");
  const spoken = await grow(fresh, { mode: "insert", blocks: 2 });
  assert.ok(equalBits(await outputOf(spoken, inputs), await outputOf(fresh, inputs)));
  for (const part of ["weight", "bias"] as const) assert.ok(await isZero(spoken.blocks[1].crossAttnLlm!.proj[part]!));
  assert.equal(await read(spoken.blocks[1].gateLlm!), await read(fresh.blocks[0].gateLlm!));
  const later = await gradients(spoken, inputs);
  assert.ok(later["blocks.1.cross_attn_llm.proj.weight"].some((v) => v !== 0));
  assert.equal(spoken.language, fresh.language);
  for (const m of [base, fresh, silent, spoken]) m.dispose();
});

test("a branch that could never learn is refused; without duplication it may", async () => {
  const untrained = new STDiT(engine, { ...SMALL, depth: 2 }, { key });
  const error = await thrown(() => addLanguage(untrained, BRANCH));
  assert.match(
    error.message,
    /language: cross_attn\.proj is zero in every block .* would never learn, .*train the model first, or pass duplicate: false/,
  );
  const model = await addLanguage(untrained, { ...BRANCH, duplicate: false });
  assert.equal(model.language, { gate: "scalar", duplicated: false });
  const values = await Promise.all(model.blocks.map((b) => read(b.crossAttnLlm!.proj.weight)));
  for (const v of values) assert.ok(v.reduce((m, x) => Math.max(m, Math.abs(x)), 0) > 0.4);
  assert.not.ok(equalBits(values[0], values[1]), "each block its own");
  assert.ok(await isZero(model.blocks[0].crossAttnLlm!.kvLinear.bias!));
  // One block whose projection has a bias alone lives too: the gate then learns from that.
  await untrained.loadStateDict(
    { "blocks.1.cross_attn.proj.bias": { shape: [8], data: new Float32Array(8).fill(0.1) } },
    { strict: false },
  );
  const alive = await addLanguage(untrained, BRANCH);
  assert.ok(await isZero(alive.blocks[0].crossAttnLlm!.proj.weight));
  assert.not.ok(await isZero(alive.blocks[0].crossAttnLlm!.proj.bias!));
  for (const m of [untrained, model, alive]) m.dispose();
});

test("to a file and back, and straight from the base's file", async () => {
  const base = await trained();
  const encoder = { type: "llama", layer: -1 };
  const model = await addLanguage(base, { ...BRANCH, gate: "head", encoder });
  const sink = memorySink();
  await saveModel(sink, { model });
  const again = await openModel(engine, sink.bytes());
  assert.equal(again.model.language, { gate: "head", duplicated: true, encoder });
  assert.ok(equalBits(await outputOf(again.model, inputs), await outputOf(base, inputs)));

  const small = memorySink();
  await saveModel(small, { model: base });
  const options = { grow: { mode: "insert", blocks: 2 }, language: { ...BRANCH, gate: "head", encoder } } as const;
  const direct = await openModel(engine, small.bytes(), options);
  const twice = await grow(base, options.grow);
  const steps = await addLanguage(twice, options.language);
  for (const [name, t] of Object.entries(steps.stateDict()))
    assert.equal(await read(direct.model.stateDict()[name]), await read(t), name);
  assert.equal(direct.model.growth, steps.growth);
  assert.equal(direct.model.language, again.model.language);
  for (const m of [base, model, twice, steps]) m.dispose();
  for (const m of [again, direct]) m.dispose();

  const { config } = steps;
  const text = (change: object) => JSON.stringify({ ...JSON.parse(encodeLanguage(steps.language!)), ...change });
  assert.equal(decodeLanguage(text({}), config), steps.language);
  assert.throws(
    () => decodeLanguage("[", config, "m.safetensors"),
    /language: the record in m\.safetensors is no JSON/,
  );
  assert.throws(() => decodeLanguage("null", config), /says gate undefined, the model's is "head"/);
  assert.throws(() => decodeLanguage(text({ gate: "scalar" }), config), /says gate "scalar", the model's is "head"/);
  assert.throws(() => decodeLanguage(text({ duplicated: 1 }), config), /must say "duplicated"/);
  assert.throws(() => decodeLanguage(text({ encoder: [] }), config), /must have an object as encoder/);
  assert.throws(() => decodeLanguage(text({}), { ...config, languageChannels: 0 }), /the model has none/);
});

test("options that are none", async () => {
  const base = await trained();
  for (const [change, message] of [
    [{ channels: 0 }, /language: channels must be the width .*: got 0/],
    [{ channels: "5" }, /got "5"/],
    [{ channels: Number.NaN }, /got NaN/],
    [{ maxLength: 0 }, /languageLength must be a whole number from 1: got 0/],
    [{ gate: "heads" }, /languageGate must be scalar, head, channel: got "heads"/],
    [{ duplicate: "no" }, /duplicate must be true or false: got "no"/],
    [{ captionInit: "zeros" }, /captionInit must be normal or xavier: got "zeros"/],
    [{ key: undefined }, /key missing/],
    [{ length: 4 }, /unknown option "length"/],
  ] as const)
    assert.match((await thrown(() => addLanguage(base, { ...BRANCH, ...(change as object) }))).message, message);
  const model = await addLanguage(base, BRANCH);
  assert.match(
    (await thrown(() => addLanguage(model, BRANCH))).message,
    /has a language branch already, of 5 channels/,
  );
  for (const m of [base, model]) m.dispose();
});

test.after(() => engine.destroy());
test.run();
