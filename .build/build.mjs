// npm run build: makes dist/, what the npm package ships: bundles for Node and for pages, declarations, the command line.
import { execFileSync } from "node:child_process";
import { chmodSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundleForNode, bundleForPage, root } from "./bundle.mjs";

const dist = join(root, "dist");
rmSync(dist, { recursive: true, force: true });

// One build for each side, so that its entries share chunks and there is one engine, whichever entry loads it first.
const node = { engine: "engine/index.ts", model: "model/index.ts", train: "train/index.ts", cli: "train/main.ts" };
const page = { engine: "engine/index.ts", model: "model/index.ts" };
const plain = { sourcemap: false, chunkNames: "chunks/[name]-[hash]" };
await bundleForNode(node, join(dist, "node"), plain).catch(() => process.exit(1));
await bundleForPage(page, join(dist, "page"), { ...plain, packages: "external" }).catch(() => process.exit(1));

const cli = join(dist, "node/cli.mjs");
writeFileSync(cli, `#!/usr/bin/env node\n${readFileSync(cli, "utf8").replace(/^#!.*\n/, "")}`);
chmodSync(cli, 0o755);

const options = [
  "--noEmit",
  "false",
  "--declaration",
  "--emitDeclarationOnly",
  "--rootDir",
  ".",
  "--outDir",
  "dist/types",
];
execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", ".build/types.json", ...options], {
  cwd: root,
  stdio: "inherit",
});
// TypeScript drops the reference through which users' compilers learn of GPUDevice and its kin.
for (const entry of ["engine", "model", "train"]) {
  const file = join(dist, "types", entry, "index.d.ts");
  writeFileSync(file, `/// <reference types="@webgpu/types" />\n${readFileSync(file, "utf8")}`);
}
