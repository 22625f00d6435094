/** Rows of text in columns: numbers to the right, words to the left. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((h, c) => Math.max(h.length, ...rows.map((r) => r[c].length)));
  const right = head.map((_, c) => rows.some((r) => r[c]) && rows.every((r) => /^[-–\d.,%]*$/.test(r[c])));
  return [head, ...rows]
    .map((r) =>
      r
        .map((s, c) => (right[c] ? s.padStart(widths[c]) : s.padEnd(widths[c])))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** Three digits that matter: 1234, 12.3, 0.0123; a dash for what is not known. */
export const digits = (x: number | undefined): string =>
  x === undefined || !Number.isFinite(x)
    ? "-"
    : x === 0
      ? "0"
      : Math.abs(x) >= 100
        ? x.toFixed(0)
        : x.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x)))));
