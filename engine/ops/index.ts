export * from "./elementwise.js";
export * from "./reduce.js";
export * from "./view.js";
