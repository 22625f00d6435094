import { collapse } from "../shape.js";
import type { Layout, Value } from "./group.js";
import type { Meaning, Place, Rows } from "./meaning.js";

/** Formulas with constants that a kernel of rows has room for. */
export const MOST_CONSTANTS = 4;
export const constantsOf = (m: Meaning): number => (usesConstants(m) ? 1 : 0);
/** Whether a formula reads its constants. */
export const usesConstants = (m: Meaning): boolean => m.kind === "formula" && /\bK[0-3]\b/.test(m.expression);

/** Tensors from outside as a kernel of rows reads them: no more than this many. */
export const MOST_EXTRA = 4;

/** One axis over rows and one within: a load's row is (row / div) % mod. */
export function rowsLayout(
  { shape: [, width], lanes }: Rows,
  refined: readonly number[],
  loads: readonly Place[],
  values: Value[][],
): Layout | undefined {
  if (loads.length > MOST_EXTRA) return undefined;
  const inner: number[] = [];
  const outer: number[] = [];
  let step = 1;
  for (let i = refined.length - 1; i >= 0; i--) {
    (step < width ? inner : outer).unshift(i);
    step *= refined[i];
  }
  for (const { strides, offset, dtype } of loads) {
    if (dtype !== "f32" && dtype !== "f16") return undefined;
    const within = collapse(
      inner.map((i) => refined[i]),
      [inner.map((i) => strides[i])],
    );
    const dense = within.shape.length === 1 && within.strides[0][0] === 1;
    if (!dense || offset % lanes !== 0 || outer.some((i) => strides[i] % lanes !== 0)) return undefined;
    if (!rowOf(outer, refined, strides)) return undefined;
  }
  return { axes: [...refined], loads: [...loads], values };
}

/** Which row of a load belongs to a row of the result: (row / div) % mod, `step` elements apart. */
export function rowOf(
  outer: readonly number[],
  axes: readonly number[],
  strides: readonly number[],
): { div: number; mod: number; step: number } | undefined {
  const { shape, strides: steps } = collapse(
    outer.map((i) => axes[i]),
    [outer.map((i) => strides[i])],
  );
  let found: { div: number; mod: number; step: number } | undefined = { div: 1, mod: 1, step: 0 };
  let div = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    const s = steps[0][i];
    if (s !== 0) {
      if (found.step !== 0) return undefined;
      found = { div, mod: shape[i], step: s };
    }
    div *= shape[i];
  }
  return found;
}

/** The axes beyond a row of `width`, by number. */
export function outerAxes(axes: readonly number[], width: number): number[] {
  let step = 1;
  const outer: number[] = [];
  for (let i = axes.length - 1; i >= 0; i--) {
    if (step >= width) outer.unshift(i);
    step *= axes[i];
  }
  return outer;
}
