import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkpoint, createEngine, inspect, Key, normal, type Tensor } from "../engine/index.js";

const test = suite("inspect");
const engine = await createEngine();
const x = normal(engine, Key.from(1), [64, 64]).setRequiresGrad();
const step = () =>
  engine.scope(() => {
    engine
      .inModule("blocks.0", () => x.mul(x).tanh())
      .sum()
      .backward();
  });
const clear = () => {
  x.grad?.dispose();
  x.grad = undefined;
};

test("trace: every launch with kernel, workgroups, bytes, time and module, also in backward", async () => {
  step();
  const before = [...(await x.grad!.data())];
  clear();
  const launchesBefore = engine.queue.counts.launches;
  const trace = await inspect.trace(engine, step);
  assert.is(trace.launches.length, engine.queue.counts.launches - launchesBefore);
  assert.equal([...(await x.grad!.data())], before);
  clear();
  assert.ok(trace.launches.some((l) => l.kernel.startsWith("elementwise.") && l.module === "blocks.0"));
  const [first] = trace.launches;
  assert.ok(first.bytes >= 2 * 4 * 64 * 64);
  assert.is(trace.launches.filter((l) => l.module === "blocks.0").length >= 4, true);
  for (const l of trace.launches) assert.ok(l.workgroups.every((n) => n >= 1));
  if (engine.has("timestamp-query")) {
    assert.ok(trace.launches.every((l) => l.us! >= 0 && l.us! < 1e6));
    assert.ok(trace.us! > 0);
    assert.is(Math.round(trace.kernels.reduce((n, k) => n + k.us!, 0)), Math.round(trace.us!));
  }
  assert.match(
    `${trace}`,
    /kernel +workgroups +µs +bytes +GB\/s[\s\S]*elementwise\.[\s\S]*blocks\.0[\s\S]*\d+ launches/,
  );
  const after = await inspect.trace(engine, () => undefined);
  assert.is(after.launches.length, 0);
});

test("plan: what a compiled function launches, and which ops became one launch", async () => {
  const f = engine.compile((a: Tensor) => a.mul(2).add(1).silu().softmax(-1));
  let error: Error | undefined;
  await inspect.plan(f).catch((e: Error) => {
    error = e;
  });
  assert.match(error!.message, /has no plan yet; call it once/);
  const given = x.detach();
  const seen = await inspect.plan(f, () => f(given));
  assert.equal(
    seen.launches.map((l) => l.ops),
    [["mulScalar", "addScalar", "silu"], ["softmax"], ["copy"]].slice(0, seen.launches.length),
  );
  assert.is(seen.traced, 4);
  assert.match(seen.launches[0].source!, /fn silu_2\(x: f32\) -> f32/);
  if (engine.has("timestamp-query")) assert.ok(seen.launches.every((l) => l.us! >= 0));
  assert.match(`${seen}`, /fused\.flat +mulScalar \+ addScalar \+ silu[\s\S]*2 commands of 4 that were traced/);
  f.dispose();
});

test("trace: many launches, and a function that waits", async () => {
  const trace = await inspect.trace(engine, async () => {
    let y = x.detach();
    for (let i = 0; i < 2100; i++) {
      const next = y.mul(1);
      y.dispose();
      y = next;
    }
    return (await y.data())[0];
  });
  assert.is(trace.launches.length, 2100);
  assert.is(trace.result, (await x.data())[0]);
  if (engine.has("timestamp-query")) assert.ok(trace.launches.every((l) => l.us !== undefined));
});

test("tape: what a loss was computed by, and nothing else", () => {
  const other = x.exp();
  const loss = x.square().add(1).mean();
  const report = inspect.tape(loss);
  assert.not(report.entries.some((e) => e.op === "exp"));
  assert.equal(
    report.entries.slice(0, 2).map((e) => e.op),
    ["square", "addScalar"],
  );
  assert.ok(report.savedBytes >= 4 * 64 * 64);
  assert.match(`${report}`, /square +x\[64, 64\]\*[\s\S]*ops, \d+ bytes saved/);
  assert.match(`${inspect.tape(checkpoint((a: Tensor) => a.square().sum(), x))}`, /checkpoint/);
  engine.tape.truncate(0);
  other.dispose();
});

test("source: the WGSL that the GPU compiled, per variant", () => {
  x.relu().dispose();
  const all = inspect.source("elementwise");
  assert.match(all, /^\/\/ ---- elementwise: /);
  assert.match(all, /max\(x, 0\.0\)/);
  assert.match(inspect.source("random.draw_normal"), /fn draw_normal/);
  assert.throws(
    () => inspect.source("elementwize"),
    /inspect\.source: no kernel "elementwize" has run yet; did you mean "elementwise"\?/,
  );
});

test("memory: by owner, with the largest buffers named", () => {
  const large = engine.zeros([1000, 300]);
  const report = inspect.memory(engine);
  assert.is(report.largest[0].what, "zeros [1000, 300] f32");
  assert.is(report.live, engine.memory().live);
  assert.match(`${report}`, /activations +\d+[\s\S]*live[\s\S]*pooled[\s\S]*largest[\s\S]*zeros \[1000, 300\] f32/);
  large.dispose();
});

test("ceilings: in under two seconds of work, vectors not slower than scalars, nothing left behind", async () => {
  const { live } = engine.memory();
  const c = await inspect.ceilings(engine);
  console.log(`\n  ${c}`);
  for (const v of [c.fma, c.copyScalar, c.copyVec4, c.launch]) assert.ok(v > 0 && Number.isFinite(v));
  assert.ok(c.copyVec4 > 0.7 * c.copyScalar);
  assert.is(engine.memory().live, live);
  assert.match(`${c}`, /GFLOP\/s of multiply-adds, copies at .* GB\/s \(f32\) and .* GB\/s \(vec4\), .* µs a launch/);
});

test("anomaly: names the first op that made a value which is not finite, and its module", async () => {
  const watch = inspect.anomaly(engine);
  assert.throws(() => engine.anomaly(), /anomaly: already on/);
  const { counts } = engine.queue;
  const fine = x.mul(2).tanh();
  assert.is(await watch.check(), undefined);
  const submits = counts.submits;
  const bad = engine.inModule("blocks.3.mlp", () => x.abs().add(1).mul(1e30).mul(1e30).add(1).sub(x));
  assert.is(counts.submits, submits);
  const found = await watch.check();
  assert.is(`${found}`, "anomaly: first value that is not finite: made by mulScalar [64, 64] f32\n  in blocks.3.mlp");
  assert.is(await watch.check(), undefined);
  // Backward: the square root's slope at zero.
  const zero = engine.zeros([3]).setRequiresGrad();
  engine
    .inModule("head", () => zero.sqrt())
    .sum()
    .backward();
  assert.is((await watch.check())!.op, "sqrt backward");
  engine.tensor([1, Number.NaN]).dispose();
  assert.is((await watch.check())!.op, "tensor");
  // Elements of a pooled buffer beyond the tensor's own do not count.
  const nan = engine.full([64], Number.NaN);
  nan.dispose();
  await watch.check();
  engine.full([5], 1).dispose();
  assert.is(await watch.check(), undefined);
  watch.stop();
  engine.full([5], Number.NaN).dispose();
  inspect.anomaly(engine).stop();
  for (const t of [fine, bad, zero]) t.dispose();
  engine.tape.truncate(0);
});

test("anomaly: halves", async () => {
  if (!engine.has("shader-f16")) return;
  const watch = inspect.anomaly(engine);
  const half = engine.full([7], 60000, "f16");
  half.mul(2).dispose();
  assert.match(`${await watch.check()}`, /made by mulScalar \[7\] f16/);
  watch.stop();
});

test("debug: each level adds to the one before, and numbers stay the same", async () => {
  const at = async (level: 1 | 2 | 3 | 4) => {
    const lines: string[] = [];
    const stop = inspect.debug(engine, level, (line) => lines.push(line));
    const value = await engine.inModule("blocks.1", () => x.detach().exp().sum()).item();
    stop();
    return { text: lines.join("\n"), value };
  };
  const plain = await x.detach().exp().sum().item();
  const [one, two, three, four] = [await at(1), await at(2), await at(3), await at(4)];
  for (const { value } of [one, two, three, four]) assert.is(value, plain);
  assert.match(one.text, /^espalier submit 1: \d+ commands, .* ms after the last, \d+ bytes live/);
  assert.not.match(one.text, /elementwise/);
  assert.match(two.text, /espalier {3}elementwise\.\w+ \[\d+ 1 1\] in blocks\.1/);
  assert.not.match(two.text, /strides/);
  assert.match(three.text, /reads {2}\[64, 64\] f32, strides \[64, 1\], buffer \d+ from 0, \d+ bytes bound, from /);
  assert.not.match(three.text, /@compute/);
  assert.match(four.text, /@compute/);
  const quiet: string[] = [];
  inspect.debug(engine, 2, (line) => quiet.push(line))();
  x.detach().exp().dispose();
  engine.submit();
  assert.equal(quiet, []);
});

test("debug: a tensor that is collected without having been freed is reported", async () => {
  const { setFlagsFromString } = await import("node:v8");
  const { runInNewContext } = await import("node:vm");
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const lines: string[] = [];
  const stop = inspect.debug(engine, 1, (line) => lines.push(line));
  (() => {
    x.detach().dispose();
    engine.inModule("blocks.7", () => engine.zeros([3, 5]));
  })();
  for (let i = 0; i < 20 && !lines.some((l) => /leak/.test(l)); i++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    collect();
  }
  stop();
  const leaks = lines.filter((l) => /leak/.test(l));
  assert.is(leaks.length, 1);
  assert.match(leaks[0], /espalier leak: \[3, 5\] f32 from zeros in blocks\.7 was collected but never freed/);
});

test.after(() => engine.destroy());
test.run();
