import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createEngine } from "../../engine/index.js";
import { openLanguage } from "../../model/text/language.js";
import { languageModel } from "../../train/data/assets.js";
import { worstAbs } from "../model/compare.js";
import type { CheckReport } from "../model/stdit-checks.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("llama in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/llama.ts", { files: "." });
});
test.after(() => page?.close());

test("the golden model: states by layer and every gradient", async () => {
  const { checks, worst, failures, adapter } = await page.run<CheckReport & { adapter: string }>("run");
  console.log(`${page.browser}, ${adapter}: ${checks} checks; worst ${JSON.stringify(worst)}`);
  assert.is(failures.join("\n"), "");
  assert.is(checks, 26);
});

test("the embedded model gives a caption the vectors that it has in Node", async () => {
  const text = "a zebra moving left the upper half is blue and the lower half is red";
  const theirs = await page.run<number[]>("caption", text);
  const engine = await createEngine();
  const { embeddings } = await (await openLanguage(engine, languageModel())).encode([text]);
  engine.destroy();
  const off = worstAbs(theirs, embeddings);
  assert.ok(off < 1e-4, `off by ${off}`);
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
