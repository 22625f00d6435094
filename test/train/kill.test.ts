import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openCheckpoint } from "../../train/checkpoint.js";
import { readLog } from "../../train/log.js";
import { random } from "../ops/loop.js";

const kill = suite("a killed run");
const STEPS = 40;
const tiny = [
  "train",
  "--run.checkpointEvery",
  "4",
  "--sampleEvery",
  "0",
  "--logEvery",
  "1",
  "--train.steps",
  `${STEPS}`,
  "--batchSize",
  "2",
  "--hidden",
  "16",
  "--depth",
  "1",
  "--heads",
  "2",
  "--warmupSteps",
  "4",
  "--sample.steps",
  "2",
  "--sample.count",
  "1",
  "--keep",
  "2",
];

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

kill(
  "at ten random moments goes on to the same numbers, bit for bit, and never leaves an unreadable checkpoint",
  async () => {
    const root = mkdtempSync(join(tmpdir(), "espalier-kill-"));
    try {
      const whole = join(root, "whole");
      const reference = await espalier([...tiny, "--out", whole]);
      assert.is(reference.code, 0, reference.text);
      assert.is(losses(whole).length, STEPS);

      const broken = join(root, "broken");
      const next = random(11);
      let kills = 0;
      let finished = false;
      for (let turn = 0; turn < 30 && !finished; turn++) {
        const resume = turn === 0 ? [] : ["--resume"];
        const { code, text } = await espalier(
          [...tiny, "--out", broken, ...resume],
          kills < 10 ? 20 + 500 * next() : undefined,
        );
        if (code === null) kills++;
        else if (code === 0) finished = true;
        else assert.unreachable(`stopped with ${code}: ${text}`);
        const folder = join(broken, "checkpoints");
        for (const name of readdirSync(folder, { withFileTypes: true }).map((f) => f.name))
          if (name.startsWith("checkpoint-") && name.endsWith(".safetensors"))
            await (await openCheckpoint(join(folder, name))).file.close();
      }
      assert.ok(finished, "the run never finished");
      console.log(`\n  killed ${kills} times, then finished`);
      assert.ok(kills >= 3, `only ${kills} kills landed`);
      assert.equal(losses(broken), losses(whole));
    } finally {
      rmSync(root, { recursive: true, force: true });
    }
  },
);
kill.run();
