import { add, ConfigError, type Engine, mul, pad, type Tensor } from "../../engine/index.js";

/** Tiles along one axis, in cells. */
export interface AxisTiles {
  /** Cells of each tile. */
  tile: number;
  /** First cell of each tile; they spread evenly and the last one ends at the end. */
  starts: readonly number[];
}

/** Tiles of `tile` cells that cover `length` cells and share at least `overlap` with their neighbours. */
export function axisTiles(length: number, tile: number, overlap: number): AxisTiles {
  if (tile >= length) return { tile: length, starts: [0] };
  const steps = Math.ceil((length - tile) / (tile - overlap));
  return { tile, starts: Array.from({ length: steps + 1 }, (_, i) => Math.round((i * (length - tile)) / steps)) };
}

/**
 * Each tile's share of the result at its places, [tiles][tile · scale]: 1 where it lies alone, a ramp towards the
 * neighbours; at every place the shares of all tiles add up to 1.
 */
export function shares({ tile, starts }: AxisTiles, overlap: number, scale: number): Float32Array[] {
  const n = tile * scale;
  const length = (starts[starts.length - 1] + tile) * scale;
  const ramp = Math.max(1, overlap * scale);
  const raw = starts.map((start) =>
    Float64Array.from({ length: n }, (_, p) =>
      Math.min(
        1,
        start === 0 ? 1 : (p + 0.5) / ramp,
        start * scale + n === length ? 1 : (n - p - 0.5) / ramp, // No ramp at the picture's own edge.
      ),
    ),
  );
  const sum = new Float64Array(length);
  raw.forEach((w, i) => {
    w.forEach((v, p) => {
      sum[starts[i] * scale + p] += v;
    });
  });
  return raw.map((w, i) => Float32Array.from(w, (v, p) => v / sum[starts[i] * scale + p]));
}

/** How a picture is cut. */
export interface TileSizes {
  /** Rows and columns of a tile, in cells of the latent. */
  tile: number;
  /** Cells that neighbours share at least, where one fades into the other. */
  overlap: number;
}

/** @throws ConfigError unless tiles are larger than what they share */
export function checkTiles({ tile, overlap }: TileSizes, unit: number): void {
  const pixels = `in pixels, multiples of ${unit}`;
  if (!(Number.isInteger(tile) && tile >= 1))
    throw new ConfigError(`vae: the side of a tile must be above 0 ${pixels}: got ${tile * unit}.`);
  if (!(Number.isInteger(overlap) && overlap >= 0 && overlap < tile))
    throw new ConfigError(
      `vae: the overlap must be from 0 and below the side of a tile (${tile * unit}), ${pixels}: got ${overlap * unit}.`,
    );
}

/**
 * Runs `f` on tiles of x [N, C, h · from, w · from] and fades the results [N, C', tile · to, tile · to] into one
 * [N, C', h · to, w · to]. Where a tile lies alone the result is the tile's own, to the bit.
 * @param from places of x in a cell
 * @param to places of the result in a cell
 */
export function inTiles(
  engine: Engine,
  x: Tensor,
  { tile, overlap }: TileSizes,
  from: number,
  to: number,
  f: (x: Tensor) => Tensor,
): Tensor {
  const [, , H, W] = x.shape;
  const [rows, columns] = [axisTiles(H / from, tile, overlap), axisTiles(W / from, tile, overlap)];
  if (rows.starts.length === 1 && columns.starts.length === 1) return f(x);
  const [down, across] = [shares(rows, overlap, to), shares(columns, overlap, to)];
  const [height, width] = [(H / from) * to, (W / from) * to];
  let total: Tensor | undefined;
  for (const [i, row] of rows.starts.entries())
    for (const [j, column] of columns.starts.entries()) {
      const before = total;
      total = engine.scope(() => {
        const cut = x
          .slice(2, row * from, (row + rows.tile) * from)
          .slice(3, column * from, (column + columns.tile) * from); // [N, C, th · from, tw · from]
        const y = f(cut); // [N, C', th · to, tw · to]
        const weight = mul(engine.tensor(down[i], [down[i].length, 1]), engine.tensor(across[j], [across[j].length])); // [th · to, tw · to]
        const place = [
          [0, 0],
          [0, 0],
          [row * to, height - (row + rows.tile) * to],
          [column * to, width - (column + columns.tile) * to],
        ] as const;
        const own = pad(mul(y, weight), place); // [N, C', h · to, w · to]
        return before ? add(before, own) : own; // [N, C', h · to, w · to]
      });
      before?.dispose();
    }
  return total!;
}
