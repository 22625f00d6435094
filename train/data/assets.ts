import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { DataError } from "../../engine/errors.js";
import { WordEncoder, type WordEncoderOptions } from "../../model/text/words.js";

/**
 * The folder of the espalier package that this code belongs to: from sources, from a bundle in the
 * repository's cache, or installed. Bundles lie at different depths, so the way up is searched, not counted.
 * @throws DataError when no such package.json lies above, as after bundling into another program
 */
export function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url));
  for (let folder = start; ; folder = dirname(folder)) {
    const manifest = join(folder, "package.json");
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, "utf8")).name === "espalier") return folder;
    if (dirname(folder) === folder)
      throw new DataError(
        `espalier: its package folder must lie above its code: searched from ${start} upwards; keep "espalier" external when bundling for Node`,
      );
  }
}

/** Folder of the data that ships in the package: `emoji/captions.jsonl` and `emoji/clips/*.webp`. */
export function embeddedDir(): string {
  return join(packageRoot(), "train/embedded");
}

/** Bytes of the word table that ships in the package (model/text/words.bin). */
export function wordTable(): Uint8Array {
  return readFileSync(join(packageRoot(), "model/text/words.bin"));
}

/** The default text encoder over the word table that ships in the package. */
export function wordEncoder(options: WordEncoderOptions = {}): WordEncoder {
  return new WordEncoder(wordTable(), options);
}

/** Bytes of the small language model that ships in the package (model/text/language.safetensors), for `openLanguage`. */
export function languageModel(): Uint8Array {
  return readFileSync(join(packageRoot(), "model/text/language.safetensors"));
}

/** Bytes of the small T5 that ships in the package (model/text/t5.safetensors), for `openEmbeddedT5`. */
export function t5Model(): Uint8Array {
  return readFileSync(join(packageRoot(), "model/text/t5.safetensors"));
}

/** Where the encoders that ship in the package are, for `openEncoder` and `languageOf`. */
export const encoderAssets = { words: wordTable, language: languageModel, t5: t5Model };
