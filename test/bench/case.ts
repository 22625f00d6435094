import { type Engine, inspect, type Tensor } from "../../engine/index.js";

/** A piece of work that is timed: what it takes, how it runs, and how its result is known to be right. */
export interface Case {
  name: string;
  /** Floating-point operations of one run, 2 for each multiply-add; compared with the adapter's multiply-adds. */
  flops?: number;
  /** Bytes that one run must read and write; compared with the adapter's copies. */
  bytes?: number;
  /** Left out by --quick. */
  long?: boolean;
  /** Its kernels are timed one by one as well, at the end. */
  traced?: boolean;
  /** Makes the operands. They stay until the benchmark ends, since cases take turns. */
  prepare(engine: Engine): Prepared | Promise<Prepared>;
}

export interface Prepared {
  /** Records one run; called in a scope. */
  run(): void;
  /** The worst relative error of a run's results. It also compiles the kernels. */
  check(): Promise<number>;
  /** Largest `check` that passes; default 2e-5. */
  limit?: number;
  /** As in the case, where only what was prepared tells. */
  flops?: number;
}

/** A case with its times. */
export interface Timed {
  name: string;
  /** Relative error of the results, checked before anything was timed. */
  error: number;
  /** Milliseconds of one run. */
  ms: { median: number; min: number; max: number };
  /** Microseconds that the host takes to record one launch: the smallest of all rounds. */
  hostUs: number;
  launches: number;
  /** Bytes of GPU memory that a run holds at most beside operands and parameters. */
  peak: number;
  rounds: number;
  /** Runs that were timed together in each round. */
  runs: number;
  flops?: number;
  bytes?: number;
  gflops?: number;
  gbs?: number;
  /** Launches by kernel, the slowest first; microseconds where the adapter can time them. */
  kernels?: readonly { kernel: string; count: number; us?: number }[];
}

/** What is timed at once takes at least this long, so that waiting for the GPU does not count. */
export interface Effort {
  rounds: number;
  milliseconds: number;
}

const median = (list: readonly number[]): number => {
  const sorted = [...list].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/**
 * Checks all cases, then times them in turns, so that what else the machine does falls on all of them alike.
 * @throws Error naming the cases whose results are wrong, before any is timed
 */
export async function measure(
  engine: Engine,
  cases: readonly Case[],
  { rounds, milliseconds }: Effort,
  progress: (text: string) => void,
): Promise<Timed[]> {
  const launched = () => engine.queue.counts.launches;
  /** Milliseconds until all is recorded, and until the GPU has done it. */
  const time = async ({ run }: Prepared, runs: number): Promise<{ host: number; all: number }> => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) engine.scope(run);
    engine.submit();
    const host = performance.now() - start;
    await engine.finish();
    return { host, all: performance.now() - start };
  };
  const list = [];
  const wrong: string[] = [];
  for (const [i, of] of cases.entries()) {
    progress(`check ${i + 1} of ${cases.length}: ${of.name}`);
    const prepared = await of.prepare(engine);
    // What a compiled function keeps between its runs is memory of its runs, so it counts from here.
    const { live } = engine.memory();
    const error = await prepared.check();
    const { limit = 2e-5 } = prepared;
    if (!(error <= limit)) wrong.push(`${of.name}: off by ${error.toExponential(1)}, limit ${limit.toExponential(1)}`);
    await time(prepared, 1);
    engine.memoryPool.resetPeak();
    const before = launched();
    const { all } = await time(prepared, 1);
    const launches = launched() - before;
    const runs = Math.max(1, Math.min(1000, Math.ceil(milliseconds / all)));
    list.push({
      of,
      prepared,
      error,
      launches,
      runs,
      peak: engine.memory().peak - live,
      times: [] as number[],
      hosts: [] as number[],
    });
  }
  if (wrong.length) throw new Error(`bench: wrong results, nothing was timed:\n  ${wrong.join("\n  ")}`);
  for (let round = 1; round <= rounds; round++)
    for (const { of, prepared, runs, times, hosts } of list) {
      progress(`round ${round} of ${rounds}: ${of.name}`);
      const { host, all } = await time(prepared, runs);
      times.push(all / runs);
      hosts.push(host / runs);
    }
  const results: Timed[] = [];
  for (const { of, prepared, error, launches, runs, peak, times, hosts } of list) {
    const ms = { median: median(times), min: Math.min(...times), max: Math.max(...times) };
    const { flops = prepared.flops, bytes } = of;
    const rate = (work: number | undefined) => work && work / ms.median / 1e6;
    results.push({
      name: of.name,
      error,
      ms,
      hostUs: (1000 * Math.min(...hosts)) / launches,
      launches,
      peak,
      rounds,
      runs,
      flops,
      bytes,
      gflops: rate(flops),
      gbs: rate(bytes),
      ...(of.traced && { kernels: (await inspect.trace(engine, () => engine.scope(prepared.run))).kernels }),
    });
  }
  return results;
}

/** Places spread over an array of n elements, the first and the last among them. */
export const places = (n: number, count = 48): number[] =>
  n <= count
    ? Array.from({ length: n }, (_, i) => i)
    : Array.from({ length: count }, (_, i) => Math.round((i * (n - 1)) / (count - 1)));

/** Largest |got - expected| over the largest |expected|, at some places of a tensor. */
export async function errorAt(got: Tensor, expected: (i: number) => number, at = places(got.size)): Promise<number> {
  const values = await got.data();
  let [off, scale] = [0, 0];
  for (const i of at) {
    const e = expected(i);
    // Math.max keeps a NaN, and a NaN is within no limit.
    off = Math.max(off, Math.abs(values[i] - e));
    scale = Math.max(scale, Math.abs(e));
  }
  return off / scale;
}
