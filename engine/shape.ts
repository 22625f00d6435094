import { ShapeError } from "./errors.js";

export type Shape = readonly number[];

/** `[2, 3]` as texts show it. */
export const show = (shape: Shape): string => `[${shape.join(", ")}]`;

export const sizeOf = (shape: Shape): number => shape.reduce((a, b) => a * b, 1);

export const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((n, i) => n === b[i]);

/** Row-major strides in elements. */
export function denseStrides(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

/** True when the strides walk memory in row-major order without gaps (axes of size 1 do not matter). */
export function isDense(shape: Shape, strides: readonly number[]): boolean {
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== step) return false;
    step *= shape[i];
  }
  return true;
}

/** Throws unless every size is a non-negative integer and the whole fits the 32-bit indices of kernels. */
export function checkShape(subject: string, shape: Shape): void {
  for (const n of shape)
    if (!Number.isInteger(n) || n < 0)
      throw new ShapeError(`${subject}: sizes must be non-negative integers: got ${show(shape)}.`);
  if (sizeOf(shape) >= 2 ** 31)
    throw new ShapeError(`${subject}: ${show(shape)} has more elements than kernels can index (2^31); split it.`);
}

/** Resolves an axis that may count from the end. */
export function axis(subject: string, shape: Shape, dim: number): number {
  const n = shape.length;
  if (!Number.isInteger(dim) || dim < -n || dim >= Math.max(n, 1))
    throw new ShapeError(
      `${subject}: axis ${dim} is out of range: ${show(shape)} has axes ${n ? `${-n} to ${n - 1}` : "none"}.`,
    );
  return dim < 0 ? dim + n : dim;
}

/** Resolves a list of axes (undefined = all), sorted, each at most once. */
export function axes(subject: string, shape: Shape, dims: number | readonly number[] | undefined): number[] {
  if (dims === undefined) return shape.map((_, i) => i);
  const list = (typeof dims === "number" ? [dims] : dims).map((d) => axis(subject, shape, d));
  if (new Set(list).size !== list.length)
    throw new ShapeError(`${subject}: axis given twice: ${show(dims as number[])} on ${show(shape)}; name each once.`);
  return list.sort((a, b) => a - b);
}

/** The common shape of operands under NumPy's broadcasting rule. */
export function broadcast(subject: string, ...shapes: Shape[]): number[] {
  const rank = Math.max(...shapes.map((s) => s.length));
  const out = new Array<number>(rank).fill(1);
  for (const shape of shapes)
    shape.forEach((n, i) => {
      const at = rank - shape.length + i;
      if (out[at] === 1) out[at] = n;
      else if (n !== 1 && n !== out[at])
        throw new ShapeError(
          `${subject}: shapes do not broadcast: ${shapes.map(show).join(" · ")}; aligned at the right, sizes must be equal or 1.`,
        );
    });
  return out;
}

/** Strides that read a tensor of `shape` as if it had the larger shape `target` (0 along repeated axes). */
export function expandStrides(shape: Shape, strides: readonly number[], target: Shape): number[] {
  const lead = target.length - shape.length;
  return target.map((n, i) => (i < lead || (shape[i - lead] === 1 && n !== 1) ? 0 : strides[i - lead]));
}

/**
 * Merges neighbouring axes that every operand walks as one, and drops axes of size 1, so that kernels see few axes.
 * `strides` has one list per operand.
 */
export function collapse(
  shape: Shape,
  strides: readonly (readonly number[])[],
): { shape: number[]; strides: number[][] } {
  const outShape: number[] = [];
  const out: number[][] = strides.map(() => []);
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === 1) continue;
    const last = outShape.length - 1;
    if (last >= 0 && strides.every((s, k) => out[k][last] === s[i] * shape[i])) {
      outShape[last] *= shape[i];
      strides.forEach((s, k) => {
        out[k][last] = s[i];
      });
    } else {
      outShape.push(shape[i]);
      strides.forEach((s, k) => {
        out[k].push(s[i]);
      });
    }
  }
  return { shape: outShape, strides: out };
}
