import type { Engine } from "../engine.js";
import { ConfigError, checkOptions } from "../errors.js";
import type { Kernel } from "../kernel.js";
import type { Family, Prepared, Problem } from "./choice.js";
import { matmulFamily } from "./matmul.js";
import { quantizedFamily } from "./quantized.js";

/** Kernels that have a choice. */
export const kernelFamilies: readonly Family[] = [matmulFamily, quantizedFamily];

/** What was measured for one shape class. */
export interface TuneResult {
  family: string;
  /** The shape class, and the problem that stood for it. */
  key: string;
  shown: string;
  /** What is taken from now on. */
  way: string;
  /** What is taken without tuning. */
  usual: string;
  /** Milliseconds of one launch of each way that was timed, the fastest first; medians of all rounds. */
  times: readonly { way: string; ms: number }[];
  /** The best other way's time over that of `way`: above 1 where the choice pays. 1 where nothing else can be taken. */
  gain: number;
  /** How much faster `way` is than `usual`. */
  gainOverUsual: number;
  gflops: number;
  /** Ways whose numbers were wrong on this adapter. They are never taken. */
  wrong: readonly { way: string; error: number }[];
}

/** Options of `tune`. */
export interface TuneOptions {
  /** Only shape classes whose family, key or problem holds this text. */
  only?: string;
  /** Rounds in which the ways take turns. Default 5. */
  rounds?: number;
  /** What is timed at once takes at least this long. Default 8. */
  milliseconds?: number;
  /** Shape classes by family id, as `engine.tuning.asked` collects them. Default: those that are typical. */
  classes?: ReadonlyMap<string, Iterable<string>>;
  /** Default: all of the engine's. */
  families?: readonly Family[];
  /** Told of each shape class before it is timed. */
  progress?: (done: number, all: number, shown: string) => void;
}

/** Another way than the usual one must be faster by so much, and in so many of the rounds: noise decides nothing. */
const [WORTH, OFTEN] = [1.03, 0.8];

const median = (list: readonly number[]): number => [...list].sort((a, b) => a - b)[list.length >> 1];

/** The kernels that these ways launch, found without running them. */
function kernelsOf(engine: Engine, prepared: Prepared, ways: Iterable<string>): Set<Kernel> {
  const kernels = new Set<Kernel>();
  const before = engine.queue.trace;
  const nothing = () => undefined;
  engine.queue.trace = { launch: ({ kernel }) => kernels.add(kernel), copy: nothing, clear: nothing, upload: nothing };
  try {
    for (const way of ways) engine.scope(() => prepared.launch(way));
  } finally {
    engine.queue.trace = before;
  }
  return kernels;
}

/** The largest difference from the reference, relative to its largest value, for each way. */
async function compare(engine: Engine, problem: Problem): Promise<Map<string, number>> {
  const prepared = problem.prepare(true);
  try {
    await engine.queue.pipelines.warm(kernelsOf(engine, prepared, [problem.reference, ...problem.ways]));
    const run = async (way: string) => {
      engine.scope(() => prepared.launch(way));
      return prepared.result();
    };
    const expected = await run(problem.reference);
    let scale = 0;
    for (let i = 0; i < expected.length; i++) scale = Math.max(scale, Math.abs(expected[i]));
    const errors = new Map<string, number>();
    for (const way of problem.ways) {
      const got = await run(way);
      let off = 0;
      // A NaN stays: it is within no tolerance.
      for (let i = 0; i < got.length; i++) off = Math.max(off, Math.abs(got[i] - expected[i]));
      errors.set(way, off / scale);
    }
    return errors;
  } finally {
    prepared.dispose();
  }
}

/** Milliseconds of one launch of each way, as medians of interleaved rounds. Those that lose by far run only twice. */
async function race(
  engine: Engine,
  problem: Problem,
  ways: readonly string[],
  rounds: number,
  milliseconds: number,
): Promise<{ way: string; ms: number; rounds: readonly number[] }[]> {
  const prepared = problem.prepare(false);
  const time = async (way: string, runs: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < runs; i++) engine.scope(() => prepared.launch(way));
    await engine.finish();
    return (performance.now() - start) / runs;
  };
  try {
    await engine.queue.pipelines.warm(kernelsOf(engine, prepared, ways));
    const runners: { way: string; runs: number; times: number[] }[] = [];
    for (const way of ways) {
      // Software adapters compile at the first launch.
      await time(way, 1);
      const once = Math.min(await time(way, 1), await time(way, 1));
      runners.push({ way, runs: Math.max(1, Math.min(500, Math.ceil(milliseconds / once))), times: [] });
    }
    const least = ({ times }: { times: number[] }) => Math.min(...times);
    for (let round = 0; round < rounds; round++) {
      const best = Math.min(...runners.map(least));
      // Once may be bad luck; twice is not.
      for (const runner of runners)
        if (round < 2 || least(runner) < 2 * best) runner.times.push(await time(runner.way, runner.runs));
    }
    return runners.map(({ way, times }) => ({ way, ms: median(times), rounds: times })).sort((a, b) => a.ms - b.ms);
  } finally {
    prepared.dispose();
  }
}

/**
 * Times the ways in which kernels can be launched on this adapter, by shape class, and lets `engine` take the fastest from
 * now on. `keepTuning` keeps them for later engines. Every way is first compared with the plain kernel, and those whose
 * numbers are wrong are never taken.
 *
 * It takes the adapter for itself: nothing else should run meanwhile. What is compiled already keeps its kernels.
 * @throws ConfigError when `only` fits no shape class
 */
export async function tune(engine: Engine, options: TuneOptions = {}): Promise<TuneResult[]> {
  checkOptions("tune", options, ["only", "rounds", "milliseconds", "classes", "families", "progress"]);
  const { only = "", rounds = 5, milliseconds = 8, classes, families = kernelFamilies, progress } = options;
  if (!Number.isInteger(rounds) || rounds < 1)
    throw new ConfigError(`tune: rounds must be a whole number from 1: got ${rounds}.`);
  const word = only.toLowerCase();
  const list: { family: Family; key: string; problem: Problem }[] = [];
  for (const family of families)
    for (const key of classes ? (classes.get(family.id) ?? []) : family.typical(engine)) {
      const problem = family.problem(engine, key);
      if (problem && [family.name, key, problem.shown].some((text) => text.toLowerCase().includes(word)))
        list.push({ family, key, problem });
    }
  if (list.length === 0 && only)
    throw new ConfigError(
      `tune: no shape class holds "${only}"; kernels with a choice are ${families.map((f) => f.name).join(", ")}.`,
    );
  engine.tuning.keepOnly([...kernelFamilies, ...families].map((f) => f.id));
  const results: TuneResult[] = [];
  for (const [i, { family, key, problem }] of list.entries()) {
    progress?.(i, list.length, `${family.name} ${problem.shown}`);
    const errors = await compare(engine, problem);
    const sound = problem.ways.filter((way) => (errors.get(way) as number) <= problem.tolerance);
    const wrong = problem.ways
      .filter((way) => !sound.includes(way))
      .map((way) => ({ way, error: errors.get(way) as number }));
    const raced = await race(engine, problem, sound.length ? sound : [problem.reference], rounds, milliseconds);
    const usual = raced.find(({ way }) => way === problem.usual);
    const isBetter = ({ ms, rounds }: (typeof raced)[number]): boolean =>
      !usual ||
      (WORTH * ms <= usual.ms &&
        usual.rounds.filter((t, round) => rounds[round] < t).length >= OFTEN * usual.rounds.length);
    const chosen = raced.find(isBetter) ?? (usual as (typeof raced)[number]);
    const second = raced.find((t) => t !== chosen);
    engine.tuning.set(family.id, key, {
      way: chosen.way,
      ms: chosen.ms,
      ...(second && { second: second.way, secondMs: second.ms }),
    });
    results.push({
      family: family.name,
      key,
      shown: problem.shown,
      way: chosen.way,
      usual: problem.usual,
      times: raced.map(({ way, ms }) => ({ way, ms })),
      gain: second ? second.ms / chosen.ms : 1,
      gainOverUsual: usual ? usual.ms / chosen.ms : 1,
      gflops: problem.flops / chosen.ms / 1e6,
      wrong,
    });
  }
  engine.memoryPool.trim();
  return results;
}
