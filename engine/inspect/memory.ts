import type { Engine } from "../engine.js";
import { type MemoryReport, megabytes } from "../memory.js";
import { table } from "./table.js";

/** Who holds how much GPU memory. */
export interface MemoryView extends MemoryReport {
  /** The largest buffers in use: what each was made for, and who holds it. */
  largest: readonly { what: string; owner: string; bytes: number }[];
  toString(): string;
}

/** Live bytes by owner, the pool, and the largest buffers in use. */
export function memory(engine: Engine, count = 10): MemoryView {
  const report = engine.memory();
  const largest = engine.memoryPool.largest(count).map(({ owned, bytes }) => ({ ...owned, bytes }));
  return {
    ...report,
    largest,
    toString: () => {
      const owners = Object.entries(report.byOwner).sort((a, b) => b[1] - a[1]);
      const totals = [...owners, ["live", report.live], ["pooled", report.pooled], ["peak", report.peak]] as [
        string,
        number,
      ][];
      return [
        table(
          ["owner", "bytes", ""],
          totals.map(([o, n]) => [o, `${n}`, megabytes(n)]),
        ),
        table(
          ["largest", "owner", "bytes"],
          largest.map((l) => [l.what, l.owner, `${l.bytes}`]),
        ),
      ].join("\n\n");
    },
  };
}
