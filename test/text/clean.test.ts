import { readFile } from "node:fs/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cleanCaption } from "../../model/text/clean.js";

const test = suite("clean");
const { cases } = JSON.parse(await readFile("test/goldens/captions.json", "utf8")) as {
  cases: { in: string; once: string; twice: string }[];
};

test("every golden caption, cleaned once and twice", () => {
  assert.is(cases.length, 33);
  for (const { in: raw, once, twice } of cases) {
    assert.is(cleanCaption(raw), once, JSON.stringify(raw));
    assert.is(cleanCaption(cleanCaption(raw)), twice, JSON.stringify(raw));
  }
});

test("rules that the goldens leave open", () => {
  const table: [raw: string, clean: string][] = [
    // Form encoding: bytes of UTF-8, also those that are none.
    ["caf%C3%A9+au+lait", "café au lait"],
    ["50%ZZ", "50%zz"],
    ["a%FFb", "a\ufffdb"],
    // Entities by name, number, twice escaped, and unknown.
    ["fish &amp; chips &amp;amp; peas", "fish chips ; peas"],
    ["&#233;t&#xe9; &eacute;", "été é"],
    ["5 &lt; 6 &bogus; x", "5 < 6 bogus; x"],
    ["<!-- note --><p class='x'>para</p>graph", "paragraph"],
    // Words of other scripts end where they do, not at their last ASCII letter.
    ["größe123456 été", "größe123456 été"],
    ["one,été", "one, été"],
    ["see h264 and mp3 in 4k at 24fps", "see and mp3 in 4k at 24fps"],
    ["worldwide free shipping now", "now"],
    ["click on it please", "please"],
    ["640х480 and 2 x 3", "and 2 x 3"],
    ["#1234 stays a number", "1234 stays a number"],
    ["a line\\nbroken", "a line broken"],
    [".hidden", ""],
    ["''twice''", "twice"],
    ["no.5 at 3.5, or 7,000", "no. 5 at 3.5, or 7,000"],
    ["co-op at the museum.it/visit", "co-op at the"],
    ["   ", ""],
  ];
  for (const [raw, clean] of table) assert.is(cleanCaption(raw), clean, JSON.stringify(raw));
});

test("long text takes no longer than its length allows", () => {
  const started = performance.now();
  for (const text of [
    "<".repeat(20_000),
    "a.".repeat(20_000),
    "a1".repeat(20_000),
    " ".repeat(20_000),
    "-".repeat(20_000),
  ])
    cleanCaption(text);
  assert.ok(performance.now() - started < 5000, `${performance.now() - started} ms`);
});

test.run();
