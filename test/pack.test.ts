import { type ExecFileOptions, execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { transform } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openModule } from "./browser/harness.js";

const test = suite("pack");

let home: string;
let files: string[];
let program: string;
let printed: string;

async function run(command: string, args: string[], options: ExecFileOptions = {}): Promise<string> {
  const { stdout } = await promisify(execFile)(command, args, { maxBuffer: 1 << 26, timeout: 600_000, ...options });
  return String(stdout);
}

/** The README's first program, and the output that it shows in the block after it. */
async function readme(): Promise<{ program: string; printed: string }> {
  const text = await readFile("README.md", "utf8");
  const match = /```[jt]s\n((?:(?!```).)*from "espalier.*?)```.*?```\w*\n(.*?)```/s.exec(text);
  assert.ok(match, "README.md shows a program and, in the block after it, what it prints");
  return { program: match![1], printed: match![2] };
}

/** Equal texts, numbers in them within a thousandth: adapters round differently. */
function alike(actual: string, expected: string): void {
  const number = /-?\d+(?:\.\d+)?(?:e[-+]?\d+)?/g;
  const shape = (text: string) =>
    text
      .trim()
      .replace(/[ \t]+/g, " ")
      .replace(number, "#");
  assert.is(shape(actual), shape(expected), `printed:\n${actual}`);
  const [a, b] = [actual, expected].map((text) => (text.match(number) ?? []).map(Number));
  a.forEach((value, i) => {
    assert.ok(
      Math.abs(value - b[i]) <= 1e-3 * Math.max(1, Math.abs(b[i])),
      `${value} should be ${b[i]} in:\n${actual}`,
    );
  });
}

// A test and not a hook: uvu does not print the error of a hook.
test("it packs, and installs into an empty project", async () => {
  ({ program, printed } = await readme());
  home = await mkdtemp(join(tmpdir(), "espalier-pack-"));
  const [packed] = JSON.parse((await run("npm", ["pack", "--json", "--pack-destination", home])).replace(/^[^[]*/, ""));
  files = packed.files.map(({ path }: { path: string }) => path);
  console.log(`${packed.filename}: ${files.length} files, ${(packed.size / 1e6).toFixed(1)} MB`);
  await writeFile(join(home, "package.json"), JSON.stringify({ private: true, type: "module" }));
  await run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", join(home, packed.filename)], {
    cwd: home,
  });
});

test.after(async () => {
  if (home) await rm(home, { recursive: true, force: true });
});

test("the package holds what it needs and no more", () => {
  for (const path of [
    "LICENSE",
    "README.md",
    "package.json",
    "model/text/words.bin",
    "train/embedded/emoji/captions.jsonl",
  ])
    assert.ok(files.includes(path), `${path} is missing`);
  const others = files.filter(
    (path) => !/^(dist|model\/text|train\/embedded)\/|^(LICENSE|README\.md|package\.json)$/.test(path),
  );
  assert.equal(others, []);
});

test("its three entries share one engine", async () => {
  const code = `
    import * as engine from "espalier";
    import * as model from "espalier/model";
    import * as train from "espalier/train";
    console.log([engine, model, train].every((module) => Object.keys(module).length > 0));`;
  await writeFile(join(home, "entries.mjs"), code);
  assert.is(await run(process.execPath, ["entries.mjs"], { cwd: home }), "true\n");
  const side = files.filter((path) => /^dist\/node\/.*\.mjs$/.test(path));
  const texts = await Promise.all(side.map((path) => readFile(join(home, "node_modules/espalier", path), "utf8")));
  const count = texts.reduce((sum, text) => sum + (text.match(/\bclass Tensor\b|\bTensor = class\b/g)?.length ?? 0), 0);
  assert.is(count, 1);
});

test("its declarations compile in a strict project", async () => {
  const code = `
    import { createEngine } from "espalier";
    import * as model from "espalier/model";
    import * as train from "espalier/train";
    export const all = [await createEngine(), model, train];`;
  await writeFile(join(home, "use.ts"), code);
  const tsc = join(process.cwd(), "node_modules/typescript/bin/tsc");
  const flags = [
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--module",
    "nodenext",
    "--target",
    "es2022",
    "--lib",
    "es2023,esnext.disposable,dom,dom.iterable,dom.asynciterable",
  ];
  const types = ["--typeRoots", join(process.cwd(), "node_modules/@types"), "--types", "node"];
  await run(process.execPath, [tsc, ...flags, ...types, "use.ts"], { cwd: home }).catch((error) =>
    assert.unreachable(error.stdout),
  );
});

test("its command line runs", async () => {
  assert.match(await run("npx", ["--no", "--", "espalier", "--help"], { cwd: home }), /espalier/);
});

test("the README's program prints its numbers in Node", async () => {
  const { code } = await transform(program, { loader: "ts", format: "esm", target: "es2022" });
  await writeFile(join(home, "program.mjs"), code);
  alike(await run(process.execPath, ["program.mjs"], { cwd: home }), printed);
});

test("the README's program prints its numbers in a page", async () => {
  await writeFile(join(home, "page.mjs"), `export async function main() { await import("./program.mjs"); }`);
  const page = await openModule(join(home, "page.mjs"));
  try {
    await page.run("main");
    assert.equal(page.errors, []);
    alike(page.log.join("\n"), printed);
  } finally {
    await page.close();
  }
});

test.run();
