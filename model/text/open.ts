import { ConfigError } from "../../engine/errors.js";
import type { LoadedModel } from "../checkpoint.js";
import type { STDiT } from "../stdit.js";
import type { TextEncoder } from "./encoder.js";
import { WordEncoder } from "./words.js";

/**
 * The encoder that a model was trained with: the one in its file, or word vectors over a table.
 * @param table reads or fetches the bytes of model/text/words.bin
 * @throws ConfigError when the file names none, another kind, or vectors other than the table's
 */
export async function encoderOf(
  { model, text }: Pick<LoadedModel, "text"> & { model: Pick<STDiT, "config"> },
  table: () => Uint8Array | Promise<Uint8Array>,
): Promise<TextEncoder> {
  if (text.encoder) return text.encoder;
  const { maxLength, captionChannels } = model.config;
  const said = text.info;
  if (said === undefined)
    throw new ConfigError(
      `text: the file does not say which encoder it was trained with: its metadata has no "text"; save it with saveModel's option text.`,
    );
  if (said.type !== "words")
    throw new ConfigError(
      `text: the model was trained with another encoder: ${JSON.stringify(said.type)}; word vectors ("words") are what there is here.`,
    );
  const encoder = new WordEncoder(await table(), { maxLength, mix: said.mix as number | undefined });
  if (encoder.fingerprint !== said.fingerprint)
    throw new ConfigError(
      `text: the model was trained with other word vectors: its table is ${said.fingerprint}, the one here is ${encoder.fingerprint}; take the version of Espalier that trained it.`,
    );
  if (encoder.dim !== captionChannels)
    throw new ConfigError(
      `text: the model's captions are ${captionChannels} wide, the word vectors ${encoder.dim}; take a model trained with them.`,
    );
  return encoder;
}
