import { suite } from "uvu";
import * as assert from "uvu/assert";
import { AbortedError, cat, createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import type { STDiTConfig } from "../../model/config.js";
import { ddim, ddimReverse } from "../../model/diffusion/ddim.js";
import { ddpm } from "../../model/diffusion/ddpm.js";
import { dpmSolver } from "../../model/diffusion/dpm.js";
import { guided } from "../../model/diffusion/guidance.js";
import { euler, heun } from "../../model/diffusion/ode.js";
import { finalLatent, type Predict, type Step } from "../../model/diffusion/walk.js";
import { diffusionTables } from "../../model/schedule.js";
import { STDiT } from "../../model/stdit.js";
import { near, relNorm } from "./compare.js";

const test = suite("samplers");
const engine = await createEngine();
const key = Key.from(11);
const noise = normal(engine, key.fold(0), [2, 2, 2, 4, 4]);
const z = Float64Array.from(await noise.data());

// For data N(0, DEVIATION²) the best prediction is known at every noise level, and so is the path from noise to data:
// x stays in proportion to the deviation of x_t. Samplers must come near it, and nearer with more steps.
const DEVIATION = 0.4;
const spread = (alpha: number, sigma: number) => Math.hypot(alpha * DEVIATION, sigma);
const full = diffusionTables();
const byEps: Predict = (x, t) => {
  const [alpha, sigma] = [full.sqrtAlphasCumprod[t], full.sqrtOneMinusAlphasCumprod[t]];
  return x.mul(sigma / spread(alpha, sigma) ** 2);
};
const byV: Predict = (x, t) => {
  const [alpha, sigma] = [full.sqrtAlphasCumprod[t], full.sqrtOneMinusAlphasCumprod[t]];
  return x.mul((alpha * sigma * (1 - DEVIATION ** 2)) / spread(alpha, sigma) ** 2);
};
const byFlow: Predict = (x, t) => {
  const u = t / 1000;
  return x.mul((u - (1 - u) * DEVIATION ** 2) / spread(1 - u, u) ** 2);
};
const [aT, sT] = [full.sqrtAlphasCumprod[999], full.sqrtOneMinusAlphasCumprod[999]];
const pathEnd = z.map((v) => (v * DEVIATION) / spread(aT, sT));
const u0 = (4 * 0.9995) / (1 + 3 * 0.9995);
const flowEnd = z.map((v) => (v * DEVIATION) / spread(1 - u0, u0));

async function errorOf(sampler: AsyncIterable<Step>, expected: Float64Array): Promise<number> {
  const x = await finalLatent(sampler);
  const off = relNorm(await x.data(), expected);
  x.dispose();
  return off;
}

/** Error against the known path when the latent stands at t = 333, where no method has yet met the singular end. */
async function errorAt333(sampler: AsyncIterable<Step>): Promise<number> {
  const seen: { t: number; x: ArrayLike<number> }[] = [];
  let x: ArrayLike<number> = z;
  for await (const step of sampler) {
    seen.push({ t: step.t, x });
    x = await step.x.data();
    if (step.i === step.steps - 1) step.x.dispose();
  }
  const at = seen.find(({ t }) => t === 333)!;
  return relNorm(
    at.x,
    z.map((v) => (v * spread(full.sqrtAlphasCumprod[333], full.sqrtOneMinusAlphasCumprod[333])) / spread(aT, sT)),
  );
}

test("second order where the path is smooth", async () => {
  // Steps of 1 + 3k have 333 among their times.
  const [first, second] = await Promise.all(
    [ddim, dpmSolver].map(async (s) => [
      await errorAt333(s(byEps, noise, { steps: 19 })),
      await errorAt333(s(byEps, noise, { steps: 37 })),
    ]),
  );
  console.log(
    `\n  at t = 333: ddim ${first.map((e) => e.toExponential(1)).join(" → ")}, dpm-solver++ ${second.map((e) => e.toExponential(1)).join(" → ")}`,
  );
  assert.ok(first[0] / first[1] > 1.6 && first[0] / first[1] < 2.6);
  assert.ok(second[0] / second[1] > 3 && second[0] / second[1] < 6);
  assert.ok(second[0] < first[0] / 3);
});

test("each sampler reaches the known end of its path, at its order", async () => {
  const rows: [string, number, number, number, number][] = [
    [
      "ddim",
      await errorOf(ddim(byEps, noise, { steps: 20 }), pathEnd),
      await errorOf(ddim(byEps, noise, { steps: 40 }), pathEnd),
      1.6,
      2.6,
    ],
    [
      "ddim of v",
      await errorOf(ddim(byV, noise, { steps: 20, predicts: "v" }), pathEnd),
      await errorOf(ddim(byV, noise, { steps: 40, predicts: "v" }), pathEnd),
      1.6,
      2.6,
    ],
    [
      "dpm-solver++",
      await errorOf(dpmSolver(byEps, noise, { steps: 20 }), pathEnd),
      await errorOf(dpmSolver(byEps, noise, { steps: 40 }), pathEnd),
      1.6,
      12,
    ],
    [
      "euler",
      await errorOf(euler(byFlow, noise, { steps: 20 }), flowEnd),
      await errorOf(euler(byFlow, noise, { steps: 40 }), flowEnd),
      1.6,
      2.6,
    ],
    [
      "heun",
      await errorOf(heun(byFlow, noise, { steps: 20 }), flowEnd),
      await errorOf(heun(byFlow, noise, { steps: 40 }), flowEnd),
      3,
      30,
    ],
  ];
  console.log(`\n  ${rows.map(([n, a, b]) => `${n} ${a.toExponential(1)} → ${b.toExponential(1)}`).join(", ")}`);
  for (const [name, coarse, fine, low, high] of rows) {
    assert.ok(coarse < 0.25, `${name}: off by ${coarse}`);
    assert.ok(
      coarse / fine > low && coarse / fine < high,
      `${name}: twice the steps divide the error by ${coarse / fine}`,
    );
  }
  const error = (name: string) => rows.find(([n]) => n === name)![1];
  assert.ok(error("dpm-solver++") < error("ddim"));
  assert.ok(error("heun") < error("euler") / 3);
});

test("ancestral sampling draws the data's distribution; eta 1 does too", async () => {
  const wide = normal(engine, key.fold(1), [1, 4, 4, 16, 16]);
  for (const [name, sampler] of [
    ["ddpm", ddpm(byEps, wide, { steps: 120, key })],
    ["ddim eta 1", ddim(byEps, wide, { steps: 120, eta: 1, key })],
  ] as const) {
    const x = await finalLatent(sampler);
    const values = Array.from(await x.data());
    const deviation = Math.sqrt(values.reduce((s, v) => s + v * v, 0) / values.length);
    // 4096 values estimate a deviation to 1.1%; 120 steps leave some bias.
    assert.ok(Math.abs(deviation / DEVIATION - 1) < 0.08, `${name}: deviation ${deviation}`);
    x.dispose();
  }
  wide.dispose();
});

test("learned variances between their bounds change the noise alone", async () => {
  const withV =
    (v: number): Predict =>
    (x, t) =>
      cat([byEps(x, t), engine.full(x.shape, v)], 1);
  const ends = await Promise.all([-1, 1].map(async (v) => finalLatent(ddpm(withV(v), noise, { steps: 10, key }))));
  const fixed = await finalLatent(ddpm(byEps, noise, { steps: 10, key }));
  const [low, high, none] = await Promise.all([...ends, fixed].map((t) => t.data()));
  await near("v = -1 is the posterior's variance", low, { data: none }, 1e-5);
  assert.ok(relNorm(high, none) > 1e-3);
  const plain = await finalLatent(ddim(withV(1), noise, { steps: 10 }));
  await near(
    "ddim ignores it",
    plain,
    { data: await (await finalLatent(ddim(byEps, noise, { steps: 10 }))).data() },
    0,
  );
});

test("reversed and forth again", async () => {
  const data = noise.mul(DEVIATION);
  const off: number[] = [];
  for (const steps of [50, 100]) {
    const latent = await finalLatent(ddimReverse(byEps, data, { steps }));
    off.push(await errorOf(ddim(byEps, latent, { steps }), Float64Array.from(await data.data())));
    latent.dispose();
  }
  assert.ok(off[1] < 0.08 && off[0] / off[1] > 1.6, `${off}`);
  data.dispose();
});

test("steps tell what the model believes", async () => {
  let i = 0;
  for await (const step of euler(byFlow, noise, { steps: 5 })) {
    assert.is(step.i, i++);
    assert.is(step.steps, 5);
    const u = step.t / 1000;
    const [x0, eps] = [await step.x0.data(), await step.eps.data()];
    if (step.i === 0)
      await near(
        "x at its time",
        x0.map((v, k) => (1 - u) * v + u * eps[k]),
        { data: z },
        1e-5,
      );
    // From what it believes, a straight line leads on.
    assert.equal([...step.x.shape], [2, 2, 2, 4, 4]);
  }
  assert.is(i, 5);
  const times: number[] = [];
  for await (const step of ddim(byEps, noise, { steps: 4 })) times.push(step.t);
  assert.equal(times, [999, 666, 333, 0]);
});

test("one key, the same clip; another key, another", async () => {
  const run = async (k: Key) => (await finalLatent(ddpm(byEps, noise, { steps: 8, key: k }))).data();
  const [a, b, c] = [await run(key), await run(key), await run(key.fold(9))];
  assert.equal(a, b);
  assert.ok(relNorm(a, Array.from(c)) > 0.1);
});

const SMALL: Partial<STDiTConfig> = {
  inChannels: 2,
  predSigma: true,
  hidden: 16,
  depth: 1,
  heads: 2,
  frames: 2,
  latent: [4, 4],
  captionChannels: 5,
  maxLength: 6,
};

async function model(): Promise<STDiT> {
  const m = new STDiT(engine, SMALL, { key, captionInit: "xavier" });
  // Zeroed projections would hide the caption.
  const names = ["final_layer.linear.weight", "blocks.0.cross_attn.proj.weight"];
  const state = m.stateDict();
  const values = Object.fromEntries(
    names.map((n, i) => [n, normal(engine, key.fold(20 + i), state[n].shape, { std: 0.3 })]),
  );
  await m.loadStateDict(values, { strict: false });
  for (const t of Object.values(values)) t.dispose();
  return m;
}

test("guidance is the formula on the channels it guides", async () => {
  const m = await model();
  const y = normal(engine, key.fold(6), [2, 6, 5]);
  const mask = engine.tensor(Int32Array.of(1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0), [2, 6]);
  const run = async (predict: Predict) => Array.from(await engine.noGrad(() => predict(noise, 300)).data());
  const c = await run((x, t) => m.forward(x, [t, t], y, mask));
  const u = await run((x, t) => m.forward(x, [t, t], m.yEmbedder.nullCaption(2), mask));
  assert.ok(relNorm(c, u) > 1e-3);
  const plane = 2 * 4 * 4;
  for (const [cfgChannels, many] of [
    ["all", 2],
    [1, 1],
  ] as const) {
    const g = await run(guided(m, y, mask, { scale: 3, cfgChannels }));
    const expected = c.map((v, i) => (Math.floor(i / plane) % 4 < many ? u[i] + 3 * (v - u[i]) : v));
    await near(`cfgChannels ${cfgChannels}`, g, { data: expected }, 1e-5);
  }
  await near("scale 1", await run(guided(m, y, mask)), { data: c }, 0);
  await near(
    "scale 0",
    (await run(guided(m, y, mask, { scale: 0 }))).filter((_, i) => Math.floor(i / plane) % 4 < 2),
    { data: u.filter((_, i) => Math.floor(i / plane) % 4 < 2) },
    1e-6,
  );
  assert.throws(() => guided(m, y, mask, { cfgChannels: 3 }), /cfgChannels must be "all" or 1 to 2: got 3/);
  assert.throws(() => guided(m, y, mask, { scale: Number.NaN }), /scale must be a number from 0/);
  engine.tape.truncate(0);
  m.dispose();
});

test("memory stays flat over the steps, and nothing but the latent is left", async () => {
  const m = await model();
  const y = normal(engine, key.fold(6), [2, 6, 5]);
  const before = engine.memory().live;
  for (const make of [
    () => ddpm(guided(m, y, undefined, { scale: 2 }), noise, { steps: 20, key }),
    () => dpmSolver(guided(m, y, undefined, { scale: 2 }), noise, { steps: 20 }),
  ]) {
    const live: number[] = [];
    let last: Tensor | undefined;
    for await (const step of make()) {
      live.push(engine.memory().live);
      last = step.x;
    }
    assert.is(live.length, 20);
    // The first step has made the model's own constants.
    assert.ok(
      live.slice(1).every((n) => n === live[1]),
      `${live}`,
    );
    last!.dispose();
  }
  const after = engine.memory().live;
  for await (const _ of ddim(guided(m, y, undefined, { scale: 2 }), noise, { steps: 20 })) break;
  assert.is(engine.memory().live, after);
  assert.ok(after - before < 4096, `${after - before} bytes of the model's constants`);
  assert.is(engine.tape.entries.length, 0);
  y.dispose();
  m.dispose();
});

test("an abort stops before the next step and frees everything", async () => {
  const before = engine.memory().live;
  for (const sampler of ["euler", "ddpm"] as const) {
    const stop = new AbortController();
    let steps = 0;
    try {
      for await (const _ of sampler === "euler"
        ? euler(byFlow, noise, { steps: 9, signal: stop.signal })
        : ddpm(byEps, noise, { steps: 9, key, signal: stop.signal }))
        if (++steps === 3) stop.abort("the page was left");
      assert.unreachable("did not stop");
    } catch (error) {
      assert.instance(error, AbortedError);
      assert.is((error as Error).message, `${sampler}: stopped before step 4 of 9: the page was left.`);
    }
    assert.is(steps, 3);
    assert.is(engine.memory().live, before);
  }
});

test("what samplers cannot use is refused", async () => {
  const refuse = async (sampler: AsyncIterable<Step>, message: RegExp) => {
    try {
      await finalLatent(sampler);
    } catch (error) {
      assert.match((error as Error).message, message);
      return;
    }
    assert.unreachable(`did not throw ${message}`);
  };
  await refuse(ddpm(byEps, noise, { steps: 5 }), /ddpm: needs a key: every step adds noise/);
  await refuse(ddim(byEps, noise, { eta: 0.5 }), /ddim: needs a key/);
  await refuse(ddim(byEps, noise, { eta: 2, key }), /eta must lie in \[0, 1\]: got 2/);
  await refuse(ddim(byEps, noise, { predicts: "x0" as "eps" }), /predicts must be "eps" or "v": got "x0"/);
  await refuse(ddpm(byEps, noise, { step: 5, key } as object), /unknown option "step"; did you mean "steps"/);
  await refuse(euler(byFlow, noise, { steps: 0 }), /bad step count: 0/);
  await refuse(
    euler((x) => cat([x, x], 1), noise, { steps: 2 }),
    /output must have the latent's shape \[2, 2, 2, 4, 4\]: got \[2, 4, 2, 4, 4\]/,
  );
  await refuse(
    ddim((x) => x.slice(1, 0, 1), noise),
    /output must have 2 or 4 channels for latents of 2/,
  );
});

test.after(() => engine.destroy());
test.run();
