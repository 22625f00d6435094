import type { DType, Engine, Tensor } from "../../engine/index.js";

/** An n-dimensional array of float64 on the host: what oracles compute with. */
export interface Nd {
  shape: readonly number[];
  data: Float64Array;
}

/** An operand of a case. */
export interface Input {
  shape: readonly number[];
  dtype?: DType;
  /** Exact values, or a range for seeded uniform values (default [-2, 2]). */
  values?: readonly number[] | { low: number; high: number };
  /** Turns the uploaded tensor into a view (permute, slice, expand); `values` describe what was uploaded. */
  view?: { engine: (t: Tensor) => Tensor; oracle: (x: Nd) => Nd };
}

/** One check of an op: forward against the oracle, gradients against central differences of the oracle in float64. */
export interface Case {
  name: string;
  inputs: Record<string, Input>;
  run(t: Record<string, Tensor>, engine: Engine): Tensor;
  oracle(x: Record<string, Nd>): Nd;
  /** Inputs whose gradients are checked. */
  grads?: readonly string[];
  /** Largest |difference| / (1 + |expected|); default 2e-6 times the square root of the values summed. */
  tolerance?: number;
  gradTolerance?: number;
  /** Also run with f16 storage, where the adapter has it. Default: all-float cases do. */
  f16?: boolean;
}

/** A call that must throw, with what its message must say. */
export interface Refusal {
  name: string;
  run(engine: Engine): unknown;
  message: RegExp;
}

/** Everything about the ops of one stem. `covers` names them as in the registry. */
export interface OpTest {
  covers: readonly string[];
  cases: readonly Case[];
  refusals: readonly Refusal[];
}
