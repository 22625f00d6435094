import {
  type DType,
  normal as drawNormal,
  uniform as drawUniform,
  type Engine,
  type Key,
  type Shape,
  type Tensor,
} from "../engine/index.js";

/** Makes a parameter's initial values on the GPU: a pure function of the key. */
export type Init = (engine: Engine, shape: Shape, key: Key, dtype: DType) => Tensor;

export const zeros: Init = (engine, shape, _, dtype) => engine.zeros(shape, dtype);
export const ones: Init = (engine, shape, _, dtype) => engine.ones(shape, dtype);

/** U[-bound, bound). */
export const uniform =
  (bound: number): Init =>
  (engine, shape, key, dtype) =>
    drawUniform(engine, key, shape, { low: -bound, high: bound, dtype });

/** N(0, std²). */
export const normal =
  (std: number): Init =>
  (engine, shape, key, dtype) =>
    drawNormal(engine, key, shape, { std, dtype });

/**
 * Xavier's uniform rule: U with bound √(6 / (fan in + fan out)), the weight read as a [out, everything else] matrix.
 * Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).
 */
export const xavierUniform: Init = (engine, shape, key, dtype) => {
  const fanOut = shape[0];
  const fanIn = shape.slice(1).reduce((a, b) => a * b, 1);
  return uniform(Math.sqrt(6 / (fanIn + fanOut)))(engine, shape, key, dtype);
};

/** The rule of an open-ended bias: U with bound 1 / √(fan in). */
export const biasUniform = (fanIn: number): Init => uniform(1 / Math.sqrt(fanIn));
