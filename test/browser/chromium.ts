import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** How to start a Chromium that offers WebGPU on the CPU through SwiftShader, the only software adapter it accepts. */
export interface Chromium {
  executablePath: string;
  args: string[];
  env: Record<string, string>;
  /** "system" or "npm". */
  source: string;
}

const SYSTEM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

const COMMON = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
  "--use-angle=swiftshader",
];

/**
 * The system's Chromium, else the one of the npm package @sparticuz/chromium.
 * ESPALIER_CHROMIUM overrides: "npm", or the path of an executable.
 */
export async function findChromium(): Promise<Chromium> {
  const wanted = process.env.ESPALIER_CHROMIUM;
  const system = wanted === "npm" ? undefined : (wanted ?? SYSTEM.find((path) => existsSync(path)));
  if (!system) return npmChromium();
  if (!existsSync(system)) throw new Error(`chromium: no such executable: ESPALIER_CHROMIUM=${system}`);
  return {
    executablePath: system,
    args: [
      "--headless=new",
      "--enable-unsafe-swiftshader",
      "--use-vulkan=swiftshader",
      "--ignore-gpu-blocklist",
      ...COMMON,
    ],
    env: environment(),
    source: "system",
  };
}

/** Unpacks the npm package's browser once; several processes may do so at the same time. */
async function npmChromium(): Promise<Chromium> {
  const packaged = join(process.cwd(), "node_modules/@sparticuz/chromium");
  const { version } = JSON.parse(readFileSync(join(packaged, "package.json"), "utf8"));
  const home = process.env.XDG_CACHE_HOME || join(homedir() || tmpdir(), ".cache");
  const folder = join(home, "espalier", `chromium-${version}`);
  if (!existsSync(folder)) {
    const aside = `${folder}.${randomUUID()}`;
    await mkdir(aside, { recursive: true });
    try {
      await unpack(aside);
      await rename(aside, folder).catch((error) => {
        if (!existsSync(folder)) throw error;
      });
    } finally {
      await rm(aside, { recursive: true, force: true });
    }
  }
  return {
    executablePath: join(folder, "chromium"),
    args: ["--headless=shell", "--in-process-gpu", ...COMMON],
    // A bare system lacks NSS, NSPR, expat and fonts; the package brings them.
    env: { ...environment(), LD_LIBRARY_PATH: join(folder, "al2023/lib"), FONTCONFIG_FILE: await fontList(folder) },
    source: "npm",
  };
}

/**
 * A list of the package's fonts. Its own names folders of AWS Lambda, and without any font a browser of this package ends
 * itself at the first text field.
 */
async function fontList(folder: string): Promise<string> {
  const list = join(folder, "fonts.conf");
  if (existsSync(list)) return list;
  const aside = `${list}.${randomUUID()}`;
  const folders = `<dir>${join(folder, "fonts")}</dir><cachedir>${join(folder, "fonts.cache")}</cachedir>`;
  await writeFile(
    aside,
    `<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig>${folders}</fontconfig>\n`,
  );
  await rename(aside, list);
  return list;
}

/** The package unpacks into the temporary folder, and its libraries only where it believes to run on AWS Lambda. */
function unpack(folder: string): Promise<void> {
  const program = `import chromium from "@sparticuz/chromium"; await chromium.executablePath();`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", program], {
    stdio: ["ignore", "inherit", "inherit"],
    env: {
      ...process.env,
      TMPDIR: folder,
      AWS_LAMBDA_JS_RUNTIME: "nodejs22.x",
      AWS_EXECUTION_ENV: "AWS_Lambda_nodejs22.x",
    },
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) =>
      code === 0 ? resolve() : reject(new Error(`chromium: unpacking into ${dirname(folder)} ended with code ${code}`)),
    );
  });
}

/**
 * This process's environment without driver choices, which are Node's affair, and in English: under the C locale a
 * browser calls its language "en-US@posix", which its own Intl refuses.
 */
function environment(): Record<string, string> {
  const { VK_DRIVER_FILES: _, VK_ICD_FILENAMES: __, ...rest } = process.env;
  return { ...(rest as Record<string, string>), LANG: "en_US.UTF-8", LC_ALL: "en_US.UTF-8", LANGUAGE: "en_US" };
}
