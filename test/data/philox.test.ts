import { suite } from "uvu";
import * as assert from "uvu/assert";
import { philox4x32 } from "../../engine/random/philox.js";

const test = suite("philox");
const hex = (words: readonly number[]) => words.map((w) => w.toString(16).padStart(8, "0")).join(" ");

test("known answers of Random123 (kat_vectors, philox4x32 10)", () => {
  const f = 0xffffffff;
  assert.is(hex(philox4x32([0, 0, 0, 0], [0, 0])), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  assert.is(hex(philox4x32([f, f, f, f], [f, f])), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  assert.is(
    hex(philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])),
    "d16cfe09 94fdcceb 5001e420 24126ea1",
  );
});

test.run();
