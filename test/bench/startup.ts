import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

/** Milliseconds of a start: the adapter, the model with its first batch, the first training step, the second. */
export interface Startup {
  adapter: number;
  model: number;
  first: number;
  second: number;
}

/**
 * Starts training in a process of its own, twice: with all caches empty (the driver's compiled shaders, our own tuning),
 * and then with what the first left there.
 */
export async function startups(adapter: string | undefined): Promise<{ cold: Startup; warm: Startup }> {
  const folder = await mkdtemp(join(tmpdir(), "espalier-startup-"));
  const env = {
    ...process.env,
    ...(adapter !== undefined && { ESPALIER_ADAPTER: adapter }),
    XDG_CACHE_HOME: folder,
    MESA_SHADER_CACHE_DIR: folder,
    __GL_SHADER_DISK_CACHE_PATH: folder,
  };
  const start = async (): Promise<Startup> => {
    const { stdout } = await promisify(execFile)(process.execPath, [".build/run.mjs", "test/bench/once.ts"], { env });
    return JSON.parse(stdout);
  };
  try {
    return { cold: await start(), warm: await start() };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
