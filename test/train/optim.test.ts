import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine, globalNorm, Key, normal, type Tensor } from "../../engine/index.js";
import { AdamW, EMA, type StateFormat } from "../../train/optim.js";

const test = suite("optim");
const engine = await createEngine();

const shapes: Record<string, number[]> = { a: [7, 5], b: [5], c: [], d: [64], e: [3, 65], f: [1000] };
const draw = (e: Engine, name: string, seed: number, scale = 1) =>
  normal(e, Key.from(seed).fold(name.charCodeAt(0)), shapes[name], { std: scale });
const make = (e = engine) => Object.fromEntries(Object.keys(shapes).map((n) => [n, draw(e, n, 1).setRequiresGrad()]));
const free = (p: Record<string, Tensor>) => {
  for (const t of Object.values(p)) t.dispose();
};
const values = async (p: Record<string, Tensor>) =>
  Object.fromEntries(
    await Promise.all(Object.entries(p).map(async ([n, t]) => [n, Float64Array.from(await t.data())] as const)),
  );

/** AdamW in float64, a value at a time. */
function reference(
  p: Float64Array,
  g: Float64Array,
  m: Float64Array,
  v: Float64Array,
  t: number,
  o: { lr: number; wd: number; scale: number },
): void {
  for (let i = 0; i < p.length; i++) {
    const grad = g[i] * o.scale;
    m[i] = 0.9 * m[i] + 0.1 * grad;
    v[i] = 0.999 * v[i] + 0.001 * grad * grad;
    p[i] = p[i] * (1 - o.lr * o.wd) - (o.lr * (m[i] / (1 - 0.9 ** t))) / (Math.sqrt(v[i] / (1 - 0.999 ** t)) + 1e-8);
  }
}

test("steps equal a float64 AdamW; clipping, changing rates, a parameter without gradient", async () => {
  const params = make();
  const optimizer = new AdamW(params, { weightDecay: 0.1 });
  const want = await values(params);
  const m = Object.fromEntries(Object.entries(want).map(([n, x]) => [n, x.map(() => 0)]));
  const v = Object.fromEntries(Object.entries(want).map(([n, x]) => [n, x.map(() => 0)]));
  for (let t = 1; t <= 6; t++) {
    const used = Object.keys(shapes).filter((n) => !(n === "d" && t > 2));
    const g: Record<string, Float64Array> = {};
    for (const n of used) {
      params[n].grad = draw(engine, n, 10 + t);
      g[n] = Float64Array.from(await params[n].grad!.data());
    }
    const norm = Math.sqrt(used.reduce((s, n) => s + g[n].reduce((q, x) => q + x * x, 0), 0));
    const [lr, clip] = [1e-2 / t, t % 2 ? 3 : 0];
    optimizer.lr = lr;
    const { norm: got } = optimizer.step({ clip });
    assert.ok(Math.abs((await got.item()) / norm - 1) < 1e-6);
    for (const n of used)
      reference(want[n], g[n], m[n], v[n], t, { lr, wd: 0.1, scale: clip ? Math.min(1, clip / (norm + 1e-6)) : 1 });
    optimizer.zeroGrad();
  }
  for (const [n, x] of Object.entries(await values(params)))
    x.forEach((p, i) => {
      assert.ok(Math.abs(p - want[n][i]) < 2e-6, `${n}[${i}]: ${p}, expected ${want[n][i]}`);
    });
  optimizer.dispose();
  free(params);
});

test("parameters stay the same tensors, neighbours in few buffers, and gradients add up in place", async () => {
  const params = make();
  const before = await values(params);
  const optimizer = new AdamW(params, {});
  assert.equal(await values(params), before);
  assert.is(new Set(Object.values(params).map((p) => p.storage)).size, 1);
  const loss = () =>
    Object.values(params)
      .map((p) => p.mul(p).sum())
      .reduce((a, b) => a.add(b));
  loss().backward();
  const { a } = params;
  const twice = (await a.grad!.data()).slice();
  assert.equal(
    [...twice],
    [...before.a].map((x) => Math.fround(2 * x)),
  );
  loss().backward();
  assert.equal(
    [...(await a.grad!.data())],
    [...before.a].map((x) => Math.fround(4 * x)),
  );
  assert.is(a.grad!.storage, params.f.grad!.storage);
  // What lies between parameters must stay zero, or the norm would count it.
  const all = a.gradPlace!.view([64], [1], 0, "flat");
  const flat = await engine.read(all);
  all.dispose();
  assert.ok(new Float32Array(flat).slice(35).every((x) => x === 0));
  assert.is(engine.memory().byOwner.gradients! > 0, true);
  assert.is(engine.memory().byOwner.optimizer! > 0, true);
  optimizer.dispose();
  free(params);
  engine.tape.truncate(0);
  assert.is(engine.memory().byOwner.gradients ?? 0, 0);
  assert.is(engine.memory().byOwner.parameters ?? 0, 0);
});

test("a minimum is found", async () => {
  const x = engine.tensor([5, -3, 2]).setRequiresGrad();
  const target = engine.tensor([1, 2, 3]);
  const optimizer = new AdamW([x], { lr: 0.1, weightDecay: 0 });
  for (let i = 0; i < 300; i++)
    engine.scope(() => {
      x.sub(target).square().sum().backward();
      optimizer.lr = 0.1 * (1 - i / 300);
      optimizer.step();
      optimizer.zeroGrad();
    });
  (await x.data()).forEach((v, i) => {
    assert.ok(Math.abs(v - (i + 1)) < 1e-3);
  });
  optimizer.dispose();
});

test("a norm that is not finite changes nothing and is returned", async () => {
  const x = engine.tensor([1, 2, 3]).setRequiresGrad();
  const optimizer = new AdamW([x]);
  x.grad = engine.tensor([1, Number.NaN, 1]);
  const { norm } = optimizer.step({ clip: 1 });
  assert.ok(Number.isNaN(await norm.item()));
  assert.equal([...(await x.data())], [1, 2, 3]);
  assert.equal([...(await optimizer.state().tensors["exp_avg.0"].data())], [0, 0, 0]);
  x.grad = engine.tensor([1, 1e30, 1]);
  assert.is(await optimizer.step({}).norm.item(), Number.POSITIVE_INFINITY);
  assert.equal([...(await x.data())], [1, 2, 3]);
  optimizer.dispose();
});

test("state: a loaded optimizer and average go on bit for bit", async () => {
  const run = async (stop: number) => {
    let params = make();
    let optimizer = new AdamW(params, { lr: 1e-2 });
    let ema = new EMA(params, { decay: 0.9, warmup: true });
    for (let t = 0; t < 6; t++) {
      if (t === stop) {
        const kept = await values({ ...params, ...optimizer.state().tensors });
        const averages = await values(ema.params as Record<string, Tensor>);
        const [{ steps }, { updates }] = [optimizer.state(), ema.state()];
        const host = (source: Record<string, Float64Array>) =>
          Object.fromEntries(
            Object.entries(source).map(([n, data]) => [n, { shape: shapes[n.split(".").at(-1)!], data }]),
          );
        ema.dispose();
        optimizer.dispose();
        free(params);
        params = Object.fromEntries(
          Object.keys(shapes).map((n) => [n, engine.tensor(kept[n], shapes[n]).setRequiresGrad()]),
        );
        optimizer = new AdamW(params, { lr: 1e-2 });
        ema = new EMA(params, { decay: 0.9, warmup: true });
        await optimizer.load(
          steps,
          host(Object.fromEntries(Object.entries(kept).filter(([n]) => n.startsWith("exp_avg")))),
        );
        await ema.load(updates, host(averages));
      }
      for (const n of Object.keys(shapes)) params[n].grad = draw(engine, n, 50 + t);
      optimizer.step({ clip: 5 });
      ema.update();
      optimizer.zeroGrad();
    }
    const result = {
      ...(await values(params)),
      ...Object.fromEntries(
        Object.entries(await values(ema.params as Record<string, Tensor>)).map(([n, x]) => [`ema.${n}`, x]),
      ),
    };
    ema.dispose();
    optimizer.dispose();
    free(params);
    return result;
  };
  assert.equal(await run(3), await run(-1));
});

test("state: what does not fit is refused before anything changes", async () => {
  const x = engine.tensor([1, 2]).setRequiresGrad();
  const optimizer = new AdamW({ x });
  await optimizer.load(0, { "exp_avg.x": { shape: [2], data: [1, 1] } }).then(
    () => assert.unreachable(),
    (e) => assert.match(e.message, /missing: exp_avg_sq\.x/),
  );
  await optimizer.load(-1, {}).then(
    () => assert.unreachable(),
    (e) => assert.match(e.message, /adamw\.load: steps must be a whole number/),
  );
  assert.equal([...(await optimizer.state().tensors["exp_avg.x"].data())], [0, 0]);
  optimizer.dispose();
});

test("EMA: warm-up, exact start, swapping in and out", async () => {
  const x = engine.tensor([10, 20]).setRequiresGrad();
  const ema = new EMA({ x }, { decay: 0.5, warmup: true });
  const optimizer = new AdamW({ x }, {});
  assert.equal([...(await ema.params.x.data())], [10, 20]);
  engine.write(x, new Uint8Array(Float32Array.of(20, 40).buffer));
  ema.update();
  // First update keeps 1/10, second 2/11, and so on up to one half.
  assert.equal([...(await ema.params.x.data())], [19, 38]);
  const mean = async () => (await ema.params.x.data())[0];
  let want = 19;
  for (let n = 1; n < 12; n++) {
    ema.update();
    const keep = Math.min(0.5, (1 + n) / (10 + n));
    want = keep * want + (1 - keep) * 20;
    assert.ok(Math.abs((await mean()) - want) < 1e-5);
  }
  engine.write(x, new Uint8Array(Float32Array.of(0, 0).buffer));
  const y = await ema.use(async () => {
    assert.ok(ema.swapped);
    assert.is(x.storage.owned.owner, "parameters");
    assert.throws(() => ema.update(), /ema\.update: parameter "x" lies elsewhere now: EMA weights are swapped in/);
    x.grad = engine.tensor([1, 1]);
    assert.throws(() => optimizer.step(), /adamw\.step: parameter "x" lies elsewhere now/);
    return x.mul(1).data();
  });
  assert.ok(Math.abs(y[0] - want) < 1e-5);
  assert.equal([...(await x.data())], [0, 0]);
  await ema
    .use(() => Promise.reject(new Error("stopped")))
    .then(
      () => assert.unreachable(),
      () => undefined,
    );
  assert.is(ema.swapped, false);
  assert.equal([...(await x.data())], [0, 0]);
  optimizer.step();
  ema.dispose();
  optimizer.dispose();
});

test("parameters beyond one binding spread over chunks", async () => {
  const small = await createEngine();
  Object.defineProperty(small, "limits", { value: { maxStorageBufferBindingSize: 4096, maxBufferSize: 1 << 20 } });
  const params = { a: small.full([900], 1), b: small.full([200], 2), c: small.full([900], 3) };
  for (const p of Object.values(params)) p.setRequiresGrad();
  const optimizer = new AdamW(params, { lr: 0.5, weightDecay: 0 });
  assert.is(new Set(Object.values(params).map((p) => p.storage)).size, 3);
  for (const p of Object.values(params)) p.grad = small.ones([...p.shape]);
  const { norm } = optimizer.step();
  assert.ok(Math.abs((await norm.item()) - Math.sqrt(2000)) < 1e-4);
  for (const [i, p] of Object.values(params).entries())
    assert.ok((await p.data()).every((x: number) => Math.abs(x - (i + 0.5)) < 1e-6));
  const large = small.zeros([2000]).setRequiresGrad();
  assert.throws(() => new AdamW([large]), /adamw: a parameter of 0\.01 MiB is larger than this adapter binds at once/);
  small.destroy();
});

/** Draws of gradients whose sizes differ between parameters and within them, as in a network. */
const uneven = (name: string, t: number) => {
  const g = draw(engine, name, 200 + t);
  const size = normal(engine, Key.from(7).fold(name.charCodeAt(0)), shapes[name])
    .mul(1.5)
    .exp();
  return g.mul(size).mul(1e-3).add(size.mul(2e-4));
};

/** Parameters and averages after some steps with the same gradients, by storage of the averages. */
async function steppedWith(state: StateFormat, steps: number, betas: [number, number] = [0.9, 0.999]) {
  const params = make();
  const optimizer = new AdamW(params, { lr: 1e-2, weightDecay: 0, state, betas });
  for (let t = 0; t < steps; t++)
    engine.scope(() => {
      for (const n of Object.keys(shapes)) params[n].grad = uneven(n, t).keep();
      optimizer.step({ clip: 5 });
      optimizer.zeroGrad();
    });
  const result = { params: await values(params), state: await values(optimizer.state().tensors) };
  optimizer.dispose();
  free(params);
  return result;
}

/** What codes and scales stand for, on the host: an independent reading of the format. */
function unpacked(state: Record<string, Float64Array>, name: string, bits: 8 | 16) {
  const [m, v, scale] = ["exp_avg", "exp_avg_sq", "exp_avg_scale"].map((part) => state[`${part}.${name}`]);
  const half = (h: number) => {
    const [e, f] = [(h >> 10) & 31, h & 1023];
    return (h >> 15 ? -1 : 1) * (e ? 2 ** (e - 15) * (1 + f / 1024) : 2 ** -14 * (f / 1024));
  };
  const share = (c: number, most: number, octave: number) => (c ? 2 ** ((c - most) / octave) : 0);
  const size = shapes[name].reduce((a, b) => a * b, 1);
  return Array.from({ length: size }, (_, i) => {
    const each = 32 / bits;
    const code = (words: Float64Array) => (words[Math.floor(i / each)] / 2 ** (bits * (i % each))) % 2 ** bits;
    const [a, b] = [m, v].map((words) => Math.floor(code(words)));
    const block = 2 * Math.floor(i / 64);
    const mean = bits === 16 ? half(a) : (a > 127 ? -1 : 1) * share(a & 127, 127, 8);
    const root = bits === 16 ? half(b) : share(b, 255, 16);
    return { mean: mean * scale[block], square: (root * scale[block + 1]) ** 2 };
  });
}

test("averages in fewer bits: one step is that of f32, many are near it", async () => {
  const [one, full] = [await steppedWith("f32", 1), await steppedWith("f32", 60)];
  for (const [format, bits, limits] of [
    ["f16", 16, { mean: 4e-3, root: 4e-3, moved: 0.01 }],
    ["8bit", 8, { mean: 0.12, root: 0.1, moved: 0.08 }],
  ] as const) {
    // The first step reads no code: its codes alone are rounded.
    assert.equal((await steppedWith(format, 1)).params, one.params);
    const got = await steppedWith(format, 60);
    const start = await values(make());
    const rms = (list: number[]) => Math.sqrt(list.reduce((s, x) => s + x * x, 0) / list.length);
    const error = { mean: [] as number[], root: [] as number[], moved: [] as number[], whole: [] as number[] };
    for (const name of Object.keys(shapes)) {
      const codes = unpacked(got.state, name, bits);
      codes.forEach(({ mean, square }, i) => {
        const root = Math.sqrt(full.state[`exp_avg_sq.${name}`][i]);
        error.mean.push((mean - full.state[`exp_avg.${name}`][i]) / root);
        error.root.push(Math.sqrt(square) / root - 1);
        error.moved.push(got.params[name][i] - full.params[name][i]);
        error.whole.push(full.params[name][i] - start[name][i]);
      });
    }
    const share = { mean: rms(error.mean), root: rms(error.root), moved: rms(error.moved) / rms(error.whole) };
    console.log(
      `      ${format}: mean ${share.mean.toExponential(1)}, root ${share.root.toExponential(1)}, moved ${share.moved.toExponential(1)}`,
    );
    for (const part of ["mean", "root", "moved"] as const)
      assert.ok(share[part] < limits[part], `${format}, ${part}: ${share[part]}`);
    assert.ok(error.root.every((x) => x > -1));
  }
});

test("averages in fewer bits neither stick nor drift", async () => {
  const size = 8192;
  shapes.x = [size];
  // A gradient of 10 and then of 1: v falls by less than 0.1% a step, far below a unit of the code. One value in each
  // block stays large, since the largest is stored as it is.
  const gradient = (g: number) => engine.tensor(Float32Array.from({ length: size }, (_, i) => (i % 64 ? g : 40)));
  for (const state of ["f16", "8bit"] as const) {
    const x = engine.zeros([size]).setRequiresGrad();
    const optimizer = new AdamW({ x }, { lr: 0, state });
    let [m, v] = [0, 0];
    for (let t = 0; t < 400; t++)
      engine.scope(() => {
        const g = t < 10 ? 10 : 1;
        [m, v] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g];
        x.grad = gradient(g).keep();
        optimizer.step();
        optimizer.zeroGrad();
      });
    const codes = unpacked(await values(optimizer.state().tensors), "x", state === "f16" ? 16 : 8);
    const mean = (f: (c: (typeof codes)[number]) => number) =>
      codes.filter((_, i) => i % 64).reduce((s, c) => s + f(c), 0) / (size - size / 64);
    const [gotM, gotV] = [mean((c) => c.mean) / m, mean((c) => c.square) / v];
    console.log(`      ${state}: means of m and v ${gotM.toFixed(4)}, ${gotV.toFixed(4)} of their own`);
    assert.ok(Math.abs(gotM - 1) < 0.01 && Math.abs(gotV - 1) < 0.03, `${state}: ${gotM}, ${gotV}`);
    optimizer.dispose();
    x.dispose();
  }
  delete shapes.x;
});

test("globalNorm of views, halves and single numbers", async () => {
  const x = normal(engine, Key.from(4), [33, 70]);
  const exact = (t: ArrayLike<number>) => Math.sqrt(Array.from(t).reduce((s, v) => s + v * v, 0));
  const list = [
    x.transpose(0, 1),
    engine.full([], 3),
    engine.zeros([0]),
    ...(engine.has("shader-f16") ? [engine.full([5], 2, "f16")] : []),
  ];
  const want = Math.hypot(exact(await x.data()), 3, engine.has("shader-f16") ? Math.sqrt(20) : 0);
  assert.ok(Math.abs((await globalNorm(list).item()) / want - 1) < 1e-6);
  const [one, two] = [await globalNorm(list).item(), await globalNorm(list).item()];
  assert.is(one, two);
  assert.throws(() => globalNorm([]), /globalNorm: needs at least one tensor/);
  assert.throws(() => globalNorm([engine.zeros([2], "i32")]), /globalNorm: needs f32 or f16/);
});

test("what an optimizer cannot take is refused", () => {
  const x = engine.tensor([1, 2]).setRequiresGrad();
  assert.throws(
    () => new AdamW({ x }, { weight_decay: 1 } as object),
    /adamw: unknown option "weight_decay"; did you mean "weightDecay"\? \(lr, betas, eps, weightDecay, state, scaling\)/,
  );
  assert.throws(() => new AdamW({ x }, { lr: -1 }), /adamw: lr must be a finite number from 0 up: got -1/);
  assert.throws(() => new AdamW({ x }, { betas: [0.9, 1] }), /adamw: betas\[1\] must be in \[0, 1\): got 1/);
  assert.throws(() => new AdamW({ x }, { eps: 0 }), /adamw: eps must be a finite number above 0/);
  assert.throws(() => new AdamW({}), /adamw: no parameter requires a gradient: got 0/);
  assert.throws(
    () => new AdamW({ x: engine.tensor([1]) }),
    /adamw: no parameter requires a gradient: got 1; call setRequiresGrad/,
  );
  assert.throws(() => new AdamW({ x, y: x }), /adamw: parameters "x" and "y" are one tensor; give it once/);
  assert.throws(() => new AdamW({ y: x.mul(2) }), /adamw: "y" is no parameter but computed: \[2\] f32 from mulScalar/);
  if (engine.has("shader-f16"))
    assert.throws(
      () => new AdamW({ x: engine.zeros([2], "f16").setRequiresGrad() }),
      /adamw: parameter "x" is f16; training needs f32/,
    );
  assert.throws(() => new EMA({ x }, { decay: 1 }), /ema: decay must be in \[0, 1\): got 1/);
  assert.throws(
    () => new EMA({ x }, { warmUp: true } as object),
    /ema: unknown option "warmUp"; did you mean "warmup"\?/,
  );
  const frozen = engine.tensor([1]);
  const optimizer = new AdamW({ x, frozen });
  assert.equal(optimizer.names, ["x"]);
  assert.throws(() => optimizer.step(), /adamw: no parameter has a gradient; call backward\(\) before step/);
  assert.throws(() => optimizer.step({ clip: Number.NaN }), /adamw\.step: clip must be/);
  assert.throws(() => optimizer.step({ lr: 1 } as object), /adamw\.step: unknown option "lr"/);
  assert.throws(() => {
    optimizer.lr = Number.NaN;
  }, /adamw: lr must be a finite number from 0 up: got NaN/);
  frozen.setRequiresGrad();
  assert.throws(() => optimizer.step(), /adamw\.step: parameter "frozen" was frozen when the optimizer was made/);
  const other = new AdamW({ x, frozen });
  frozen.setRequiresGrad(false);
  assert.throws(() => optimizer.step(), /adamw\.step: parameter "x" lies elsewhere now/);
  x.dispose();
  assert.throws(() => other.step(), /adamw\.step: uses a tensor after it was freed/);
  engine.tape.truncate(0);
});

test.after(() => engine.destroy());
test.run();
