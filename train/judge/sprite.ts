import type { Sprite, Sprites } from "../data/compose.js";
import type { World } from "../data/world.js";
import { type Foreground, STANDS_OUT } from "./scene.js";

export interface SpriteMatch {
  class: string;
  /** Mean squared difference of the clip from this class's sprite at its best place and size, values in [-1, 1]. */
  error: number;
}

/** Size at which a class's foreground is measured, as a share of the frame; the sprites of the worlds are near it. */
const MEASURED = 21 / 32;
/** A frame with less foreground than this share of its pixels says nothing about the class. */
const LEAST_AREA = 0.01;

/** One frame of a clip and its background, ready to be compared with many sprites. */
interface Scene {
  side: number;
  /** [3, H, W], 0..1 */
  pixels: Float32Array;
  /** RGB in 0..1 of the upper and the lower half. */
  halves: readonly [readonly number[], readonly number[]];
  /** [H, W]: squared difference from the bare background, and its sum. */
  bare: Float32Array;
  bareSum: number;
}

/**
 * Tells classes apart by laying every class's own sprite over the clip's background, in each frame at the size
 * and place that give it the clip's foreground area and centre, give or take a pixel, and taking the class whose
 * picture differs least from the clip over all frames.
 */
export class SpriteJudge {
  /** @param sprites clips of the classes to choose among */
  constructor(private readonly sprites: Sprites) {}

  /** The nearest class, or "nothing" where no frame has enough foreground. Arguments as for `matches`. */
  classOf(
    video: Float32Array,
    of: World,
    background: readonly (readonly number[])[],
    seen: readonly Foreground[],
  ): string {
    return this.matches(video, of, background, seen)[0]?.class ?? "nothing";
  }

  /**
   * All classes, the nearest first; none where no frame has enough foreground.
   * @param video [3, T, H, W]
   * @param background RGB in 0..255, one colour or two halves
   * @param seen the clip's foreground in each frame
   */
  matches(
    video: Float32Array,
    of: World,
    background: readonly (readonly number[])[],
    seen: readonly Foreground[],
  ): SpriteMatch[] {
    const { size: side, frames } = of;
    const used = seen
      .map((foreground, t) => ({ foreground, t }))
      .filter(({ foreground }) => foreground.area >= LEAST_AREA * side * side)
      .map((f) => ({ ...f, scene: sceneOf(video, f.t, frames, side, background) }));
    if (used.length === 0) return [];
    return this.sprites.classes
      .map((name) => {
        let error = 0;
        for (const { foreground, t, scene } of used)
          error += leastError(scene, foreground, (size) => this.sprites.at(name, t, frames, size));
        return { class: name, error: error / used.length };
      })
      .sort((a, b) => a.error - b.error);
  }
}

function sceneOf(
  video: Float32Array,
  t: number,
  frames: number,
  side: number,
  background: readonly (readonly number[])[],
): Scene {
  const area = side * side;
  const scaled = background.map((colour) => colour.map((v) => v / 255));
  const halves = [scaled[0], scaled[1] ?? scaled[0]] as const;
  const pixels = new Float32Array(3 * area);
  const bare = new Float32Array(area);
  let bareSum = 0;
  for (let c = 0; c < 3; c++)
    for (let p = 0; p < area; p++) {
      const value = (video[(c * frames + t) * area + p] + 1) / 2;
      pixels[c * area + p] = value;
      const d = (value - halves[p < (side >> 1) * side ? 0 : 1][c]) ** 2;
      bare[p] += d;
      bareSum += d;
    }
  return { side, pixels, halves, bare, bareSum };
}

/** Foreground that a sprite makes at (x, y), by the rule by which the clip's own was found. */
function spriteForeground({ side, halves }: Scene, { size, rgba }: Sprite, x: number, y: number): Foreground {
  let area = 0;
  let sumX = 0;
  let sumY = 0;
  for (let j = Math.max(0, -y); j < Math.min(size, side - y); j++) {
    const under = halves[y + j < side >> 1 ? 0 : 1];
    for (let i = Math.max(0, -x); i < Math.min(size, side - x); i++) {
      const o = (j * size + i) * 4;
      const alpha = rgba[o + 3];
      let distance = 0;
      for (let c = 0; c < 3; c++) distance += Math.abs(rgba[o + c] - alpha * under[c]);
      if (distance * 255 <= STANDS_OUT) continue;
      area++;
      sumX += x + i;
      sumY += y + j;
    }
  }
  return area === 0 ? { area, x: x + size / 2, y: y + size / 2 } : { area, x: sumX / area, y: sumY / area };
}

/** Mean squared difference (values in [-1, 1]) of a scene from the sprite laid over its background at (x, y). */
function errorAt({ side, pixels, halves, bare, bareSum }: Scene, { size, rgba }: Sprite, x: number, y: number): number {
  const area = side * side;
  let sum = bareSum;
  for (let j = Math.max(0, -y); j < Math.min(size, side - y); j++) {
    const under = halves[y + j < side >> 1 ? 0 : 1];
    for (let i = Math.max(0, -x); i < Math.min(size, side - x); i++) {
      const o = (j * size + i) * 4;
      const rest = 1 - rgba[o + 3];
      if (rest === 1) continue;
      const p = (y + j) * side + x + i;
      sum -= bare[p];
      for (let c = 0; c < 3; c++) sum += (pixels[c * area + p] - rgba[o + c] - rest * under[c]) ** 2;
    }
  }
  return (4 * sum) / (3 * area);
}

/** The error of one frame at the best of 3 sizes and 9 places around those that the foreground suggests. */
function leastError(scene: Scene, seen: Foreground, spriteAt: (size: number) => Sprite): number {
  const { side } = scene;
  const first = Math.round(MEASURED * side);
  const corner = Math.round((side - first) / 2);
  const own = spriteForeground(scene, spriteAt(first), corner, corner);
  const guess = own.area === 0 ? first : Math.round(first * Math.sqrt(seen.area / own.area));
  let least = Number.POSITIVE_INFINITY;
  for (let size = Math.max(2, guess - 1); size <= Math.min(2 * side, Math.max(guess, 2) + 1); size++) {
    const sprite = spriteAt(size);
    // Where a sprite's own foreground lies within it depends on the background, so it is measured, then moved.
    const startX = Math.round(seen.x + 0.5 - size / 2);
    const startY = Math.round(seen.y + 0.5 - size / 2);
    const at = spriteForeground(scene, sprite, startX, startY);
    const x = startX + Math.round(seen.x - at.x);
    const y = startY + Math.round(seen.y - at.y);
    for (let dy = -1; dy <= 1; dy++)
      for (let dx = -1; dx <= 1; dx++) least = Math.min(least, errorAt(scene, sprite, x + dx, y + dy));
  }
  return least;
}
