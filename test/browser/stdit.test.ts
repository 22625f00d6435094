import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { CheckReport } from "../model/stdit-checks.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("stdit in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/stdit.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

/** Runs the checks in the page; `count` as many as in Node. */
async function passes(name: string, count: number): Promise<void> {
  const { checks, worst, failures, adapter } = await page.run<CheckReport & { adapter: string }>(name);
  const figures = Object.entries(worst).map(([kind, off]) => `${kind} ${off.toExponential(1)}`);
  console.log(`${page.browser}, ${adapter}: ${checks} checks; worst ${figures.join(", ")}`);
  assert.is(failures.join("\n"), "");
  assert.is(checks, count);
}

test("the golden model: activations, outputs and every gradient", () => passes("run", 84));

test("the golden model with a language branch: outputs, gradients, guidance, sampling", () => passes("language", 115));

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
