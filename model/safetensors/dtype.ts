import { halfBits, halfValue } from "../../engine/dtype.js";
import { SafetensorsError } from "../../engine/errors.js";

/** Bytes of one element, by the format's own names. All values lie little-endian, as on every machine with WebGPU. */
export const DTYPE_BYTES = {
  F64: 8,
  I64: 8,
  F32: 4,
  I32: 4,
  U32: 4,
  F16: 2,
  BF16: 2,
  I16: 2,
  U16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
} as const;

/** An element type of the safetensors format. */
export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

/** Whether a name is an element type that can be read. */
export function isSafetensorsDtype(name: unknown): name is SafetensorsDtype {
  return typeof name === "string" && Object.hasOwn(DTYPE_BYTES, name);
}

type View<T> = { new (buffer: ArrayBufferLike, offset: number, length: number): T; BYTES_PER_ELEMENT: number };

/** The bytes as typed numbers: a view where their place in the buffer is aligned, else a copy. */
function viewAs<T>(bytes: Uint8Array, Type: View<T>): T {
  const length = bytes.length / Type.BYTES_PER_ELEMENT;
  if (!Number.isInteger(length))
    throw new SafetensorsError(
      `decode: bytes cut inside an element: ${bytes.length} bytes at ${Type.BYTES_PER_ELEMENT} an element`,
    );
  const from = bytes.byteOffset % Type.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  return new Type(from.buffer, from.byteOffset, length);
}

// All 65,536 half floats as f32: 256 KiB that turn decoding into one load an element.
let halves: Float32Array | undefined;

function halfTable(): Float32Array {
  halves ??= Float32Array.from({ length: 65536 }, (_, bits) => halfValue(bits));
  return halves;
}

/**
 * Elements of any type as f32. F32 bytes that are aligned are viewed, not copied. F64 rounds to nearest; I64, I32 and
 * U32 beyond 2^24 round too.
 */
export function decodeFloat32(bytes: Uint8Array, dtype: SafetensorsDtype): Float32Array {
  if (dtype === "F32") return viewAs(bytes, Float32Array);
  const n = bytes.length / DTYPE_BYTES[dtype];
  switch (dtype) {
    case "F16": {
      const table = halfTable();
      const from = viewAs(bytes, Uint16Array);
      const out = new Float32Array(n);
      for (let i = 0; i < n; i++) out[i] = table[from[i]];
      return out;
    }
    case "BF16": {
      const from = viewAs(bytes, Uint16Array);
      const out = new Uint32Array(n);
      for (let i = 0; i < n; i++) out[i] = from[i] << 16;
      return new Float32Array(out.buffer);
    }
    case "F64":
      return new Float32Array(viewAs(bytes, Float64Array));
    case "I64": {
      const words = viewAs(bytes, Int32Array);
      const out = new Float32Array(n);
      for (let i = 0; i < n; i++) out[i] = words[2 * i + 1] * 2 ** 32 + (words[2 * i] >>> 0);
      return out;
    }
    case "I32":
      return new Float32Array(viewAs(bytes, Int32Array));
    case "U32":
      return new Float32Array(viewAs(bytes, Uint32Array));
    case "I16":
      return new Float32Array(viewAs(bytes, Int16Array));
    case "U16":
      return new Float32Array(viewAs(bytes, Uint16Array));
    case "I8":
      return new Float32Array(viewAs(bytes, Int8Array));
    case "U8":
      return new Float32Array(bytes);
    case "BOOL":
      return Float32Array.from(bytes, (b) => (b === 0 ? 0 : 1));
  }
}

/** Elements of any type as f64, exact for every type but I64 beyond 2^53. */
export function decodeFloat64(bytes: Uint8Array, dtype: SafetensorsDtype): Float64Array {
  if (dtype === "F64") return viewAs(bytes, Float64Array);
  if (dtype === "I32" || dtype === "I64") return Float64Array.from(decodeIntegers(bytes, dtype));
  if (dtype === "U32") return new Float64Array(viewAs(bytes, Uint32Array));
  return new Float64Array(decodeFloat32(bytes, dtype));
}

function decodeIntegers(bytes: Uint8Array, dtype: "I32" | "I64"): ArrayLike<number> {
  if (dtype === "I32") return viewAs(bytes, Int32Array);
  const words = viewAs(bytes, Int32Array);
  return Float64Array.from({ length: words.length / 2 }, (_, i) => words[2 * i + 1] * 2 ** 32 + (words[2 * i] >>> 0));
}

/** Integer or BOOL elements as i32, for ids and masks. Throws for float types and for values that i32 cannot hold. */
export function decodeInt32(bytes: Uint8Array, dtype: SafetensorsDtype): Int32Array {
  if (dtype === "I32") return viewAs(bytes, Int32Array);
  if (dtype === "F64" || dtype === "F32" || dtype === "F16" || dtype === "BF16")
    throw new SafetensorsError(`decode: not integers: ${dtype}; decodeFloat32 reads it`);
  const values = decodeFloat64(bytes, dtype);
  for (const value of values)
    if (value !== (value | 0))
      throw new SafetensorsError(`decode: beyond i32: ${value} in ${dtype}; decodeFloat64 reads it`);
  return Int32Array.from(values);
}

/** f32 numbers as the bytes of a float type, rounded to nearest even. F32 shares memory with `values`. */
export function encodeFloat32(values: Float32Array, dtype: "F64" | "F32" | "F16" | "BF16"): Uint8Array {
  const n = values.length;
  if (dtype === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  if (dtype === "F64") return new Uint8Array(new Float64Array(values).buffer);
  const out = new Uint16Array(n);
  if (dtype === "F16") for (let i = 0; i < n; i++) out[i] = halfBits(values[i]);
  else {
    const bits = new Uint32Array(values.buffer, values.byteOffset, n);
    for (let i = 0; i < n; i++) {
      const b = bits[i];
      // A NaN keeps its top bits and stays a NaN; rounding it could carry into infinity.
      out[i] = (b & 0x7fffffff) > 0x7f800000 ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
    }
  }
  return new Uint8Array(out.buffer);
}
