import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Encoded, TextEncoder } from "../../model/text/encoder.js";
import { MemoEncoder } from "../../model/text/memo.js";

const memo = suite("memo encoder");

/** Two numbers a caption: its length and its first letter; "zzz" is unknown, more than 5 letters are cut. */
class Counting implements TextEncoder {
  readonly dim = 2;
  readonly maxLength = 1;
  readonly asked: string[][] = [];
  encode(prompts: string[]): Encoded {
    this.asked.push(prompts);
    const truncated = prompts.flatMap((p, i) => (p.length > 5 ? [i] : []));
    return {
      embeddings: Float32Array.from(prompts.flatMap((p) => [p.length, p.charCodeAt(0)])),
      mask: Int32Array.from(prompts, () => 1),
      shape: [prompts.length, 1, 2],
      unknown: prompts.some((p) => p.includes("zzz")) ? ["zzz"] : [],
      truncated,
      warnings: truncated.map((i) => `prompt ${i} was cut`),
    };
  }
}

memo("asks once for each caption and gives what the encoder gave", async () => {
  const inner = new Counting();
  const encoder = new MemoEncoder(inner);
  const prompts = ["ox", "a long one", "ox", "zzz"];
  const first = await encoder.encode(prompts);
  assert.equal(inner.asked, [["ox", "a long one", "zzz"]]);
  const plain = new Counting().encode(prompts);
  assert.equal(first.embeddings, plain.embeddings);
  assert.equal([first.mask, first.shape, first.unknown], [plain.mask, plain.shape, plain.unknown]);
  assert.equal(first.truncated, [1]);
  assert.equal(first.warnings, ["prompt 1 was cut"]);
  const second = await encoder.encode(["zzz", "fox"]);
  assert.equal(inner.asked[1], ["fox"]);
  assert.equal(second.unknown, ["zzz"]);
  assert.equal([...second.embeddings], [3, 122, 3, 102]);
  assert.equal((await encoder.encode(["a long one"])).truncated, [0]);
  assert.is(inner.asked.length, 2);
});

memo("forgets the oldest beyond its limit", async () => {
  const inner = new Counting();
  const encoder = new MemoEncoder(inner, 2 * 12);
  await encoder.encode(["a", "b", "c"]);
  await encoder.encode(["c", "b"]);
  assert.is(inner.asked.length, 1);
  await encoder.encode(["a"]);
  assert.is(inner.asked.length, 2);
});

memo.run();
