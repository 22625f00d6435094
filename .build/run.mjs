// node .build/run.mjs FILE.ts [argument…]: bundles one TypeScript program and runs it in this process.
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import { bundleForNode, stop, temporaryFolder } from "./bundle.mjs";

const [entry, ...rest] = process.argv.slice(2);
if (!entry) {
  console.error("usage: node .build/run.mjs FILE.ts [argument…]");
  process.exit(2);
}
const name = basename(entry, ".ts");
const outdir = temporaryFolder(name);
await bundleForNode([entry], outdir).catch(() => process.exit(1));
await stop();
process.argv = [process.argv[0], entry, ...rest];
process.setSourceMapsEnabled(true);
await import(pathToFileURL(join(outdir, `${name}.mjs`)).href);
