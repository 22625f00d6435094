import type { Clip } from "./clip.js";
import type { Draws } from "./draws.js";

/**
 * Which frames of a recording make a clip: a random window of frames * interval source frames (all of a shorter
 * recording), then `frames` places spread evenly over it, truncated to whole numbers.
 * @param total frames of the recording
 */
export function sampleFrames(total: number, frames: number, interval: number, draws: Draws): number[] {
  const window = Math.min(total, frames * interval);
  const begin = draws.below(total - window + 1);
  // The last place is the window's last frame exactly, as with numpy's linspace.
  return Array.from({ length: frames }, (_, i) =>
    i === frames - 1 && frames > 1
      ? begin + window - 1
      : begin + Math.trunc(frames === 1 ? 0 : (i * (window - 1)) / (frames - 1)),
  );
}

/** Source positions and weights of a bilinear resize from n to size, corners not aligned. */
function bilinear(n: number, size: number): { low: Int32Array; high: Int32Array; part: Float32Array } {
  const low = new Int32Array(size);
  const high = new Int32Array(size);
  const part = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const at = Math.max(0, ((i + 0.5) * n) / size - 0.5);
    low[i] = Math.min(n - 1, Math.floor(at));
    high[i] = Math.min(n - 1, low[i] + 1);
    part[i] = at - low[i];
  }
  return { low, high, part };
}

export interface FitOptions {
  height: number;
  width: number;
  /** Mirror left and right. */
  flip: boolean;
  /** RGB in 0..255 under transparent pixels. */
  background: readonly [number, number, number];
}

/**
 * Frames as a model takes them: over the background, scaled bilinearly (corners not aligned) until both sides
 * cover the target, centre-cropped, flipped where asked, in [-1, 1].
 * @returns [3, T, height, width]
 */
export function fitFrames(clip: Clip, { height, width, flip, background }: FitOptions): Float32Array {
  const scale = Math.max(height / clip.height, width / clip.width);
  const tall = Math.max(height, Math.round(clip.height * scale));
  const wide = Math.max(width, Math.round(clip.width * scale));
  const top = Math.round((tall - height) / 2);
  const left = Math.round((wide - width) / 2);
  const rows = bilinear(clip.height, tall);
  const columns = bilinear(clip.width, wide);
  const count = clip.frames.length;
  const out = new Float32Array(3 * count * height * width);
  clip.frames.forEach((rgba, t) => {
    const at = (y: number, x: number, c: number) => {
      const o = (y * clip.width + x) * 4;
      const alpha = rgba[o + 3] / 255;
      return rgba[o + c] * alpha + background[c] * (1 - alpha);
    };
    for (let j = 0; j < height; j++) {
      const y0 = rows.low[top + j];
      const y1 = rows.high[top + j];
      const v = rows.part[top + j];
      for (let i = 0; i < width; i++) {
        const column = left + (flip ? width - 1 - i : i);
        const x0 = columns.low[column];
        const x1 = columns.high[column];
        const u = columns.part[column];
        for (let c = 0; c < 3; c++) {
          const upper = at(y0, x0, c) * (1 - u) + at(y0, x1, c) * u;
          const lower = at(y1, x0, c) * (1 - u) + at(y1, x1, c) * u;
          out[((c * count + t) * height + j) * width + i] = (upper * (1 - v) + lower * v) / 127.5 - 1;
        }
      }
    }
  });
  return out;
}
