import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ConfigError, DataError } from "../../engine/errors.js";
import type { TextEncoder } from "../../model/text/encoder.js";
import { packWordTable, WordTable } from "../../model/text/table.js";
import { baseForms, WordEncoder, wordsOf } from "../../model/text/words.js";
import { packageRoot, wordEncoder, wordTable } from "../../train/data/assets.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, WORLDS, world } from "../../train/data/world.js";

const test = suite("words as vectors");
const encoder = wordEncoder();
const cosine = (a: string, b: string) => {
  const y = encoder.vector(b);
  return encoder.vector(a).reduce((sum, x, d) => sum + x * y[d], 0) / encoder.dim;
};
const worst = (group: readonly string[]) => {
  const found = group.flatMap((a, i) =>
    group.slice(0, i).map((b) => ({ pair: `${a} ${b}`, cos: Math.abs(cosine(a, b)) })),
  );
  return found.reduce((x, y) => (y.cos > x.cos ? y : x));
};

test("vectors have length sqrt(dim), and colours and motions are nearly orthogonal", () => {
  assert.is(encoder.dim, 64);
  for (const word of ["ox", "left", "zorblatt", "7"])
    assert.ok(Math.abs(Math.hypot(...encoder.vector(word)) - 8) < 1e-5, word);
  for (const group of [Object.keys(COLOURS), [...new Set(MOTIONS.flatMap(wordsOf)), "upper", "lower"]]) {
    const { pair, cos } = worst(group);
    assert.ok(cos < 0.35, `${pair}: ${cos}`);
  }
  const { pair, cos } = worst(CLASSES);
  assert.ok(cos < 0.45, `${pair}: ${cos}`);
});

test("synonyms are nearer than random words, and so are inflections", () => {
  const pairs = [
    "car automobile",
    "car taxi",
    "taxi cab",
    "airplane plane",
    "pig hog",
    "fire flame",
    "frog toad",
    "ship boat",
    "up upward",
    "rabbit hare",
    "car cars",
    "fox foxes",
    "big large",
    "small little",
  ].map((pair) => pair.split(" ") as [string, string]);
  const near = pairs.map(([a, b]) => cosine(a, b));
  const mean = (list: number[]) => list.reduce((a, b) => a + b, 0) / list.length;
  const others = "opinion cathedral laughter hydrogen tuesday grammar velvet tax orchestra kidney winter glue".split(
    " ",
  );
  const far = pairs.flatMap(([a]) => others.map((b) => cosine(a, b)));
  const spread = Math.sqrt(mean(far.map((x) => (x - mean(far)) ** 2)));
  // The means of 14 pairs: four standard errors apart and more.
  assert.ok(mean(near) > 0.15, `synonyms ${mean(near)}`);
  assert.ok(Math.abs(mean(far)) < 0.06, `random words ${mean(far)}`);
  assert.ok(mean(near) - mean(far) > (4 * spread) / Math.sqrt(near.length), `${mean(near)} ${mean(far)} ${spread}`);
});

test("every caption word is known, and the table is under 1.5 MB with its notice beside it", async () => {
  const specs = Object.keys(WORLDS).flatMap((name) => combinations(world(name, { classes: [...CLASSES] })));
  const { unknown, truncated, warnings } = encoder.encode(specs.map(captionOf));
  assert.equal([unknown, truncated, warnings], [[], [], []]);
  assert.ok(wordTable().length < 1.5e6);
  const notice = await readFile(join(packageRoot(), "model/text/words.LICENSE"), "utf8");
  assert.match(notice, "Princeton University");
});

test("an encoded batch: shape, mask, no position", () => {
  const asInterface: TextEncoder = encoder;
  assert.is(asInterface.maxLength, 16);
  const { embeddings, mask, shape } = encoder.encode(["an ox moving left", "left ox"]);
  assert.equal(shape, [2, 16, 64]);
  assert.equal([...mask], [1, 1, 1, 1, ...Array(12).fill(0), 1, 1, ...Array(14).fill(0)]);
  const row = (b: number, i: number) => embeddings.subarray((b * 16 + i) * 64, (b * 16 + i + 1) * 64);
  assert.equal(row(0, 1), encoder.vector("ox"));
  assert.equal(row(0, 3), row(1, 0));
  assert.ok(row(0, 4).every((x) => x === 0));
});

test("vectors do not change: models were trained with them", () => {
  // Written down when the table was built.
  const sums = ["ox", "left", "zorblatt"].map((w) =>
    encoder
      .vector(w)
      .reduce((sum, x, d) => sum + x * (d + 1), 0)
      .toFixed(3),
  );
  assert.equal([encoder.fingerprint, ...sums], ["37760c39", "221.691", "-138.237", "-303.102"]);
});

test("words of a text, and what a word may come from", () => {
  assert.equal(wordsOf("An OX, moving-left: it\u2019s 2 \u00e9t\u00e9s!"), [
    "an",
    "ox",
    "moving",
    "left",
    "it's",
    "2",
    "\u00e9t\u00e9s",
  ]);
  for (const [form, base] of ["foxes fox", "ponies pony", "running run", "moved move", "wolves wolf", "dog's dog"].map(
    (pair) => pair.split(" "),
  ))
    assert.ok(baseForms(form).includes(base), form);
});

test("prompts: empty, not text, over-long, unknown", () => {
  const encode = (prompts: unknown) => () => encoder.encode(prompts as string[]);
  assert.throws(encode([""]), /prompt 0: must not be empty: "" was given/);
  assert.throws(encode(["an ox", "  "]), /prompt 1: must not be empty/);
  assert.throws(encode(["?!"]), /prompt 0: must hold a word: "\?!" has none/);
  assert.throws(encode([7]), /prompt 0: must be text: number was given/);
  assert.throws(encode([null]), /prompt 0: must be text: null was given/);
  assert.throws(encode("an ox"), /a list of prompts is needed: string was given/);
  assert.throws(encode([]), /at least one is needed/);
  assert.throws(encode([""]), (error: Error) => error instanceof ConfigError);
  const long = encoder.encode(["an ox", `${"ox ".repeat(16)}pig pig`]);
  assert.equal(long.truncated, [1]);
  assert.match(long.warnings[0], /prompt 1: 16 words are read: it has 18, and those from "pig" on were left out/);
  assert.is(
    long.mask.subarray(16).reduce((a, b) => a + b, 0),
    16,
  );
  const odd = encoder.encode(["a zorblatt on a zorblatt", "frobnicating"]);
  assert.equal(odd.unknown, ["zorblatt", "frobnicating"]);
  assert.match(odd.warnings[0], /words without a known meaning: zorblatt, frobnicating/);
  assert.ok(Math.abs(cosine("zorblatt", "frobnicating")) < 0.5);
});

test("tables and options that are refused", () => {
  const bytes = packWordTable(["a", "b"], Float32Array.of(1, 2, -4, 0, 0, 3), 3, 9);
  const table = new WordTable(bytes);
  assert.equal([table.dim, table.salt, table.has("b"), table.has("c")], [3, 9, true, false]);
  const row = [...(table.row("a") ?? [])];
  assert.ok(row.every((x, d) => Math.abs(x - [1, 2, -4][d] / Math.sqrt(21)) < 0.01));
  const refused = (damaged: Uint8Array, message: RegExp) =>
    assert.throws(
      () => new WordEncoder(damaged),
      (error: Error) => error instanceof DataError && message.test(error.message),
    );
  refused(bytes.subarray(0, 10), /the header is cut off: 10 bytes/);
  refused(bytes.subarray(0, bytes.length - 1), /speaks of 33 bytes: there are 32/);
  refused(
    Uint8Array.from(bytes, (b, i) => (i === 0 ? 0 : b)),
    /not a word table's/,
  );
  refused(
    Uint8Array.from(bytes, (b, i) => (i === 4 ? 2 : b)),
    /version 1 is read: it is 2/,
  );
  refused(
    Uint8Array.from(bytes, (b, i) => (b === 10 && i > 20 ? 32 : b)),
    /speaks of 2 words: there are 1/,
  );
  assert.throws(() => new WordEncoder(bytes, { mix: 2 }), /mix must lie in 0..1: 2/);
  assert.throws(() => new WordEncoder(bytes, { maxLength: 0 }), /maxLength must be a whole number from 1: 0/);
  assert.equal(new WordEncoder(bytes, { maxLength: 3 }).encode(["a c"]).shape, [1, 3, 3]);
  assert.throws(() => new WordEncoder(bytes, { length: 3 } as object), /unknown option "length"/);
});

test.run();
