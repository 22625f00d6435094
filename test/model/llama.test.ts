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
import { type Golden, golden } from "../golden.js";
import { near, relNorm } from "./compare.js";

const test = suite("llama");
const engine = await createEngine();
const { tensors, metadata } = await golden("llama");
const GOLDEN = JSON.parse(metadata.cfg);
const config = llamaConfig({
  vocabSize: GOLDEN.vocab,
  hidden: GOLDEN.hidden,
  intermediate: GOLDEN.inter,
  depth: GOLDEN.layers,
  heads: GOLDEN.heads,
  kvHeads: GOLDEN.kv_heads,
  headDim: GOLDEN.head_dim,
  eps: GOLDEN.eps,
  theta: GOLDEN.theta,
});

/** Golden tensors whose names begin with `prefix`, without it. */
const part = (prefix: string): Record<string, Golden> =>
  Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), t]] : [])),
  );
const upload = (t: Golden) => engine.tensor(t.data, t.shape);

test("the golden model: states by layer, and every gradient", async () => {
  const model = new Llama(engine, config, { head: false });
  const report = await model.loadStateDict(part("weights."));
  assert.is(report.loaded.length, 20);
  const [ids, mask] = [upload(tensors["in.ids"]), upload(tensors["in.mask"])];
  const worst: string[] = [];
  for (const [name, layer] of [
    ["out.hidden_0", 0],
    ["out.hidden_0", -3],
    ["out.hidden_1", 1],
    ["out.hidden_1", -2],
    ["out.last_hidden_state", 2],
    ["out.last_hidden_state", -1],
  ] as const) {
    const states = engine.noGrad(() => model.hiddenStates(ids, mask, layer));
    worst.push((await near(name, states, tensors[name], 1e-5)).toExponential(1));
    states.dispose();
  }
  const out = model.hiddenStates(ids, mask);
  out.mul(upload(tensors["in.loss_rand"])).mean().backward();
  for (const [name, p] of model.namedParameters())
    worst.push((await near(name, p.grad!, tensors[`grad.${name}`], 1e-4, relNorm)).toExponential(1));
  console.log(`\n  ${worst.join(" ")}`);
});

test.run();
