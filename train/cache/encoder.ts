import type { Engine } from "../../engine/index.js";
import { type EncoderAssets, type EncoderSpec, type FoundEncoder, findEncoder } from "../../model/text/spec.js";
import { encoderAssets } from "../data/assets.js";
import { CachedTextEncoder, type CachedTextOptions } from "./text.js";

/** The encoders that ship in the package, and others behind a cache where one is named. */
export function assetsOf(root: string | undefined): EncoderAssets {
  if (root === undefined) return encoderAssets;
  return {
    ...encoderAssets,
    open: async (engine, spec) => {
      const found = await findEncoder(spec, encoderAssets);
      // What runs without a GPU is faster than a file.
      return found.needsEngine ? cachedEncoder(root, engine!, spec, {}, found) : found.open(engine);
    },
  };
}

/**
 * A text encoder behind a cache, by name or place: loaded only when a prompt is new.
 * @param root the cache's folder
 * @param engine where the encoder runs, or what makes it when it is needed
 * @param found what `findEncoder` found for the spec, where it is known
 * @throws what `findEncoder` and `CachedTextEncoder.open` throw
 */
export async function cachedEncoder(
  root: string,
  engine: Engine | (() => Promise<Engine>),
  spec: EncoderSpec,
  options: CachedTextOptions = {},
  found?: FoundEncoder,
): Promise<CachedTextEncoder> {
  const { fingerprint, needsEngine, open } = found ?? (await findEncoder(spec, encoderAssets));
  const gpu = async () => (typeof engine === "function" ? engine() : engine);
  return CachedTextEncoder.open(
    root,
    { fingerprint, open: async () => open(needsEngine ? await gpu() : undefined) },
    options,
  );
}
