import { DTypeError } from "./errors.js";

/** Element types of tensors on the GPU. f16 is a storage type only: kernels accumulate in f32. */
export type DType = "f32" | "f16" | "i32" | "u32";

export type TypedArray = Float32Array | Int32Array | Uint32Array;
/** Numbers as a user may hand them over; f16 data travels as Float32Array and is rounded on the way in. */
export type Data = ArrayLike<number> | TypedArray;

export const dtypes: readonly DType[] = ["f32", "f16", "i32", "u32"];

/** Bytes of one element. */
export const bytesOf = (dtype: DType): number => (dtype === "f16" ? 2 : 4);

export const isFloat = (dtype: DType): boolean => dtype === "f32" || dtype === "f16";

/** The WGSL type in which a kernel computes with elements stored as `dtype`. */
export const computeType = (dtype: DType): "f32" | "i32" | "u32" => (dtype === "f16" ? "f32" : dtype);

export function checkDType(subject: string, dtype: string): asserts dtype is DType {
  if (!(dtypes as readonly string[]).includes(dtype))
    throw new DTypeError(`${subject}: unknown dtype "${dtype}"; tensors are ${dtypes.join(", ")}`);
}

const scratch = new DataView(new ArrayBuffer(4));

/** Rounds a number to the nearest half (ties to even) and returns its 16 bits. */
export function halfBits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const exponent = (bits >>> 23) & 0xff;
  const mantissa = bits & 0x7fffff;
  if (exponent === 0xff) return sign | 0x7c00 | (mantissa ? 0x200 : 0);
  const e = exponent - 112;
  if (e >= 31) return sign | 0x7c00;
  if (e <= 0) {
    if (e < -10) return sign;
    const m = mantissa | 0x800000;
    const shift = 14 - e;
    const half = m >>> shift;
    const rest = m & ((1 << shift) - 1);
    const middle = 1 << (shift - 1);
    return sign | (half + (rest > middle || (rest === middle && half & 1) ? 1 : 0));
  }
  const half = (e << 10) | (mantissa >>> 13);
  const rest = mantissa & 0x1fff;
  return sign | (half + (rest > 0x1000 || (rest === 0x1000 && half & 1) ? 1 : 0));
}

/** The number that 16 half-precision bits stand for. */
export function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** Encodes numbers as the bytes that a buffer of `dtype` holds. */
export function encode(data: Data, dtype: DType): Uint8Array {
  if (dtype === "f16") {
    const halves = new Uint16Array(data.length);
    for (let i = 0; i < data.length; i++) halves[i] = halfBits(data[i]);
    return new Uint8Array(halves.buffer);
  }
  const Type = dtype === "f32" ? Float32Array : dtype === "i32" ? Int32Array : Uint32Array;
  const array = data instanceof Type ? data : Type.from(data as ArrayLike<number>);
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** The inverse of `encode`: f16 comes back as Float32Array. */
export function decode(bytes: ArrayBuffer, dtype: DType, length: number): TypedArray {
  if (dtype === "f16") return Float32Array.from(new Uint16Array(bytes, 0, length), halfValue);
  if (dtype === "f32") return new Float32Array(bytes, 0, length);
  return dtype === "i32" ? new Int32Array(bytes, 0, length) : new Uint32Array(bytes, 0, length);
}
