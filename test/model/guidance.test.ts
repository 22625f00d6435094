import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cat, createEngine, type Engine, Key, type Tensor } from "../../engine/index.js";
import { outChannels, type STDiTConfig } from "../../model/config.js";
import { ddim } from "../../model/diffusion/ddim.js";
import { ddpm } from "../../model/diffusion/ddpm.js";
import { dpmSolver } from "../../model/diffusion/dpm.js";
import { type GuidanceOptions, type GuidanceParts, guided } from "../../model/diffusion/guidance.js";
import { euler, heun } from "../../model/diffusion/ode.js";
import { finalLatent, type Predict, type Step } from "../../model/diffusion/walk.js";
import { STDiT } from "../../model/stdit.js";
import { near, relNorm } from "./compare.js";
import { equalBits, inputsOf, randomize, SMALL } from "./grown.js";

const test = suite("guidance");
const engine = await createEngine();
const key = Key.from(31);
const BRANCH: Partial<STDiTConfig> = { ...SMALL, depth: 1, languageChannels: 5, languageLength: 4 };
const { x: noise, y, mask, language } = inputsOf(engine, BRANCH);

async function model(on: Engine, predSigma: boolean, more: Partial<STDiTConfig> = {}): Promise<STDiT> {
  const m = new STDiT(on, { ...BRANCH, predSigma, ...more }, { key });
  await randomize(m, key, 0.5);
  const { weight, bias } = m.finalLayer.linear;
  // Variances must lie about [-1, 1]; their channels are the last of each pixel.
  const C = outChannels(m.config);
  const rows = Float32Array.from({ length: bias!.size }, (_, i) => (i % C < m.config.inChannels ? 1 : 0.1));
  const scaled = {
    "final_layer.linear.weight": weight.mul(on.tensor(rows, [rows.length, 1])),
    "final_layer.linear.bias": bias!.mul(0.1),
  };
  await m.loadStateDict(scaled, { strict: false });
  for (const t of Object.values(scaled)) t.dispose();
  return m;
}
const sigma = await model(engine, true);
const flow = await model(engine, false);

/** e(0, 0), e(c, 0) and e(c, l), each from its own run, with the captions' masks. */
const three = (m: STDiT, x: Tensor, t: number): Tensor[] =>
  [
    [
      [1, 1],
      [1, 1],
    ],
    [
      [0, 0],
      [1, 1],
    ],
    [
      [0, 0],
      [0, 0],
    ],
  ].map(([drop, second]) => m.forward(x, [t, t], y, mask, { drop, language: { ...language!, drop: second } }));

/** The formula on the first `channels` channels, written out; the others are e(c, l)'s. */
const formula =
  (m: STDiT, s: number, l: number, channels = m.config.inChannels): Predict =>
  (x, t) => {
    const [none, text, all] = three(m, x, t);
    const g = none.add(text.sub(none).mul(s)).add(all.sub(text).mul(l));
    const C = outChannels(m.config);
    const which = engine.tensor(
      Float32Array.from({ length: C }, (_, c) => (c < channels ? 1 : 0)),
      [C, 1, 1, 1],
    );
    return g.mul(which).add(all.mul(which.mul(-1).add(1)));
  };
const values = async (predict: Predict, t = 300) => {
  const out = engine.noGrad(() => engine.scope(() => predict(noise, t)));
  const numbers = Float32Array.from(await out.data());
  out.dispose();
  return numbers;
};

/** Batches of the forwards that a prediction runs. */
async function batches(m: STDiT, predict: Predict): Promise<number[]> {
  const seen: number[] = [];
  const off = m.hook("finalLayer", (_, out: Tensor) => {
    seen.push(out.shape[0]);
  });
  await values(predict);
  off();
  return seen;
}

test("two scales are the formula over three separate runs, and runs without weight are left out", async () => {
  for (const [s, l, runs] of [
    [7, 12.5, 3],
    [1.5, 2, 3],
    [2, 1, 3],
    [0, 3, 3],
    [1, 3, 2],
    [3, 3, 2],
    [3, 0, 2],
    [1, 1, 1],
    [1, 0, 1],
    [0, 0, 1],
  ]) {
    for (const m of [flow, sigma]) {
      // Variances come from the run that sees all.
      const more = m === sigma && l === 0 ? 1 : 0;
      const predict = guided(m, y, mask, { scale: s, language, languageScale: l });
      const limit = 2e-6 * (1 + s + l);
      await near(`${s}, ${l}`, await values(predict), { data: await values(formula(m, s, l)) }, limit);
      assert.equal(await batches(m, predict), [2 * (runs + more)], `${s}, ${l}`);
    }
    const first = guided(sigma, y, mask, { scale: s, language, languageScale: l, cfgChannels: 1 });
    const expected = { data: await values(formula(sigma, s, l, 1)) };
    await near(`${s}, ${l}: one channel`, await values(first), expected, 2e-6 * (1 + s + l));
  }
  const [none, text, all] = await Promise.all([0, 1, 2].map((i) => values((x, t) => three(flow, x, t)[i])));
  const counts = [relNorm(none, text), relNorm(text, all)];
  assert.ok(Math.min(...counts) > 1e-2, `captions count ${counts}`);
  // A language scale that is not given is the caption's.
  const predict = guided(flow, y, mask, { scale: 3, language });
  assert.ok(
    equalBits(await values(predict), await values(guided(flow, y, mask, { scale: 3, language, languageScale: 3 }))),
  );
});

test("one batch or parts: equal results", async () => {
  for (const [scale, languageScale] of [
    [7, 12.5],
    [3, 3],
    [1, 2],
  ]) {
    const by = (parts: GuidanceParts) => guided(sigma, y, mask, { scale, language, languageScale, parts });
    const whole = await values(by(1));
    assert.ok(equalBits(await values(by(3)), whole));
    assert.ok(equalBits(await values(by("auto")), whole));
    const runs = scale === 7 ? 3 : 2;
    assert.equal(await batches(sigma, by(3)), Array(runs).fill(2));
    assert.equal(await batches(sigma, by("auto")), [2 * runs]);
  }
  const plain = await model(engine, true, { languageChannels: 0 });
  const by = (parts: GuidanceParts) => guided(plain, y, mask, { scale: 3, parts });
  assert.ok(equalBits(await values(by(3)), await values(by(1))));
  assert.equal(await batches(plain, by(3)), [2, 2]);
  plain.dispose();
});

test("auto runs in parts from the step on that does not fit the budget", async () => {
  const peakOf = async (on: Engine, parts: GuidanceParts) => {
    const m = await model(on, true, { depth: 2, hidden: 32, latent: [16, 16] });
    const { x, y, mask, language } = inputsOf(on, m.config);
    const predict = guided(m, y, mask, { scale: 7, language, languageScale: 12.5, parts });
    const before = on.memory().live;
    on.memoryPool.resetPeak();
    const run = async () => {
      const out = on.noGrad(() => on.scope(() => predict(x, 300)));
      const numbers = await out.data();
      out.dispose();
      return numbers;
    };
    const first = await run();
    const peak = on.memory().peak;
    const { created } = on.memoryPool;
    const again = await run();
    const steady = on.memoryPool.created === created;
    predict.dispose!();
    assert.ok(on.memory().live - before < 1e5, "nothing is left behind");
    m.dispose();
    for (const t of [x, y, mask, language!.y, language!.mask!]) t.dispose();
    return { peak: peak - before, total: peak, first, again, steady };
  };
  const roomy = await createEngine();
  const parted = await peakOf(roomy, 3);
  const whole = await peakOf(roomy, 1);
  roomy.destroy();
  assert.ok(parted.peak < 0.7 * whole.peak, `${parted.peak} of ${whole.peak} bytes`);
  const tight = await createEngine({ budget: Math.ceil((parted.total + whole.total) / 2) });
  const auto = await peakOf(tight, "auto");
  assert.ok(auto.steady, "remembered");
  for (const same of [auto.again, parted.first, whole.first]) assert.ok(equalBits(auto.first, same));
  let refused = "";
  await peakOf(tight, 1).catch((error) => {
    refused = error.message;
  });
  assert.match(refused, /beyond the budget/);
  tight.destroy();
});

const SAMPLERS: [string, STDiT, (predict: Predict) => AsyncIterable<Step>][] = [
  ["ddpm", sigma, (p) => ddpm(p, noise, { steps: 4, key })],
  ["ddim", sigma, (p) => ddim(p, noise, { steps: 4 })],
  ["ddim of v", flow, (p) => ddim(p, noise, { steps: 4, predicts: "v", eta: 0.5, key })],
  ["dpm-solver++", sigma, (p) => dpmSolver(p, noise, { steps: 4 })],
  ["dpm-solver++ of v", flow, (p) => dpmSolver(p, noise, { steps: 4, predicts: "v" })],
  ["euler", flow, (p) => euler(p, noise, { steps: 4 })],
  ["heun", flow, (p) => heun(p, noise, { steps: 3 })],
];
const sampled = async (sampler: AsyncIterable<Step>) => {
  const x = await finalLatent(sampler);
  const numbers = Float32Array.from(await x.data());
  x.dispose();
  return numbers;
};

test("every sampler: two scales as the formula, equal ones as plain guidance", async () => {
  const worst: string[] = [];
  for (const [name, m, walk] of SAMPLERS) {
    const options: GuidanceOptions = { language, scale: 1.5, languageScale: 2.5 };
    const got = await sampled(walk(guided(m, y, mask, options)));
    const off = await near(name, got, { data: await sampled(walk(formula(m, 1.5, 2.5))) }, 1e-5, relNorm);
    worst.push(`${name} ${off.toExponential(1)}`);
    const equal = await sampled(walk(guided(m, y, mask, { ...options, scale: 2, languageScale: 2 })));
    const plain = await sampled(
      walk((x, t) => {
        const [none, , all] = three(m, x, t);
        const g = none.add(all.sub(none).mul(2));
        return m === sigma ? cat([g.slice(1, 0, 2), all.slice(1, 2, 4)], 1) : g;
      }),
    );
    await near(`${name}, equal scales`, equal, { data: plain }, 1e-5, relNorm);
    const counts = relNorm(got, equal);
    assert.ok(counts > 2e-4, `${name}: scales count ${counts}`);
  }
  console.log(`\n  ${worst.join(", ")}`);
});

test("compiled: a plan of one kind serves all steps, with eager's numbers, and goes with the sampler", async () => {
  const compile = engine.compile.bind(engine);
  const made: { plans: readonly unknown[] }[] = [];
  const plans: number[][] = [];
  engine.compile = ((f: (...args: never[]) => unknown) => {
    const compiled = compile(f as never);
    made.push(compiled);
    return compiled;
  }) as typeof engine.compile;
  try {
    for (const [name, m, walk] of SAMPLERS) {
      const options: GuidanceOptions = { language, scale: 1.5, languageScale: 2.5 };
      const before = engine.memory().live;
      made.length = 0;
      const seen: number[] = [];
      let x: Tensor | undefined;
      for await (const step of walk(guided(m, y, mask, options))) {
        if (step.i === step.steps - 1) seen.push(...made.map(({ plans }) => plans.length));
        x = step.x;
      }
      const got = Float32Array.from(await x!.data());
      x!.dispose();
      plans.push(seen);
      assert.is(engine.memory().live, before, `${name}: nothing is left`);
      engine.eager = true;
      const expected = await sampled(walk(guided(m, y, mask, options)));
      engine.eager = false;
      await near(name, got, { data: expected }, 1e-5, relNorm);
    }
  } finally {
    engine.compile = compile;
    engine.eager = false;
  }
  // The model's evaluation has one plan; of the sampler's own formulas, steps without noise or history have their own.
  assert.ok(
    plans.every(([model]) => model === 1),
    `${plans.join(" · ")}`,
  );
  assert.ok(
    plans.every(([, ...own]) => own.every((n) => n >= 1 && n <= 3)),
    `${plans.join(" · ")}`,
  );
});

test("what cannot be guided is refused", async () => {
  const refused = (options: GuidanceOptions, message: RegExp, m = sigma) =>
    assert.throws(() => guided(m, y, mask, options), message);
  const plain = new STDiT(engine, { ...BRANCH, languageChannels: 0 }, { key });
  refused({ language }, /the model has no language branch: a second caption or its scale was given/, plain);
  refused({ languageScale: 2 }, /the model has no language branch/, plain);
  refused({ scale: 2 }, /the model has a language branch: no second captions were given/);
  for (const bad of [-1, Number.NaN, Number.POSITIVE_INFINITY, "7" as unknown as number]) {
    refused({ language, scale: bad }, /guidance: the scale must be a number from 0: got/);
    refused({ language, languageScale: bad }, /guidance: the language scale must be a number from 0: got/);
  }
  refused({ language, parts: 2 as 1 }, /parts must be "auto", 1 or 3: got 2/);
  refused({ language, languageScales: 3 } as object, /unknown option "languageScales"; did you mean/);
  plain.dispose();
});

test.after(() => {
  for (const m of [sigma, flow]) m.dispose();
  engine.destroy();
});
test.run();
