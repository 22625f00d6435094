import { suite } from "uvu";
import * as assert from "uvu/assert";
import { sampled, trained } from "./determinism.js";
import { type ModulePage, openModule } from "./harness.js";

const test = suite("Node and Chromium");
let page: ModulePage;

test.before(async () => {
  page = await openModule("test/browser/determinism.ts", { files: "test/goldens" });
});
test.after(() => page?.close());

const worst = (a: number[], b: number[]) => {
  assert.is(a.length, b.length);
  return a.reduce((top, value, i) => Math.max(top, Math.abs(value - b[i])), 0);
};

test("one request gives one clip", async () => {
  const clip = await sampled("test/goldens/flow-base.safetensors", "swiftshader");
  assert.is(clip.length, 3 * 8 * 32 * 32);
  assert.ok(clip.some((value) => value > 0.3) && clip.some((value) => value < -0.3), "the clip is no flat grey");
  assert.equal(await sampled("test/goldens/flow-base.safetensors", "swiftshader"), clip, "twice in Node, bit for bit");
  const there = await page.run<number[]>("sampled", "files/flow-base.safetensors");
  assert.equal(await page.run("sampled", "files/flow-base.safetensors"), there, "twice in Chromium, bit for bit");
  const off = worst(clip, there);
  console.log(`${page.browser}: clips on SwiftShader differ by ${off.toExponential(1)} at most (values in -1…1)`);
  assert.ok(off <= 1e-4, `clips differ by ${off}`);
});

test("one seed gives the same losses", async () => {
  const losses = await trained("swiftshader");
  assert.is(losses.length, 6);
  assert.ok(losses.every(Number.isFinite) && losses.at(-1)! < losses[0], `${losses}`);
  assert.equal(await trained("swiftshader"), losses, "twice in Node, bit for bit");
  const there = await page.run<number[]>("trained");
  assert.equal(await page.run("trained"), there, "twice in Chromium, bit for bit");
  const off = worst(losses, there);
  console.log(`${losses.map((loss) => loss.toFixed(4)).join(", ")}; they differ by ${off.toExponential(1)} at most`);
  assert.ok(off <= 1e-5, `losses differ by ${off}`);
});

test("nothing went wrong unseen", () => assert.equal(page.errors, []));

test.run();
