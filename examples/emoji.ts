// Builds train/embedded/emoji from a folder of captioned emoji clips: which clips, under which word, and why so few.
// node .build/run.mjs examples/emoji.ts --from FOLDER
//   FOLDER holds captions.jsonl (file, name, frames a line) and the clips: WebP strips of 64 x 64 frames.
// The set must stay under 3 MB, since every clone and every install carries it.
import { copyFile, mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { DataError } from "../engine/errors.js";
import { embeddedDir } from "../train/data/assets.js";
import { CLASSES } from "../train/data/world.js";

/** Classes whose one-word caption differs from the clip's file name. */
const FILE_OF: Record<string, string> = {
  ladybug: "lady-beetle",
  bee: "honeybee",
  cake: "birthday-cake",
  pumpkin: "jack-o-lantern",
  dinosaur: "t-rex",
  car: "automobile",
  train: "locomotive",
  planet: "ringed-planet",
  heart: "red-heart",
  clock: "alarm-clock",
  coffee: "hot-beverage",
};
const LARGEST_BYTES = 3_000_000;

interface Line {
  file: string;
  name: string;
  frames: number;
}

const { values } = parseArgs({ options: { from: { type: "string" } } });
if (values.from === undefined)
  throw new DataError("examples/emoji: a source folder is needed: none was given; pass --from FOLDER");
const lines = (await readFile(join(values.from, "captions.jsonl"), "utf8"))
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line) as Line);
const target = join(embeddedDir(), "emoji");
await mkdir(join(target, "clips"), { recursive: true });

let bytes = 0;
const out: string[] = [];
for (const word of CLASSES) {
  const stem = FILE_OF[word] ?? word;
  const line = lines.find((l) => basename(l.file, ".webp") === stem);
  if (line === undefined)
    throw new DataError(
      `examples/emoji: every class needs its clip: ${stem}.webp is not in ${values.from}; give the folder of all clips`,
    );
  const file = `clips/${stem}.webp`;
  await copyFile(join(values.from, line.file), join(target, file));
  bytes += (await stat(join(target, file))).size;
  out.push(JSON.stringify({ file, word, name: line.name, frames: line.frames }));
}
if (bytes > LARGEST_BYTES)
  throw new DataError(`examples/emoji: the set must stay under ${LARGEST_BYTES} bytes: it has ${bytes}; drop classes`);
await writeFile(join(target, "captions.jsonl"), `${out.join("\n")}\n`);
console.log(`${out.length} clips, ${(bytes / 1e6).toFixed(2)} MB, in ${target}`);
