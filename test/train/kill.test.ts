import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openCheckpoint } from "../../train/checkpoint.js";
import { readLog } from "../../train/log.js";
import { random } from "../ops/loop.js";

const kill = suite("a killed run");
/** Options of a run of few small steps. */
const quick = (steps: number, every: number) => [
  "train",
  ...["--run.checkpointEvery", `${every}`, "--sampleEvery", "0", "--logEvery", "1", "--keep", "2"],
  ...["--train.steps", `${steps}`, "--batchSize", "2", "--warmupSteps", "2"],
  ...["--sample.steps", "2", "--sample.count", "1"],
];
const small = (depth: number) => ["--hidden", "16", "--depth", `${depth}`, "--heads", "2"];

/** Runs the command line; `after` milliseconds after its first step it is killed with -9. */
function espalier(args: string[], after?: number): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [".build/run.mjs", "train/main.ts", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let text = "";
    let timer: NodeJS.Timeout | undefined;
    const hear = (chunk: Buffer) => {
      text += chunk;
      // The bar's first line says that training runs.
      if (after !== undefined && timer === undefined && text.includes("train "))
        timer = setTimeout(() => child.kill("SIGKILL"), after);
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code, text });
    });
  });
}

const losses = (folder: string) => readLog(join(folder, "log.jsonl")).map((l) => [l.step, l.loss, l.norm, l.lr]);

/**
 * Trains once in peace and once killed again and again, then resumed; the losses of both must be equal bit for bit, and
 * every checkpoint that is ever there must open.
 */
async function compareWithKilled(args: string[], steps: number, wanted: number, least: number): Promise<void> {
  const root = mkdtempSync(join(tmpdir(), "espalier-kill-"));
  try {
    const whole = join(root, "whole");
    const reference = await espalier([...args, "--out", whole]);
    assert.is(reference.code, 0, reference.text);
    assert.is(losses(whole).length, steps);

    const broken = join(root, "broken");
    const next = random(11);
    let kills = 0;
    let finished = false;
    for (let turn = 0; turn < 3 * wanted && !finished; turn++) {
      const resume = turn === 0 ? [] : ["--resume"];
      const after = kills < wanted ? 20 + 500 * next() : undefined;
      const { code, text } = await espalier([...args, "--out", broken, ...resume], after);
      if (code === null) kills++;
      else if (code === 0) finished = true;
      else assert.unreachable(`stopped with ${code}: ${text}`);
      const folder = join(broken, "checkpoints");
      // A run that dies early leaves none.
      if (!existsSync(folder)) continue;
      for (const name of readdirSync(folder, { withFileTypes: true }).map((f) => f.name))
        if (name.startsWith("checkpoint-") && name.endsWith(".safetensors"))
          await (await openCheckpoint(join(folder, name))).file.close();
    }
    assert.ok(finished, "the run never finished");
    console.log(`\n  killed ${kills} times, then finished`);
    assert.ok(kills >= least, `only ${kills} kills landed`);
    assert.equal(losses(broken), losses(whole));
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

kill("at ten random moments goes on to the same numbers, bit for bit, and never leaves an unreadable checkpoint", () =>
  compareWithKilled([...quick(40, 4), ...small(1)], 40, 10, 3),
);

const home = mkdtempSync(join(tmpdir(), "espalier-kill-"));
const base = join(home, "base");
kill.after(() => rmSync(home, { recursive: true, force: true }));
kill.before(async () => {
  const { code, text } = await espalier([...quick(3, 10), ...small(2), "--out", base]);
  assert.is(code, 0, text);
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
  kill(`${name} does the same`, () => compareWithKilled([...quick(8, 2), ...onwards, ...args], 8, 2, 1));

kill.run();
