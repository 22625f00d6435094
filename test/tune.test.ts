import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  createEngine,
  type Engine,
  type Family,
  keepTuning,
  loadTuning,
  matmul,
  normal,
  Tuning,
  tune,
  tuneReport,
} from "../engine/index.js";
import { matmulClass, matmulId, planMatmul, wayOf } from "../engine/ops/gemm.js";
import { matmulFamily } from "../engine/tune/matmul.js";
import { quantizedFamily } from "../engine/tune/quantized.js";
import { run } from "../train/commands/tune.js";
import { printed } from "./train/command.js";

const test = suite("tune");
const before = process.env.XDG_CACHE_HOME;
const cache = mkdtempSync(join(tmpdir(), "espalier-"));
process.env.XDG_CACHE_HOME = cache;
// Tests run with the cache off; these are about it.
delete process.env.ESPALIER_TUNING;
const engine = await createEngine();

/** The file in which the last winners lie. */
const kept = (): string => {
  const folder = join(cache, "espalier");
  return join(folder, readdirSync(folder).find((name) => name.startsWith("tuning-")) as string);
};

/** A family of one class whose ways add 1 to four numbers: once, again and again, or wrongly. */
function adding(usual: string): Family {
  return {
    name: "adding",
    id: "adding@1",
    typical: () => ["four"],
    problem: (e: Engine, key) =>
      key === "four"
        ? {
            shown: "[4] + 1",
            flops: 4,
            usual,
            ways: ["once", "often", "wrong"],
            reference: "once",
            tolerance: 1e-6,
            prepare: () => {
              const x = e.tensor([1, 2, 3, 4]).keep();
              let y = e.zeros([4]).keep();
              return {
                launch: (way) => {
                  for (let i = 0; i < (way === "often" ? 64 : 1); i++) {
                    y.dispose();
                    y = x.add(way === "wrong" ? 1.01 : 1).keep();
                  }
                },
                result: () => y.data(),
                dispose: () => {
                  x.dispose();
                  y.dispose();
                },
              };
            },
          }
        : undefined,
  };
}

test("the fastest of the right ways is taken", async () => {
  const [result] = await tune(engine, { families: [adding("often")], rounds: 15, milliseconds: 2 });
  assert.is(result.way, "once");
  assert.equal(
    result.times.map((t) => t.way),
    ["once", "often"],
  );
  assert.ok(result.gain > 2 && result.gainOverUsual === result.gain, `${result.gain}`);
  assert.equal(
    result.wrong.map((w) => w.way),
    ["wrong"],
  );
  assert.ok(Math.abs(result.wrong[0].error - 0.002) < 1e-4, `${result.wrong[0].error}`);
  assert.is(engine.tuning.winner("adding@1", "four"), "once");
  const text = tuneReport([result]);
  assert.match(text, /adding +\[4\] \+ 1 +once +[\d.]+ +[\d.]+ +often +[\d.]+ +\d+% +often, by \d+%/);
  assert.match(text, /wrong numbers, never taken: adding \[4\] \+ 1 wrong \(off by 0\.00200\)/);
});

test("a usual way that gives wrong numbers is not taken", async () => {
  const [result] = await tune(engine, { families: [adding("wrong")], rounds: 1, milliseconds: 1 });
  assert.is(result.way, "once");
});

test("what cannot be tuned is said", async () => {
  const failure = async (f: () => Promise<unknown>) =>
    (
      await f().then(
        () => undefined,
        (e: Error) => e,
      )
    )?.message ?? "";
  assert.match(
    await failure(() => tune(engine, { only: "fourier" })),
    /no shape class holds "fourier"; kernels .* matmul/,
  );
  assert.match(await failure(() => tune(engine, { rounds: 0 })), /rounds must be a whole number from 1: got 0/);
  assert.match(
    await failure(() => tune(engine, { round: 1 } as never)),
    /unknown option "round"; did you mean "rounds"/,
  );
});

test("every way of the engine's own kernels is right on this adapter", async () => {
  const classes = new Map([
    [
      matmulFamily.id,
      [
        ...(["NN", "NT", "TN"] as const).map((w) =>
          matmulClass([w[0] as "N" | "T", w[1] as "N" | "T"], 1, 64, 64, 256, "f32"),
        ),
        matmulClass(["X", "X"], 4, 16, 16, 32, "f32"),
        matmulClass(["N", "T"], 1, 4, 64, 64, "f32"),
      ],
    ],
    [quantizedFamily.id, quantizedFamily.typical(engine).slice(1, 2)],
  ]);
  const results = await tune(engine, { classes, rounds: 1, milliseconds: 1 });
  assert.is(results.length, 6);
  for (const r of results) {
    assert.equal(r.wrong, [], r.shown);
    assert.ok(r.times.length > 1 && r.times.every((t) => t.ms > 0), r.shown);
    assert.ok(r.times.some((t) => t.way === r.usual) && r.times.some((t) => t.way === r.way), r.shown);
  }
  assert.ok(engine.memory().live < 1 << 20, `${engine.memory().live} bytes stay`);
});

test("typical classes stand for problems of the same class", () => {
  for (const family of [matmulFamily, quantizedFamily]) {
    const keys = family.typical(engine);
    assert.ok(keys.length > 5 && new Set(keys).size === keys.length);
    for (const key of keys) {
      const problem = family.problem(engine, key);
      assert.ok(problem?.ways.includes(problem.usual), key);
    }
  }
  assert.is(matmulFamily.problem(engine, "NN b1 m4 n4 k4 i32"), undefined);
  assert.is(matmulFamily.problem(engine, "NN b1 m1048576 n1048576 k4 f32"), undefined);
  assert.is(quantizedFamily.problem(engine, "NN b1 m4 n4 k4 f32"), undefined);
});

test("a product asks for its class, and takes the winner where it can", async () => {
  const [a, b] = [
    normal(engine, engine.key(), [60, 250]).keep(),
    normal(engine, engine.key().fold(1), [70, 250]).keep(),
  ];
  const launched = async (): Promise<[string[], ArrayLike<number>]> => {
    const entries: string[] = [];
    const watch = ({ kernel }: { kernel: { entry: string } }) => {
      entries.push(kernel.entry);
      return undefined;
    };
    engine.queue.observers.add(watch);
    const y = matmul(a, b, { transposeB: true });
    engine.queue.observers.delete(watch);
    return [entries, await y.data()];
  };
  engine.tuning.clear();
  engine.tuning.asked = new Map();
  const [usual, expected] = await launched();
  const key = matmulClass(["N", "T"], 1, 64, 64, 256, "f32");
  assert.equal([...engine.tuning.asked.get(matmulId)!], [key]);
  engine.tuning.asked = undefined;
  const { variant } = planMatmul(engine, 1, 60, 70, 250);
  assert.equal(usual, [variant]);
  for (const [way, entries] of [
    ["registers/1", ["registers"]],
    ["registers/2", ["registers", "merge"]],
    ["tiled32/1", ["tiled"]],
    // These cannot be taken for this shape, or are no ways at all.
    ["skinny/1", usual],
    ["registers/999", usual],
    ["registers/0", usual],
    ["quick/1", usual],
    ["", usual],
  ] as const) {
    engine.tuning.set(matmulId, key, { way, ms: 1 });
    const [taken, got] = await launched();
    assert.equal(taken, [...entries], way);
    for (let i = 0; i < got.length; i++)
      assert.ok(Math.abs(got[i] - expected[i]) < 1e-4, `${way}: ${got[i]} for ${expected[i]}`);
  }
  engine.tuning.clear();
  assert.is(wayOf(planMatmul(engine, 1, 60, 70, 250)), `${variant}/1`);
});

test("what is kept comes back in a new engine", async () => {
  engine.tuning.set(matmulId, "k", { way: "naive/1", ms: 1.5, second: "tiled/1", secondMs: 2 });
  const place = await keepTuning(engine.info, engine.tuning);
  assert.ok(place?.startsWith(cache), place);
  const other = await createEngine();
  assert.is(other.tuning.winner(matmulId, "k"), "naive/1");
  assert.is(other.tuning.winner(matmulId, "l"), undefined);
  assert.is(other.tuning.winner("matmul@00000000", "k"), undefined);
  assert.not(other.tuning.idle);
  assert.is(other.tuning.encode("x"), engine.tuning.encode("x"));
  other.destroy();
  process.env.ESPALIER_TUNING = "off";
  assert.ok((await loadTuning(engine.info)).idle);
  delete process.env.ESPALIER_TUNING;
  engine.tuning.clear();
});

test("a cache that cannot be used is left alone with one warning", async () => {
  const path = kept();
  const good = readFileSync(path, "utf8");
  const { warn } = console;
  const warnings: string[] = [];
  console.warn = (text: string) => warnings.push(text);
  try {
    writeFileSync(path, good.slice(0, 40));
    for (let i = 0; i < 2; i++) {
      const other = await createEngine();
      assert.ok(other.tuning.idle);
      other.destroy();
    }
    assert.is(warnings.length, 1);
    assert.match(warnings[0], /tuning: the cache is no JSON \(.*tuning-.*\.json\): it is not used.*espalier tune/);
    assert.is(readFileSync(path, "utf8"), good.slice(0, 40));
    // A folder in its place cannot be read at all.
    rmSync(path);
    mkdirSync(path);
    assert.ok((await loadTuning(engine.info)).idle);
    rmSync(path, { recursive: true });
  } finally {
    console.warn = warn;
  }
  for (const [text, rule] of [
    ["", /is no JSON/],
    ["[]", /form that this version does not know/],
    ["null", /form that this version does not know/],
    ['{"format":"espalier-tuning-0","adapter":"me","winners":{}}', /form that this version does not know/],
    ['{"format":"espalier-tuning-1","adapter":"you","winners":{}}', /written for another adapter \(you\)/],
    ['{"format":"espalier-tuning-1","adapter":"me","winners":{"m":3}}', /no shape classes at m/],
    ['{"format":"espalier-tuning-1","adapter":"me","winners":{"m":{"k":{"way":1,"ms":2}}}}', /no way .* at m, k/],
  ] as const)
    assert.throws(() => Tuning.decode(text, "me"), rule);
});

test("espalier tune keeps what it measures, and forgets it with --clear", async () => {
  const { text, code, error } = await printed(run, "--only", "[4,64] · [64,512]", "--rounds", "1");
  assert.is(error, undefined);
  assert.is(code, 0, text);
  assert.match(text, /^adapter: /);
  assert.match(text, /kernel +shapes +taken +ms +GFLOP\/s +second best +ms +gain/);
  assert.match(text, /\n1 shape classes in [\d.]+ s; [01] take another variant/);
  assert.ok((await loadTuning(engine.info)).size === 1);
  const path = kept();
  assert.match((await printed(run, "--clear")).text, /forgotten: .*tuning-.*\.json/);
  assert.match((await printed(run, "--clear")).text, /nothing was kept for this adapter/);
  assert.ok((await loadTuning(engine.info)).idle);
  assert.match((await printed(run, "--help")).text, /Usage: espalier tune/);
  assert.match((await printed(run, "--onyl", "x")).error!.message, /unknown option --onyl; did you mean --only/);
  // A folder where the file should be: nothing can be written.
  mkdirSync(path);
  const lost = await printed(run, "--only", "[4,64] · [64,512]", "--rounds", "1");
  assert.is(lost.code, 1);
  assert.match(lost.text, /nothing can be kept here: the cache cannot be written$/);
});

test.after(() => {
  engine.destroy();
  if (before === undefined) delete process.env.XDG_CACHE_HOME;
  else process.env.XDG_CACHE_HOME = before;
  rmSync(cache, { recursive: true, force: true });
});
test.run();
