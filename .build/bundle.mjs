// The one place that knows how this project's TypeScript and WGSL become JavaScript.
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

const { build, context, stop } = await import("esbuild").catch(() => {
  console.error("espalier: the project's packages are not installed: run npm ci first");
  process.exit(1);
});

export { stop };

/** esbuild options that every bundle shares: WGSL files are imported as text, `#platform` follows package.json. */
const common = {
  absWorkingDir: root,
  bundle: true,
  format: "esm",
  target: "es2022",
  loader: { ".wgsl": "text" },
  logLevel: "warning",
  splitting: true,
};

/** Bundles for Node. Chunks are shared, so that all entry points see the same modules; packages stay outside. */
export function bundleForNode(entryPoints, outdir, extra = {}) {
  const outExtension = { ".js": ".mjs" };
  return build({
    ...common,
    entryPoints,
    outdir,
    platform: "node",
    target: "node20.11",
    packages: "external",
    sourcemap: true,
    outExtension,
    ...extra,
  });
}

/** What bundles for a page have in common; packages are in them. */
const forPage = { ...common, platform: "browser", sourcemap: "linked" };

/** Bundles for a page. */
export function bundleForPage(entryPoints, outdir, extra = {}) {
  return build({ ...forPage, entryPoints, outdir, ...extra });
}

/** A page's bundle that is made anew at each `rebuild()`, in memory. */
export function pageContext(entryPoints, outdir) {
  return context({ ...forPage, entryPoints, outdir, write: false });
}

/**
 * A folder for one process's bundles, gone when the process is. It lies under node_modules, where bundles find their
 * packages. Folders whose process was killed are removed too.
 */
export function temporaryFolder(name) {
  const cache = join(root, "node_modules/.cache/espalier");
  mkdirSync(cache, { recursive: true });
  for (const folder of readdirSync(cache)) {
    const pid = Number(/-(\d+)$/.exec(folder)?.[1]);
    if (pid && !alive(pid)) rmSync(join(cache, folder), { recursive: true, force: true });
  }
  const folder = join(cache, `${name}-${process.pid}`);
  mkdirSync(folder, { recursive: true });
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
