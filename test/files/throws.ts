import * as assert from "uvu/assert";

/** The bytes of a typed array. */
export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Fails unless `run` rejects with exactly `NAME: MESSAGE` (or, where `begins`, with a text that begins so). */
export async function rejects(run: () => unknown, message: string, begins = false): Promise<void> {
  let thrown: unknown;
  try {
    await run();
  } catch (error) {
    thrown = error;
  }
  if (thrown === undefined) assert.unreachable(`expected "${message}", nothing was thrown`);
  const text = String(thrown);
  if (begins) assert.is(text.slice(0, message.length), message, text);
  else assert.is(text, message);
}
