import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const demo = suite("demonstrations");
const root = mkdtempSync(join(tmpdir(), "espalier-demo-"));
demo.after(() => rmSync(root, { recursive: true, force: true }));

function start(...args: string[]): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [".build/run.mjs", "train/main.ts", "start", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk));
    child.on("close", (code) => resolve({ code, text }));
  });
}

/** As little training and sampling as shows that all of it happens. */
const few = ["--steps", "2", "--batch-size", "4", "--sample-steps", "1"];

demo("going on from the base leaves its outputs as they are, learns, and shows both", async () => {
  const out = join(root, "course");
  const { code, text } = await start(...few, "--clips", "2", "--blocks", "2", "--out", out);
  assert.is(code, 0, text);
  assert.match(text, /6 blocks, 2 of them new \(\* insert 2\)\s+0 1 1\* 2 3 3\*/);
  const result = JSON.parse(readFileSync(join(out, "result.json"), "utf8"));
  assert.is(result.unchanged.different, 0, "outputs before training");
  assert.ok(result.unchanged.values > 1000);
  assert.ok(result.loss.after.fresh < result.loss.before.fresh, JSON.stringify(result.loss));
  assert.is(result.gates.length, 6);
  assert.ok(result.gates.some((gate: string) => Number(gate) !== 0));
  const html = readFileSync(join(out, "report.html"), "utf8");
  for (const part of ["colours swapped", "without language", "Gates of the language branch", "equal bit for bit"])
    assert.ok(html.includes(part), part);
  assert.is(readdirSync(join(out, "clips")).filter((name) => name.endsWith(".webp")).length, 2);
  assert.ok(existsSync(join(out, "model.safetensors")));
  const plan = JSON.parse(readFileSync(join(out, "plan.json"), "utf8"));
  assert.equal(
    [plan.measured, plan.config.train.batchSize, plan.config.sample],
    [4, 4, { ...plan.config.sample, count: 2, steps: 1 }],
  );

  const again = await start("--out", out);
  assert.is(again.code, 1);
  assert.match(again.text, /holds a finished demonstration; look at .*report\.html, or give another folder with --out/);
});

demo("training from scratch samples what it learned", async () => {
  const out = join(root, "scratch");
  const { code, text } = await start("--from-scratch", ...few, "--clips", "1", "--out", out);
  assert.is(code, 0, text);
  assert.match(text, /1 clips? of combinations it never saw/);
  assert.ok(existsSync(join(out, "report.html")));
});

const refused: [string[], RegExp][] = [
  [["--preset", "easy"], /--preset easy has no use without --from-scratch/],
  [["--from-scratch", "--preset", "eassy"], /unknown preset "eassy" \(wide-48, /],
  [["--from-scratch", "--compare"], /two demonstrations; take one/],
  [["--compare", "--blocks", "2"], /--blocks has no use/],
  [["--minutes", "0"], /--minutes must be above 0: got 0/],
  [["--steps", "0"], /--steps must be 1 or more/],
  [["--batch-size", "0"], /--batch-size must be 1 or more/],
  [["--sample-steps", "0"], /--sample-steps must be 1 or more/],
  [["--sample-steps", "1001"], /--sample-steps must be at most 1000: got 1001/],
  [["--block", "2"], /did you mean --blocks\?/],
];
demo("options that cannot be are refused before anything is done", async () => {
  for (const [args, message] of refused) {
    const { code, text } = await start(...args, "--out", join(root, "never"));
    assert.is(code, 1, text);
    assert.match(text, message);
  }
  assert.not(existsSync(join(root, "never")));
});

demo.run();
