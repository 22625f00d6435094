/** The public surface of the engine. */
import "./methods.js";

export { checkpoint } from "./checkpoint.js";
export type { Compiled } from "./compile/compile.js";
export { type DeviceInfo, platform } from "./device/adapter.js";
export type { Data, DType, TypedArray } from "./dtype.js";
export { createEngine, Engine, type EngineOptions } from "./engine.js";
export * from "./errors.js";
export { Flat } from "./flat.js";
export * from "./inspect/index.js";
export { registry } from "./op.js";
export * from "./ops/index.js";
export { checkQuantizedForm, dequantizeWeight, launchQuantize, quantizedShapes } from "./ops/quantized.js";
export { type Averages, launchAdamW, launchEma, launchRescale, PACK, Schedule } from "./ops/update.js";
export { launchElementwise } from "./ops/walk.js";
export { Key } from "./random/key.js";
export type { Shape } from "./shape.js";
export { Tensor } from "./tensor.js";
export * from "./tune/index.js";
