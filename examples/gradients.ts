// What autograd does: an expression, the tape that recording it leaves, and its gradients beside finite differences.
// node .build/run.mjs examples/gradients.ts
import { createEngine, inspect, type Tensor } from "../engine/index.js";

const engine = await createEngine();
const x = engine.tensor([
  [0.5, -1.2, 2],
  [1.5, 0.3, -0.7],
]); // [2, 3]
const w = engine.tensor([
  [0.4, -0.3],
  [0.1, 0.8],
  [-0.6, 0.2],
]); // [3, 2]
const b = engine.tensor([0.05, -0.1]); // [2]
const f = (w: Tensor, b: Tensor) => x.matmul(w).add(b).silu().square().mean(); // []

// 1. Each op on a tensor that wants a gradient leaves an entry. Nothing has been computed for backward yet.
w.setRequiresGrad();
b.setRequiresGrad();
const loss = f(w, b);
console.log(`f(w, b) = mean(silu(x w + b)²) = ${(await loss.item()).toFixed(6)}, recorded as:\n`);
console.log(`${inspect.tape(loss)}\n`);

// 2. Backward walks the entries from the last to the first and frees what they saved.
loss.backward();

// 3. The slope by definition: move one number by h either way, without recording.
const h = 1e-2;
let worst = 0;
for (const [name, t] of Object.entries({ w, b })) {
  const values = await t.data();
  const gradient = await t.grad!.data();
  for (let i = 0; i < t.size; i++) {
    const at = (step: number) => {
      const moved = engine.tensor(
        Float32Array.from(values, (v, k) => (k === i ? v + step : v)),
        t.shape,
      );
      return engine.noGrad(() => (t === w ? f(moved, b) : f(w, moved))).item();
    };
    const slope = ((await at(h)) - (await at(-h))) / (2 * h);
    worst = Math.max(worst, Math.abs(slope - gradient[i]));
    console.log(
      `df/d${name}[${i}]  tape ${gradient[i].toFixed(6).padStart(9)}  differences ${slope.toFixed(6).padStart(9)}`,
    );
  }
}
console.log(`\nlargest difference ${worst.toExponential(1)} (f32 numbers, h = ${h})`);

// 4. Gradients add up until they are dropped: two losses are one sum.
const once = (await b.grad!.data())[0];
f(w, b).backward();
console.log(`b.grad[0] after a second backward: ${((await b.grad!.data())[0] / once).toFixed(3)} times the first`);
engine.destroy();
