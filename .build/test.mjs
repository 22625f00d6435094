// node .build/test.mjs [--verbose] [--jobs N] [filter…]: runs test/**/*.test.ts, or those whose path holds a filter.
// Each file is a process of its own, so that a crash ends one file and not the run.
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs, stripVTControlCharacters } from "node:util";
import { bundleForNode, root, stop, temporaryFolder } from "./bundle.mjs";

/** A file that takes longer hangs. */
const FILE_LIMIT_S = 900;
/** A file that has printed its totals has this long to end. */
const EXIT_LIMIT_S = 20;
/** What takes longest on a software adapter, the longest first. */
const LONGEST = [
  ...["examples", "train/kill", "train/demo", "train/foreign-course", "browser/ops", "train/continued", "bench"],
  ...["model/flow-base", "ops", "train/faults", "browser/determinism", "train/report", "pack", "train/cached-run"],
  ...["model/growth", "model/vae-trained", "train/grow", "train/encode", "browser/page", "matmul", "browser/stdit"],
].map((name) => `${name}.test.ts`);

const { values, positionals: filters } = parseArgs({
  allowPositionals: true,
  options: { verbose: { type: "boolean", default: false }, jobs: { type: "string" } },
});
const jobs = Number(values.jobs ?? Math.min(2, availableParallelism()));
if (!Number.isInteger(jobs) || jobs < 1) fail(`--jobs must be a whole number from 1: "${values.jobs}"`);

// The longest come first, so that none of them runs alone at the end.
const files = readdirSync(join(root, "test"), { recursive: true })
  .map((file) => file.replaceAll("\\", "/"))
  .filter((file) => file.endsWith(".test.ts") && (filters.length === 0 || filters.some((part) => file.includes(part))))
  .sort((a, b) => placeOf(a) - placeOf(b) || (a < b ? -1 : 1));
if (files.length === 0) fail(`no test file matches ${filters.join(", ") || "test/**/*.test.ts"}`);

const gone = LONGEST.find((file) => !existsSync(join(root, "test", file)));
if (gone) fail(`${gone} is named among the longest, and is not there`);

const outdir = temporaryFolder("test");
const started = performance.now();
const results = [];
const queue = await bundle();
await stop();
await Promise.all(Array.from({ length: Math.min(jobs, files.length) }, worker));
summarize();

/** A file's place among the longest, or one behind them all. */
function placeOf(file) {
  const place = LONGEST.indexOf(file);
  return place < 0 ? LONGEST.length : place;
}

/** Bundles all files at once; when that fails, finds those that fail alone, and gives the others. */
async function bundle() {
  const options = { outbase: "test", logLevel: "silent" };
  const entry = (file) => join("test", file);
  if (await bundleForNode(files.map(entry), outdir, options).catch(() => false)) return [...files];
  const good = [];
  for (const file of files) {
    try {
      await bundleForNode([entry(file)], outdir, { ...options, write: false });
      good.push(file);
    } catch (error) {
      const output = error.errors?.map(({ text, location: at }) => `${at?.file}:${at?.line}: ${text}`).join("\n");
      const result = { file, passed: 0, skipped: 0, failed: 0, problem: "cannot be bundled", seconds: 0 };
      results.push({ ...result, output: output ?? String(error) });
      report(results.at(-1));
    }
  }
  if (good.length > 0) await bundleForNode(good.map(entry), outdir, options);
  return good;
}

async function worker() {
  for (let file = queue.shift(); file; file = queue.shift()) {
    const result = await runFile(file);
    results.push(result);
    report(result);
  }
}

/** Runs one file; `problem` says why it counts as failed although no test did. */
function runFile(file) {
  return new Promise((resolve) => {
    const begun = performance.now();
    const child = spawn(process.execPath, ["--enable-source-maps", join(outdir, file.replace(/\.ts$/, ".mjs"))], {
      cwd: root,
      // What a developer's `espalier tune` found must not decide which kernels are tested.
      env: { ESPALIER_TUNING: "off", ...process.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    let problem;
    const end = (reason) => {
      problem = reason;
      child.kill("SIGKILL");
    };
    const limit = setTimeout(() => end(`took longer than ${FILE_LIMIT_S} s`), FILE_LIMIT_S * 1000);
    let exitLimit;
    const take = (chunk) => {
      output += chunk;
      if (!exitLimit && totals(output))
        exitLimit = setTimeout(() => end(`still ran ${EXIT_LIMIT_S} s after its last test`), EXIT_LIMIT_S * 1000);
    };
    child.stdout.setEncoding("utf8").on("data", take);
    child.stderr.setEncoding("utf8").on("data", take);
    child.on("close", (code, signal) => {
      clearTimeout(limit);
      clearTimeout(exitLimit);
      const { total = 0, passed = 0, skipped = 0 } = totals(output) ?? {};
      const failed = total - passed; // uvu leaves skipped ones out of its total
      if (signal) problem ??= `ended by ${signal}`;
      else if (!totals(output)) problem ??= `ended with code ${code} before its last test`;
      else if (total === 0) problem ??= "holds no test";
      else if (failed > 0 && !output.includes("FAIL")) problem ??= "a hook failed (uvu does not print its error)";
      else if (code !== 0 && failed === 0) problem ??= `ended with code ${code}`;
      resolve({ file, passed, skipped, failed, problem, output, seconds: (performance.now() - begun) / 1000 });
    });
  });
}

/** The totals that uvu prints last, or undefined when it has not. */
function totals(output) {
  const match = /^ {2}Total: +(\d+)\n {2}Passed: +(\d+)\n {2}Skipped: +(\d+)\n {2}Duration:/m.exec(
    stripVTControlCharacters(output),
  );
  return match ? { total: Number(match[1]), passed: Number(match[2]), skipped: Number(match[3]) } : undefined;
}

function report({ file, passed, skipped, failed, problem, output, seconds }) {
  const bad = failed > 0 || problem;
  const counts = [`${passed} passed`];
  if (failed) counts.push(`${failed} failed`);
  if (skipped) counts.push(`${skipped} skipped`);
  if (problem) counts.push(problem);
  console.log(`${bad ? "✘" : "✓"} ${file.padEnd(44)} ${seconds.toFixed(1).padStart(6)} s  ${counts.join(", ")}`);
  // Of a good file only what its tests print themselves is shown, not uvu's dots and totals.
  const uvu = /^ .* {2}$|^.*\(\d+ \/ \d+\)$|^ {2}(Total|Passed|Skipped|Duration):.*$/gm;
  const own = bad || values.verbose ? output : output.replace(uvu, "");
  for (const line of own.split("\n")) if (line.trim()) console.log(`    ${line}`);
}

function summarize() {
  const sum = (key) => results.reduce((total, result) => total + result[key], 0);
  const bad = results.filter(({ failed, problem }) => failed > 0 || problem);
  const slowest = [...results].sort((a, b) => b.seconds - a.seconds).slice(0, 5);
  console.log(`\nslowest: ${slowest.map(({ file, seconds }) => `${file} ${seconds.toFixed(1)} s`).join(" · ")}`);
  if (bad.length > 0) console.log(`failed: ${bad.map(({ file }) => file).join(" · ")}`);
  // A file that fails as a whole counts as one failure.
  const failed = sum("failed") + bad.filter((result) => result.failed === 0).length;
  console.log(`${results.length} files in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  console.log(`${sum("passed")} passed, ${failed} failed, ${sum("skipped")} skipped`);
  process.exitCode = failed > 0 || sum("passed") === 0 ? 1 : 0;
}

function fail(text) {
  console.error(`test: ${text}`);
  process.exit(2);
}
