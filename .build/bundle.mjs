// The one place that knows how this project's TypeScript and WGSL become JavaScript.
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

export const root = fileURLToPath(new URL("..", import.meta.url));

/** esbuild options shared by every bundle: WGSL files are imported as text, packages stay outside in Node. */
export const common = {
  absWorkingDir: root,
  bundle: true,
  format: "esm",
  target: "es2022",
  loader: { ".wgsl": "text" },
  logLevel: "warning",
};

/** Bundles entry points for Node with one shared chunk set, so that all of them see the same engine module. */
export function bundleForNode(entryPoints, outdir, extra = {}) {
  return build({
    ...common,
    entryPoints,
    outdir,
    platform: "node",
    packages: "external",
    splitting: true,
    sourcemap: true,
    outExtension: { ".js": ".mjs" },
    ...extra,
  });
}
