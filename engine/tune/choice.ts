import type { Engine } from "../engine.js";

/**
 * A kernel family that can be launched in several ways which differ in speed alone.
 *
 * A family asks `engine.tuning.winner(id, key)` when it launches, and takes its own usual way when nothing is known.
 * `tune` times the ways and fills what `winner` answers.
 */
export interface Family {
  /** Name to show, such as "matmul". */
  readonly name: string;
  /** Name and revision of the kernels: what was measured with other kernels no longer counts. */
  readonly id: string;
  /** Shape classes worth timing on this adapter. */
  typical(engine: Engine): readonly string[];
  /** The problem that stands for a shape class; undefined when the key is none of this family's, or too large here. */
  problem(engine: Engine, key: string): Problem | undefined;
}

/** One shape of a shape class. */
export interface Problem {
  /** What a person reads, such as "[1024,64] · [256,64]ᵀ". */
  readonly shown: string;
  /** Floating-point operations of one launch. */
  readonly flops: number;
  /** What is taken without tuning. */
  readonly usual: string;
  /** What may be taken, `usual` among them. */
  readonly ways: readonly string[];
  /** The plain way, which all others are compared with; it need not be one of `ways`. */
  readonly reference: string;
  /** Largest difference from the reference that is rounding, relative to the largest value. */
  readonly tolerance: number;
  /** Makes the operands; `small` ones, of the same class of kernels, are for comparing numbers. */
  prepare(small: boolean): Prepared;
}

export interface Prepared {
  /** Records one run. */
  launch(way: string): void;
  /** The result of the last run. */
  result(): Promise<ArrayLike<number>>;
  dispose(): void;
}

/** The power of two nearest to a size, on a scale of ratios: sizes of one class take the same kernels. */
export const bucket = (size: number): number => 2 ** Math.round(Math.log2(Math.max(1, size)));

/** A short text that changes when one of the sources does (FNV-1a). */
export function revisionOf(...sources: readonly string[]): string {
  let hash = 0x811c9dc5;
  for (const source of sources)
    for (let i = 0; i < source.length; i++) hash = Math.imul(hash ^ source.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}
