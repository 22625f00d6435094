import { EspalierError } from "../../engine/errors.js";

/**
 * Eigenvalues and eigenvectors of a symmetric matrix by cyclic Jacobi rotations, in float64.
 * @param matrix [n, n] row-major, symmetric; not changed
 * @returns values in falling order, and vectors [n, n] row-major whose row j belongs to value j; the entry of
 *   largest magnitude in each vector is positive, so that equal input gives equal signs
 * @throws EspalierError when the matrix holds a value that is not finite
 */
export function symmetricEigen(matrix: Float64Array, n: number): { values: Float64Array; vectors: Float64Array } {
  const a = Float64Array.from(matrix);
  if (!a.every(Number.isFinite))
    throw new EspalierError(
      "eigen: the matrix must be finite: it holds NaN or infinity; check the data that it was made of",
    );
  const v = new Float64Array(n * n);
  for (let i = 0; i < n; i++) v[i * n + i] = 1;
  let size = 0;
  for (const x of a) size += x * x;
  // 30 sweeps are far more than convergence takes: it is quadratic, 6-10 for hundreds of columns.
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) for (let q = 0; q < p; q++) off += a[p * n + q] ** 2;
    if (off <= 1e-30 * size) break;
    for (let p = 0; p < n - 1; p++)
      for (let q = p + 1; q < n; q++) {
        const apq = a[p * n + q];
        if (apq === 0) continue;
        const theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        for (let k = 0; k < n; k++) {
          const x = a[k * n + p];
          const y = a[k * n + q];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (let k = 0; k < n; k++) {
          const x = a[p * n + k];
          const y = a[q * n + k];
          a[p * n + k] = c * x - s * y;
          a[q * n + k] = s * x + c * y;
        }
        // Rows of v are the vectors, so one rotation touches two runs of memory.
        for (let k = 0; k < n; k++) {
          const x = v[p * n + k];
          const y = v[q * n + k];
          v[p * n + k] = c * x - s * y;
          v[q * n + k] = s * x + c * y;
        }
      }
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => a[j * n + j] - a[i * n + i]);
  const values = Float64Array.from(order, (i) => a[i * n + i]);
  const vectors = new Float64Array(n * n);
  order.forEach((from, to) => {
    const row = v.subarray(from * n, (from + 1) * n);
    let top = 0;
    for (const x of row) if (Math.abs(x) > Math.abs(top)) top = x;
    const sign = top < 0 ? -1 : 1;
    for (let k = 0; k < n; k++) vectors[to * n + k] = sign * row[k];
  });
  return { values, vectors };
}
