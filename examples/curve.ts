// A network of two layers learns a noisy curve: module, loss, AdamW, a falling rate, and what it learnt as a plot.
// node .build/run.mjs examples/curve.ts
import { createEngine, Key, mse, normal, type Tensor, uniform } from "../engine/index.js";
import { Linear, Module } from "../model/index.js";
import { AdamW, rateOf } from "../train/index.js";

const [STEPS, BATCH] = [400, 64];
const engine = await createEngine();
const key = Key.from(7);

/** x [N, 1] to y [N, 1]. Fields that are modules are found by name: no registration. */
class Net extends Module {
  readonly inner = new Linear(this.engine, 1, 48, { key: key.fold(0) });
  readonly outer = new Linear(this.engine, 48, 1, { key: key.fold(1) });

  forward(x: Tensor): Tensor {
    const h = this.inner.forward(x.mul(20)).sin(); // [N, 48]
    return this.outer.forward(h); // [N, 1]
  }
}
const curve = (x: Tensor) => x.mul(5).sin().mul(x.square().mul(-2).exp()); // sin(5 x) exp(-2 x²)

const net = new Net(engine);
const optimizer = new AdamW(Object.fromEntries(net.namedParameters()), { weightDecay: 0 });
const rate = rateOf({ lr: 0.02, schedule: "cosine", warmupSteps: 10, finalFraction: 0.01, steps: STEPS });
for (let step = 0; step < STEPS; step++) {
  // What is made in the scope is freed at its end, except what it returns.
  const loss = engine.scope(() => {
    const x = uniform(engine, key.fold(2).fold(step), [BATCH, 1]).mul(4).sub(2); // [-2, 2)
    const noise = normal(engine, key.fold(3).fold(step), [BATCH, 1]).mul(0.1);
    const loss = mse(net.forward(x), curve(x).add(noise));
    loss.backward();
    optimizer.lr = rate(step);
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  });
  if (step % 80 === 79) console.log(`step ${step + 1}  loss ${(await loss.item()).toFixed(5)}`);
  else loss.dispose();
}

const [rows, columns] = [15, 71];
const x = engine.tensor(Float32Array.from({ length: columns }, (_, i) => (4 * i) / (columns - 1) - 2)).unsqueeze(1);
const truth = (await curve(x).data()) as Float32Array;
const made = (await engine.noGrad(() => net.forward(x)).data()) as Float32Array;
const at = (y: number) => Math.round((0.5 - y / 2) * (rows - 1));
const plot = Array.from({ length: rows }, () => Array<string>(columns).fill(" "));
truth.forEach((y, i) => {
  plot[at(y)][i] = ".";
});
made.forEach((y, i) => {
  plot[Math.min(rows - 1, Math.max(0, at(y)))][i] = "o";
});
console.log(`\n${plot.map((r) => r.join("").trimEnd()).join("\n")}`);
console.log("o network   . sin(5 x) exp(-2 x²), where the network misses it");
const error = Math.sqrt(truth.reduce((sum: number, y, i) => sum + (y - made[i]) ** 2, 0) / columns);
console.log(`the noise it learnt from had a deviation of 0.1; the network is off by ${error.toFixed(4)}`);
engine.destroy();
