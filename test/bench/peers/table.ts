import { digits, table } from "../../../engine/inspect/table.js";
import type { PeerCase } from "./cases.js";
import type { Client } from "./client.js";
import type { Waiting } from "./protocol.js";

/** Espalier, compiled, and op by op where it trains. */
export const OURS = "espalier";
export const EAGER = "espalier eager";
/** An engine on the CPU, which shows what the machine can do; no rival. */
export const YARDSTICK = "ort cpu";

/** One engine at one case. */
export interface Entry {
  engine: string;
  client: Pick<Client, "prepare" | "time">;
  /** Names the case in the engine's process. */
  key: string;
  /** Largest error; undefined when it gave nothing. */
  error?: number;
  /** How its results are wrong; undefined when they are right. */
  wrong?: string;
  /** It broke down, and is not timed any more. */
  failed?: boolean;
  /** Milliseconds of the first results, shaders compiled. */
  firstMs: number;
  /** Runs that are timed together. */
  runs: number;
  /** Milliseconds of one run, by way of waiting, one for each round. */
  times: Record<Waiting, number[]>;
}

/** A case in all engines. */
export interface Row {
  of: Pick<PeerCase, "name" | "target" | "flops">;
  entries: Entry[];
}

/** Median, smallest and largest. */
export interface Spread {
  median: number;
  min: number;
  max: number;
}

export function spread(list: readonly number[]): Spread {
  const sorted = [...list].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  return { median, min: sorted[0], max: sorted[sorted.length - 1] };
}

/** Ratio of medians, with the smallest and largest of the rounds' own ratios. */
function ratioOf(a: readonly number[], b: readonly number[]): Spread {
  return { ...spread(a.map((ms, round) => ms / b[round])), median: spread(a).median / spread(b).median };
}

/** Espalier's time against that of the best peer that computes the right thing; empty where there is no such pair. */
export interface Verdict {
  best?: string;
  ratio?: Spread;
  met?: boolean;
}

export function verdict({ of, entries }: Row, waiting: Waiting): Verdict {
  const own = entries.find(({ engine }) => engine === OURS);
  const others = entries.filter(({ engine, wrong }) => ![OURS, EAGER, YARDSTICK].includes(engine) && !wrong);
  if (!own || own.wrong || others.length === 0) return {};
  const median = ({ times }: Entry) => spread(times[waiting]).median;
  const best = others.reduce((a, b) => (median(b) < median(a) ? b : a));
  const ratio = ratioOf(own.times[waiting], best.times[waiting]);
  return { best: best.engine, ratio, met: ratio.median <= of.target };
}

const shown = ({ median, min, max }: Spread) => `${digits(median)} (${digits(min)}-${digits(max)})`;
const ratioShown = ({ median, min, max }: Spread) => `${median.toFixed(2)} (${min.toFixed(2)}-${max.toFixed(2)})`;

/** All that was measured, and how it is shown. */
export class Comparison {
  constructor(
    readonly rows: readonly Row[],
    readonly engines: readonly { name: string; version: string; adapter: string }[],
    /** Why engines are missing. */
    readonly absent: readonly string[],
    readonly rounds: number,
  ) {}

  private table(waiting: Waiting): string {
    const names = this.engines.map(({ name }) => name);
    const cells = ({ entries }: Row) =>
      names.map((name) => {
        const entry = entries.find(({ engine }) => engine === name);
        if (!entry) return "-";
        if (entry.failed) return "failed";
        return `${shown(spread(entry.times[waiting]))}${entry.wrong ? " wrong" : ""}`;
      });
    return table(
      ["case", ...names, "best peer", "ratio", "at most", "met"],
      this.rows.map((row) => {
        const { best = "-", ratio, met } = verdict(row, waiting);
        const reached = met === undefined ? "-" : met ? "yes" : "no";
        return [row.of.name, ...cells(row), best, ratio ? ratioShown(ratio) : "-", row.of.target.toFixed(2), reached];
      }),
    );
  }

  /** What Espalier's compiler gains, and what is wrong or missing. */
  private notes(): string[] {
    const notes = [...this.absent];
    for (const { of, entries } of this.rows) {
      const [own, eager] = [OURS, EAGER].map((name) => entries.find((e) => e.engine === name && !e.failed));
      if (own && eager)
        notes.push(
          `${of.name}: op by op Espalier takes ${shown(spread(eager.times.idle))} ms; compiled to eager ${ratioShown(ratioOf(own.times.idle, eager.times.idle))}`,
        );
      for (const { engine, wrong } of entries) if (wrong) notes.push(`${of.name}: ${engine} does not count: ${wrong}`);
    }
    return notes;
  }

  toString(): string {
    return [
      ...this.engines.map(({ name, version, adapter }) => `${[name, version].join(" ").trim()}: ${adapter}`),
      "",
      `milliseconds, median (min-max) of ${this.rounds} rounds in turns, results compared before; all sleep between looks at the GPU`,
      this.table("idle"),
      "",
      "the same where all await the GPU's promise as it is: Dawn then looks without a pause, and takes a core for it",
      this.table("await"),
      "",
      "ratio: Espalier to the best peer whose results are right, of medians (min-max of the rounds' own)",
      "ort waits inside its native call in both tables, and uploads and reads back in every run; ort cpu is a yardstick, no peer",
      ...this.notes(),
    ].join("\n");
  }

  /** Plain data, for JSON. */
  toJSON() {
    const { rounds, engines, absent } = this;
    const cases = this.rows.map((row) => ({
      name: row.of.name,
      target: row.of.target,
      flops: row.of.flops,
      engines: row.entries.map(({ engine, error, wrong, failed, firstMs, runs, times }) => ({
        engine,
        error,
        wrong,
        firstMs,
        runs,
        ...(!failed && { idle: spread(times.idle), await: spread(times.await) }),
      })),
      idle: verdict(row, "idle"),
      await: verdict(row, "await"),
    }));
    return { rounds, engines, absent, cases };
  }
}
