import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("chromium: tuning");
let page: ModulePage;

test.after(() => page?.close());

test("winners are kept in the page's storage", async () => {
  page = await openModule("test/browser/tune.ts");
  const r = await page.run<any>("keepAndClear", "NN b1 m16 n64 k64 f32");
  assert.is(r.before, 0);
  assert.equal(r.wrong, []);
  assert.is(r.kept, r.way);
  assert.match(r.place, /^IndexedDB "espalier", key "tuning-/);
  assert.equal(r.cleared, [r.place, undefined]);
  assert.is(r.after, 0);
});

test("a damaged cache is left alone with one warning", async () => {
  const warnings = await page.run<string[]>("damaged");
  assert.is(warnings.length, 1);
  assert.match(warnings[0], /^tuning: the cache is no JSON \(IndexedDB "espalier", key "tuning-.*it is not used/);
});

test("nothing went wrong unseen", () => {
  assert.equal(page.errors, []);
});

test.run();
