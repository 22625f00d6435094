import { drawsOf } from "../train/data/draws.js";
import { symmetricEigen } from "../train/data/eigen.js";

/** A matrix by its rows, each the columns that are not zero and their values. */
export interface SparseMatrix {
  columns: Uint16Array[];
  values: Float32Array[];
  width: number;
}

/** Makes the columns of a [rows, k] matrix orthonormal, in place (Gram-Schmidt, twice for accuracy). */
function orthonormalise(a: Float32Array, rows: number, k: number): void {
  for (let j = 0; j < k; j++) {
    for (let pass = 0; pass < 2; pass++)
      for (let p = 0; p < j; p++) {
        let dot = 0;
        for (let r = 0; r < rows; r++) dot += a[r * k + j] * a[r * k + p];
        for (let r = 0; r < rows; r++) a[r * k + j] -= dot * a[r * k + p];
      }
    let norm = 0;
    for (let r = 0; r < rows; r++) norm += a[r * k + j] ** 2;
    norm = Math.sqrt(norm);
    for (let r = 0; r < rows; r++) a[r * k + j] /= norm;
  }
}

function times({ columns, values }: SparseMatrix, q: Float32Array, k: number): Float32Array {
  const out = new Float32Array(columns.length * k);
  columns.forEach((row, i) => {
    row.forEach((c, e) => {
      const x = values[i][e];
      for (let j = 0; j < k; j++) out[i * k + j] += x * q[c * k + j];
    });
  });
  return out;
}

function transposedTimes({ columns, values, width }: SparseMatrix, q: Float32Array, k: number): Float32Array {
  const out = new Float32Array(width * k);
  columns.forEach((row, i) => {
    row.forEach((c, e) => {
      const x = values[i][e];
      for (let j = 0; j < k; j++) out[c * k + j] += x * q[i * k + j];
    });
  });
  return out;
}

/**
 * Leading singular values and left vectors by subspace iteration (Halko, Martinsson and Tropp 2011).
 * @param rank how many to return; `spare` more are carried along for accuracy
 * @returns values [rank] in falling order and left [rows, rank]
 */
export function leadingLeft(
  matrix: SparseMatrix,
  rank: number,
  spare = 24,
  rounds = 5,
): { values: Float64Array; left: Float32Array } {
  const k = rank + spare;
  const rows = matrix.columns.length;
  const draws = drawsOf(1, 0, 0);
  let right: Float32Array = Float32Array.from({ length: matrix.width * k }, () => draws.between(-1, 1));
  let left: Float32Array = new Float32Array(0);
  for (let round = 0; round < rounds; round++) {
    left = times(matrix, right, k);
    orthonormalise(left, rows, k);
    right = transposedTimes(matrix, left, k);
    if (round < rounds - 1) orthonormalise(right, matrix.width, k);
  }
  // The matrix is about left right^T with orthonormal left: its singular values are those of the narrow right.
  const gram = new Float64Array(k * k);
  for (let c = 0; c < matrix.width; c++)
    for (let a = 0; a < k; a++) for (let b = 0; b < k; b++) gram[a * k + b] += right[c * k + a] * right[c * k + b];
  const { values, vectors } = symmetricEigen(gram, k);
  const out = new Float32Array(rows * rank);
  for (let i = 0; i < rows; i++)
    for (let d = 0; d < rank; d++) {
      let sum = 0;
      for (let a = 0; a < k; a++) sum += left[i * k + a] * vectors[d * k + a];
      out[i * rank + d] = sum;
    }
  return { values: values.slice(0, rank).map(Math.sqrt), left: out };
}
