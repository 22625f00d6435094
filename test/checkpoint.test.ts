import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkpoint, createEngine, dropout, Key, normal, type Tensor } from "../engine/index.js";

const test = suite("checkpoint");
const engine = await createEngine();

const key = Key.from(1);
const param = (i: number, shape: number[]) => normal(engine, key.fold(i), shape).setRequiresGrad();
const w = [param(1, [8, 8]), param(2, [8, 8]), param(3, [8])];
const shared = param(4, [8]);
const data = normal(engine, key.fold(5), [6, 8]);

/** Uses x three times, the condition twice, a shared parameter and dropout. */
const block = (i: number) => (x: Tensor, c: Tensor) => {
  const h = x.mul(c).add(w[2]).tanh();
  const d = dropout(h.mul(shared).sigmoid(), 0.3, key.fold(100 + i));
  return x.add(d.mul(x)).mul(c.add(1));
};

type Wrap = (f: (x: Tensor, c: Tensor) => Tensor, x: Tensor, c: Tensor) => Tensor;

/** Loss and gradients of three blocks on a trained input and a condition that all of them read. */
async function run(wrap: Wrap): Promise<{ loss: number; grads: number[][]; saved: number; live: number }> {
  const leaves = [...w.slice(2), shared, w[0]];
  const before = engine.memory();
  const loss = engine.scope(() => {
    const c = w[0].sum(0).mul(0.1).tanh();
    let x: Tensor = data.mul(1);
    for (let i = 0; i < 3; i++) x = wrap(block(i), x, c);
    return x.add(c).square().mean();
  });
  const saved = (engine.memory().byOwner.saved ?? 0) - (before.byOwner.saved ?? 0);
  loss.backward();
  const value = await loss.item();
  loss.dispose();
  const grads: number[][] = [];
  for (const p of leaves) {
    grads.push([...(await p.grad!.data())]);
    p.grad!.dispose();
    p.grad = undefined;
  }
  return { loss: value, grads, saved, live: engine.memory().live - before.live };
}

test("values and gradients equal those without, to the last bit, for less memory", async () => {
  const plain = await run((f, x, c) => f(x, c));
  const light = await run((f, x, c) => checkpoint(f, x, c));
  assert.is(light.loss, plain.loss);
  assert.equal(light.grads, plain.grads);
  assert.ok(light.saved < plain.saved / 2, `${light.saved} of ${plain.saved} bytes`);
  assert.is(light.live, 0);
  assert.is(plain.live, 0);
  assert.is(engine.tape.entries.length, 0);
});

test("checkpoints inside checkpoints", async () => {
  const plain = await run((f, x, c) => f(x, c).mul(1));
  const nested = await run((f, x, c) => checkpoint((a, b) => checkpoint(f, a, b).mul(1), x, c));
  assert.equal(nested.grads, plain.grads);
  assert.is(nested.live, 0);
});

test("several outputs, of which some are unused, handed through or given twice", async () => {
  const x = param(9, [5]);
  const f = (a: Tensor) => [a.square(), a.exp(), a, a.mul(3)] as const;
  const use = (list: readonly Tensor[]) => list[0].add(list[2]).add(list[3]).sum();
  use(f(x)).backward();
  const want = [...(await x.grad!.data())];
  x.grad = undefined;
  use(checkpoint(f, x)).backward();
  assert.equal([...(await x.grad!.data())], want);
  assert.is(x.isDisposed, false);
  x.grad = undefined;
  const twice = (a: Tensor) => {
    const y = a.exp();
    return [y, y];
  };
  const [a, b] = checkpoint(twice, x);
  a.add(b).sum().backward();
  const e = await x.data();
  (await x.grad!.data()).forEach((g, i) => {
    assert.ok(Math.abs(g - 2 * Math.exp(e[i])) < 1e-5 * Math.abs(g));
  });
});

test("a retained graph can be walked again", async () => {
  const x = param(10, [4]);
  const loss = checkpoint((a) => a.square().sum(), x);
  loss.backward(undefined, { retainGraph: true });
  loss.backward();
  const v = await x.data();
  assert.equal(
    [...(await x.grad!.data())],
    [...v].map((a) => Math.fround(4 * a)),
  );
  assert.throws(() => loss.backward(), /already walked and freed/);
});

test("without gradients it only calls the function", () => {
  let calls = 0;
  const f = (a: Tensor) => {
    calls++;
    return a.exp();
  };
  const y = checkpoint(f, data);
  assert.is(y.requiresGrad, false);
  engine.noGrad(() => checkpoint(f, w[0]));
  assert.is(calls, 2);
  assert.is(engine.tape.entries.length, 0);
});

test("parameters that are only read inside are trained too", () => {
  const y = checkpoint((a) => a.mul(shared).sum(), data);
  assert.ok(y.requiresGrad);
  y.backward();
  assert.ok(shared.grad);
  shared.grad = undefined;
});

test("errors: no tensor, another number of outputs, a failure while it runs again", () => {
  assert.throws(
    () => checkpoint((() => data) as never),
    /checkpoint: needs a function and the tensors to call it with/,
  );
  let calls = 0;
  const uneven = checkpoint((a: Tensor) => (calls++ ? [a.exp()] : [a.exp(), a.sin()]), w[0]);
  assert.throws(
    () => uneven[0].sum().backward(),
    /checkpoint: the function gave 2 tensors in forward and 1 in backward/,
  );
  engine.tape.truncate(0);
  calls = 0;
  const failing = checkpoint((a: Tensor) => {
    if (calls++) throw new Error("no second time");
    return a.exp().sum();
  }, w[0]);
  assert.throws(() => failing.backward(), /no second time/);
  engine.tape.truncate(0);
});

test.after(() => engine.destroy());
test.run();
