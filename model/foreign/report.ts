import type { SafetensorsDtype, TensorInfo } from "../safetensors.js";

/** What was taken from a checkpoint that others made. */
export interface ImportReport {
  /** What it was read from. */
  source: string;
  /** Names in the model of what came from the checkpoint. */
  matched: string[];
  /** Their bytes in the file. */
  bytes: number;
  /** How many tensors of the file were of each type. */
  dtypes: Partial<Record<SafetensorsDtype, number>>;
  /** Names of the model that the checkpoint lacks; `notes` says what they hold instead. */
  missing: string[];
  /** Names of the checkpoint that were not used. */
  ignored: string[];
  /** What was assumed, computed or drawn, a sentence each. */
  notes: string[];
}

/** A report on the tensors of a file that were loaded. */
export function importReport(
  source: string,
  matched: readonly TensorInfo[],
  rest: Pick<ImportReport, "missing" | "ignored" | "notes">,
): ImportReport {
  const dtypes: ImportReport["dtypes"] = {};
  for (const { dtype } of matched) dtypes[dtype] = (dtypes[dtype] ?? 0) + 1;
  const bytes = matched.reduce((sum, { begin, end }) => sum + end - begin, 0);
  return { source, matched: matched.map(({ name }) => name), bytes, dtypes, ...rest };
}

/** Names with those that differ in a block's number alone together: `blocks.*.attn_temp.proj.bias x 28`. */
export function grouped(names: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) {
    const key = name.replace(/\.\d+(?=\.|$)/g, ".*");
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  // A lone tensor is told by its own name.
  const own = (key: string) => names.find((name) => name.replace(/\.\d+(?=\.|$)/g, ".*") === key)!;
  return Array.from(counts, ([key, n]) => (n > 1 ? `${key} x ${n}` : own(key))).join(", ");
}

const size = (bytes: number) =>
  bytes < 2 ** 20 ? `${(bytes / 2 ** 10).toFixed(1)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** The report as text, a fact a line. */
export function describeImport(report: ImportReport): string {
  const { source, matched, bytes, dtypes, missing, ignored, notes } = report;
  const kinds = Object.entries(dtypes).map(([dtype, n]) => `${n} ${dtype}`);
  return [
    `${source}: matched ${matched.length} tensors, ${size(bytes)}${kinds.length ? ` (${kinds.join(", ")})` : ""}`,
    `missing ${missing.length}${missing.length ? `: ${grouped(missing)}` : ""}`,
    `ignored ${ignored.length}${ignored.length ? `: ${grouped(ignored)}` : ""}`,
    ...notes.map((note) => `note: ${note}`),
  ].join("\n  ");
}
