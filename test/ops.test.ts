import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine } from "../engine/index.js";
import { opTests } from "./ops/index.js";
import { runOps } from "./ops/loop.js";

const ops = suite("ops");
const only = process.env.OPS?.split(",");

ops("every op of the registry against its oracle", async () => {
  const engine = await createEngine();
  const tests = Object.entries(opTests)
    .filter(([stem]) => !only || only.includes(stem))
    .map(([, t]) => t);
  const report = await runOps(engine, tests, !only);
  console.log(
    `\n  ${engine.info.name}: ${report.ops} ops, ${report.cases} cases, ${report.gradients} gradients, ${report.f16} in f16${engine.has("shader-f16") ? "" : " (adapter lacks f16)"}`,
  );
  engine.destroy();
  assert.is(report.failures.join("\n"), "");
});
ops.run();
