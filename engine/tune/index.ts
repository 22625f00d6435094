export { clearTuning, keepTuning, loadTuning } from "./cache.js";
export type { Family, Prepared, Problem } from "./choice.js";
export { tuneReport } from "./report.js";
export { type TuneOptions, type TuneResult, tune } from "./tune.js";
export { Tuning, type Winner } from "./tuning.js";
