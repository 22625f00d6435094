// Who holds GPU memory: scopes, owners, the pool, and what the errors say.
// node .build/run.mjs examples/memory.ts
import { createEngine, inspect, Key, normal, type Tensor } from "../engine/index.js";
import { Mlp } from "../model/index.js";
import { AdamW } from "../train/index.js";

const engine = await createEngine({ budget: 64 * 2 ** 20 });
const live = () => `${(engine.memory().live / 2 ** 20).toFixed(2)} MiB live`;
const caught = (f: () => unknown) => {
  try {
    f();
  } catch (error) {
    console.log(`  ${(error as Error).message}`);
  }
};

// 1. Without a scope every intermediate result lives until it is disposed.
const x = normal(engine, Key.from(1), [256, 256]); // 0.25 MiB
const chain = (t: Tensor) => t.gelu().mul(2).add(1).sum();
console.log(`one matrix: ${live()}`);
chain(x);
console.log(`after three ops on it, outside a scope: ${live()}`);
// A scope frees what was made inside, except what it returns.
const kept = engine.scope(() => chain(x));
console.log(`after the same in a scope, its sum kept: ${live()}`);

// 2. Use after free is an error that names the op which made the tensor.
const lost: Tensor[] = [];
engine.scope(() => void lost.push(x.exp()));
caught(() => lost[0].add(1));

// 3. A training step: parameters, gradients and the optimizer's averages stay, activations go.
const net = new Mlp(engine, 256, 1024, 256, { key: Key.from(2) });
const optimizer = new AdamW(net.parameters(), { lr: 1e-3 });
const step = () =>
  engine.scope(() => {
    const loss = net.forward(x).sub(x).square().mean();
    const saved = inspect.tape(loss).savedBytes;
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return saved;
  });
console.log(`\na training step keeps ${(step() / 2 ** 20).toFixed(2)} MiB for its backward pass; afterwards:`);
console.log(`${inspect.memory(engine, 4)}\n`);
const [before, made] = [engine.memory().live, engine.memoryPool.created];
for (let i = 0; i < 20; i++) step();
await engine.finish();
console.log(
  `20 more steps: ${engine.memory().live - before} bytes more are live, ${engine.memoryPool.created - made} new buffers`,
);

// 4. A budget turns a crash of the machine into an error that says what to do.
caught(() => engine.scope(() => Array.from({ length: 20 }, () => engine.zeros([1024, 1024]))));
console.log(`the engine goes on: sum ${(await kept.item()).toFixed(0)}, ${live()}`);
engine.destroy();
