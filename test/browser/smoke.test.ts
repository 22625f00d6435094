import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("chromium");
let page: ModulePage;

test.after(() => page?.close());

test("an adapter, a device and one shader", async () => {
  page = await openModule("test/browser/smoke.ts");
  const { values, info, features } = await page.run<any>("double", 100);
  assert.equal(
    values,
    Array.from({ length: 100 }, (_, i) => 2 * i),
  );
  assert.is(info.kind, "software");
  assert.is(info.source, "browser");
  console.log(`${page.browser}: ${info.name}, ${features.join(" ")}`);
});

test("an unknown adapter is refused with what there is", async () => {
  const text = await page.run<string>("refusal", "no such adapter");
  assert.match(
    text,
    /^NoAdapterError: adapter: no WebGPU adapter for "no such adapter": the browser offers google swiftshader/,
  );
});

test("nothing went wrong unseen", () => {
  assert.equal(page.errors, []);
});

test.run();
