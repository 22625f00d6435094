/** Safetensors in and out: lazy, by HTTP range or from a Blob, sharded, every header checked, every write atomic. */
export { type ByteSink, type ByteSource, FileError, memorySink, memorySource } from "./files/source.js";
export { copyEntries } from "./safetensors/copy.js";
export {
  DTYPE_BYTES,
  decodeFloat32,
  decodeFloat64,
  decodeInt32,
  encodeFloat32,
  type SafetensorsDtype,
} from "./safetensors/dtype.js";
export { MAX_HEADER_BYTES, type TensorInfo } from "./safetensors/header.js";
export {
  type OpenOptions,
  openSafetensors,
  Safetensors,
  type SafetensorsLocation,
  type TensorBytes,
  type TensorChunk,
} from "./safetensors/reader.js";
export { type SafetensorsEntry, type WriteOptions, type Written, writeSafetensors } from "./safetensors/writer.js";
