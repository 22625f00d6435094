import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import { CrossAttention } from "../../model/attention.js";
import type { Linear } from "../../model/layers.js";
import { STDiT } from "../../model/stdit.js";
import { golden } from "../golden.js";
import { near, relNorm } from "./compare.js";
import { checkDual } from "./dual-checks.js";
import { inputsOf, randomize, SMALL } from "./grown.js";

const test = suite("dual");
const engine = await createEngine();

test("the golden model with a language branch: gates, outputs, every gradient, guidance, sampling", async () => {
  const { checks, worst, failures } = await checkDual(engine, await golden("dual_cross_attn"));
  console.log(
    `\n  ${checks} checks; worst ${Object.entries(worst)
      .map(([k, v]) => `${k} ${v.toExponential(1)}`)
      .join(", ")}`,
  );
  assert.is(failures.join("\n"), "");
  assert.is(checks, 115);
});

const key = Key.from(41);
const read = async (t: Tensor) => Float64Array.from(await t.data());

/** rows [N, I] · weight [O, I]ᵀ + bias. */
const linear = (rows: number[][], weight: Float64Array, bias: Float64Array) =>
  rows.map((row) => Array.from(bias, (b, o) => row.reduce((sum, v, i) => sum + v * weight[o * row.length + i], b)));

test("one gate a head: each head times its gate before the projection, whose bias takes their mean", async () => {
  const [C, heads, N, L] = [12, 3, 5, 4];
  const d = C / heads;
  const cross = new CrossAttention(engine, C, heads, { key });
  await randomize(cross, key, 0.5);
  const [x, y] = [normal(engine, key.fold(50), [1, N, C]), normal(engine, key.fold(51), [1, L, C])];
  const gates = [0.7, -0.4, 0.2];
  const out = await engine.noGrad(() => cross.forward(x, y, undefined, engine.tensor(gates))).data();

  const rowsOf = (values: Float64Array) =>
    Array.from({ length: values.length / C }, (_, i) => [...values.subarray(i * C, (i + 1) * C)]);
  const layer = async (rows: number[][], { weight, bias }: Linear) =>
    linear(rows, await read(weight as Tensor), await read(bias!));
  const q = await layer(rowsOf(await read(x)), cross.qLinear);
  const kv = await layer(rowsOf(await read(y)), cross.kvLinear);
  const joined = q.map((row) =>
    gates.flatMap((gate, h) => {
      const scores = kv.map((key) => {
        let dot = 0;
        for (let i = h * d; i < (h + 1) * d; i++) dot += row[i] * key[i];
        return Math.exp(dot / Math.sqrt(d));
      });
      const total = scores.reduce((a, b) => a + b);
      return Array.from(
        { length: d },
        (_, i) => gate * scores.reduce((sum, s, l) => sum + (s / total) * kv[l][C + h * d + i], 0),
      );
    }),
  );
  const mean = gates.reduce((a, b) => a + b) / heads;
  const bias = (await read(cross.proj.bias!)).map((b) => b * mean);
  await near("gated", out, { data: linear(joined, await read(cross.proj.weight as Tensor), bias).flat() }, 2e-6);
  const half = engine.noGrad(() => cross.forward(x, y, undefined, engine.tensor([0.5, 0.5, 0.5])));
  const plain = await engine.noGrad(() => cross.forward(x, y)).data();
  await near("equal gates", half, { data: plain.map((v) => v / 2) }, 2e-6);
  cross.dispose();
});

test("gates of three shapes: gradients as central differences", async () => {
  const STEP = 2 ** -5;
  for (const [gate, count] of [
    ["scalar", 1],
    ["head", 2],
    ["channel", 8],
  ] as const) {
    const config = { ...SMALL, depth: 2, languageChannels: 5, languageLength: 4, languageGate: gate };
    const model = new STDiT(engine, config, { key });
    await randomize(model, key, 0.5);
    const { x, t, y, mask, language } = inputsOf(engine, model.config);
    const weights = normal(engine, key.fold(60), [2, 4, 2, 2, 4]);
    const loss = () => model.forward(x, t, y, mask, { language }).mul(weights).sum();
    loss().backward();
    const { engine: on } = model;
    const valueAt = async (name: string, gates: Float64Array) => {
      await model.loadStateDict({ [name]: { shape: [count], data: Float32Array.from(gates) } }, { strict: false });
      const value = on.noGrad(() => on.scope(loss));
      const [number] = await value.data();
      value.dispose();
      return number;
    };
    for (const [i, block] of model.blocks.entries()) {
      const name = `blocks.${i}.gate_llm`;
      const gates = await read(block.gateLlm!);
      const found = await read(block.gateLlm!.grad!);
      assert.is(found.length, count);
      const differences: number[] = [];
      for (let k = 0; k < count; k++) {
        const moved = (by: number) => gates.map((g, j) => (j === k ? g + by : g));
        const up = await valueAt(name, moved(STEP));
        differences.push((up - (await valueAt(name, moved(-STEP)))) / (2 * STEP));
      }
      await valueAt(name, gates);
      await near(`${gate}, block ${i}`, found, { data: differences }, 5e-3, relNorm);
    }
    model.dispose();
  }
});

test.after(() => engine.destroy());
test.run();
