/** Attention of `batch` x `heads` sequences attending to themselves; all arrays [batch, heads, length, depth] dense. */
export interface Problem {
  batch: number;
  heads: number;
  length: number;
  depth: number;
  causal: boolean;
  /** [batch, length]: 0 hides a key. */
  keep?: Float64Array;
  q: Float64Array;
  k: Float64Array;
  v: Float64Array;
  dy: Float64Array;
}

/** y of attention and the gradients of its sum weighted by dy, by the textbook's formulas in float64. */
export function derivatives(p: Problem): Record<"y" | "dq" | "dk" | "dv", Float64Array> {
  const { length: n, depth: d, q, k, v, dy } = p;
  const scale = d ** -0.5;
  const result = { y: q.map(() => 0), dq: q.map(() => 0), dk: q.map(() => 0), dv: q.map(() => 0) };
  const w = new Float64Array(n);
  const dot = (a: Float64Array, i: number, b: Float64Array, j: number) => {
    let sum = 0;
    for (let c = 0; c < d; c++) sum += a[i + c] * b[j + c];
    return sum;
  };
  const add = (a: Float64Array, i: number, f: number, b: Float64Array, j: number) => {
    for (let c = 0; c < d; c++) a[i + c] += f * b[j + c];
  };
  for (let h = 0; h < p.batch * p.heads; h++) {
    const [start, b] = [h * n * d, Math.floor(h / p.heads)];
    for (let i = 0; i < n; i++) {
      const row = start + i * d;
      const sees = (j: number) => !(p.causal && j > i) && p.keep?.[b * n + j] !== 0;
      let [high, total] = [Number.NEGATIVE_INFINITY, 0];
      for (let j = 0; j < n; j++)
        if (sees(j)) {
          w[j] = scale * dot(q, row, k, start + j * d);
          high = Math.max(high, w[j]);
        }
      for (let j = 0; j < n; j++) {
        w[j] = sees(j) ? Math.exp(w[j] - high) : 0;
        total += w[j];
      }
      if (total === 0) continue;
      for (let j = 0; j < n; j++) {
        w[j] /= total;
        if (w[j]) add(result.y, row, w[j], v, start + j * d);
      }
      const delta = dot(dy, row, result.y, row);
      for (let j = 0; j < n; j++) {
        if (!w[j]) continue;
        const key = start + j * d;
        const ds = w[j] * (dot(dy, row, v, key) - delta) * scale;
        add(result.dv, key, w[j], dy, row);
        add(result.dq, row, ds, k, key);
        add(result.dk, key, ds, q, row);
      }
    }
  }
  return result;
}
