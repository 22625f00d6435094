import { DataError } from "../../engine/errors.js";
import type { Clip } from "./clip.js";
import type { Draws } from "./draws.js";
import { COLOURS, type Spec, type World } from "./world.js";

/** A sprite frame at one size: [size, size, RGBA], colour premultiplied, colour and alpha in 0..1. */
export interface Sprite {
  size: number;
  rgba: Float32Array;
}

/**
 * For each target pixel the source pixels under a box of n / size pixels, all of equal weight: a source pixel
 * counts when its centre is inside. Upscaled, this is the nearest pixel.
 */
function boxes(n: number, size: number): { from: number; to: number }[] {
  const scale = n / size;
  const reach = Math.max(scale, 1) / 2;
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    // Half-open so that a centre on the border of two boxes belongs to one of them only.
    const from = Math.max(0, Math.floor(centre - reach - 0.5) + 1);
    const to = Math.min(n, Math.floor(centre + reach - 0.5) + 1);
    return { from, to: Math.max(to, from + 1) };
  });
}

/** Shrinks a square RGBA frame to size x size by a box filter over premultiplied colour, so that edges stay clean. */
export function resizeSprite(rgba: Uint8ClampedArray, side: number, size: number): Sprite {
  const ranges = boxes(side, size);
  const rows = new Float64Array(side * size * 4);
  for (let y = 0; y < side; y++)
    for (let i = 0; i < size; i++) {
      const { from, to } = ranges[i];
      const o = (y * size + i) * 4;
      for (let x = from; x < to; x++) {
        const p = (y * side + x) * 4;
        const alpha = rgba[p + 3] / 255;
        for (let c = 0; c < 3; c++) rows[o + c] += (rgba[p + c] / 255) * alpha;
        rows[o + 3] += alpha;
      }
      for (let c = 0; c < 4; c++) rows[o + c] /= to - from;
    }
  const out = new Float32Array(size * size * 4);
  for (let j = 0; j < size; j++) {
    const { from, to } = ranges[j];
    for (let q = 0; q < size * 4; q++) {
      let sum = 0;
      for (let y = from; y < to; y++) sum += rows[y * size * 4 + q];
      out[j * size * 4 + q] = sum / (to - from);
    }
  }
  return { size, rgba: out };
}

/** Clips by class word, each size of each frame made once. */
export class Sprites {
  readonly classes: string[];
  private readonly made = new Map<string, Sprite>();

  /** @throws DataError when a clip is not square */
  constructor(private readonly clips: ReadonlyMap<string, Clip>) {
    for (const [name, clip] of clips)
      if (clip.width !== clip.height)
        throw new DataError(`sprites: clips must be square: "${name}" is ${clip.width} x ${clip.height}; pad it`);
    this.classes = [...clips.keys()];
  }

  /** The same clips narrowed to some classes. */
  only(classes: readonly string[]): Sprites {
    return new Sprites(new Map(classes.map((name) => [name, this.clipOf(name)])));
  }

  /** Frame `t` of `frames` taken evenly over the class's loop, at size x size pixels. */
  at(name: string, t: number, frames: number, size: number): Sprite {
    const clip = this.clipOf(name);
    const frame = Math.floor((t * clip.frames.length) / frames) % clip.frames.length;
    const key = `${name} ${frame} ${size}`;
    let sprite = this.made.get(key);
    if (sprite === undefined) {
      sprite = resizeSprite(clip.frames[frame], clip.width, size);
      this.made.set(key, sprite);
    }
    return sprite;
  }

  private clipOf(name: string): Clip {
    const clip = this.clips.get(name);
    if (clip === undefined)
      throw new DataError(`sprites: the class is not loaded: "${name}"; loaded are ${this.classes.join(", ")}`);
    return clip;
  }
}

/** Where a sprite goes, in pixels of a 32 x 32 clip; scaled for other sizes. */
export interface Draw {
  /** Sprite size in the first and the last frame. */
  sizes: [number, number];
  /** Place of the sprite's middle relative to the clip's, along the motion, in the first frame. */
  start: number;
  /** Way to go along the motion until the last frame. */
  travel: number;
  /** Offset across the motion: downwards for left and right, rightwards for up and down. */
  across: number;
}

/** The one draw of a world without jitter: it makes left the mirror image of right, and up that of down. */
function fixedDraw(spec: Spec): Draw {
  switch (spec.motion) {
    case "growing":
      return { sizes: [10, 24], start: 0, travel: 0, across: 0 };
    case "standing still":
    case undefined:
      return { sizes: [21, 21], start: 0, travel: 0, across: 0 };
    case "moving left":
    case "moving right":
      return { sizes: [21, 21], start: -6.35, travel: 11, across: 1.5 };
    default:
      return { sizes: [21, 21], start: -6.35, travel: 11, across: -1.5 };
  }
}

/** A random draw: sprites of 17-22 pixels (18-24 at rest) that go 9-13 pixels, or grow from 9-11 to 22-26; starts vary by 2.5. */
function randomDraw(spec: Spec, draws: Draws): Draw {
  const start = draws.between(-2.5, 2.5);
  const across = draws.between(-2.5, 2.5);
  if (spec.motion === "growing")
    return { sizes: [draws.between(9, 11), draws.between(22, 26)], start, travel: 0, across };
  if (spec.motion === "standing still" || spec.motion === undefined) {
    const size = draws.between(18, 24);
    return { sizes: [size, size], start, travel: 0, across };
  }
  const size = draws.between(17, 22);
  const travel = draws.between(9, 13);
  return { sizes: [size, size], start: start - travel / 2, travel, across };
}

/** The draw of a clip: the world's fixed one, or a random one where it has jitter. */
export function drawOf(spec: Spec, of: World, draws?: Draws): Draw {
  return of.jitter && draws !== undefined ? randomDraw(spec, draws) : fixedDraw(spec);
}

/** Size, and left and top edge, of the sprite at frame t, in whole pixels of a clip of `side` x `side`. */
export function placeOf(
  spec: Spec,
  draw: Draw,
  t: number,
  frames: number,
  side: number,
): { size: number; x: number; y: number } {
  const scale = side / 32;
  const part = frames === 1 ? 0 : t / (frames - 1);
  const size = Math.max(1, Math.round((draw.sizes[0] + (draw.sizes[1] - draw.sizes[0]) * part) * scale));
  const along = draw.start + draw.travel * part;
  const sign = spec.motion === "moving left" || spec.motion === "moving up" ? -1 : 1;
  const vertical = spec.motion === "moving up" || spec.motion === "moving down";
  const dx = vertical ? draw.across : sign * along;
  const dy = vertical ? sign * along : draw.across;
  const edge = (d: number) => Math.round(side / 2 + d * scale - size / 2);
  return { size, x: edge(dx), y: edge(dy) };
}

/** Fills frame `t` of a [3, T, H, W] clip with one colour, or two halves. Colours are RGB in 0..1. */
export function fillFrame(
  video: Float32Array,
  t: number,
  frames: number,
  side: number,
  colours: readonly (readonly number[])[],
): void {
  const area = side * side;
  const middle = colours.length > 1 ? Math.floor(side / 2) * side : area;
  for (let c = 0; c < 3; c++) {
    const start = (c * frames + t) * area;
    video.fill(colours[0][c] * 2 - 1, start, start + middle);
    if (middle < area) video.fill(colours[1][c] * 2 - 1, start + middle, start + area);
  }
}

/** Lays a sprite over frame `t` of a [3, T, H, W] clip at whole pixel (x, y); parts outside are cut off. */
export function pasteSprite(
  video: Float32Array,
  t: number,
  frames: number,
  side: number,
  sprite: Sprite,
  x: number,
  y: number,
): void {
  const { size, rgba } = sprite;
  for (let j = Math.max(0, -y); j < Math.min(size, side - y); j++)
    for (let i = Math.max(0, -x); i < Math.min(size, side - x); i++) {
      const o = (j * size + i) * 4;
      const alpha = rgba[o + 3];
      if (alpha === 0) continue;
      for (let c = 0; c < 3; c++) {
        const p = ((c * frames + t) * side + y + j) * side + x + i;
        const under = (video[p] + 1) / 2;
        video[p] = 2 * (rgba[o + c] + (1 - alpha) * under) - 1;
      }
    }
}

/** Background colours of a spec, RGB in 0..1. */
export function backgroundOf(spec: Spec): number[][] {
  return spec.colours.map((name) => COLOURS[name].map((v) => v / 255));
}

/**
 * Composes the clip of a spec: [3, T, H, W] in [-1, 1], sprite over background.
 * @param draws random draws for a world with jitter; without them, and in worlds without jitter, the fixed draw
 */
export function compose(spec: Spec, of: World, sprites: Sprites, draws?: Draws): Float32Array {
  const { frames, size: side } = of;
  const draw = drawOf(spec, of, draws);
  const video = new Float32Array(3 * frames * side * side);
  const background = backgroundOf(spec);
  for (let t = 0; t < frames; t++) {
    const { size, x, y } = placeOf(spec, draw, t, frames, side);
    fillFrame(video, t, frames, side, background);
    pasteSprite(video, t, frames, side, sprites.at(spec.class, t, frames, size), x, y);
  }
  return video;
}
