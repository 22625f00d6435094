import { ConfigError } from "../../engine/errors.js";
import type { World } from "../data/world.js";

/** Checks that a clip has the size that the world gives it. */
export function checkClip(video: Float32Array, of: World): void {
  const wanted = 3 * of.frames * of.size * of.size;
  if (video.length !== wanted)
    throw new ConfigError(
      `judge: the clip must be [3, ${of.frames}, ${of.size}, ${of.size}] as in world "${of.name}": ${video.length} values were given, ${wanted} are needed; pass the world it was sampled for`,
    );
}

/** Median of a list, the mean of the middle two for an even count. */
export function median(values: number[]): number {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Background colours, RGB in 0..255: the median over all frames of the border, one pixel wide; with two colours
 * that of the upper half's border and that of the lower half's.
 */
export function borderColours(video: Float32Array, of: World): number[][] {
  const { frames, size } = of;
  const halves = of.twoColours ? [[0, size >> 1] as const, [size >> 1, size] as const] : [[0, size] as const];
  return halves.map(([top, bottom]) =>
    [0, 1, 2].map((c) => {
      const border: number[] = [];
      for (let t = 0; t < frames; t++)
        for (let y = top; y < bottom; y++)
          for (let x = 0; x < size; x++) {
            const inside = x > 0 && x < size - 1 && y > 0 && y < size - 1;
            if (!inside) border.push(video[((c * frames + t) * size + y) * size + x]);
          }
      return (median(border) + 1) * 127.5;
    }),
  );
}

/** What stands out from the background in one frame. */
export interface Foreground {
  /** Pixels. */
  area: number;
  /** Mean place in pixels, from the top left pixel's middle; the frame's middle where the area is 0. */
  x: number;
  y: number;
}

/** L1 distance (0..765) from the background above which a pixel belongs to the sprite. */
export const STANDS_OUT = 90;

/** Foreground of frame t of a [3, T, H, W] clip in [-1, 1] over a background of one colour or two halves (0..255). */
export function foregroundOf(
  video: Float32Array,
  t: number,
  frames: number,
  size: number,
  background: readonly (readonly number[])[],
): Foreground {
  let area = 0;
  let sumX = 0;
  let sumY = 0;
  for (let y = 0; y < size; y++) {
    const colour = background[background.length > 1 && y >= size >> 1 ? 1 : 0];
    for (let x = 0; x < size; x++) {
      let distance = 0;
      for (let c = 0; c < 3; c++)
        distance += Math.abs((video[((c * frames + t) * size + y) * size + x] + 1) * 127.5 - colour[c]);
      if (distance <= STANDS_OUT) continue;
      area++;
      sumX += x;
      sumY += y;
    }
  }
  return area === 0 ? { area, x: (size - 1) / 2, y: (size - 1) / 2 } : { area, x: sumX / area, y: sumY / area };
}
