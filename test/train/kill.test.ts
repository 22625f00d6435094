import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openCheckpoint } from "../../train/checkpoint.js";
import { readLog } from "../../train/log.js";
import { random } from "../ops/loop.js";

const kill = suite("a killed run");
/** Options of a run of few small steps on small clips. */
const quick = (steps: number, every: number) => [
  ...["train", "--data.frames", "4", "--data.size", "16"],
  ...["--run.checkpointEvery", `${every}`, "--sampleEvery", "0", "--logEvery", "1", "--keep", "2"],
  ...["--train.steps", `${steps}`, "--batchSize", "2", "--warmupSteps", "2"],
  ...["--sample.steps", "2", "--sample.count", "1"],
];
const small = (depth: number) => ["--hidden", "16", "--depth", `${depth}`, "--heads", "2"];

/** Runs the command line; `watch` is told every few milliseconds what was printed, and may kill. */
function espalier(
  args: string[],
  watch?: (text: string, child: ChildProcess) => void,
): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [".build/run.mjs", "train/main.ts", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk));
    const timer = setInterval(() => watch?.(text, child), 5);
    child.on("close", (code) => {
      clearInterval(timer);
      resolve({ code, text });
    });
  });
}

/** The bar's first line says that training runs. */
const trains = (text: string) => text.includes("train ");
/** What --resume says when there is nothing to go on from. */
const nothing = (folder: string) => `nothing to resume: ${folder} holds no checkpoint; beginning at step 0\n`;
const losses = (folder: string) => readLog(join(folder, "log.jsonl")).map((l) => [l.step, l.loss, l.norm, l.lr]);
const checkpoints = (folder: string) =>
  (existsSync(join(folder, "checkpoints")) ? readdirSync(join(folder, "checkpoints")) : [])
    .filter((name) => /^checkpoint-.*\.safetensors$/.test(name))
    .map((name) => join(folder, "checkpoints", name));

/**
 * Trains once in peace and once killed again and again, then resumed; the losses of both must be equal bit for bit, and
 * every checkpoint that is ever there must open.
 * @param kills how many, each at a random moment of the next quarter of the run
 * @param least how many must land: a run may end first
 * @param kept whether a kill waits for a checkpoint
 */
async function compareWithKilled(args: string[], steps: number, kills: number, least: number, kept: boolean) {
  const root = mkdtempSync(join(tmpdir(), "espalier-kill-"));
  try {
    const whole = join(root, "whole");
    let [began, ended] = [0, 0];
    const reference = await espalier([...args, "--out", whole], (text) => {
      if (trains(text)) began ||= performance.now();
      if (checkpoints(whole).some((path) => path.endsWith(`${steps}.safetensors`))) ended ||= performance.now();
    });
    assert.is(reference.code, 0, reference.text);
    assert.not.ok(reference.text.includes("nothing to resume"), reference.text);
    assert.is(losses(whole).length, steps);
    assert.ok(began > 0 && ended > 0, reference.text);

    const broken = join(root, "broken");
    const ready = (text: string) => trains(text) && !(kept && checkpoints(broken).length === 0);
    const next = random(11);
    let [killed, resumed] = [0, 0];
    for (let turn = 0; ; turn++) {
      const resume = turn === 0 ? [] : ["--resume"];
      const begins = turn > 0 && checkpoints(broken).length === 0;
      const after = turn < kills ? (next() * (ended - began)) / 4 : Number.POSITIVE_INFINITY;
      let since: number | undefined;
      const { code, text } = await espalier([...args, "--out", broken, ...resume], (text, child) => {
        if (ready(text)) since ??= performance.now();
        if (since !== undefined && performance.now() - since >= after) child.kill("SIGKILL");
      });
      assert.is(text.includes(nothing(broken)), begins, text);
      for (const path of checkpoints(broken)) await (await openCheckpoint(path)).file.close();
      if (text.includes("resumed from")) resumed++;
      if (code !== null) {
        assert.is(code, 0, text);
        break;
      }
      killed++;
    }
    console.log(`\n  killed ${killed} times, resumed from a checkpoint ${resumed} times`);
    assert.ok(killed >= least, `only ${killed} kills landed`);
    assert.ok(resumed > 0, "it never went on from a checkpoint");
    assert.equal(losses(broken), losses(whole));
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

kill("at ten random moments goes on to the same numbers, bit for bit, and never leaves an unreadable checkpoint", () =>
  compareWithKilled([...quick(40, 4), ...small(1)], 40, 10, 5, false),
);

const home = mkdtempSync(join(tmpdir(), "espalier-kill-"));
const base = join(home, "base");
kill.after(() => rmSync(home, { recursive: true, force: true }));
kill("--resume where no run is says so, and begins", async () => {
  const { code, text } = await espalier([...quick(3, 10), ...small(2), "--out", base, "--resume"]);
  assert.is(code, 0, text);
  assert.ok(text.includes(nothing(base)), text);
});
const onwards = ["--model.from", join(base, "model.safetensors"), "--world", "new"];
const kinds: [string, string[]][] = [
  [
    "that grew and got a language branch",
    [
      ...["--grow.mode", "insert", "--grow.blocks", "1", "--language.encoder", "language"],
      ...["--replay.fraction", "0.25", "--replay.clips", "easy"],
    ],
  ],
  ["with adapters", ["--lora.pattern", "blocks.*.attn.**,blocks.*.mlp.**", "--rank", "2"]],
];
for (const [name, args] of kinds)
  kill(`${name} does the same`, () => compareWithKilled([...quick(8, 2), ...onwards, ...args], 8, 1, 1, true));

kill.run();
