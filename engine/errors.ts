/** Every error that Espalier throws on purpose. Texts read `subject: rule broken: what was given; what would do`. */
export class EspalierError extends Error {
  override name = "EspalierError";
}

/** A shape, axis or size breaks an op's rule. */
export class ShapeError extends EspalierError {
  override name = "ShapeError";
}

/** A dtype is not accepted, or dtypes of operands differ. */
export class DTypeError extends EspalierError {
  override name = "DTypeError";
}

/** A tensor is used after its memory was given back. */
export class DisposedError extends EspalierError {
  override name = "DisposedError";
}

/** No WebGPU adapter can be had; the text names the fix for this platform. */
export class NoAdapterError extends EspalierError {
  override name = "NoAdapterError";
}

/** The adapter lacks a feature or a limit that was asked for. */
export class FeatureError extends EspalierError {
  override name = "FeatureError";
}

/** The GPU went away. Tensors of that engine are gone; a new engine can be made in the same process. */
export class DeviceLostError extends EspalierError {
  override name = "DeviceLostError";
}

/** Memory ran out: says what was asked, what is live by owner, and what to lower. */
export class OutOfMemoryError extends EspalierError {
  override name = "OutOfMemoryError";
}

/** The GPU refused a command: a fault in a kernel or in this engine. */
export class DeviceError extends EspalierError {
  override name = "DeviceError";
}

/** A file that breaks the safetensors format. */
export class SafetensorsError extends EspalierError {
  override name = "SafetensorsError";
}

/** An unknown or ill-valued option. */
export class ConfigError extends EspalierError {
  override name = "ConfigError";
}

/** Data that cannot be read or used. */
export class DataError extends EspalierError {
  override name = "DataError";
}

/** Work that was stopped through an AbortSignal. */
export class AbortedError extends EspalierError {
  override name = "AbortedError";
}

/** Edit distance (insertions, deletions, substitutions, neighbour swaps) of two short names. */
function distance(a: string, b: string): number {
  const rows = Array.from({ length: a.length + 1 }, (_, i) => [i, ...Array<number>(b.length).fill(0)]);
  for (let j = 0; j <= b.length; j++) rows[0][j] = j;
  for (let i = 1; i <= a.length; i++)
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      rows[i][j] = Math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        rows[i][j] = Math.min(rows[i][j], rows[i - 2][j - 2] + 1);
    }
  return rows[a.length][b.length];
}

/** The option most like `name`, or undefined when none is near. snake_case and dashes count as camelCase. */
export function nearest(name: string, options: Iterable<string>): string | undefined {
  const plain = (s: string) => s.toLowerCase().replace(/[-_. ]/g, "");
  let best: string | undefined;
  let bestDistance = Number.POSITIVE_INFINITY;
  for (const option of options) {
    const d = distance(plain(name), plain(option));
    if (d < bestDistance) [best, bestDistance] = [option, d];
  }
  return bestDistance <= Math.max(2, Math.floor(name.length / 3)) ? best : undefined;
}

/** Throws unless every key of `given` is one of `known`: `adamw: unknown option "weight_decay"; did you mean …`. */
export function checkOptions(subject: string, given: object, known: readonly string[]): void {
  for (const key of Object.keys(given)) {
    if (known.includes(key)) continue;
    const guess = nearest(key, known);
    throw new ConfigError(
      `${subject}: unknown option "${key}"${guess ? `; did you mean "${guess}"?` : ";"} (${known.join(", ")})`,
    );
  }
}
