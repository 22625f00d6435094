import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type ModulePage, openModule } from "../browser/harness.js";

const test = suite("files in a page");
let page: ModulePage;
test.before(async () => {
  page = await openModule("test/files/page.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

test("a file of the server", async () => {
  const got = await page.run<any>("fetched", "/files/iddpm_tables.safetensors", "full1000.betas");
  assert.is(got.count, 46);
  assert.ok(Math.abs(got.values[0] - 1e-4) < 1e-15, `${got.values[0]}`);
});

test("the page's own files: written, read in pieces, sharded, aborted", async () => {
  const { free, ...own } = await page.run<any>("ownFile");
  assert.equal(own, { metadata: { kind: "test" }, last: 999, pieces: [1500, 1500, 1000] });
  assert.ok(free > 0);
  assert.equal(await page.run("shards"), { files: 4, names: ["a", "b", "c"], last: 999 });
  assert.equal(await page.run("aborted"), {
    bytes: 4000,
    none: "FileError: open: no such file or folder: opfs:models/none.safetensors",
  });
});

test("picked files", async () => {
  assert.equal(await page.run("picked"), [7, 8]);
});

test("errors", async () => {
  const [plain, none] = await page.run<string[]>("refusals");
  assert.match(plain, /^FileError: write: not a page's file: "plain.safetensors"; a page writes to "opfs:NAME"/);
  assert.match(none, /^FileError: fetch: refused: http:.*\/files\/none.safetensors answered 404/);
});

test.run();
