import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const test = suite("bench");
const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, [".build/run.mjs", "test/bench.ts", ...args], { timeout: 300_000 });

test("cases by name: right results, times in order, the same figures as JSON", async () => {
  const folder = await mkdtemp(join(tmpdir(), "espalier-bench-"));
  try {
    const file = join(folder, "bench.json");
    const { stdout } = await bench("block 64", "TRAINING", "sum", "--quick", "--rounds", "2", "--json", file);
    const { adapter, ceilings, cases } = JSON.parse(await readFile(file, "utf8"));
    assert.equal(
      cases.map((c: { name: string }) => c.name),
      ["sum [1024,64] to [64]", "block 64 [8,8,16]", "block 64 [8,8,16] fwd+bwd", "training step, preset easy"],
    );
    assert.ok(stdout.startsWith(`${adapter.name} (${adapter.kind})`), stdout);
    for (const value of Object.values(ceilings)) assert.ok((value as number) > 0);
    for (const { name, ms, launches, peak, share, gflops, gbs, error } of cases) {
      assert.ok(0 < ms.min && ms.min <= ms.median && ms.median <= ms.max, name);
      assert.ok(launches >= 1 && peak >= 0 && share > 0 && error < 5e-3, name);
      assert.ok((gflops === undefined) !== (gbs === undefined), name);
      assert.ok(stdout.includes(`\n${name} `), `${name} stands in the table:\n${stdout}`);
    }
    const kernels = cases[3].kernels as { count: number }[];
    assert.is(
      kernels.reduce((sum, k) => sum + k.count, 0),
      cases[3].launches,
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test("what it cannot do is said", async () => {
  const refused = async (message: RegExp, ...args: string[]) => {
    const error = await bench(...args).then(
      () => undefined,
      (e: Error & { code: number; stderr: string }) => e,
    );
    assert.ok(error, `${args} should be refused`);
    assert.is(error!.code, 2);
    assert.match(error!.stderr, message);
  };
  await refused(/^bench: no case is called matmull; there are matmul 256 · /, "matmull");
  await refused(/^bench: --rounds must be 1 or more/, "--rounds", "0");
  await refused(/^bench: unknown option --jsonn; did you mean --json\?/, "--jsonn", "x");
});

test.run();
