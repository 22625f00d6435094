import { createEngine } from "../../engine/index.js";
import { opTests } from "../ops/index.js";
import { type Report, runOps } from "../ops/loop.js";

/** The registry loop on the page's adapter. */
export async function run(): Promise<Report & { adapter: string; half: boolean }> {
  const engine = await createEngine();
  const report = await runOps(engine, Object.values(opTests));
  const found = { ...report, adapter: engine.info.name, half: engine.has("shader-f16") };
  engine.destroy();
  return found;
}
