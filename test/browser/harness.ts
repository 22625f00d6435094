import { join } from "node:path";
import { build } from "esbuild";
import { chromium, type Page } from "playwright-core";
import { type Find, folder, serve } from "../../.build/serve.mjs";
import { findChromium } from "./chromium.js";

/** A page that has loaded one module of this project. */
export interface ModulePage {
  /** Calls an exported function of the module; arguments and result travel as JSON. */
  run<T>(name: string, ...args: unknown[]): Promise<T>;
  /** What the page wrote to its console as an error, and its uncaught errors. */
  readonly errors: string[];
  /** Everything else that the page wrote to its console. */
  readonly log: string[];
  /** Playwright's page, for pictures and input. */
  readonly page: Page;
  /** Browser and version, and whether it is the system's or the npm package's. */
  readonly browser: string;
  close(): Promise<void>;
}

export interface ModulePageOptions {
  /** A folder, relative to the repository's root, whose files the page may fetch under `/files/`. */
  files?: string;
  /** Milliseconds that one `run` may take; default 120,000. */
  timeout?: number;
}

/**
 * Bundles a TypeScript module for a page, serves it on loopback and opens it in headless Chromium on SwiftShader.
 *
 * @param entry the module, relative to the repository's root
 */
export async function openModule(entry: string, options: ModulePageOptions = {}): Promise<ModulePage> {
  const { outputFiles } = await build({
    entryPoints: [entry],
    outdir: "/",
    entryNames: "entry",
    bundle: true,
    splitting: true,
    write: false,
    format: "esm",
    target: "es2022",
    platform: "browser",
    sourcemap: "inline",
    loader: { ".wgsl": "text" },
    logLevel: "error",
  });
  const bundle = new Map(outputFiles.map(({ path, contents }) => [path, contents]));
  bundle.set("/", Buffer.from(`<!doctype html><title>espalier</title><script type="module" src="/page.js"></script>`));
  bundle.set("/page.js", Buffer.from(`import * as entry from "/entry.js"; globalThis.entry = entry;`));
  bundle.set("/favicon.ico", Buffer.alloc(0));
  const files = options.files === undefined ? undefined : folder(join(process.cwd(), options.files));
  const find: Find = (path) => {
    const body = bundle.get(path);
    if (body) return { body };
    return path.startsWith("/files/") ? files?.(path.slice("/files".length)) : undefined;
  };
  const server = await serve(find);
  try {
    return await open(server, options.timeout ?? 120_000);
  } catch (error) {
    await server.close();
    throw error;
  }
}

async function open(server: { url: string; close(): Promise<void> }, timeout: number): Promise<ModulePage> {
  const { executablePath, args, env, source } = await findChromium();
  // Playwright's own headless switch would come beside the one in `args`.
  const browser = await chromium.launch({ executablePath, args, env, headless: false, timeout: 60_000 });
  try {
    const page = await browser.newPage();
    const errors: string[] = [];
    const log: string[] = [];
    page.on("console", (message) => (message.type() === "error" ? errors : log).push(message.text()));
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(server.url);
    await page
      .waitForFunction(() => "entry" in globalThis, undefined, { timeout: 30_000 })
      .catch(() => {
        throw new Error(`page: the module did not load: ${errors.join("; ") || "no error was reported"}`);
      });
    return {
      page,
      errors,
      log,
      browser: `Chromium ${browser.version()} (${source})`,
      run: (name, ...args) => within(timeout, name, page.evaluate(call, { name, args })) as Promise<any>,
      async close() {
        await browser.close();
        await server.close();
      },
    };
  } catch (error) {
    await browser.close();
    throw error;
  }
}

/** Runs in the page. */
async function call({ name, args }: { name: string; args: unknown[] }): Promise<unknown> {
  const module = (globalThis as unknown as { entry: Record<string, (...args: unknown[]) => unknown> }).entry;
  if (typeof module[name] !== "function")
    throw new Error(`"${name}" is not exported (${Object.keys(module).join(", ")})`);
  return module[name](...args);
}

function within<T>(milliseconds: number, name: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`page: ${name} took longer than ${milliseconds} ms`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
