import { digits, table } from "../inspect/table.js";
import type { TuneResult } from "./tune.js";

/** "12%" for 1.12. */
const percent = (ratio: number): string => `${Math.round(100 * (ratio - 1))}%`;

/** A table of what was measured: for each shape class what is taken, the second best, and what that gains. */
export function tuneReport(results: readonly TuneResult[]): string {
  const rows = results.map((r) => {
    const second = r.times.find(({ way }) => way !== r.way);
    return [
      r.family,
      r.shown,
      r.way,
      digits(r.times.find(({ way }) => way === r.way)?.ms),
      digits(r.gflops),
      second?.way ?? "-",
      digits(second?.ms),
      second ? percent(r.gain) : "-",
      r.way === r.usual ? "" : `${r.usual}, by ${percent(r.gainOverUsual)}`,
    ];
  });
  const head = ["kernel", "shapes", "taken", "ms", "GFLOP/s", "second best", "ms", "gain", "better than the usual"];
  const wrong = results.flatMap((r) =>
    r.wrong.map(
      ({ way, error }) => `wrong numbers, never taken: ${r.family} ${r.shown} ${way} (off by ${digits(error)})`,
    ),
  );
  return [table(head, rows), ...wrong].join("\n");
}
