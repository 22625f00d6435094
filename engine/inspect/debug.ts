import { bytesOf } from "../dtype.js";
import type { Engine } from "../engine.js";
import type { Launch } from "../queue.js";
import { show } from "../shape.js";
import type { Tensor } from "../tensor.js";

/** 1 submissions, readbacks, gradients and leaks; 2 also launches; 3 also shapes and buffers; 4 also WGSL. */
export type DebugLevel = 1 | 2 | 3 | 4;

/** The level that a setting such as the environment variable DEBUG names; other uses of that variable are left alone. */
export const debugLevel = (setting: string | undefined): DebugLevel | undefined =>
  setting !== undefined && /^[1-4]$/.test(setting) ? (Number(setting) as DebugLevel) : undefined;

function lines(launch: Launch, level: DebugLevel, seen: Set<number>): string[] {
  const { kernel, bound, tensors, groups, params, label } = launch;
  const out = [`${kernel.name}.${kernel.entry} [${groups.join(" ")}]${label ? ` in ${label}` : ""}`];
  if (level >= 3) {
    kernel.bindings
      .filter((b) => b.type !== "uniform")
      .forEach((b, i) => {
        const [t, at] = [tensors[i], bound[i]];
        out.push(
          `    ${b.name} ${b.type === "storage" ? "writes" : "reads "} ${show(t.shape)} ${t.dtype}, strides ${show(t.strides)}, buffer ${at.storage.id} from ${t.offset * bytesOf(t.dtype)}, ${at.size} bytes bound, from ${t.op}`,
        );
      });
    out.push(
      `    ${Object.entries(params)
        .map(([key, value]) => `${key} ${value}`)
        .join(", ")}`,
    );
  }
  if (level >= 4 && !seen.has(kernel.id)) {
    seen.add(kernel.id);
    out.push(kernel.source);
  }
  return out;
}

/**
 * Writes what the engine does to `write`, by level. Numbers stay the same. `createEngine` calls it when DEBUG is 1 to 4
 * (in a page: `?DEBUG=2` in the address). Tensors that are collected as garbage without having been freed are reported,
 * since their memory never comes back.
 * @returns a function that turns it off
 */
export function debug(
  engine: Engine,
  level: DebugLevel,
  write: (line: string) => void = (line) => console.error(line),
): () => void {
  const say = (line: string) => write(`espalier ${line}`);
  const seen = new Set<number>();
  const { queue } = engine;
  let submits = 0;
  let since = performance.now();
  queue.onSubmit = (commands) => {
    const now = performance.now();
    const { live, pooled } = engine.memory();
    say(
      `submit ${++submits}: ${commands} commands, ${(now - since).toFixed(1)} ms after the last, ${live} bytes live, ${pooled} pooled`,
    );
    since = now;
  };
  const observe = (launch: Launch) => {
    for (const line of lines(launch, level, seen)) write(`espalier   ${line}`);
    return undefined;
  };
  if (level >= 2) queue.observers.add(observe);
  const leaks = new FinalizationRegistry<string>((what) =>
    say(`leak: ${what} was collected but never freed; dispose() it, or make it in a scope`),
  );
  engine.leakWatch = {
    made: (t: Tensor) => leaks.register(t, t.describe(), t),
    freed: (t: Tensor) => leaks.unregister(t),
  };
  return () => {
    queue.onSubmit = undefined;
    queue.observers.delete(observe);
    engine.leakWatch = undefined;
  };
}
