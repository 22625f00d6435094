import type { Shape } from "../shape.js";

/**
 * The coarsest axes into which several shapes of equal size can all be cut, as [2, 6] and [4, 3] into [2, 2, 3];
 * undefined where their borders do not nest.
 */
export function refine(shapes: readonly Shape[]): number[] | undefined {
  const borders = new Set<number>();
  for (const shape of shapes) {
    let step = 1;
    for (let i = shape.length - 1; i >= 0; i--) {
      borders.add(step);
      step *= shape[i];
    }
    borders.add(step);
  }
  const sorted = [...borders].sort((a, b) => b - a);
  const axes: number[] = [];
  for (let i = 1; i < sorted.length; i++) {
    const n = sorted[i - 1] / sorted[i];
    if (!Number.isInteger(n)) return undefined;
    axes.push(n);
  }
  return axes.length ? axes : [1];
}

/** Strides over `shape` as strides over finer axes. */
export function restride(shape: Shape, strides: readonly number[], axes: readonly number[]): number[] {
  const out = new Array<number>(axes.length).fill(0);
  let k = axes.length - 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    let rest = shape[i];
    let step = strides[i];
    while (rest > 1) {
      out[k] = step;
      step *= axes[k];
      rest /= axes[k];
      k--;
    }
  }
  return out;
}
