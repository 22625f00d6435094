export * from "./elementwise.js";
export * from "./matmul.js";
export * from "./join.js";
export * from "./random.js";
export * from "./reduce.js";
export * from "./slice.js";
export * from "./view.js";
export { globalNorm } from "./update.js";
