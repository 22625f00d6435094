import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeModel } from "./bench/peers/onnx.js";
import { comparePeers, errorOf, lossesDiffer } from "./bench/peers/run.js";
import { Comparison, type Entry, verdict } from "./bench/peers/table.js";
import { readModel } from "./onnx/protobuf.js";

const test = suite("bench");
const bench = (args: string[], env = process.env) =>
  promisify(execFile)(process.execPath, [".build/run.mjs", "test/bench.ts", ...args], { timeout: 300_000, env });

test("cases by name: right results, times in order, the same figures as JSON", async () => {
  const folder = await mkdtemp(join(tmpdir(), "espalier-bench-"));
  try {
    const file = join(folder, "bench.json");
    const { stdout } = await bench(["block 64", "TRAINING", "sum", "--quick", "--rounds", "2", "--json", file]);
    const { adapter, ceilings, cases, compiled } = JSON.parse(await readFile(file, "utf8"));
    assert.equal(
      cases.map((c: { name: string }) => c.name),
      [
        "sum [1024,64] to [64]",
        "block 64 [8,8,16]",
        "block 64 [8,8,16] fwd+bwd",
        "training step, preset easy",
        "training step, preset easy, compiled",
      ],
    );
    assert.ok(stdout.startsWith(`${adapter.name} (${adapter.kind})`), stdout);
    for (const value of Object.values(ceilings)) assert.ok((value as number) > 0);
    for (const { name, ms, launches, peak, share, gflops, gbs, error } of cases) {
      assert.ok(0 < ms.min && ms.min <= ms.median && ms.median <= ms.max, name);
      assert.ok(launches >= 1 && peak >= 0 && share > 0 && error < 5e-3, name);
      assert.ok((gflops === undefined) !== (gbs === undefined), name);
      assert.ok(stdout.includes(`\n${name} `), `${name} stands in the table:\n${stdout}`);
    }
    for (const { kernels, launches } of cases.slice(3))
      assert.is(
        (kernels as { count: number }[]).reduce((sum, k) => sum + k.count, 0),
        launches,
      );
    assert.equal(
      compiled.map(({ name }: { name: string }) => name),
      ["training step, preset easy"],
    );
    assert.ok(compiled[0].ratio > 0);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

/** An engine's row of times, in milliseconds. */
const entry = (engine: string, idle: number[], more: Partial<Entry> = {}): Entry => ({
  engine,
  client: { prepare: async () => ({ firstMs: 0 }), time: async () => 0 },
  key: engine,
  firstMs: 1,
  runs: 1,
  times: { idle, await: idle },
  ...more,
});

test("peers: the best one that is right counts", () => {
  const of = { name: "case", target: 0.5 };
  const own = entry("espalier", [2, 3, 4]);
  const rivals = [
    entry("jax-js", [10, 6, 8]),
    entry("tfjs", [1, 1, 1], { wrong: "off by 3e-1" }),
    entry("ort webgpu", [20, 20, 20]),
    entry("ort cpu", [0.5, 0.5, 0.5]),
    entry("espalier eager", [1, 1, 1]),
  ];
  const row = { of, entries: [own, ...rivals] };
  assert.equal(verdict(row, "idle"), { best: "jax-js", ratio: { median: 3 / 8, min: 0.2, max: 0.5 }, met: true });
  assert.is(verdict({ of: { ...of, target: 0.3 }, entries: row.entries }, "idle").met, false);
  assert.equal(verdict({ of, entries: [{ ...own, wrong: "off by 1" }, ...rivals] }, "idle"), {});
  assert.equal(verdict({ of, entries: [own, rivals[1]] }, "idle"), {});
  const engines = ["espalier", "jax-js", "tfjs"].map((name) => ({ name, version: "1", adapter: "lavapipe" }));
  const text = `${new Comparison([row], engines, ["ort: absent"], 3)}`;
  assert.match(
    text,
    /case +3\.00 \(2\.00-4\.00\) +8\.00 \(6\.00-10\.0\) +1\.00 \(1\.00-1\.00\) wrong +jax-js +0\.38 \(0\.20-0\.50\) +0\.50 +yes/,
  );
  assert.match(text, /case: tfjs does not count: off by 3e-1/);
  assert.match(text, /ort: absent/);
});

test("peers: wrong numbers are seen", () => {
  const right = [{ at: [0, 2], values: [1, -4] }];
  assert.is(errorOf([Float32Array.of(1, 9, -4)], right), 0);
  assert.is(errorOf([Float32Array.of(1, 9, -3)], right), 0.25);
  assert.ok(Number.isNaN(errorOf([Float32Array.of(1, 9, Number.NaN)], right)));
  assert.is(errorOf([Float32Array.of(1, 9)], right) <= 1, false);
  assert.is(errorOf([], right), Number.POSITIVE_INFINITY);
  const fell = Float32Array.of(3, 2, 1);
  assert.is(lossesDiffer(Float32Array.of(3, 2.5, 1), fell), 0.25);
});

test("peers: models for onnxruntime read back as they were written", () => {
  const data = Float32Array.of(1.5, -2);
  const bytes = encodeModel({
    nodes: [
      { op: "Softmax", inputs: ["x"], outputs: ["s"], attributes: { axis: -1, epsilon: { float: 0.5 } } },
      { op: "Transpose", inputs: ["s"], outputs: ["y"], attributes: { perm: [1, 0], mode: "tanh" } },
    ],
    inputs: { x: [300, 2] },
    outputs: ["y"],
    initializers: { w: { shape: [2], data }, i: { shape: [1], data: BigInt64Array.of(-7n) } },
  });
  const { nodes, inputs, outputs, initializers } = readModel(bytes);
  assert.equal(
    nodes.map(({ op, inputs, outputs, attributes }) => ({ op, inputs, outputs, attributes })),
    [
      { op: "Softmax", inputs: ["x"], outputs: ["s"], attributes: { axis: -1, epsilon: 0.5 } },
      { op: "Transpose", inputs: ["s"], outputs: ["y"], attributes: { perm: [1, 0], mode: "tanh" } },
    ],
  );
  assert.equal([inputs, outputs], [["x"], ["y"]]);
  assert.equal(
    initializers.map(({ name, dims, values }) => [name, dims, [...values]]),
    [
      ["w", [2], [1.5, -2]],
      ["i", [1], [-7]],
    ],
  );
});

test("peers: Espalier's own process, checked in float64 and timed in both ways of waiting", async () => {
  const words = ["temporal", "block training"];
  const comparison = await comparePeers({ peers: [], rounds: 2, milliseconds: 1, words, say: () => {} });
  const { cases } = comparison.toJSON();
  assert.equal(
    cases.map(({ name, engines }) => [name, engines.map(({ engine }) => engine)]),
    [
      ["temporal attention [256,4,16,32]", ["espalier"]],
      ["block training step [4,256,128]", ["espalier eager", "espalier"]],
    ],
  );
  for (const { name, engines, idle } of cases) {
    assert.equal(idle, {}, "without peers there is no ratio");
    for (const { engine, error, wrong, idle, await: busy } of engines) {
      assert.is(wrong, undefined, `${name}: ${engine}`);
      assert.ok(error! < 1e-4, `${name}: ${engine}: ${error}`);
      for (const { min, median, max } of [idle!, busy!]) assert.ok(0 < min && min <= median && median <= max);
    }
  }
});

test("what it cannot do is said", async () => {
  const empty = await mkdtemp(join(tmpdir(), "espalier-empty-"));
  const refused = async (message: RegExp, ...args: string[]) => {
    // An empty cache and an npm without network: the peers cannot come from anywhere.
    const env = { ...process.env, XDG_CACHE_HOME: empty, npm_config_offline: "true", npm_config_cache: empty };
    const error = await bench(args, env).then(
      () => undefined,
      (e: Error & { code: number; stderr: string }) => e,
    );
    assert.ok(error, `${args} should be refused`);
    assert.is(error!.code, 2);
    assert.match(error!.stderr, message);
  };
  await refused(/^bench: no case is called matmull; there are matmul 256 · /, "matmull");
  await refused(/^bench: --rounds must be 1 or more/, "--rounds", "0");
  await refused(/^bench: no case is called fft; with --peers there are matmul 256 · /, "--peers", "fft");
  await refused(/^bench: peers: npm could not install the engines .*: .*; the first run needs the network/, "--peers");
  await refused(/^bench: unknown option --jsonn; did you mean --json\?/, "--jsonn", "x");
  await rm(empty, { recursive: true, force: true });
});

test.run();
