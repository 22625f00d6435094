import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Tensor } from "../../engine/index.js";
import { Flow } from "../../model/diffusion/flow.js";
import { Iddpm } from "../../model/diffusion/iddpm.js";
import type { Objective } from "../../model/diffusion/objective.js";
import { STDiT } from "../../model/stdit.js";
import { AdamW, EMA } from "../../train/optim.js";
import { type Rate, rateOf } from "../../train/rate.js";
import { golden } from "../golden.js";
import { near } from "./compare.js";

const test = suite("train-steps");
const engine = await createEngine();
const { tensors: g, metadata } = await golden("train_twin");
const cfg = JSON.parse(metadata.cfg);
const C: number = cfg.hidden;
const seen = new Set<string>();
const take = (name: string) => {
  assert.ok(name in g, `the file holds no ${name}`);
  seen.add(name);
  return g[name];
};
const upload = (name: string): Tensor => engine.tensor(take(name).data as Float32Array, take(name).shape);

/**
 * What f32 is off from the file's f64 numbers, at most: relative, for weights absolute (they move by 1e-3 a step).
 * Hardware, whose e^x and order of sums are its own, is allowed ten times that, as everywhere here.
 */
const GPU = engine.info.kind === "software" ? 1 : 10;
const LIMIT = { loss: 1e-5 * GPU, norm: 1e-5 * GPU, weights: 2e-5 * GPU, moved: 2e-5 * GPU };

const relative = (got: ArrayLike<number>, expected: ArrayLike<number>) =>
  Array.from(expected).reduce((worst, e, i) => Math.max(worst, Math.abs(got[i] / e - 1)), 0);

/** A parameter without the keys' part of an attention's bias: it has no gradient but rounding, which AdamW blows up. */
function withoutKeys(name: string, values: ArrayLike<number>): number[] {
  const [from, to] = name.endsWith("qkv.bias") ? [C, 2 * C] : name.endsWith("kv_linear.bias") ? [0, C] : [0, 0];
  return Array.from(values).filter((_, i) => i < from || i >= to);
}

interface Course {
  name: "iddpm" | "flow";
  objective: Objective;
  steps: number;
  rate: Rate;
  /** The average's decay grows from 0.1. */
  warmup: boolean;
  /** Name of the uniform draws, where the file holds them beside the times. */
  draws?: string;
}

async function follow({ name, objective, steps, rate, warmup, draws }: Course): Promise<void> {
  const model = new STDiT(engine, {
    inChannels: 4,
    predSigma: name === "iddpm",
    hidden: C,
    depth: cfg.depth,
    heads: cfg.heads,
    frames: cfg.input_size[0],
    latent: cfg.input_size.slice(1),
    captionChannels: cfg.cap,
    maxLength: cfg.L,
    spaceScale: cfg.space_scale,
    timeScale: cfg.time_scale,
  });
  const names = model.namedParameters().map(([n]) => n);
  const origin = (n: string) => (`${name}.start.${n}` in g ? `${name}.start.${n}` : `start.${n}`);
  const start = Object.fromEntries([...names, "y_embedder.y_embedding"].map((n) => [n, take(origin(n))]));
  const { posEmbed, posEmbedTemporal } = model;
  await model.loadStateDict({ ...start, pos_embed: posEmbed, pos_embed_temporal: posEmbedTemporal });
  const parameters = Object.fromEntries(model.namedParameters());
  const optimizer = new AdamW(parameters, { weightDecay: 0 });
  const ema = new EMA(parameters, { decay: 0.9, warmup });
  const off: Record<string, number> = {};
  const check = async (kind: keyof typeof LIMIT, what: string, got: Tensor | number[], expected: ArrayLike<number>) => {
    const measure = kind === "weights" ? undefined : relative;
    const error = await near(`${name} ${what}`, got, { data: expected }, LIMIT[kind], measure);
    off[kind] = Math.max(off[kind] ?? 0, error);
  };

  for (let i = 0; i < steps; i++) {
    const at = (n: string) => `${name}.step${i}.${n}`;
    const times = draws ? objective.times(take(at(draws)).data) : Array.from(take(at("t")).data);
    if (draws) await near("times", times, take(at("u")), 1e-6, relative);
    const { loss, parts, norm } = engine.scope(() => {
      const sample = { x0: upload(at("x_start")), eps: upload(at("noise")), times };
      const xt = objective.noise(sample);
      const drop = take(at("drop")).data;
      const output = model.forward(xt, objective.timesteps(times), upload(at("y")), upload(at("mask")), { drop });
      const { loss, parts } = objective.loss(output, sample);
      loss.backward();
      optimizer.lr = rate(i);
      const { norm } = optimizer.step({ clip: 1 });
      optimizer.zeroGrad();
      ema.update();
      for (const t of [loss, norm, ...Object.values(parts)]) t.keep();
      return { loss, parts, norm };
    });
    await check("loss", `loss ${i}`, loss, take(at("loss")).data);
    for (const [part, values] of Object.entries(parts))
      await check("loss", `${part} ${i}`, values, take(at(part)).data);
    await check("norm", `norm ${i}`, norm, take(at("grad_norm")).data);
    for (const t of [loss, norm, ...Object.values(parts)]) t.dispose();
  }

  const prefix = `${name}.final.`;
  const finals = Object.keys(g).filter((k) => k.startsWith(prefix));
  assert.ok(finals.length > 10);
  for (const key of finals) {
    const [, kind, n] = /^(weights|ema)\.(.*)$/.exec(key.slice(prefix.length))!;
    const got = await (kind === "ema" ? ema.params : parameters)[n].data();
    await check("weights", `${kind} of ${n}`, withoutKeys(n, got), withoutKeys(n, take(key).data));
  }
  const moved = take(`${name}.moved`).data;
  assert.is(moved.length, names.length);
  for (const [i, n] of names.sort().entries()) {
    const before = withoutKeys(n, start[n].data);
    const after = withoutKeys(n, await parameters[n].data());
    const way = Math.hypot(...after.map((v, k) => v - before[k]));
    await check("moved", `way of ${n}`, [way], [moved[i]]);
  }
  const figures = Object.entries(off).map(([k, v]) => `${k} ${v.toExponential(1)}`);
  console.log(`\n  ${steps} steps, ${finals.length} final tensors: ${figures.join(", ")}`);
  ema.dispose();
  optimizer.dispose();
  model.dispose();
}

test("noise and variances: four steps of AdamW, clipped, averaged", () =>
  follow({
    name: "iddpm",
    objective: new Iddpm(),
    steps: 4,
    rate: rateOf({ schedule: "constant", lr: 1e-3, steps: 4 }),
    warmup: false,
  }));

test("rectified flow: three steps, rate and average warming up", () =>
  follow({
    name: "flow",
    objective: new Flow({ shift: 4 }),
    steps: 3,
    rate: rateOf({ schedule: "warmup", lr: 1e-3, steps: 3, warmupSteps: 3 }),
    warmup: true,
    draws: "u0",
  }));

test("every tensor of the file was read, and nothing lives on", () => {
  const left = Object.keys(g).filter((key) => !seen.has(key));
  assert.is(left.length, 0, left.slice(0, 5).join(", "));
  assert.is(engine.memory().live, 0);
});

test.after(() => engine.destroy());
test.run();
