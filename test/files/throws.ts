import * as assert from "uvu/assert";

/** The bytes of a typed array. */
export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Fails unless `run` rejects with an error whose `NAME: MESSAGE` contains `part`. */
export async function rejects(run: () => unknown, part: string): Promise<void> {
  let thrown: unknown;
  try {
    await run();
  } catch (error) {
    thrown = error;
  }
  if (thrown === undefined) assert.unreachable(`expected "${part}", nothing was thrown`);
  assert.ok(String(thrown).includes(part), `expected "${part}", got "${thrown}"`);
}
