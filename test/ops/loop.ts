import { type Engine, registry, type Tensor } from "../../engine/index.js";
import type { Case, Input, Nd, OpTest } from "./case.js";
import { size } from "./nd.js";

/** What one run of the registry loop found. */
export interface Report {
  ops: number;
  cases: number;
  gradients: number;
  f16: number;
  failures: string[];
}

/** mulberry32: small, seeded, the same everywhere. */
export function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), 1 | s);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function values(input: Input, next: () => number): Float64Array {
  const n = size(input.shape);
  const v = input.values ?? { low: -2, high: 2 };
  const whole = input.dtype === "i32" || input.dtype === "u32";
  if ("low" in v)
    return Float64Array.from({ length: n }, () =>
      (whole ? Math.floor : Math.fround)(v.low + (v.high - v.low) * next()),
    );
  return Float64Array.from({ length: n }, (_, i) => (whole ? v[i % v.length] : Math.fround(v[i % v.length])));
}

function worst(actual: ArrayLike<number>, expected: ArrayLike<number>): { error: number; at: number } {
  let [error, at] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i], expected[i]];
    if (Object.is(a, e) || a === e) continue;
    const d =
      Number.isFinite(e) && Number.isFinite(a)
        ? Math.abs(a - e) / (1 + Math.abs(e))
        : Number.isNaN(a) && Number.isNaN(e)
          ? 0
          : Number.POSITIVE_INFINITY;
    if (d > error) [error, at] = [d, i];
  }
  return { error, at };
}

const isFloatInput = (i: Input) => i.dtype === undefined || i.dtype === "f32";

async function check(engine: Engine, c: Case, half: boolean, report: Report): Promise<void> {
  const next = random(c.name.length * 7919 + Object.keys(c.inputs).length);
  const raw: Record<string, Nd> = {};
  const leaves: Record<string, Tensor> = {};
  for (const [name, input] of Object.entries(c.inputs)) {
    raw[name] = { shape: input.shape, data: values(input, next) };
    const dtype = half && isFloatInput(input) ? "f16" : (input.dtype ?? "f32");
    leaves[name] = engine.tensor(Float64Array.from(raw[name].data), input.shape, dtype);
    // Half storage rounds the operands: the oracle gets the rounded ones.
    if (dtype === "f16") raw[name].data = Float64Array.from(await leaves[name].data());
    if (c.grads?.includes(name)) leaves[name].setRequiresGrad();
  }
  const seen = (x: Record<string, Nd>) =>
    Object.fromEntries(Object.entries(x).map(([n, v]) => [n, c.inputs[n].view ? c.inputs[n].view!.oracle(v) : v]));
  const expected = c.oracle(seen(raw));
  const tensors = Object.fromEntries(
    Object.entries(leaves).map(([n, t]) => [n, c.inputs[n].view ? c.inputs[n].view!.engine(t) : t]),
  );
  const y = c.run(tensors, engine);
  const label = `${c.name}${half ? " (f16)" : ""}`;
  if (`${y.shape}` !== `${expected.shape}`) {
    report.failures.push(`${label}: shape [${y.shape}], expected [${expected.shape}]`);
    return;
  }
  const got = await y.data();
  const limit = half ? 4e-3 : (c.tolerance ?? 4e-6);
  const forward = worst(got, expected.data);
  if (!(forward.error <= limit))
    report.failures.push(
      `${label}: forward off by ${forward.error.toExponential(2)} (limit ${limit}) at ${forward.at}: got ${got[forward.at]}, expected ${expected.data[forward.at]}`,
    );
  if (c.grads?.length) {
    const g = Float64Array.from({ length: expected.data.length }, () => Math.fround(next() * 2 - 1));
    const dy = engine.tensor(g, y.shape, y.dtype);
    const weight = y.dtype === "f16" ? Float64Array.from(await dy.data()) : g;
    y.backward(dy);
    const loss = (x: Record<string, Nd>) => c.oracle(seen(x)).data.reduce((s, v, i) => s + v * weight[i], 0);
    for (const name of c.grads) {
      const data = raw[name].data;
      const numeric = Float64Array.from(data, (v, i) => {
        const h = 1e-5 * Math.max(1, Math.abs(v));
        const shift = (d: number) => {
          const copy = data.slice();
          copy[i] += d;
          return loss({ ...raw, [name]: { shape: raw[name].shape, data: copy } });
        };
        return (shift(h) - shift(-h)) / (2 * h);
      });
      const grad = leaves[name].grad;
      if (!grad) {
        report.failures.push(`${label}: no gradient for ${name}`);
        continue;
      }
      const bound = half ? 2e-2 : (c.gradTolerance ?? 2e-5);
      const off = worst(await grad.data(), numeric);
      report.gradients++;
      if (!(off.error <= bound))
        report.failures.push(
          `${label}: gradient of ${name} off by ${off.error.toExponential(2)} (limit ${bound}) at ${off.at}: got ${(await grad.data())[off.at]}, expected ${numeric[off.at]}`,
        );
    }
  }
  for (const t of Object.values(leaves)) t.dispose();
  y.dispose();
  if (half) report.f16++;
  else report.cases++;
}

/** Runs all cases and refusals; an op of the registry that no test covers is a failure. */
export async function runOps(engine: Engine, tests: readonly OpTest[], complete = true): Promise<Report> {
  const report: Report = { ops: 0, cases: 0, gradients: 0, f16: 0, failures: [] };
  const covered = new Set(tests.flatMap((t) => t.covers));
  for (const name of covered)
    if (!registry.has(name)) report.failures.push(`${name}: covered by a test but not in the registry`);
  if (complete)
    for (const name of registry.keys()) if (!covered.has(name)) report.failures.push(`${name}: has no oracle`);
  report.ops = covered.size;
  for (const test of tests) {
    for (const c of test.cases)
      for (const half of [false, true]) {
        if (half && (!engine.has("shader-f16") || c.f16 === false || !Object.values(c.inputs).some(isFloatInput)))
          continue;
        try {
          await check(engine, c, half, report);
        } catch (error) {
          report.failures.push(
            `${c.name}${half ? " (f16)" : ""}: threw ${error instanceof Error ? error.message : error}`,
          );
        }
        engine.tape.truncate(0);
      }
    for (const r of test.refusals) {
      report.cases++;
      try {
        r.run(engine);
        report.failures.push(`${r.name}: did not throw`);
      } catch (error) {
        const message = (error as Error).message;
        if (!r.message.test(message))
          report.failures.push(`${r.name}: message ${JSON.stringify(message)} does not match ${r.message}`);
      }
    }
  }
  return report;
}
