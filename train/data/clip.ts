import { readFile } from "node:fs/promises";
import sharp from "sharp";
import { DataError } from "../../engine/errors.js";

/** A short film in memory: RGBA frames, 8 bits a channel, straight (not premultiplied) alpha, rows top to bottom. */
export interface Clip {
  /** Each of width * height * 4 values. */
  frames: Uint8ClampedArray[];
  width: number;
  height: number;
}

/**
 * Reads a clip from a GIF, an animated WebP or a still image of frames stacked in a column.
 * @param path file that sharp can decode
 * @param frames how many frames a still image stacks; without it a WebP is
 *   taken for a column of squares, n = height / width, and other formats for one picture
 * @throws DataError when the file is missing, cannot be decoded or does not divide into that many frames
 */
export async function readClip(path: string, frames?: number): Promise<Clip> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch {
    throw new DataError(
      `clip: the file is missing or cannot be opened: ${path}; check the path in the list of captions`,
    );
  }
  let pixels: Buffer;
  let width: number;
  let height: number;
  let pages: number;
  try {
    const image = sharp(bytes, { animated: true });
    const about = await image.metadata();
    const decoded = await image
      .toColourspace("srgb")
      .ensureAlpha()
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    pixels = decoded.data;
    width = decoded.info.width;
    height = decoded.info.height;
    pages = about.pages ?? 1;
  } catch (error) {
    throw new DataError(
      `clip: the file cannot be decoded: ${path} (${String((error as Error).message).split("\n")[0]}); give a WebP strip, an animated WebP or a GIF`,
    );
  }
  // A tall WebP is a strip unless its line says otherwise; a tall photograph in another format is one picture.
  const stacked = path.toLowerCase().endsWith(".webp") && height % width === 0 ? height / width : 1;
  const count = pages > 1 ? pages : (frames ?? stacked);
  if (!Number.isInteger(count) || count < 1 || height % count !== 0)
    throw new DataError(
      `clip: a strip's height must divide by its frames: ${width} x ${height} and ${count} frames in ${path}; correct "frames" in its line`,
    );
  const frameHeight = height / count;
  const stride = width * frameHeight * 4;
  return {
    width,
    height: frameHeight,
    frames: Array.from(
      { length: count },
      (_, i) => new Uint8ClampedArray(pixels.buffer, pixels.byteOffset + i * stride, stride),
    ),
  };
}
