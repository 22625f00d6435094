// node .build/test.mjs [filter…]: bundles test/**/*.test.ts and runs them in one process, so that they share the adapter.
import { readdirSync, rmSync } from "node:fs";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { bundleForNode, root } from "./bundle.mjs";

const filters = process.argv.slice(2);
const files = readdirSync(join(root, "test"), { recursive: true })
  .filter((f) => f.endsWith(".test.ts") && (filters.length === 0 || filters.some((s) => f.includes(s))))
  .sort();
const outdir = join(root, "node_modules/.cache/espalier", `test-${process.pid}`);
await bundleForNode(
  files.map((f) => join("test", f)),
  outdir,
  { outbase: "test" },
);
process.on("exit", () => rmSync(outdir, { recursive: true, force: true }));
process.setSourceMapsEnabled(true);
process.chdir(root);
globalThis.UVU_DEFER = 1;
const { exec } = await import("uvu");
const QUEUE = globalThis.UVU_QUEUE;
for (const f of files) {
  globalThis.UVU_INDEX = QUEUE.push([f]) - 1;
  await import(pathToFileURL(join(outdir, relative(".", f).replace(/\.ts$/, ".mjs"))).href);
}
await exec(false);
process.exit(process.exitCode ?? 0);
