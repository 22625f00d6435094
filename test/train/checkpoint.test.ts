import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { writeSafetensors } from "../../model/safetensors.js";
import { type CheckpointContent, CheckpointFolder, type Json } from "../../train/checkpoint.js";
import { bytesOf, rejects } from "../files/throws.js";

const test = suite("checkpoint");
let root = "";
test.before(async () => {
  root = await mkdtemp(join(tmpdir(), "checkpoint-"));
});
test.after(() => rm(root, { recursive: true }));

const contentOf = (step: number): CheckpointContent => ({
  tensors: [
    { name: "model.w", dtype: "F32", shape: [2, 2], data: bytesOf(Float32Array.of(step, 1, 2, 3)) },
    { name: "optimizer.w.m", dtype: "F32", shape: [2, 2], data: bytesOf(new Float32Array(4)) },
  ],
  state: { config: { optim: { lr: 3e-3 } }, cursor: step * 8, keys: [1, 4294967295], "text ü": 'a "b"' },
});

test("gives back what was saved; the last K are kept", async () => {
  const folder = new CheckpointFolder(join(root, "deep", "run"), 2);
  assert.is(await folder.latest(), undefined);
  assert.equal(await folder.list(), []);
  for (const step of [5, 40, 1_000_000, 300]) await folder.save(step, contentOf(step));
  assert.equal(
    (await folder.list()).map(({ step }) => step),
    [300, 1_000_000],
  );
  assert.equal((await readdir(folder.dir)).sort(), ["checkpoint-000300.safetensors", "checkpoint-1000000.safetensors"]);
  const latest = (await folder.latest())!;
  assert.is(latest.step, 1_000_000);
  assert.equal(latest.state, contentOf(1_000_000).state);
  assert.equal(await latest.file.float32("model.w"), Float32Array.of(1_000_000, 1, 2, 3));
  await latest.file.close();
  await rejects(() => folder.open(40), "CheckpointError: checkpoint: no such step: 40 in ");
  await rejects(() => folder.open(40), "; there are 300, 1000000");
  const other = await folder.open(300);
  assert.is(other.step, 300);
  await other.file.close();
  await folder.removeAfter(300);
  assert.is((await folder.list()).length, 1);
});

test("a step saved below the newest K is still kept", async () => {
  const folder = new CheckpointFolder(join(root, "below"), 1);
  await folder.save(50, contentOf(50));
  await folder.save(20, contentOf(20));
  assert.equal(
    (await folder.list()).map(({ step }) => step),
    [20, 50],
  );
});

test("torn, foreign and ill-named files are skipped with a warning", async () => {
  const warnings: string[] = [];
  const folder = new CheckpointFolder(join(root, "torn"), 9, (text) => warnings.push(text));
  for (const step of [1, 2, 3, 4, 5]) await folder.save(step, contentOf(step));
  await truncate(folder.pathOf(5), 40);
  await writeFile(folder.pathOf(4), "");
  await writeSafetensors(folder.pathOf(3), [], { espalier: "weights" });
  await writeSafetensors(folder.pathOf(2), [], { espalier: "checkpoint/1", step: "2", config: "{" });
  await writeFile(join(folder.dir, "checkpoint-9.safetensors"), "no checkpoint's name");
  const latest = (await folder.latest())!;
  assert.is(latest.step, 1);
  await latest.file.close();
  const path = (step: number) => `checkpoint: skipped, not readable: ${folder.pathOf(step)}: `;
  assert.is(warnings.length, 4);
  assert.ok(warnings[0].startsWith(`${path(5)}safetensors: header beyond the file`), warnings[0]);
  assert.ok(warnings[1].startsWith(`${path(4)}safetensors: file too short`), warnings[1]);
  assert.is(
    warnings[2],
    `${path(3)}checkpoint: not a checkpoint: ${folder.pathOf(3)} says "weights" of its kind; "checkpoint/1" is read here`,
  );
  assert.is(warnings[3], `${path(2)}checkpoint: state is not JSON: "config" of ${folder.pathOf(2)}`);
});

test("what JSON would change is refused, and nothing is written", async () => {
  const folder = new CheckpointFolder(join(root, "json"));
  const save = (state: Record<string, unknown>) =>
    folder.save(1, { tensors: [], state: state as Record<string, Json> });
  await rejects(
    () => save({ a: { b: [1, Number.NaN] } }),
    "CheckpointError: checkpoint: not JSON: state.a.b[1] is NaN",
  );
  await rejects(() => save({ a: 1n }), "not JSON: state.a is 1");
  await rejects(() => save({ a: new Float32Array(2) }), "not JSON: state.a is Float32Array");
  await rejects(() => save({ a: undefined }), "not JSON: state.a is undefined");
  await rejects(() => save({ step: 2 }), "reserved name: state.step");
  await rejects(() => folder.save(-1, contentOf(1)), "bad step: -1");
  assert.throws(() => new CheckpointFolder(root, 0), /bad count: keep is 0/);
  assert.not(existsSync(folder.dir));
});

test("saves side by side do not disturb each other", async () => {
  const folder = new CheckpointFolder(join(root, "side"), 9);
  await Promise.all([1, 2, 3, 4].map((step) => folder.save(step, contentOf(step))));
  assert.equal((await readdir(folder.dir)).length, 4);
});

test("files left aside by dead processes are removed, those of live ones are not", async () => {
  const folder = new CheckpointFolder(join(root, "aside"));
  await folder.save(1, contentOf(1));
  const dead = ".checkpoint-000002.safetensors.999999999-0123abcd.tmp";
  const alive = `.checkpoint-000003.safetensors.${process.ppid}-0123abcd.tmp`;
  const foreign = ".notes.txt.999999999-0123abcd.tmp";
  for (const name of [dead, alive, foreign]) await writeFile(join(folder.dir, name), "x");
  await new CheckpointFolder(folder.dir).save(4, contentOf(4));
  const names = await readdir(folder.dir);
  assert.equal(
    [dead, alive, foreign].map((name) => names.includes(name)),
    [false, true, true],
  );
});

test("kill -9 at any moment leaves the newest checkpoint whole", async () => {
  const dir = join(root, "killed");
  const program = join(root, "saver.mjs");
  // 4 MB a checkpoint, so that most kills land inside a write.
  const contents = `
    import { CheckpointFolder } from "./train/checkpoint.ts";
    const folder = new CheckpointFolder(${JSON.stringify(dir)}, 2);
    const latest = await folder.latest();
    const first = (latest?.step ?? 0) + 1;
    process.stdout.write("saving");
    for (let step = first; ; step++) {
      const data = new Uint8Array(new Float32Array(1 << 20).fill(step).buffer);
      await folder.save(step, { tensors: [{ name: "w", dtype: "F32", shape: [1 << 20], data }], state: { step2: step * 2 } });
    }`;
  await build({
    stdin: { contents, resolveDir: process.cwd(), loader: "ts" },
    ...{ bundle: true, format: "esm", platform: "node", packages: "external", outfile: program },
  });
  let before = 0;
  let torn = 0;
  for (let kill = 0; kill < 10; kill++) {
    const child = spawn(process.execPath, [program], { stdio: ["ignore", "pipe", "inherit"] });
    await new Promise((started) => child.stdout.once("data", started));
    await sleep(20 + ((kill * 37) % 100));
    const ended = new Promise((done) => child.once("exit", done));
    child.kill("SIGKILL");
    await ended;
    // The first process may be killed before it has made the folder.
    const names = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" && kill === 0) return [];
      throw error;
    });
    torn += names.filter((name) => name.endsWith(".tmp")).length;
    const folder = new CheckpointFolder(dir, 2, (text) => assert.unreachable(text));
    const files = await folder.list();
    const latest = await folder.latest();
    if (latest === undefined) {
      assert.is(files.length, 0);
      continue;
    }
    assert.is(latest.step, files[files.length - 1].step, "the newest opens");
    assert.equal(latest.state, { step2: latest.step * 2 });
    const values = await latest.file.float32("w");
    assert.ok(values.every((value) => value === latest.step));
    await latest.file.close();
    assert.ok(latest.step >= before, `went back from ${before} to ${latest.step}`);
    assert.ok(files.length <= 3, "at most one more than is kept, before the oldest is removed");
    before = latest.step;
  }
  assert.ok(before > 3, `only ${before} checkpoints were made`);
  assert.ok(torn > 0, "no kill landed inside a write");
});

test("a full disk keeps the earlier checkpoints", async () => {
  const folder = new CheckpointFolder(join(root, "full"));
  await folder.save(1, contentOf(1));
  const never: AsyncIterable<Uint8Array> = {
    [Symbol.asyncIterator]: () => assert.unreachable("nothing should be read") as never,
  };
  const huge = { name: "w", dtype: "F32", shape: [2 ** 48], data: never } as const;
  await rejects(
    () => folder.save(2, { tensors: [huge], state: {} }),
    `FileError: write: disk full: ${folder.pathOf(2)} needs 112589990684`,
  );
  assert.equal(await readdir(folder.dir), ["checkpoint-000001.safetensors"]);
  assert.ok((await readFile(folder.pathOf(1))).length > 0);
});

test.run();
