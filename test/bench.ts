// npm run bench -- [name…] [--quick] [--peers] [--rounds N] [--adapter NAME] [--json FILE]
// Kernels, blocks and whole steps against what the adapter can do at most, or against other engines. Every result is
// checked before it is timed.
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname } from "node:path";
import { createEngine, inspect } from "../engine/index.js";
import { digits, table } from "../engine/inspect/table.js";
import { parseArguments } from "../train/arguments.js";
import { blocks } from "./bench/block.js";
import { type Effort, measure, type Timed } from "./bench/case.js";
import { ops } from "./bench/ops.js";
import { comparePeers } from "./bench/peers/run.js";
import { startups } from "./bench/startup.js";
import { steps } from "./bench/step.js";

const usage = `Usage: npm run bench -- [name…] [options]

Times all cases, or those whose name holds one of the words.
  --quick         fewer rounds, without the largest cases and the start: less than 20 seconds on lavapipe
  --peers         other cases, in turns with tfjs, jax-js and onnxruntime: 10 minutes or more on lavapipe. The first
                  time it installs these in a folder of the user's cache, for which it needs the network.
  --rounds N      rounds in which the cases take turns [7, peers 5, quick 3]
  --adapter NAME  hardware, lavapipe, swiftshader, or part of a GPU's name
  --json FILE     where all figures are written [runs/bench.json, peers runs/peers.json]`;

function fail(text: string): never {
  console.error(`bench: ${text.replace(/^bench: /, "")}`);
  process.exit(2);
}

function options() {
  try {
    const takes = { quick: "switch", peers: "switch", rounds: "whole", adapter: "text", json: "text" } as const;
    const { values, words, help } = parseArguments("bench", process.argv.slice(2), takes);
    if (values.rounds === 0) fail("--rounds must be 1 or more");
    const given = values as { quick?: true; peers?: true; rounds?: number; adapter?: string; json?: string };
    return { ...given, words, help };
  } catch (error) {
    return fail((error as Error).message);
  }
}

const { quick = false, peers = false, adapter, words, help, ...given } = options();
const { rounds = quick ? 3 : peers ? 5 : 7, json = `runs/${peers ? "peers" : "bench"}.json` } = given;
if (help) {
  console.log(usage);
  process.exit(0);
}
const effort: Effort = { rounds, milliseconds: quick ? 10 : 30 };

const progress = (text: string) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[2K${text}`);
};
const host = { node: process.version, cpus: cpus().length, cpu: cpus()[0]?.model ?? "unknown processor" };
/** Writes figures as JSON, and says where. */
function write(figures: object): void {
  mkdirSync(dirname(json), { recursive: true });
  writeFileSync(json, `${JSON.stringify({ date: new Date().toISOString(), host, ...figures }, undefined, 1)}\n`);
  console.log(`\nall figures: ${json}`);
}

const began = performance.now();
const passed = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
if (peers) {
  const asked = { rounds, milliseconds: effort.milliseconds, words, adapter };
  const comparison = await comparePeers({ ...asked, say: progress }).catch((error: Error) => fail(error.message));
  console.log(`${host.cpus} x ${host.cpu}\n${comparison}`);
  write(comparison.toJSON());
  console.log(`${comparison.rows.length} cases in ${passed()}`);
  process.exit(0);
}

const engine = await createEngine({ adapter });
const all = [...ops, ...blocks, ...steps];
const START = "first step";
const wanted = (name: string) => words.length === 0 || words.some((w) => name.toLowerCase().includes(w.toLowerCase()));
const cases = all.filter(({ name, long }) => !(long && quick) && wanted(name));
const starts = !quick && wanted(START);
if (cases.length === 0 && !starts)
  fail(`no case is called ${words.join(" or ")}; there are ${[...all.map(({ name }) => name), START].join(" · ")}`);

progress("measuring ceilings");
const first = await inspect.ceilings(engine);
const timed = await measure(engine, cases, effort, progress).catch((error: Error) => fail(error.message));
// Other work on the machine only ever lowers a ceiling, so the better of two is nearer to the truth.
const last = await inspect.ceilings(engine);
progress("");
const ceilings = {
  fma: Math.max(first.fma, last.fma),
  copyScalar: Math.max(first.copyScalar, last.copyScalar),
  copyVec4: Math.max(first.copyVec4, last.copyVec4),
  launch: Math.min(first.launch, last.launch),
};

/** Share of the ceiling that a case reaches. */
const share = ({ gflops, gbs }: Timed): number =>
  gflops !== undefined ? gflops / ceilings.fma : (gbs as number) / ceilings.copyVec4;

const { name, description, kind } = engine.info;
console.log(`${name} (${kind}): ${description}; ${host.cpus} x ${host.cpu}`);
console.log(
  `ceilings: ${digits(ceilings.fma)} GFLOP/s of multiply-adds in registers, copies at ${digits(ceilings.copyScalar)} GB/s (f32) and ${digits(ceilings.copyVec4)} GB/s (vec4), ${digits(ceilings.launch)} µs a launch\n`,
);
console.log(
  table(
    ["case", "ms", "min", "max", "GFLOP/s", "GB/s", "of ceiling", "launches", "host µs a launch", "MiB", "error"],
    timed.map((t) => [
      t.name,
      digits(t.ms.median),
      digits(t.ms.min),
      digits(t.ms.max),
      digits(t.gflops),
      digits(t.gbs),
      `${(100 * share(t)).toFixed(0)}%`,
      `${t.launches}`,
      digits(t.hostUs),
      (t.peak / 2 ** 20).toFixed(1),
      t.error.toExponential(0),
    ]),
  ),
);
console.log(
  [
    `\nms: median of ${effort.rounds} interleaved rounds, each check having passed before the first; host: recording and submitting`,
    "of ceiling: of multiply-adds, or of vec4 copies where GB/s stands; above 100% where a cache holds what the copies' 16 MiB or more do not",
    "MiB: held at most beside operands and parameters; error: largest, relative to the largest value",
  ].join("\n"),
);
for (const { name, kernels, launches, hostUs } of timed) {
  if (!kernels) continue;
  const total = kernels.reduce((sum, { us = 0 }) => sum + us, 0);
  console.log(
    `\n${name}: recording its ${launches} launches takes the host ${digits((hostUs * launches) / 1000)} ms; by kernel:`,
  );
  console.log(
    table(
      ["kernel", "launches", "ms", "share"],
      kernels
        .slice(0, 10)
        .map(({ kernel, count, us }) => [
          kernel,
          `${count}`,
          digits(us && us / 1000),
          us ? `${((100 * us) / total).toFixed(0)}%` : "-",
        ]),
    ),
  );
}
const pairs = timed.flatMap((compiled) => {
  const eager = timed.find((t) => `${t.name}, compiled` === compiled.name);
  return eager ? [{ name: eager.name, ratio: compiled.ms.median / eager.ms.median }] : [];
});
if (pairs.length) console.log();
for (const { name, ratio } of pairs) console.log(`${name}: compiled takes ${ratio.toFixed(2)} of the eager time`);

engine.destroy();
progress(starts ? "starting twice" : "");
const startup = starts ? await startups(adapter) : undefined;
progress("");
if (startup) {
  console.log("\nstart of training, seconds: cold with empty caches, warm with what the cold one left there");
  const seconds = (ms: number) => (ms / 1000).toFixed(2);
  console.log(
    table(
      ["", "adapter", "model and data", START, "together", "second step"],
      Object.entries(startup).map(([name, { adapter, model, first, second }]) => [
        name,
        ...[adapter, model, first, adapter + model + first, second].map(seconds),
      ]),
    ),
  );
}
const rows = timed.map((t) => ({ ...t, share: share(t) }));
write({ adapter: { name, kind, description }, quick, ceilings, cases: rows, compiled: pairs, startup });
console.log(`${timed.length} cases in ${passed()}`);
