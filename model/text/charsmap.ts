import { DataError } from "../../engine/errors.js";

/**
 * SentencePiece's rules for rewriting characters, compiled: u32 bytes of a trie, the trie, then its replacements in
 * UTF-8, each ended by a zero. The trie is a double array of u32 units over the bytes of UTF-8, laid out as in
 * https://github.com/s-yata/darts-clone. The longest match is replaced, what no rule matches stays.
 * @throws DataError when the bytes are cut off
 */
export function charsMapOf(bytes: Uint8Array): (text: string) => string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = bytes.length < 4 ? 0 : view.getUint32(0, true);
  if (size < 4 || size % 4 !== 0 || size + 4 > bytes.length)
    throw new DataError(
      `tokenizer: the character map is cut off: a trie of ${size} bytes in ${bytes.length}; fetch the file again`,
    );
  const units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const replacements = bytes.subarray(4 + size);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const replacement = (at: number) => {
    const end = replacements.indexOf(0, at);
    return decoder.decode(replacements.subarray(at, end < 0 ? replacements.length : end));
  };
  const step = (unit: number) => (unit >>> 10) << ((unit & 512) >>> 6);

  /** Bytes of the longest rule that matches at `from`, and where its replacement is. */
  const match = (text: Uint8Array, from: number): [length: number, value: number] => {
    let node = step(units[0]);
    let found: [number, number] = [0, 0];
    for (let i = from; i < text.length; i++) {
      node ^= text[i];
      const unit = units[node] ?? 0;
      // The top bit marks a value, so that none is taken for a label.
      if ((unit & 0x800000ff) >>> 0 !== text[i]) break;
      node ^= step(unit);
      if (unit & 256) found = [i + 1 - from, units[node] & 0x7fffffff];
    }
    return found;
  };

  return (text) => {
    const input = new TextEncoder().encode(text);
    let out = "";
    let kept = 0;
    const keep = (to: number) => {
      if (to > kept) out += decoder.decode(input.subarray(kept, to));
    };
    for (let at = 0; at < input.length; ) {
      const [length, value] = match(input, at);
      if (length > 0) {
        keep(at);
        out += replacement(value);
        at += length;
        kept = at;
      } else {
        at++;
        while ((input[at] & 0xc0) === 0x80) at++;
      }
    }
    keep(input.length);
    return out;
  };
}
