import { platform } from "../device/adapter.js";
import type { Engine } from "../engine.js";
import type { Launch } from "../queue.js";
import type { Ceilings } from "./ceilings.js";
import { digits, table } from "./table.js";

/** One launch of a traced run. */
export interface TracedLaunch {
  /** Stem and entry point, such as "softmax.rows". */
  kernel: string;
  workgroups: readonly [number, number, number];
  /** Path of the module that was running, also in backward. */
  module: string;
  /** Bytes of the tensors bound, each counted once: what a kernel that reads and writes everything once must move. */
  bytes: number;
  /** Microseconds on the GPU; undefined where the adapter has no "timestamp-query". */
  us?: number;
  /** `bytes` over `us`. */
  gbs?: number;
}

/** All launches of a traced run. */
export interface Trace<T> {
  result: T;
  launches: readonly TracedLaunch[];
  /** Microseconds of all launches together; undefined where they could not be timed. */
  us?: number;
  /** Launches of each kernel together, the slowest first. */
  kernels: readonly { kernel: string; count: number; us?: number; bytes: number; gbs?: number }[];
  toString(): string;
}

/** Queries of one set; the standard allows 4096. */
const SET = 4096;

/** A tensor that repeats values through strides takes no more than its buffer. */
const bytesBound = ({ bound, tensors }: Launch): number =>
  bound.reduce((n, b, i) => n + Math.min(b.size, tensors[i].bytes), 0);

const speed = (bytes: number, us: number | undefined) => (us ? bytes / us / 1e3 : undefined);

/**
 * Runs `f` and reports every launch in order, each timed on the GPU in a pass of its own. Kernels that run for the first
 * time are compiled meanwhile: call `f` once before. Numbers are the same with and without a trace.
 * @param options.ceilings from `inspect.ceilings`: shows each launch's share of the measured copy speed
 */
export async function trace<T>(
  engine: Engine,
  f: () => T | Promise<T>,
  options: { ceilings?: Ceilings } = {},
): Promise<Trace<T>> {
  const launches: TracedLaunch[] = [];
  const timed = engine.has("timestamp-query");
  const sets: GPUQuerySet[] = [];
  const observe = (launch: Launch) => {
    const at = 2 * launches.length;
    launches.push({
      kernel: `${launch.kernel.name}.${launch.kernel.entry}`,
      workgroups: launch.groups,
      module: launch.label,
      bytes: bytesBound(launch),
    });
    if (!timed) return {};
    if (at % SET === 0) sets.push(engine.device.createQuerySet({ type: "timestamp", count: SET }));
    return {
      timestamps: {
        querySet: sets[sets.length - 1],
        beginningOfPassWriteIndex: at % SET,
        endOfPassWriteIndex: (at + 1) % SET,
      },
    };
  };
  engine.queue.observers.add(observe);
  let result: T;
  try {
    result = await f();
  } finally {
    engine.queue.observers.delete(observe);
  }
  for (const [s, querySet] of sets.entries()) {
    const count = Math.min(SET, 2 * launches.length - s * SET);
    const buffer = engine.device.createBuffer({
      size: 8 * count,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    engine.queue.encode((e) => e.resolveQuerySet(querySet, 0, count, buffer, 0));
    const bytes = await engine.queue.read(buffer, 0, 8 * count, (p) => platform.wait(p));
    const times = new BigUint64Array(bytes, 0, count);
    for (let i = 0; i < count; i += 2) {
      const launch = launches[(s * SET + i) / 2];
      launch.us = Number(times[i + 1] - times[i]) / 1e3;
      launch.gbs = speed(launch.bytes, launch.us);
    }
    buffer.destroy();
    querySet.destroy();
  }
  if (!sets.length) await engine.finish();
  const total = (list: readonly TracedLaunch[]) => (timed ? list.reduce((n, l) => n + l.us!, 0) : undefined);
  const groups = new Map<string, TracedLaunch[]>();
  for (const l of launches) groups.set(l.kernel, [...(groups.get(l.kernel) ?? []), l]);
  const kernels = Array.from(groups, ([kernel, list]) => {
    const [us, bytes] = [total(list), list.reduce((n, l) => n + l.bytes, 0)];
    return { kernel, count: list.length, us, bytes, gbs: speed(bytes, us) };
  }).sort((a, b) => (b.us ?? b.bytes) - (a.us ?? a.bytes));
  const us = total(launches);
  const ceiling = options.ceilings?.copyVec4;
  const share = (gbs: number | undefined) =>
    ceiling && gbs !== undefined ? `${((100 * gbs) / ceiling).toFixed(0)}%` : "-";
  return {
    result,
    launches,
    us,
    kernels,
    toString: () =>
      [
        table(
          ["#", "kernel", "workgroups", "µs", "bytes", "GB/s", "of copy", "module"],
          launches.map((l, i) => [
            `${i}`,
            l.kernel,
            l.workgroups.join(" x "),
            digits(l.us),
            `${l.bytes}`,
            digits(l.gbs),
            share(l.gbs),
            l.module,
          ]),
        ),
        table(
          ["kernel", "launches", "µs", "share", "GB/s"],
          kernels.map((k) => [
            k.kernel,
            `${k.count}`,
            digits(k.us),
            us ? `${((100 * k.us!) / us).toFixed(0)}%` : "-",
            digits(k.gbs),
          ]),
        ),
        `${launches.length} launches, ${us === undefined ? "not timed: the adapter has no timestamp-query" : `${digits(us / 1e3)} ms on ${engine.info.name}`}`,
      ].join("\n\n"),
  };
}
