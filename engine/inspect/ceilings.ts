import text from "../../shaders/ceiling.wgsl";
import type { Engine } from "../engine.js";
import { kernel } from "../kernel.js";
import { digits } from "./table.js";

/** Measured limits of an adapter. */
export interface Ceilings {
  /** Fused multiply-adds in registers, GFLOP/s (two a multiply-add). */
  fma: number;
  /** Copying from one buffer to another, GB/s read and written together, one f32 at a time. */
  copyScalar: number;
  /** The same with vectors of four f32. */
  copyVec4: number;
  /** Microseconds that one launch takes besides its work. */
  launch: number;
  toString(): string;
}

/** Milliseconds a measurement should take, and those that all of them together may. */
const [ENOUGH, BUDGET] = [25, 1000];

/**
 * Measures what the adapter can do at most, in about a second. Other work on the machine lowers the figures.
 * @throws OutOfMemoryError when not even a few MiB are left
 */
export async function ceilings(engine: Engine): Promise<Ceilings> {
  const software = engine.kind === "software";
  const bytes = Math.min(
    software ? 16 << 20 : 128 << 20,
    engine.limits.maxStorageBufferBindingSize,
    engine.limits.maxBufferSize,
  );
  const x = engine.empty([bytes / 4], "f32", "ceilings").keep();
  const y = engine.empty([bytes / 4], "f32", "ceilings").keep();
  const begun = performance.now();
  const of = (entry: string) => kernel("ceiling", text, entry);
  const time = async (record: () => void): Promise<number> => {
    const from = performance.now();
    record();
    await engine.finish();
    return performance.now() - from;
  };
  /** Work per millisecond: `record(n)` with growing n until it takes long enough, then the best of three if there is time. */
  const measure = async (first: number, most: number, record: (n: number) => void): Promise<number> => {
    // The first run compiles.
    await time(() => record(1));
    let n = first;
    let best = 0;
    for (let tries = 0; tries < 3 && (best === 0 || performance.now() - begun < BUDGET); ) {
      const ms = await time(() => record(n));
      best = Math.max(best, n / Math.max(ms, 1e-3));
      if (ms >= ENOUGH || n >= most) tries++;
      else n = Math.min(most, Math.ceil(n * Math.min(16, (1.3 * ENOUGH) / Math.max(ms, 1))));
    }
    return best;
  };
  try {
    const groups = software ? 64 : 8192;
    const turns = await measure(64, 2 ** 20, (n) => engine.launch(of("fma_chains"), { y }, { n, c: 0.999 }, groups));
    const copies = (entry: string, names: [string, string], width: number) =>
      measure(1, 256, (n) => {
        for (let i = 0; i < n; i++)
          engine.launch(
            of(entry),
            { [names[0]]: x, [names[1]]: y },
            { n: x.size / width, c: 0 },
            Math.ceil(x.size / width / 64),
          );
      });
    const scalar = await copies("copy_1", ["x", "y"], 1);
    const vec4 = await copies("copy_4", ["x4", "y4"], 4);
    const launches = await measure(64, 4096, (n) => {
      for (let i = 0; i < n; i++) engine.launch(of("nothing"), { y }, { n: 1, c: 0 }, 1);
    });
    const result = {
      fma: (turns * 128 * 64 * groups) / 1e6,
      copyScalar: (scalar * 2 * bytes) / 1e6,
      copyVec4: (vec4 * 2 * bytes) / 1e6,
      launch: 1e3 / launches,
    };
    return {
      ...result,
      toString: () =>
        `${engine.info.name}: ${digits(result.fma)} GFLOP/s of multiply-adds, copies at ${digits(result.copyScalar)} GB/s (f32) and ${digits(result.copyVec4)} GB/s (vec4), ${digits(result.launch)} µs a launch`,
    };
  } finally {
    x.dispose();
    y.dispose();
    engine.memoryPool.trim();
  }
}
