import { DataError, type Engine } from "../../engine/index.js";
import { openSafetensors, type SafetensorsLocation } from "../safetensors.js";
import type { Identity } from "./encoder.js";
import { identifyT5, type OpenedT5, type OpenT5Options, openT5 } from "./t5.js";

/** Vectors a prompt of the embedded T5: its captions fit, the end of text included. */
export const EMBEDDED_T5_LENGTH = 24;

/** A file with everything in it, as the folder that it stands for. */
async function folderIn(location: SafetensorsLocation): Promise<Record<string, SafetensorsLocation>> {
  const file = await openSafetensors(location);
  try {
    const { config, tokenizer, tokenizer_config } = file.metadata;
    if (config === undefined || tokenizer === undefined || tokenizer_config === undefined)
      throw new DataError(
        `t5: not a T5's file: ${file.name} lacks "config", "tokenizer" or "tokenizer_config" in its metadata; take model/text/t5.safetensors, or openT5 for a folder`,
      );
    const utf8 = (text: string): Uint8Array => new globalThis.TextEncoder().encode(text);
    return {
      "config.json": utf8(config),
      "tokenizer.json": utf8(tokenizer),
      "tokenizer_config.json": utf8(tokenizer_config),
      "model.safetensors": location,
    };
  } finally {
    await file.close();
  }
}

const reading = (options: OpenT5Options): OpenT5Options => ({
  ...options,
  maxLength: options.maxLength ?? EMBEDDED_T5_LENGTH,
});

/**
 * Opens a T5 that lies in one safetensors file with its `config`, `tokenizer` and `tokenizer_config` (the texts of
 * Hugging Face's JSON files) in the metadata, such as model/text/t5.safetensors, the small one that ships with Espalier:
 * 64 numbers a vector, as the word vectors have. It knows the language of the composed clips, and its vectors tell which of
 * two colours is above, which those of words do not (figures: examples/t5.ts); of English it knows next to nothing, so that
 * word vectors are the default. Default: 24 vectors a prompt.
 * @throws DataError for a file without them; ConfigError for another family or an option out of range
 */
export async function openEmbeddedT5(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenT5Options = {},
): Promise<OpenedT5> {
  return openT5(engine, await folderIn(location), reading(options));
}

/** What `openEmbeddedT5` would open; no weights are read. Throws what it does, save for weights that do not fit. */
export async function identifyEmbeddedT5(
  engine: Engine,
  location: SafetensorsLocation,
  options: OpenT5Options = {},
): Promise<Identity> {
  return identifyT5(engine, await folderIn(location), reading(options));
}
