// npm run bench: kernels and a training step, each as a share of what the adapter can do at most.
import {
  createEngine,
  gelu,
  inspect,
  layerNorm,
  matmul,
  normal,
  scaledDotProductAttention,
  softmax,
} from "../engine/index.js";
import { secondsPerStep } from "../train/calibrate.js";
import { parseConfig } from "../train/config.js";
import { openSource } from "../train/source.js";

const ROUNDS = 5;
const engine = await createEngine();
const ceilings = await inspect.ceilings(engine);
console.log(`${engine.info.name} (${engine.info.description})\nceilings: ${ceilings}\n`);
const key = engine.key();
const random = (shape: number[], i: number) => normal(engine, key.fold(i), shape).keep();

/** A case with the work of one run: floating-point operations, or bytes moved. */
interface Case {
  name: string;
  flops?: number;
  bytes?: number;
  run(): unknown;
}
const square = (n: number): Case => {
  const [a, b] = [random([n, n], 1), random([n, n], 2)];
  return { name: `matmul ${n}`, flops: 2 * n ** 3, run: () => matmul(a, b) };
};
const x = random([1024, 1024], 3);
const wide = random([1024, 1152], 4);
const qkv = [5, 6, 7].map((i) => random([8, 4, 256, 32], i));
const cases: Case[] = [
  square(256),
  square(512),
  { name: "softmax 1024 x 1024", bytes: 8 * x.size, run: () => softmax(x) },
  { name: "layerNorm 1024 x 1152", bytes: 8 * wide.size, run: () => layerNorm(wide) },
  { name: "gelu 1M", bytes: 8 * x.size, run: () => gelu(x) },
  {
    name: "attention [8, 4, 256, 32]",
    flops: 4 * 32 * 256 * 256 * 32,
    run: () => scaledDotProductAttention(qkv[0], qkv[1], qkv[2]),
  },
];

const times = new Map<Case, number[]>(cases.map((c) => [c, []]));
// Interleaved, so that what else the machine does falls on all cases alike; the first round compiles.
for (let round = 0; round <= ROUNDS; round++)
  for (const c of cases) {
    const start = performance.now();
    engine.scope(() => void c.run());
    await engine.finish();
    if (round > 0) times.get(c)!.push(performance.now() - start);
  }
for (const [c, list] of times) {
  const [low, middle, high] = [0, ROUNDS >> 1, ROUNDS - 1].map((i) => list.sort((a, b) => a - b)[i]);
  const rate = c.flops
    ? `${(c.flops / middle / 1e6).toFixed(1)} GFLOP/s, ${((100 * c.flops) / middle / 1e6 / ceilings.fma).toFixed(0)} % of the ceiling`
    : `${(c.bytes! / middle / 1e6).toFixed(2)} GB/s, ${((100 * c.bytes!) / middle / 1e6 / ceilings.copyVec4).toFixed(0)} % of the ceiling`;
  console.log(
    `${c.name.padEnd(28)} ${middle.toFixed(2)} ms (${low.toFixed(2)} to ${high.toFixed(2)})`.padEnd(60) + rate,
  );
}
const config = parseConfig();
const step = await secondsPerStep(engine, config, await openSource(config));
console.log(`${"training step of npm start".padEnd(28)} ${(1000 * step).toFixed(0)} ms`);
engine.destroy();
