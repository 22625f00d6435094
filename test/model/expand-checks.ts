import type { Engine, Tensor } from "../../engine/index.js";
import { type GrowthMode, grow, growthPlan } from "../../model/growth.js";
import { STDiT } from "../../model/stdit.js";
import { AdamW } from "../../train/optim.js";
import type { Golden } from "../golden.js";
import { relNorm, worstAbs } from "./compare.js";
import { equalBits } from "./grown.js";
import type { CheckReport } from "./stdit-checks.js";

/** The file's own limits, for a CPU: gradients as norms. */
const LIMIT = { output: 2e-5, loss: 1e-5, gradient: 1e-5, weight: 1e-5, trained: 1e-4 };

/**
 * The golden model of four blocks: nine growths that keep its output bit for bit, the one that does not, and of one
 * growth every stored gradient and three steps of AdamW. Runs in Node and in a page.
 */
export async function checkExpand(
  engine: Engine,
  { tensors: g, metadata }: { tensors: Record<string, Golden>; metadata: Readonly<Record<string, string>> },
): Promise<CheckReport> {
  const cfg = JSON.parse(metadata.cfg);
  const report: CheckReport = { checks: 0, worst: {}, failures: [] };
  const says = (what: string, right: boolean) => {
    report.checks++;
    if (!right) report.failures.push(what);
  };
  const factor = engine.info.kind === "software" ? 1 : 10;
  const judge = (kind: keyof typeof LIMIT, what: string, off: number) => {
    const limit = LIMIT[kind] * factor;
    report.worst[kind] = Math.max(report.worst[kind] ?? 0, off);
    says(`${what}: off by ${off.toExponential(2)}, limit ${limit}`, off <= limit);
  };
  const upload = (name: string): Tensor => engine.tensor(g[name].data, g[name].shape);
  const [x, y, mask, direction] = ["in.x", "in.y", "in.mask", "in.loss_rand"].map(upload);
  const forward = (model: STDiT): Tensor => model.forward(x, g["in.timestep"].data, y, mask); // [B, 8, T, H, W]
  const outputOf = async (model: STDiT) => {
    const out = engine.noGrad(() => engine.scope(() => forward(model)));
    return (await out.data().finally(() => out.dispose())) as Float32Array;
  };

  const base = new STDiT(engine, {
    hidden: cfg.hidden,
    depth: cfg.depth,
    heads: cfg.heads,
    frames: cfg.input_size[0],
    latent: cfg.input_size.slice(1),
    captionChannels: cfg.cap,
    maxLength: cfg.L,
    spaceScale: cfg.space_scale,
    timeScale: cfg.time_scale,
  });
  const weights = Object.entries(g).filter(([name]) => name.startsWith("weights."));
  await base.loadStateDict(Object.fromEntries(weights), { prefix: "weights." });
  const before = await outputOf(base);
  judge("output", "out.base", worstAbs(before, g["out.base"].data));

  for (const name of Object.keys(g).filter((n) => n.endsWith(".source"))) {
    const scheme = name.slice(0, -".source".length);
    const [, mode, blocks] = /^([a-z]+)(\d+)$/.exec(scheme)!;
    const options = { mode: mode as GrowthMode, blocks: Number(blocks) };
    const plan = growthPlan(cfg.depth, options).blocks;
    says(`${scheme}: other sources`, `${plan.map((b) => b.source)}` === `${g[name].data}`);
    says(`${scheme}: other new blocks`, `${plan.map((b) => Number(b.isNew))}` === `${g[`${scheme}.is_new`].data}`);
    const grown = await grow(base, options);
    says(`${scheme}: another output`, equalBits(await outputOf(grown), before));
    grown.dispose();
  }
  // The file's flag is 0 where its reference left the positions at index 0.
  says("prefix4: the file's flag", g["prefix4.bit_identical"].data[0] === 0);
  says("prefix4, positions at the owner: the file's flag", g["prefix4_tpe_at_original.bit_identical"].data[0] === 1);
  const moved = await grow(base, { mode: "prefix", blocks: 4, temporalOwner: "first" });
  const other = await outputOf(moved);
  moved.dispose();
  judge("output", "positions at index 0", worstAbs(other, g["prefix4.out_tpe_at_index0"].data));
  says("positions at index 0 change nothing", relNorm(other, before) > 1e-3);

  const model = await grow(base, { mode: "insert", blocks: 2 });
  base.dispose();
  const stepOn = async (what: string, expected: ArrayLike<number>) => {
    const loss = engine.scope(() => {
      const sum = forward(model).mul(direction).mean();
      sum.backward();
      return sum.detach();
    });
    judge("loss", what, worstAbs(await loss.data(), expected));
    loss.dispose();
  };
  await stepOn("loss.base", g["loss.base"].data);
  const named = Object.fromEntries(model.namedParameters());
  for (const [name, { data }] of Object.entries(g)) {
    if (!name.startsWith("insert2.grad.")) continue;
    const own = name.slice("insert2.grad.".length);
    const grad = await named[own].grad!.data();
    if (data.some((v) => v !== 0)) judge("gradient", own, relNorm(grad, data));
    else
      says(
        `${own} has a gradient`,
        grad.every((v) => v === 0),
      );
  }
  model.zeroGrad();
  const optimizer = new AdamW(named, { lr: 1e-3, weightDecay: 0 });
  for (let step = 0; step < 3; step++) {
    await stepOn(`loss ${step}`, g[`insert2.train.loss${step}`].data);
    optimizer.step();
    model.zeroGrad();
  }
  judge("trained", "after three steps", worstAbs(await outputOf(model), g["insert2.train.out_after3"].data));
  for (const name of ["attn.qkv.weight", "attn_temp.proj.weight"])
    judge("weight", name, worstAbs(await named[`blocks.2.${name}`].data(), g[`insert2.train.${name}_after3`].data));
  for (const t of [x, y, mask, direction]) t.dispose();
  model.dispose();
  return report;
}
