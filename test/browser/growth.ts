import { createEngine } from "../../engine/index.js";
import { golden } from "../golden.js";
import { checkExpand } from "../model/expand-checks.js";
import type { CheckReport } from "../model/stdit-checks.js";

/** The golden growths on the page's adapter. */
export async function run(): Promise<CheckReport & { adapter: string }> {
  const engine = await createEngine();
  const report = await checkExpand(engine, await golden("expand", "files"));
  engine.destroy();
  return { ...report, adapter: engine.info.name };
}
