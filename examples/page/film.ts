import type { Film } from "./messages.js";

/** The first clip of [B, 3, T, H, W] in [-1, 1] as opaque pictures. */
export function filmOf(video: Float32Array, [, , frames, height, width]: readonly number[]): Film {
  const plane = height * width;
  const pixels = new Uint8ClampedArray(frames * plane * 4).fill(255);
  for (let t = 0; t < frames; t++)
    for (let i = 0; i < plane; i++)
      for (let c = 0; c < 3; c++) pixels[(t * plane + i) * 4 + c] = 127.5 * (video[(c * frames + t) * plane + i] + 1);
  return { frames, height, width, pixels };
}

/** One frame of a film. */
export function frameOf({ height, width, pixels }: Film, t: number): ImageData {
  const size = height * width * 4;
  return new ImageData(pixels.subarray(t * size, (t + 1) * size), width, height);
}
