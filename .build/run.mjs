// node .build/run.mjs FILE.ts [arguments]: bundles one TypeScript program and runs it.
import { createHash } from "node:crypto";
import { rmSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { bundleForNode, root } from "./bundle.mjs";

const [entry, ...rest] = process.argv.slice(2);
const key = createHash("sha1").update(resolve(entry)).digest("hex").slice(0, 8);
const outdir = join(root, "node_modules/.cache/espalier", `${basename(entry, ".ts")}-${key}-${process.pid}`);
await bundleForNode([entry], outdir);
process.on("exit", () => rmSync(outdir, { recursive: true, force: true }));
process.argv = [process.argv[0], entry, ...rest];
process.setSourceMapsEnabled(true);
await import(pathToFileURL(join(outdir, `${basename(entry, ".ts")}.mjs`)).href);
