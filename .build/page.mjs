// npm run page [-- --port N] [--checkpoint FILE]: builds examples/page and serves it on this machine only. Reloading
// rebuilds. Beside the page's own files, /model/text/ and /train/embedded/ hold the word table and the clips of the
// repository, and /checkpoint.json names the model that the page opens by itself.
import { existsSync, statSync } from "node:fs";
import { basename, join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import { pageContext, root } from "./bundle.mjs";
import { folder, serve } from "./serve.mjs";

const { values } = parseArgs({
  options: { port: { type: "string", default: "8080" }, checkpoint: { type: "string" } },
});
const port = Number(values.port);
if (!Number.isInteger(port) || port < 0 || port > 65535)
  fail(`--port must be a whole number from 0 to 65535: "${values.port}"`);
const checkpoint = resolve(values.checkpoint ?? join(root, "train/embedded/base.safetensors"));
const hasCheckpoint = existsSync(checkpoint) && statSync(checkpoint).isFile();
if (values.checkpoint && !hasCheckpoint) fail(`no such file: --checkpoint ${values.checkpoint}`);
const checkpointPath = hasCheckpoint ? `/checkpoint/${basename(checkpoint)}` : null;

const home = join(root, "examples/page");
const context = await pageContext([join(home, "main.ts"), join(home, "worker.ts")], home);
const files = folder(home);
const repository = folder(root);
let built = await build();
if (!built) process.exit(1);

/** Path to contents of what esbuild made, or undefined when it failed; esbuild says why itself. */
async function build() {
  const result = await context.rebuild().catch(() => undefined);
  return result && new Map(result.outputFiles.map(({ path, contents }) => [`/${relative(home, path)}`, contents]));
}

async function find(path) {
  if (path === "/") {
    built = (await build()) ?? built;
    return files("/index.html");
  }
  if (path === "/checkpoint.json") {
    const address = checkpointPath && encodeURI(checkpointPath);
    return { body: JSON.stringify({ path: address }) };
  }
  if (path === checkpointPath) return { file: checkpoint };
  const body = built.get(path);
  if (body) return { body };
  return files(path) ?? (/^\/(model\/text|train\/embedded)\//.test(path) ? repository(path) : undefined);
}

const { url } = await serve(find, port).catch((error) =>
  fail(`port ${port} cannot be had (${error.code}); take another with --port N`),
);
console.log(`Espalier's page: ${url}  (Ctrl+C ends it)`);

function fail(text) {
  console.error(`page: ${text}`);
  process.exit(2);
}
