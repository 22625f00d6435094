import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, Key, normal, type Tensor } from "../engine/index.js";
import { AdamW } from "../train/optim.js";

const test = suite("gradients in their places");

/** A step of y = tanh(x a) c + b with parameters of 64, 24 and 3 numbers. */
function stepOf(engine: Engine) {
  const parameters = Object.fromEntries(
    [
      ["a", [8, 8]],
      ["c", [8, 3]],
      ["b", [3]],
    ].map(([name, shape], i) => [
      name as string,
      normal(engine, Key.from(i), shape as number[])
        .keep()
        .setRequiresGrad(),
    ]),
  );
  const { a, b, c } = parameters;
  const optimizer = new AdamW(parameters, { lr: 0.1 });
  const step = (...inputs: Tensor[]) => {
    const losses = inputs.map((x) => x.matmul(a).tanh().matmul(c).add(b).square().mean()); // [] each
    for (const loss of losses) loss.backward();
    const { norm } = optimizer.step({ clip: 0.5 });
    optimizer.zeroGrad();
    return [norm, ...losses.map((l) => l.detach())];
  };
  return { parameters, step };
}

/** Norms and losses of five steps, and the parameters after them. */
async function course(
  engine: Engine,
  parts: number,
  f: (...x: Tensor[]) => Tensor[],
  parameters: Record<string, Tensor>,
) {
  const found: number[] = [];
  for (let i = 0; i < 5; i++) {
    const inputs = Array.from({ length: parts }, (_, k) => normal(engine, Key.from(10 * i + k), [16, 8]));
    const out = engine.scope(() => f(...inputs));
    for (const t of [...out, ...inputs]) {
      if (out.includes(t)) found.push(await t.item());
      t.dispose();
    }
  }
  for (const p of Object.values(parameters)) found.push(...(await p.data()));
  return found;
}

for (const parts of [1, 2])
  test(`of ${parts} batch${parts > 1 ? "es" : ""}: made where the optimizer wants them, with the numbers of eager`, async () => {
    const engine = await createEngine();
    const plain = stepOf(engine);
    const expected = await course(engine, parts, plain.step, plain.parameters);
    const other = stepOf(engine);
    const compiled = engine.compile(other.step);
    const got = await course(engine, parts, compiled, other.parameters);
    for (const [i, v] of got.entries())
      assert.ok(Math.abs(v - expected[i]) < 1e-5 * (1 + Math.abs(v)), `${i}: ${v}, ${expected[i]}`);
    const copies = compiled.plans[0].commands.filter(({ kind }) => kind === "copy");
    // 3 numbers end within a vector of four, where another's could begin.
    assert.is(copies.length, 1);
    engine.destroy();
  });

test.run();
