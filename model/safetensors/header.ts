import { SafetensorsError } from "../../engine/errors.js";
import { DTYPE_BYTES, isSafetensorsDtype, type SafetensorsDtype } from "./dtype.js";

/** The longest header that is read: the format's own limit. */
export const MAX_HEADER_BYTES = 100_000_000;

/** One tensor as the header tells it; `begin` and `end` are byte offsets from the start of the file. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** What a header says: tensors by name in the order of their bytes, and free-form strings. */
export interface Header {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** Bytes that a shape takes, or undefined where the product is no exact integer. */
export function bytesOfShape(shape: readonly number[], dtype: SafetensorsDtype): number | undefined {
  let bytes: number = DTYPE_BYTES[dtype];
  for (const size of shape) {
    if (size === 0) return 0;
    bytes *= size;
    if (!Number.isSafeInteger(bytes)) return undefined;
  }
  return bytes;
}

/** The unsigned 64-bit, little-endian number in the first 8 bytes of a file, rounded where it is beyond 2^53. */
export function headerBytes(first8: Uint8Array): number {
  const view = new DataView(first8.buffer, first8.byteOffset, 8);
  return view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
}

/**
 * Length of the JSON header from the first 8 bytes of a file (unsigned 64-bit, little-endian).
 * Throws SafetensorsError where it is beyond the file or the format's limit.
 */
export function headerLength(first8: Uint8Array, fileSize: number, file: string): number {
  if (first8.length < 8 || fileSize < 8)
    throw new SafetensorsError(
      `safetensors: file too short: ${file} has ${fileSize} bytes; the format starts with an 8-byte header length`,
    );
  const length = headerBytes(first8);
  if (length > MAX_HEADER_BYTES)
    throw new SafetensorsError(
      `safetensors: header too long: ${file} claims ${length} bytes, the limit is ${MAX_HEADER_BYTES}; is it a safetensors file?`,
    );
  if (8 + length > fileSize)
    throw new SafetensorsError(
      `safetensors: header beyond the file: ${file} claims a header of ${length} bytes but has only ${fileSize - 8} after its length; the file is cut or is no safetensors file`,
    );
  return length;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** The first key that an object of well-formed JSON text gives twice (JSON.parse would keep the last in silence). */
function duplicateKey(text: string): string | undefined {
  const open: Set<string>[] = [];
  // A plain scan: on long strings a regular expression runs out of its backtracking stack.
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === "{") open.push(new Set());
    else if (c === "}") open.pop();
    else if (c === '"') {
      let end = i + 1;
      for (let code = text.charCodeAt(end); code !== QUOTE; code = text.charCodeAt(end))
        end += code === BACKSLASH ? 2 : 1;
      let after = end + 1;
      while (/\s/.test(text[after])) after++;
      if (text[after] === ":") {
        const key: string = JSON.parse(text.slice(i, end + 1));
        const keys = open[open.length - 1];
        if (keys.has(key)) return key;
        keys.add(key);
      }
      i = end;
    }
  }
  return undefined;
}

function readMetadata(value: unknown, file: string): Record<string, string> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new SafetensorsError(`safetensors: __metadata__ is not an object: ${JSON.stringify(value)} in ${file}`);
  for (const [key, entry] of Object.entries(value))
    if (typeof entry !== "string")
      throw new SafetensorsError(
        `safetensors: metadata is not text: __metadata__["${key}"] is ${JSON.stringify(entry)} in ${file}`,
      );
  return value as Record<string, string>;
}

function readTensor(name: string, value: unknown, dataBegin: number, fileSize: number, file: string): TensorInfo {
  const refuse = (rule: string, given: string) =>
    new SafetensorsError(`safetensors: ${rule}: tensor "${name}" of ${file} ${given}`);
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw refuse("entry is not an object", `is ${JSON.stringify(value)}`);
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
  if (!isSafetensorsDtype(dtype))
    throw refuse(
      "unsupported dtype",
      `is ${JSON.stringify(dtype)}; supported are ${Object.keys(DTYPE_BYTES).join(", ")}`,
    );
  const isSize = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 0;
  if (!Array.isArray(shape) || !shape.every(isSize))
    throw refuse("bad shape", `has ${JSON.stringify(shape)}; sizes are integers of at least 0`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1])
    throw refuse("bad offsets", `has ${JSON.stringify(offsets)}; offsets are [begin, end] with begin <= end`);
  const [begin, end] = offsets;
  if (dataBegin + end > fileSize)
    throw refuse(
      "data beyond the file",
      `ends at byte ${end} of the data, which has ${fileSize - dataBegin} bytes; the file is cut`,
    );
  const bytes = bytesOfShape(shape, dtype);
  if (bytes !== end - begin)
    throw refuse(
      "size differs from its range",
      `is ${dtype} [${shape.join(", ")}] = ${bytes ?? "more than 2^53"} bytes, its range [${begin}, ${end}] has ${end - begin}`,
    );
  return { name, dtype, shape, begin: dataBegin + begin, end: dataBegin + end };
}

/**
 * Reads and checks a header: `bytes` is the JSON after the 8-byte length. Every tensor's type, shape and range must
 * agree, and the ranges must cover the data from its first byte to the file's last without overlap or hole.
 * Throws SafetensorsError naming the tensor and the rule.
 */
export function parseHeader(bytes: Uint8Array, fileSize: number, file: string): Header {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    json = JSON.parse(text);
  } catch (cause) {
    throw new SafetensorsError(`safetensors: header is not JSON: ${file}: ${(cause as Error).message}`, { cause });
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new SafetensorsError(`safetensors: header is not an object: ${file} has ${text.slice(0, 40)}`);
  const twice = duplicateKey(text);
  if (twice !== undefined) throw new SafetensorsError(`safetensors: key given twice: "${twice}" in ${file}`);

  let metadata: Record<string, string> = {};
  const list: TensorInfo[] = [];
  const dataBegin = 8 + bytes.length;
  for (const [name, value] of Object.entries(json)) {
    if (name === "__metadata__") metadata = readMetadata(value, file);
    else list.push(readTensor(name, value, dataBegin, fileSize, file));
  }
  list.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = dataBegin;
  let before: TensorInfo | undefined;
  for (const tensor of list) {
    if (tensor.begin < at)
      throw new SafetensorsError(
        `safetensors: tensors overlap: "${tensor.name}" begins ${at - tensor.begin} bytes before "${before?.name}" ends, in ${file}`,
      );
    if (tensor.begin > at)
      throw new SafetensorsError(
        `safetensors: hole in the data: ${tensor.begin - at} bytes before "${tensor.name}" belong to no tensor, in ${file}`,
      );
    at = tensor.end;
    before = tensor;
  }
  if (at !== fileSize)
    throw new SafetensorsError(
      `safetensors: bytes left over: ${fileSize - at} after the last tensor of ${file} belong to no tensor`,
    );
  return { tensors: new Map(list.map((tensor) => [tensor.name, tensor])), metadata };
}
