// Looking into a trained model: which words each block attends to, which frames, what was launched, and the WGSL.
// node .build/run.mjs examples/attention.ts
import { createEngine, inspect, Key, normal, type Tensor } from "../engine/index.js";
import { openModel, sampleClips } from "../model/index.js";
import { wordEncoder } from "../train/index.js";

const engine = await createEngine();
const { model, codec, objective } = await openModel(engine, "examples/checkpoints/easy.safetensors");
if (!codec || !objective) throw new Error("attention: the checkpoint must hold a codec and an objective");
const text = wordEncoder({ maxLength: model.config.maxLength });
const prompt = "a pig moving left on a blue background";
const words = prompt.split(" ");
const bar = (v: number) => "#".repeat(Math.round(40 * v));

// A hook on ".weights" asks for the attention map, which the fused kernel itself never stores.
const maps = new Map<string, Tensor>();
const unhook = model.hook("blocks.*.*.weights", (path, map: Tensor) => maps.set(path, map.keep()));
const request = { prompts: [prompt], guidance: 1, steps: 8, seed: 1 };
for await (const { step, steps } of sampleClips({ model, codec, objective, text }, request)) {
  if (step === 1 || step === steps / 2) {
    console.log(`step ${step} of ${steps}: attention that each word gets, block by block (mean over heads and tokens)`);
    const shares: ArrayLike<number>[] = [];
    for (let block = 0; block < model.blocks.length; block++)
      shares.push(await maps.get(`blocks.${block}.crossAttn.weights`)!.mean([0, 1, 2]).data()); // [B, h, N, L] to [L]
    for (const [i, word] of words.entries()) {
      const bars = shares.map((s) => `${s[i].toFixed(2)} ${bar(s[i]).padEnd(26)}`).join(" ");
      console.log(`  ${word.padEnd(11)} ${bars.trimEnd()}`);
    }
  }
  if (step === steps) {
    console.log("\nlast block, over time: how much frame (row) attends to frame (column)");
    const temporal = await maps
      .get(`blocks.${model.blocks.length - 1}.attnTemp.weights`)!
      .mean([0, 1, 2])
      .data(); // [B, S, h, T, T] to [T, T]
    const T = model.config.frames;
    for (let t = 0; t < T; t++)
      console.log(`  ${Array.from({ length: T }, (_, u) => temporal[t * T + u].toFixed(2)).join(" ")}`);
  }
  for (const map of maps.values()) map.dispose();
  maps.clear();
}
unhook();

// One forward pass, launch by launch: the spatial attention of block 0 and the kernels that took longest.
const { embeddings, mask, shape } = await text.encode([prompt]);
const [y, m] = [engine.tensor(embeddings, shape), engine.tensor(mask, shape.slice(0, 2))]; // [1, L, D], [1, L]
const noise = normal(engine, Key.from(1), codec.latentShape([1, 3, 8, 32, 32])); // [1, C, T, H, W]
const run = () => engine.noGrad(() => engine.scope(() => void model.forward(noise, [500], y, m)));
run(); // compiles what has not run yet
const { launches, kernels } = await inspect.trace(engine, run);
const us = (t?: number) => (t === undefined ? "not timed" : `${t.toFixed(0)} µs`);
console.log(`\n${launches.length} launches; those of blocks.0.attn:`);
const spatial = launches.filter((l) => /^blocks\.0\.attn(\.|$)/.test(l.module));
for (const l of spatial)
  console.log(
    `  ${l.module.padEnd(20)} ${l.kernel.padEnd(24)} ${l.workgroups.join(" x ").padEnd(12)} ${us(l.us).padStart(9)}  ${l.bytes} bytes`,
  );
console.log(
  `the slowest kernels: ${kernels
    .slice(0, 4)
    .map((k) => `${k.kernel} ${k.count} times, ${us(k.us)}`)
    .join(" · ")}`,
);

console.log("\nthe WGSL that computed that attention begins:\n");
// Which of its kernels attention takes depends on the adapter.
const { kernel } = spatial.find((l) => l.kernel.startsWith("attention"))!;
console.log(inspect.source(kernel).split("\n").slice(0, 24).join("\n"));
engine.destroy();
