import { createEngine } from "../../engine/index.js";
import { golden } from "../golden.js";
import { checkDual } from "../model/dual-checks.js";
import { type CheckReport, checkSTDiT } from "../model/stdit-checks.js";

/** The small model of the golden files on the page's adapter. */
export async function run(): Promise<CheckReport & { adapter: string }> {
  const engine = await createEngine();
  const names = ["stdit_a_weights", "stdit_a_io", "stdit_a_grads"];
  const [weights, io, grads] = await Promise.all(names.map((name) => golden(name, "files")));
  const report = await checkSTDiT(engine, { weights, io, grads });
  engine.destroy();
  return { ...report, adapter: engine.info.name };
}

/** The small model with a language branch on the page's adapter. */
export async function language(): Promise<CheckReport & { adapter: string }> {
  const engine = await createEngine();
  const report = await checkDual(engine, await golden("dual_cross_attn", "files"));
  engine.destroy();
  return { ...report, adapter: engine.info.name };
}
