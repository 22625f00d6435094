import type { DType } from "../dtype.js";
import type { Storage } from "../memory.js";
import type { Shape } from "../shape.js";

/** A tensor as a launch reads or writes it: elements from `offset` on, a stride for each axis of the launch's shape. */
export interface Place {
  storage: Storage;
  offset: number;
  strides: readonly number[];
  dtype: DType;
}

/** An elementwise launch: y = expression(operands) over `shape`, where y is dense. */
export interface Formula {
  kind: "formula";
  expression: string;
  /** What the expression calls the operands. */
  names: readonly string[];
  operands: readonly Place[];
  /** Bits of the constants K0 … K3, in the type of the first operand. */
  constants: readonly number[];
  shape: Shape;
  y: Place;
  /** The op that made y, for texts. */
  op: string;
}

/** A sum over the middle of a dense x [outer, reduced, inner], each of `split` shares of `chunk`: y [outer, split, inner]. */
export interface Sum {
  kind: "sum";
  operands: readonly [Place];
  /** [outer, reduced, inner] */
  shape: Shape;
  y: Place;
  split: number;
  chunk: number;
  scale: number;
  op: string;
}

/**
 * A launch that hands its result to `fn keep(v, row, column, at)` of its shader, which stores it in a dense
 * y [rows, width], where the first of `v` is element `at`. What follows can be done there, before anything is stored.
 */
export interface Rows {
  kind: "rows";
  operands: readonly [];
  /** [rows, width] */
  shape: Shape;
  y: Place;
  /** The function's name. */
  keep: string;
  /** Neighbours of a row that it is handed at once. */
  lanes: 1 | 4;
  op: string;
}

/** What a launch computes, in terms that allow to compute it together with others. */
export type Meaning = Formula | Sum | Rows;
