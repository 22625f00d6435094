/** Weights [inputs, outputs] of the ridge regression of rows y on rows x, by Gauss and Jordan. */
export function ridge(x: readonly number[][], y: readonly number[][], lambda: number): number[][] {
  const [n, k] = [x[0].length, y[0].length];
  const a = Array.from({ length: n }, (_, i) => Array.from({ length: n + k }, (_, j) => (i === j ? lambda : 0)));
  x.forEach((row, r) => {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) a[i][j] += row[i] * row[j];
      for (let j = 0; j < k; j++) a[i][n + j] += row[i] * y[r][j];
    }
  });
  // A ridge makes every pivot positive: rows need no swaps.
  for (let i = 0; i < n; i++)
    for (let r = 0; r < n; r++) {
      if (r === i) continue;
      const f = a[r][i] / a[i][i];
      for (let j = i; j < n + k; j++) a[r][j] -= f * a[i][j];
    }
  return a.map((row, i) => row.slice(n).map((value) => value / row[i]));
}

/**
 * How often a linear map, learned from rows that were trained on, tells the choice of rows that were not.
 * @param rows inputs of both; a constant is added
 */
export function probe<T>(
  trained: { rows: readonly number[][]; choices: readonly T[] },
  heldOut: { rows: readonly number[][]; choices: readonly T[] },
): number {
  const kinds = [...new Set(trained.choices)];
  const weights = ridge(
    trained.rows.map((row) => [...row, 1]),
    trained.choices.map((choice) => kinds.map((kind) => Number(kind === choice))),
    1,
  );
  const right = heldOut.rows.filter((row, i) => {
    const scores = kinds.map((_, k) => [...row, 1].reduce((sum, x, j) => sum + x * weights[j][k], 0));
    return kinds[scores.indexOf(Math.max(...scores))] === heldOut.choices[i];
  });
  return right.length / heldOut.rows.length;
}
