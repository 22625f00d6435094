import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine, type Engine } from "../engine/index.js";
import { NotCovered, operators, upload, type Value } from "./onnx/operators.js";
import { type OnnxTensor, readModel, readTensor } from "./onnx/protobuf.js";

const onnx = suite("onnx");
/** Debian's libonnx-testdata: ONNX's own operator vectors. */
const folder = process.env.ONNX_TESTDATA ?? "/usr/share/libonnx-testdata/data/node";
const FLOATS = [1, 10, 11];
const values = (t: OnnxTensor) => t.values;

async function runCase(engine: Engine, path: string): Promise<string | undefined> {
  const model = readModel(readFileSync(join(path, "model.onnx")));
  const known = new Map<string, Value>();
  const missing = model.nodes.find((n) => n.domain !== "" || !operators[n.op]);
  if (missing) throw new NotCovered(`operator ${missing.domain ? `${missing.domain}.` : ""}${missing.op}`);
  const data = join(path, "test_data_set_0");
  for (const t of model.initializers) known.set(t.name, upload(engine, t));
  model.inputs.forEach((name, i) => {
    const file = join(data, `input_${i}.pb`);
    if (existsSync(file)) known.set(name, upload(engine, readTensor(readFileSync(file))));
  });
  for (const node of model.nodes) {
    const inputs = node.inputs.map((name) => (name === "" ? undefined : known.get(name)));
    const outputs = operators[node.op]({ engine, opset: model.opset, node, inputs });
    node.outputs.forEach((name, i) => {
      if (name === "") return;
      if (!outputs[i]) throw new NotCovered(`output ${i} of ${node.op}`);
      known.set(name, outputs[i]);
    });
  }
  for (const [i, name] of model.outputs.entries()) {
    const expected = readTensor(readFileSync(join(data, `output_${i}.pb`)));
    const { tensor } = known.get(name)!;
    if (`${tensor.shape}` !== `${expected.dims}`) return `shape [${tensor.shape}], expected [${expected.dims}]`;
    const got = await tensor.data();
    // The window functions' expected values were made with π = 3.1415; ONNX's own tolerance is 1e-3 everywhere.
    const loose = expected.type === 10 ? 2e-3 : path.includes("window") ? 1e-3 : 1e-5;
    for (const [k, e] of values(expected).entries()) {
      const close = FLOATS.includes(expected.type)
        ? Math.abs(got[k] - e) <= 2e-6 + loose * Math.abs(e) ||
          Object.is(got[k], e) ||
          (Number.isNaN(got[k]) && Number.isNaN(e))
        : got[k] === e;
      if (!close) return `output ${i} at ${k}: ${got[k]}, expected ${e}`;
    }
  }
  return undefined;
}

onnx("ONNX's operator vectors: every case that is covered agrees", async () => {
  if (!existsSync(folder)) {
    assert.not(process.env.ESPALIER_COMPLETE, `onnx: ${folder} is missing; apt-get install libonnx-testdata`);
    console.log("\n  not run: Debian's libonnx-testdata is not installed (0 passed, 0 failed, 932 not covered)");
    return;
  }
  const engine = await createEngine();
  const passed: string[] = [];
  const failed: string[] = [];
  const reasons = new Map<string, number>();
  for (const name of readdirSync(folder).sort()) {
    try {
      const wrong = await runCase(engine, join(folder, name));
      if (wrong) failed.push(`${name}: ${wrong}`);
      else passed.push(name);
    } catch (error) {
      if (error instanceof NotCovered) reasons.set(error.message, (reasons.get(error.message) ?? 0) + 1);
      else failed.push(`${name}: ${(error as Error).message}`);
    }
  }
  engine.destroy();
  const skipped = [...reasons.values()].reduce((a, b) => a + b, 0);
  console.log(`\n  ${passed.length} passed, ${failed.length} failed, ${skipped} not covered`);
  for (const [reason, count] of [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 12))
    console.log(`    ${count} × ${reason}`);
  console.log(`    … and ${Math.max(0, reasons.size - 12)} further reasons`);
  assert.is(failed.join("\n"), "");
  assert.ok(passed.length >= 200, `${passed.length} cases passed, at least 200 are expected`);
});
onnx.run();
