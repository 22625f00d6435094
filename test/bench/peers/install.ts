import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";

/** The engines that Espalier is compared with, at versions that do not move. */
export const PACKAGES = {
  "@jax-js/jax": "0.1.25",
  "@tensorflow/tfjs": "4.22.0",
  "@tensorflow/tfjs-backend-webgpu": "4.22.0",
  "onnxruntime-node": "1.30.0",
};

/** A folder of the user's cache, so that nothing of the peers enters this package. */
export const peersFolder = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "espalier", "peers");

/** Loads a peer's package from its folder. */
export const requirePeer = createRequire(join(peersFolder, "package.json"));

const installed = (name: string): string | undefined => {
  const file = join(peersFolder, "node_modules", name, "package.json");
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).version : undefined;
};

/**
 * Installs the peers, unless they are there, with the npm that this user has configured. No script of theirs is run.
 * @throws Error with npm's own words when it cannot
 */
export async function installPeers(say: (text: string) => void): Promise<void> {
  if (Object.entries(PACKAGES).every(([name, version]) => installed(name) === version)) return;
  say(
    `installing ${Object.entries(PACKAGES)
      .map((pair) => pair.join("@"))
      .join(", ")} in ${peersFolder} (750 MB)`,
  );
  mkdirSync(peersFolder, { recursive: true });
  writeFileSync(
    join(peersFolder, "package.json"),
    `${JSON.stringify({ private: true, dependencies: PACKAGES }, undefined, 2)}\n`,
  );
  const npm = spawn("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"], {
    cwd: peersFolder,
    stdio: ["ignore", "ignore", "pipe"],
    shell: process.platform === "win32",
  });
  let text = "";
  npm.stderr.on("data", (chunk) => {
    text += chunk;
  });
  const code = await new Promise<number | string>((resolve) => {
    npm.on("error", (error) => resolve(error.message));
    npm.on("exit", (code, signal) => resolve(code ?? `${signal}`));
  });
  if (code === 0) return;
  // npm's first lines are codes; the first that is a sentence says what happened.
  const reason = text.match(/^npm (?:error|ERR!) (?!code |errno |syscall |type )(.{10,})$/m)?.[1];
  throw new Error(
    `peers: npm could not install the engines to compare with in ${peersFolder}: ${reason ?? (text.trim().split("\n")[0] || code)}; the first run needs the network, later ones do not.`,
  );
}
