import { randomUUID } from "node:crypto";
import { accessSync, closeSync, constants, existsSync, openSync, readFileSync, readSync, rmSync } from "node:fs";
import { chmod, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { homedir, tmpdir, userInfo } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { brotliDecompress } from "node:zlib";
import type { AdapterName, AdapterQuery, Candidate, Platform } from "./platform.js";

/** Dawn's objects die with the one that made them, and using an orphan crashes Node: all of them live as long as it. */
const roots: GPU[] = [];

type Dawn = typeof import("webgpu");

let dawn: Promise<Dawn> | undefined;

function loadDawn(): Promise<Dawn> {
  dawn ??= import("webgpu").then((module) => {
    Object.assign(globalThis, module.globals);
    return module;
  });
  return dawn;
}

/** Asks Dawn for an adapter. `flags` are Dawn's own; `driver` is a Vulkan driver's JSON file to use alone. */
async function request(flags: string[], power?: GPUPowerPreference, driver?: string): Promise<Candidate> {
  const { create } = await loadDawn();
  const quietly = await holdingErrors();
  const { gpu, pending, warnings } = withDriver(driver, () => {
    // Times of single launches would otherwise come in steps of 65 µs, as in a browser, which hides them from pages.
    const gpu = create([...flags, "disable-dawn-features=timestamp_quantization"]);
    roots.push(gpu);
    const { result, text } = quietly(() => gpu.requestAdapter({ powerPreference: power }));
    return { gpu, pending: result, warnings: text.replace(/^Warning: |^ +at .*$/gm, "").trim() };
  });
  const adapter = await wait(pending);
  if (!adapter) throw new Error(warnings.split("\n")[0] || "no driver");
  return {
    adapter,
    languageFeatures: gpu.wgslLanguageFeatures,
    backend: { darwin: "metal", win32: "d3d12" }[process.platform as string] ?? "vulkan",
    source: driver ? "embedded" : "system",
  };
}

/** The Vulkan loader's settings, newer name first: it takes precedence. */
const DRIVER_SETTINGS = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/**
 * Runs `call` with one Vulkan driver in sight. Dawn searches drivers, and the loader reads these settings, while an
 * adapter's promise is made, not when it settles: nothing else of this process can come between.
 */
function withDriver<T>(driver: string | undefined, call: () => T): T {
  if (!driver) return call();
  const before = DRIVER_SETTINGS.map((name) => process.env[name]);
  for (const name of DRIVER_SETTINGS) process.env[name] = driver;
  try {
    return call();
  } finally {
    DRIVER_SETTINGS.forEach((name, i) => {
      if (before[i] === undefined) delete process.env[name];
      else process.env[name] = before[i];
    });
  }
}

/**
 * Gives a function that runs `call` and holds back what native code writes to standard error meanwhile: Dawn warns there
 * on every start, of what this engine reports itself. With DEBUG set, or without koffi, nothing is held back.
 */
async function holdingErrors(): Promise<<T>(call: () => T) => { result: T; text: string }> {
  const koffi = await import("koffi").then((module) => module.default).catch(() => undefined);
  if (!koffi || process.env.DEBUG || process.platform === "win32") return (call) => ({ result: call(), text: "" });
  const own = koffi.load(null);
  const dup = own.func("int dup(int)");
  const dup2 = own.func("int dup2(int, int)");
  return (call) => {
    const path = join(tmpdir(), `espalier-${randomUUID()}`);
    const file = openSync(path, "w+");
    rmSync(path);
    const saved = dup(2);
    dup2(file, 2);
    try {
      const result = call();
      const buffer = Buffer.alloc(4096);
      return { result, text: buffer.toString("utf8", 0, readSync(file, buffer, 0, buffer.length, 0)) };
    } finally {
      dup2(saved, 2);
      closeSync(saved);
      closeSync(file);
    }
  };
}

/** Dawn lists the adapters it sees only in the error for a name that none of them has. */
async function systemNames(): Promise<AdapterName[]> {
  const impossible = "\u0001";
  const text = await request([`adapter=${impossible}`]).then(
    () => "",
    (error: Error) => error.message,
  );
  return [...text.matchAll(/backend: '([^']*)', name: '([^\n]*)'/g)].map(([, backend, name]) => ({
    name,
    backend,
    source: "system" as const,
  }));
}

async function* candidates(query: AdapterQuery, refused: (reason: string) => void): AsyncGenerator<Candidate> {
  const attempt = async (what: string, take: () => Promise<Candidate>): Promise<Candidate | undefined> => {
    try {
      return await take();
    } catch (cause) {
      refused(`${what} offers none (${cause instanceof Error ? cause.message.split("\n")[0] : cause})`);
      return undefined;
    }
  };
  const embedded = () =>
    attempt("the SwiftShader of @sparticuz/chromium", async () => request([], undefined, await swiftShader()));
  const named = async (part: string) => {
    const names = await systemNames().catch(() => []);
    const match = names.find(({ name }) => name.toLowerCase().includes(part));
    if (match) return attempt(match.name, () => request([`adapter=${match.name}`]));
    refused(`the system has ${names.map(({ name }) => name).join(", ") || "no usable driver"}`);
    return undefined;
  };

  const { adapter: wanted } = query;
  if (wanted === "swiftshader") {
    const candidate = (await embedded()) ?? (await named("swiftshader"));
    if (candidate) yield candidate;
    return;
  }
  if (wanted !== undefined && wanted !== "hardware") {
    const candidate = await named(wanted === "lavapipe" ? "llvmpipe" : wanted);
    if (candidate) yield candidate;
    return;
  }
  const system = await attempt("the system", () => request([], query.power));
  if (system) yield system;
  if (wanted === "hardware") return;
  // Only reached when the system's best adapter is none or failed: its software driver, then the embedded one.
  if (system && !(system.adapter.info as { isFallbackAdapter?: boolean }).isFallbackAdapter) {
    const software = await named("llvmpipe");
    if (software) yield software;
  }
  const last = await embedded();
  if (last) yield last;
}

async function adapterNames(): Promise<AdapterName[]> {
  const names: AdapterName[] = await systemNames().catch(() => []);
  const own = await swiftShader()
    .then((driver) => request([], undefined, driver))
    .catch(() => undefined);
  if (own) names.push({ name: "SwiftShader (npm package @sparticuz/chromium)", backend: "vulkan", source: "embedded" });
  return names;
}

// --- the SwiftShader that an npm package carries -------------------------------------------------------------------

/** Libraries that must stay loaded. */
const libraries: unknown[] = [];

/** Makes the embedded driver ready for this process; gives its driver file for the Vulkan loader. */
async function swiftShader(): Promise<string> {
  if (process.platform !== "linux" || process.arch !== "x64") throw new Error("it exists for Linux on x64 only");
  const require = createRequire(import.meta.url);
  const archive = join(dirname(require.resolve("@sparticuz/chromium")), "../../bin/swiftshader.tar.br");
  const version = JSON.parse(readFileSync(join(dirname(archive), "../package.json"), "utf8")).version;
  const folder = join(cacheFolder(), `swiftshader-${version}`);
  if (!existsSync(folder)) await unpack(archive, folder);
  if (libraries.length === 0) {
    const { default: koffi } = await import("koffi");
    // Dawn opens "libvulkan.so.1" by name: where the system has none, one already loaded under that name is found.
    try {
      libraries.push(koffi.load("libvulkan.so.1"));
    } catch {
      libraries.push(koffi.load(join(folder, "libvulkan.so.1"), { global: true }));
    }
  }
  return join(folder, "vk_swiftshader_icd.json");
}

/** Unpacks the Vulkan part of a brotli-compressed tar archive; several processes may do so at once. */
async function unpack(archive: string, folder: string): Promise<void> {
  const tar = await promisify(brotliDecompress)(await readFile(archive));
  const aside = `${folder}.${randomUUID()}`;
  await mkdir(aside, { recursive: true });
  try {
    // A tar archive is a row of 512-byte blocks: a header (name at 0, octal size at 124), then the file's own blocks.
    for (let at = 0; at + 512 <= tar.length && tar[at] !== 0; ) {
      const name = tar.toString("latin1", at, at + 100).replace(/\0.*$/s, "");
      const size = Number.parseInt(tar.toString("latin1", at + 124, at + 136), 8);
      if (/^(\.\/)?[\w.-]*(vk_swiftshader|libvulkan)[\w.-]*$/.test(name)) {
        const file = join(aside, name);
        await writeFile(file, tar.subarray(at + 512, at + 512 + size));
        await chmod(file, 0o755);
      }
      at += 512 + Math.ceil(size / 512) * 512;
    }
    await rename(aside, folder).catch((error) => {
      if (!existsSync(folder)) throw error;
    });
  } finally {
    await rm(aside, { recursive: true, force: true });
  }
}

// --- advice --------------------------------------------------------------------------------------------------------

/** The command that installs Vulkan's loader and Mesa's drivers, lavapipe among them. */
function mesaCommand(): string {
  const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)`, "m").exec(release)?.[1] ?? "";
  const family = `${field("ID")} ${field("ID_LIKE")}`;
  if (field("ID") === "debian" && field("VERSION_ID") === "12")
    return "add bookworm-backports to apt's sources, then apt-get install libvulkan1 mesa-vulkan-drivers/bookworm-backports (Debian 12's own Mesa 22.3 is too old)";
  if (/debian|ubuntu/.test(family)) return "apt-get install libvulkan1 mesa-vulkan-drivers";
  if (/fedora|rhel|centos/.test(family)) return "dnf install vulkan-loader mesa-vulkan-drivers";
  if (/suse/.test(family)) return "zypper install libvulkan1 libvulkan_lvp";
  if (/arch/.test(family)) return "pacman -S vulkan-icd-loader vulkan-swrast";
  return "install the Vulkan loader (libvulkan.so.1) and Mesa's Vulkan drivers, 23 or later";
}

const GPU_DRIVER = "mesa-vulkan-drivers for AMD and Intel, nvidia-driver for NVIDIA";

function noAdapterAdvice(wanted?: string): string {
  const { platform, arch } = process;
  if (wanted !== undefined && !["hardware", "lavapipe", "swiftshader"].includes(wanted))
    return 'Take "hardware", "lavapipe", "swiftshader", part of a name that "espalier doctor" lists, or nothing for the best.';
  if (platform === "darwin") return "macOS needs a GPU with Metal; a virtual machine often has none.";
  if (platform === "win32") return "Windows needs a graphics driver with Direct3D 12: update the GPU's driver.";
  const gpu = `For a GPU, its Vulkan driver: ${GPU_DRIVER}.`;
  if (wanted === "hardware") return gpu;
  const npm = arch === "x64" ? " Without root, on glibc: npm install @sparticuz/chromium koffi." : "";
  return `For a software adapter: ${mesaCommand()}.${npm} ${gpu}`;
}

function faster(name: string): string | undefined {
  if (process.platform !== "linux") return "a GPU with a current driver";
  const gpu = `a GPU with its Vulkan driver (${GPU_DRIVER})`;
  return name === "SwiftShader" ? `lavapipe, 5 to 8 times faster: ${mesaCommand()}; or ${gpu}` : gpu;
}

// --- waiting, settings, cache --------------------------------------------------------------------------------------

const clock = new Int32Array(new SharedArrayBuffer(4));

/**
 * While a GPU promise is pending, Dawn polls from setImmediate and so spins the main thread, taking a core from an
 * adapter that computes on the CPU. Sleeping 1 ms between its turns gives that core back.
 */
async function wait<T>(promise: Promise<T>): Promise<T> {
  let settled = false;
  const settle = () => {
    settled = true;
  };
  promise.then(settle, settle);
  for (let turn = 0; !settled; turn++) {
    await new Promise((resolve) => setImmediate(resolve));
    // The first turns do not sleep: short work is often done by then.
    if (!settled && turn > 1) Atomics.wait(clock, 0, 0, 1);
  }
  return promise;
}

function cacheFolder(): string {
  const home = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  try {
    accessSync(existsSync(home) ? home : dirname(home), constants.W_OK);
    return join(home, "espalier");
  } catch {
    return join(tmpdir(), `espalier-${userInfo().uid}`);
  }
}

/** Keys become file names. */
const cacheFile = (key: string) => join(cacheFolder(), `${key.replace(/[^\w.-]/g, "_")}.json`);

/** The platform of Node. */
export const platform: Platform = {
  name: "node",
  candidates,
  adapterNames,
  noAdapterAdvice,
  faster,
  wait,
  env: (name) => process.env[name],
  cacheRead: (key) =>
    readFile(cacheFile(key), "utf8").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
      throw error;
    }),
  async cacheWrite(key, value) {
    const file = cacheFile(key);
    const aside = `${file}.${randomUUID()}`;
    try {
      await mkdir(dirname(file), { recursive: true });
      await writeFile(aside, value);
      await rename(aside, file);
    } catch {
      await rm(aside, { force: true }).catch(() => undefined);
    }
  },
  cacheRemove: (key) =>
    rm(cacheFile(key)).then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT" || error.code === "ENOTDIR") return false;
        throw error;
      },
    ),
  cachePlace: cacheFile,
};
