import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { VaeReport } from "../model/vae-checks.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("vae in Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/vae.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

test("the golden autoencoder: moments, latents, pictures and every gradient", async () => {
  const { checks, worst, failures, adapter } = await page.run<VaeReport & { adapter: string }>("run");
  const figures = Object.entries(worst).map(([kind, off]) => `${kind} ${off.toExponential(1)}`);
  console.log(`${page.browser}, ${adapter}: ${checks} checks; worst ${figures.join(", ")}`);
  assert.is(failures.join("\n"), "");
  // As many as in Node.
  assert.is(checks, 134);
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
