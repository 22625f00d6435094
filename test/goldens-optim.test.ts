import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Tensor } from "../engine/index.js";
import { AdamW, type AdamWOptions, EMA } from "../train/optim.js";
import { golden } from "./golden.js";

const test = suite("goldens adamw_ema");
const engine = await createEngine();
const { tensors: g } = await golden("adamw_ema");

const names = ["w", "b", "s", "t"];
const STEPS = 5;
/** Relative, as the file states it for fp32. */
const TOLERANCE = 1e-6;

interface Config extends AdamWOptions {
  clip: number;
  decay: number;
}

// The settings are those of the file's notes.
const configs: Record<string, Config> = {
  wd0: { lr: 1e-2, weightDecay: 0, clip: 0, decay: 0.9 },
  "wd0.03": { lr: 1e-2, weightDecay: 0.03, clip: 0, decay: 0.9 },
  "wd0.03_clip1": { lr: 1e-2, weightDecay: 0.03, clip: 1, decay: 0.9 },
  "opensora_lr2e-5_clip1": { lr: 2e-5, weightDecay: 0, clip: 1, decay: 0.9999 },
  "pixart_eps1e-10": { lr: 1e-2, betas: [0.9, 0.95], weightDecay: 0.03, eps: 1e-10, clip: 0.01, decay: 0.9 },
};

const from = (key: string) => engine.tensor(g[key].data as Float32Array, g[key].shape);

let worst = 0;
/** `floor`: errors are relative to the value, or to this part of the largest value where the value is smaller. */
async function compare(what: string, got: Tensor, key: string, floor = 0): Promise<void> {
  const [a, e] = [await got.data(), g[key].data];
  assert.equal([...got.shape], key.includes("norm") ? [] : [...g[key].shape], what);
  const least = floor * Math.max(...Array.from(e, Math.abs));
  for (let i = 0; i < e.length; i++) {
    const error = Math.abs(a[i] - e[i]) / Math.max(1e-30, least, Math.abs(e[i]));
    worst = Math.max(worst, error);
    assert.ok(error <= TOLERANCE, `${what}[${i}]: got ${a[i]}, expected ${e[i]} (off by ${error.toExponential(1)})`);
  }
}

const checked = new Set<string>();
for (const [name, { clip, decay, ...options }] of Object.entries(configs))
  test(name, async () => {
    const params = Object.fromEntries(names.map((n) => [n, from(`in.p.${n}`).setRequiresGrad()]));
    const optimizer = new AdamW(params, options);
    const ema = new EMA(params, { decay });
    for (let i = 0; i < STEPS; i++) {
      for (const n of names) params[n].grad = from(`in.g${i}.${n}`);
      const { norm } = optimizer.step({ clip });
      ema.update();
      if (`${name}.norm${i}` in g) await compare(`norm ${i}`, norm, `${name}.norm${i}`);
      for (const n of names) {
        await compare(`p ${i} ${n}`, params[n], `${name}.p${i}.${n}`);
        await compare(`ema ${i} ${n}`, ema.params[n], `${name}.ema${i}.${n}`);
      }
      optimizer.zeroGrad();
    }
    const { steps, tensors } = optimizer.state();
    assert.is(steps, STEPS);
    for (const n of names) {
      // Gradients of both signs cancel in their average: what is left keeps the error of its largest term.
      await compare(`exp_avg ${n}`, tensors[`exp_avg.${n}`], `${name}.exp_avg.${n}`, 1);
      await compare(`exp_avg_sq ${n}`, tensors[`exp_avg_sq.${n}`], `${name}.exp_avg_sq.${n}`);
    }
    for (const key of Object.keys(g)) if (key.startsWith(`${name}.`)) checked.add(key);
    ema.dispose();
    optimizer.dispose();
    for (const p of Object.values(params)) p.dispose();
  });

test("every tensor of the file was read", () => {
  const left = Object.keys(g).filter((key) => !key.startsWith("in.") && !checked.has(key));
  assert.is(left.length, 0, left.slice(0, 5).join(", "));
  console.log(`\n  ${checked.size} tensors, largest relative error ${worst.toExponential(1)}`);
});

test.after(() => engine.destroy());
test.run();
