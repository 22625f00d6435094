export * from "./attention.js";
export * from "./conv.js";
export * from "./elementwise.js";
export * from "./gather.js";
export * from "./join.js";
export * from "./loss.js";
export * from "./matmul.js";
export { groupNorm, layerNorm, type NormOptions, rmsNorm } from "./norm.js";
export {
  type LinearQuantizedOptions,
  linearQuantized,
  type QuantizedForm,
  type QuantizedWeight,
  quantizeWeight,
} from "./quantized.js";
export * from "./random.js";
export * from "./reduce.js";
export * from "./rotary.js";
export { flip, pad, slice } from "./slice.js";
export { logSoftmax, maskedSoftmax, softmax } from "./softmax.js";
export { globalNorm } from "./update.js";
export * from "./upsample.js";
export * from "./view.js";
