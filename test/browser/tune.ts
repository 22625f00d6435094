import { platform } from "../../engine/device/adapter.js";
import { clearTuning, createEngine, keepTuning, tune } from "../../engine/index.js";
import { matmulId } from "../../engine/ops/gemm.js";

/** Tunes one shape class, keeps it, and asks a new engine for it; then clears it, twice. */
export async function keepAndClear(key: string) {
  const engine = await createEngine();
  const before = engine.tuning.size;
  const [result] = await tune(engine, { classes: new Map([[matmulId, [key]]]), rounds: 2, milliseconds: 1 });
  const place = await keepTuning(engine.info, engine.tuning);
  engine.destroy();
  const other = await createEngine();
  const kept = other.tuning.winner(matmulId, key);
  const cleared = [await clearTuning(other.info), await clearTuning(other.info)];
  other.destroy();
  const last = await createEngine();
  const after = last.tuning.size;
  last.destroy();
  return { before, way: result.way, wrong: result.wrong, place, kept, cleared, after };
}

/** What a damaged cache makes of an engine, and what it says. */
export async function damaged() {
  const engine = await createEngine();
  const place = (await keepTuning(engine.info, engine.tuning)) as string;
  await platform.cacheWrite(/key "(.*)"/.exec(place)![1], "{");
  const { warn } = console;
  const warnings: string[] = [];
  console.warn = (text: string) => warnings.push(text);
  for (let i = 0; i < 2; i++) (await createEngine()).destroy();
  console.warn = warn;
  await clearTuning(engine.info);
  engine.destroy();
  return warnings;
}
