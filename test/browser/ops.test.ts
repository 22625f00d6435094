import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("ops in Chromium");
let page: ModulePage;

test.before(async () => {
  // Most of the time goes into compiling some hundred kernels for the CPU.
  page = await openModule("test/browser/ops.ts", { timeout: 600_000 });
});
test.after(() => page?.close());

test("every op of the registry against its oracle", async () => {
  const { ops, cases, gradients, f16, failures, adapter, half } = await page.run<any>("run");
  const counts = `${ops} ops, ${cases} cases, ${gradients} gradients, ${f16} in f16${half ? "" : " (adapter lacks f16)"}`;
  console.log(`${page.browser}, ${adapter}: ${counts}`);
  assert.is(failures.join("\n"), "");
  assert.ok(ops > 0 && cases > ops && gradients > 0, counts);
  assert.is(half, f16 > 0);
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
