import { readFile } from "node:fs/promises";
import { ConfigError, DataError, type Engine } from "../../engine/index.js";
import { openModelCodec, openModelText } from "../../model/checkpoint.js";
import type { Codec } from "../../model/codec.js";
import { openSafetensors } from "../../model/safetensors.js";
import { ExternalVae, externalVaeOf } from "../../model/vae/external.js";
import { listRows, type Skips } from "../data/rows.js";

/**
 * The captions of a set in order: of a folder's or a CSV's clips, or of a captions file, .txt with one a line or .jsonl
 * with text, caption or name.
 * @throws DataError where there are none
 */
export async function captionsOf(place: string, skips: Skips): Promise<string[]> {
  const kind = /\.(txt|jsonl)$/i.exec(place)?.[1].toLowerCase();
  if (kind === undefined) return (await listRows(place, skips)).map((row) => row.caption);
  let text: string;
  try {
    text = await readFile(place, "utf8");
  } catch (cause) {
    throw new DataError(`data: captions not readable: ${place}: ${(cause as Error).message}`, { cause });
  }
  const captions: string[] = [];
  text.split("\n").forEach((line, i) => {
    if (line.trim() === "") return;
    if (kind === "txt") {
      captions.push(line.trim());
      return;
    }
    let given: { text?: unknown; caption?: unknown; name?: unknown } | null = null;
    try {
      given = JSON.parse(line);
    } catch {}
    const caption = [given?.text, given?.caption, given?.name].find((c) => typeof c === "string" && c.trim() !== "");
    if (caption === undefined) skips.add(`${place} line ${i + 1}: no "text", "caption" or "name"`);
    else captions.push(caption as string);
  });
  if (captions.length === 0)
    throw new DataError(
      `data: no captions: ${skips.count > 0 ? skips : `${place} is empty`}; a .txt has one a line, a .jsonl objects with "text"`,
    );
  return captions;
}

/**
 * The codec of a model file, in it or named by it, or an autoencoder from a folder or file, whose weights wait for `open`.
 * @throws ConfigError for a model file without one, and what opening an autoencoder throws
 */
export async function openCodecAt(engine: Engine, place: string): Promise<Codec> {
  if (!/\.(safetensors|json)$/i.test(place)) return ExternalVae.find(engine, place);
  const file = await openSafetensors(place);
  try {
    if (file.metadata.model === undefined) return await ExternalVae.find(engine, place);
    const codec =
      (await openModelCodec(engine, file)) ?? (await externalVaeOf(engine, (await openModelText(file)).codec));
    if (codec) return codec;
    throw new ConfigError(
      `codec: the model's file has none: ${place} was trained with an autoencoder from elsewhere; name that one`,
    );
  } finally {
    await file.close();
  }
}
