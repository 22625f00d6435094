import { type DeviceInfo, platform } from "../device/adapter.js";
import { revisionOf } from "./choice.js";
import { Tuning } from "./tuning.js";

/** Everything by which one adapter with its driver is told from another. */
const fingerprint = ({ name, vendor, architecture, backend, description }: DeviceInfo): string =>
  [name, vendor, architecture, backend, description].join("; ");

const keyOf = (info: DeviceInfo): string =>
  `tuning-${info.name.toLowerCase().replace(/\W+/g, "-")}-${revisionOf(fingerprint(info))}`;

const warned = new Set<string>();

/**
 * What is kept for this adapter; nothing when the setting ESPALIER_TUNING is "off". A cache that cannot be read is left
 * alone, with one warning.
 */
export async function loadTuning(info: DeviceInfo): Promise<Tuning> {
  if (platform.env("ESPALIER_TUNING") === "off") return new Tuning();
  const key = keyOf(info);
  try {
    const text = await platform.cacheRead(key);
    return text === undefined ? new Tuning() : Tuning.decode(text, fingerprint(info));
  } catch (error) {
    if (!warned.has(key))
      console.warn(
        `${(error as Error).message} (${platform.cachePlace(key)}): it is not used, and the usual kernels are taken; "espalier tune" writes a new one.`,
      );
    warned.add(key);
    return new Tuning();
  }
}

/** Keeps what was measured for this adapter: the place where it lies, or undefined where nothing can be kept. */
export async function keepTuning(info: DeviceInfo, tuning: Tuning): Promise<string | undefined> {
  const key = keyOf(info);
  const text = tuning.encode(fingerprint(info));
  await platform.cacheWrite(key, text);
  const back = await platform.cacheRead(key).catch(() => undefined);
  return back === text ? platform.cachePlace(key) : undefined;
}

/** Forgets what is kept for this adapter: the place where it lay, or undefined when nothing was there. */
export async function clearTuning(info: DeviceInfo): Promise<string | undefined> {
  const key = keyOf(info);
  return (await platform.cacheRemove(key)) ? platform.cachePlace(key) : undefined;
}
