import { EspalierError, nearest } from "../errors.js";
import { madeKernels } from "../kernel.js";

/**
 * The exact WGSL that the GPU compiled for a kernel, once per variant in use.
 * @param name a file's stem such as "softmax", or "stem.entry" as traces show it
 * @throws EspalierError with the nearest name when no such kernel has run yet
 */
export function source(name: string): string {
  const [stem, entry] = name.split(".");
  const made = madeKernels().filter((k) => k.name === stem && (entry === undefined || k.entry === entry));
  if (!made.length) {
    const names = new Set(madeKernels().flatMap((k) => [k.name, `${k.name}.${k.entry}`]));
    const guess = nearest(name, names);
    throw new EspalierError(
      `inspect.source: no kernel "${name}" has run yet${guess ? `; did you mean "${guess}"?` : ""} (${[...new Set(madeKernels().map((k) => k.name))].join(", ") || "none has"})`,
    );
  }
  const texts = new Map<string, { entries: string[]; settings: string }>();
  for (const k of made) {
    const known = texts.get(k.source);
    if (known) known.entries.push(k.entry);
    else
      texts.set(k.source, {
        entries: [k.entry],
        settings: Object.entries(k.settings)
          .map(([key, value]) => `${key} = ${value}`)
          .join("; "),
      });
  }
  return [...texts]
    .map(
      ([text, { entries, settings }]) =>
        `// ---- ${stem}: ${entries.join(", ")}${settings ? ` · ${settings}` : ""}\n${text}`,
    )
    .join("\n");
}
