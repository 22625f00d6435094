import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { DataError } from "../../engine/errors.js";
import { embeddedDir } from "./assets.js";
import { readClip } from "./clip.js";
import { Sprites } from "./compose.js";

/**
 * Loads the embedded clips of some classes.
 * @param classes caption words, as in a world's `classes`
 * @throws DataError for a class without an embedded clip
 */
export async function loadSprites(classes: readonly string[]): Promise<Sprites> {
  const folder = join(embeddedDir(), "emoji");
  const lines = (await readFile(join(folder, "captions.jsonl"), "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { file: string; word: string; frames: number });
  const clips = await Promise.all(
    classes.map(async (word) => {
      const line = lines.find((l) => l.word === word);
      if (line === undefined)
        throw new DataError(
          `sprites: each class needs an embedded clip: "${word}" has none; known are ${lines.map((l) => l.word).join(", ")}`,
        );
      return [word, await readClip(join(folder, line.file), line.frames)] as const;
    }),
  );
  return new Sprites(new Map(clips));
}
