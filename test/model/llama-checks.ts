import type { Engine } from "../../engine/index.js";
import { llamaConfig } from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import type { Golden } from "../golden.js";
import { relNorm, worstAbs } from "./compare.js";
import type { CheckReport } from "./stdit-checks.js";

/** The file's own limits. */
const LIMIT = { state: 1e-5, gradient: 1e-4 };

/** Sizes of the golden model. */
export function goldenConfig(metadata: Readonly<Record<string, string>>) {
  const { vocab, hidden, inter, layers, heads, kv_heads, head_dim, eps, theta } = JSON.parse(metadata.cfg);
  return llamaConfig({
    vocabSize: vocab,
    hidden,
    intermediate: inter,
    depth: layers,
    heads,
    kvHeads: kv_heads,
    headDim: head_dim,
    eps,
    theta,
  });
}

/** The golden Llama: states by layer, from the start and from the end, and the gradient of every parameter. */
export async function checkLlama(
  engine: Engine,
  { tensors, metadata }: { tensors: Record<string, Golden>; metadata: Readonly<Record<string, string>> },
): Promise<CheckReport> {
  const report: CheckReport = { checks: 0, worst: {}, failures: [] };
  const judge = (kind: keyof typeof LIMIT, what: string, off: number) => {
    report.checks++;
    report.worst[kind] = Math.max(report.worst[kind] ?? 0, off);
    if (!(off <= LIMIT[kind])) report.failures.push(`${what}: off by ${off.toExponential(2)}, limit ${LIMIT[kind]}`);
  };
  const upload = (name: string) => engine.tensor(tensors[name].data, tensors[name].shape);
  const model = new Llama(engine, goldenConfig(metadata), { head: false });
  const weights = Object.entries(tensors).filter(([name]) => name.startsWith("weights."));
  await model.loadStateDict(Object.fromEntries(weights), { prefix: "weights." });
  const [ids, mask, direction] = ["in.ids", "in.mask", "in.loss_rand"].map(upload);
  for (const [name, layer] of [
    ["out.hidden_0", 0],
    ["out.hidden_0", -3],
    ["out.hidden_1", 1],
    ["out.hidden_1", -2],
    ["out.last_hidden_state", 2],
    ["out.last_hidden_state", -1],
  ] as const) {
    const states = engine.noGrad(() => model.hiddenStates(ids, mask, layer));
    judge("state", `${name} as ${layer}`, worstAbs(await states.data(), tensors[name].data));
    states.dispose();
  }
  engine.scope(() => model.hiddenStates(ids, mask).mul(direction).mean().backward());
  for (const [name, p] of model.namedParameters())
    judge("gradient", name, relNorm(await p.grad!.data(), tensors[`grad.${name}`].data));
  for (const t of [ids, mask, direction]) t.dispose();
  model.dispose();
  return report;
}
