import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const test = suite("examples");

/** What a program prints. Each runs in a process of its own, as a reader runs it. */
async function printed(name: string): Promise<string> {
  const began = performance.now();
  const { stdout } = await promisify(execFile)(process.execPath, [".build/run.mjs", `examples/${name}.ts`], {
    timeout: 600_000,
  });
  console.log(`\n  ${name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  return stdout;
}

/** The numbers of a text's part that matches, whose groups they are. */
function numbers(text: string, pattern: RegExp): number[] {
  const match = pattern.exec(text);
  assert.ok(match, `no ${pattern} in:\n${text}`);
  return match!.slice(1).map(Number);
}

test("gradients: the tape is printed, and agrees with finite differences", async () => {
  const text = await printed("gradients");
  for (const op of ["matmul", "add", "silu", "square", "mean"])
    assert.match(text, new RegExp(`^\\d+ +${op} `, "m"), `${op} is on the tape`);
  const rows = [...text.matchAll(/^df\/d[wb]\[\d\] +tape +(\S+) +differences +(\S+)$/gm)];
  assert.is(rows.length, 8);
  for (const [line, tape, slope] of rows) assert.ok(Math.abs(Number(tape) - Number(slope)) < 2e-4, line);
  const [times] = numbers(text, /second backward: (\S+) times/);
  assert.ok(Math.abs(times - 2) < 1e-3);
});

test("curve: the network comes nearer to the curve than the noise was", async () => {
  const text = await printed("curve");
  const losses = [...text.matchAll(/^step \d+ +loss (\S+)$/gm)].map((m) => Number(m[1]));
  assert.is(losses.length, 5);
  // What is left is the noise: a deviation of 0.1.
  assert.ok(losses[4] > 0.004 && losses[4] < 0.02, `last loss ${losses[4]}`);
  const [off] = numbers(text, /off by (\S+)$/m);
  assert.ok(off < 0.05, `off by ${off}`);
  assert.ok((text.match(/o/g)?.length ?? 0) > 60, "a plot of 71 columns");
});

test("attention: maps are shares, and the trace and the source name the kernel", async () => {
  const text = await printed("attention");
  const rows = [...text.matchAll(/^ {2}(\w+) +([01]\.\d\d) #* +([01]\.\d\d) #* +([01]\.\d\d)/gm)];
  assert.is(rows.length, 16);
  for (const step of [rows.slice(0, 8), rows.slice(8)])
    for (const block of [2, 3, 4]) {
      const sum = step.reduce((total, row) => total + Number(row[block]), 0);
      assert.ok(Math.abs(sum - 1) < 0.05, `the words' shares of block ${block - 2} add up to ${sum}`);
    }
  // Trained with captions: the colour counts for more than an article.
  const share = (word: string) => Number(rows.find((row) => row[1] === word)![3]);
  assert.ok(share("blue") > 2 * share("on"), `blue ${share("blue")}, on ${share("on")}`);
  assert.match(text, /^ {2}blocks\.0\.attn +attention\w*\.forward +\d+ x \d+ x \d+ +(\d+ µs|not timed) +\d+ bytes$/m);
  assert.match(text, /^\/\/ ---- attention\w*: forward/m);
});

test("memory: a scope frees, steps keep nothing, errors say what to do", async () => {
  const text = await printed("memory");
  const [one] = numbers(text, /one matrix: (\S+) MiB live/);
  const [open] = numbers(text, /outside a scope: (\S+) MiB live/);
  const [scoped] = numbers(text, /in a scope, its sum kept: (\S+) MiB live/);
  assert.is(open, 4 * one);
  assert.is(scoped, open);
  assert.match(text, /uses a tensor after it was freed: \[256, 256\] f32 from exp;/);
  assert.match(text, /^optimizer +\d+/m);
  assert.match(text, /20 more steps: 0 bytes more are live, 0 new buffers/);
  assert.match(
    text,
    /memory: zeros \[1024, 1024\] f32 needs 4\.00 MiB beyond the budget of 64 MiB: live are .*activations/,
  );
  assert.match(text, /the engine goes on: sum \d+/);
});

test("diffusion: one clip overfits to less than 5 % of the constant predictor's loss", async () => {
  const text = await printed("diffusion");
  const [loss, constant, share] = numbers(text, /^loss (\S+), constant predictor (\S+): (\S+) %$/m);
  console.log(`  loss ${loss}, constant predictor ${constant}: ${share} %`);
  // The variance of ε, over 8 times 16 latents.
  assert.ok(Math.abs(constant - 1) < 0.02, `constant ${constant}`);
  assert.ok(loss < 0.05 * constant, `${loss} of ${constant}`);
  assert.ok(Math.abs((100 * loss) / constant - share) < 0.02);
  const [made, coded] = numbers(text, /: (\S+) dB from the clip; its codec alone: (\S+) dB/);
  assert.ok(made > coded - 2, `sampled ${made} dB, codec ${coded} dB`);
});

test.run();
