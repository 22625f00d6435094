import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { CheckReport } from "../model/stdit-checks.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("growth in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/growth.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

test("the golden growths: outputs kept bit for bit, gradients, three steps of training", async () => {
  const { checks, worst, failures, adapter } = await page.run<CheckReport & { adapter: string }>("run");
  const figures = Object.entries(worst).map(([kind, off]) => `${kind} ${off.toExponential(1)}`);
  console.log(`${page.browser}, ${adapter}: ${checks} checks; worst ${figures.join(", ")}`);
  assert.is(failures.join("\n"), "");
  // As many as in Node.
  assert.is(checks, 77);
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
