import { spawn } from "node:child_process";
import { rename, rm } from "node:fs/promises";
import { resolve } from "node:path";
import gifenc from "gifenc";
import sharp from "sharp";
import { DataError } from "../engine/errors.js";
import { createFile } from "../model/files/node.js";

/** A clip as the model makes it and as a data set's sample holds it: [3, T, H, W] numbers in [-1, 1]. */
export interface VideoClip {
  video: Float32Array;
  frames: number;
  height: number;
  width: number;
}

/** Options of the writers. */
export interface MediaOptions {
  /** Frames a second. Default 8. */
  fps?: number;
  /** Side in pixels of the square that one pixel becomes. By default the longer side comes near 160. */
  upscale?: number;
}

/** The enlargement by which a clip's longer side comes nearest to 160 pixels (128 to 192 for sides up to 64). */
export function upscaleFor(clip: { height: number; width: number }): number {
  return Math.max(1, Math.round(160 / Math.max(clip.height, clip.width)));
}

function checkClip(subject: string, clip: VideoClip, { fps = 8, upscale = upscaleFor(clip) }: MediaOptions) {
  const { video, frames, height, width } = clip;
  const values = 3 * frames * height * width;
  if (video.length !== values || values === 0)
    throw new DataError(
      `${subject}: wrong length: ${video.length} numbers; [3, ${frames}, ${height}, ${width}] has ${values}`,
    );
  if (!(fps > 0 && fps <= 100)) throw new DataError(`${subject}: bad fps: ${fps}; give a number above 0 to 100`);
  if (!(Number.isInteger(upscale) && upscale >= 1))
    throw new DataError(`${subject}: bad upscale: ${upscale}; give an integer of at least 1`);
  return { fps, upscale };
}

/**
 * A clip's frames one under the other as bytes [T, H * upscale, W * upscale, channels]: clamped to [-1, 1], moved to
 * 0 … 255 and rounded to nearest, enlarged by repeating pixels. A fourth channel is opaque alpha; NaN becomes black.
 */
export function toBytes(clip: VideoClip, upscale: number, channels: 3 | 4): Uint8Array<ArrayBuffer> {
  const { video, frames, height, width } = clip;
  const [outHeight, outWidth] = [height * upscale, width * upscale];
  const plane = frames * height * width;
  const row = outWidth * channels;
  const out = new Uint8Array(frames * outHeight * row);
  for (let t = 0; t < frames; t++)
    for (let y = 0; y < height; y++) {
      const begin = (t * outHeight + y * upscale) * row;
      let at = begin;
      for (let x = 0; x < width; x++) {
        const from = (t * height + y) * width + x;
        for (let repeat = 0; repeat < upscale; repeat++, at += channels) {
          for (let c = 0; c < 3; c++) {
            const value = Math.min(1, Math.max(-1, video[c * plane + from]));
            out[at + c] = Math.floor((value / 2 + 0.5) * 255 + 0.5);
          }
          if (channels === 4) out[at + 3] = 255;
        }
      }
      for (let repeat = 1; repeat < upscale; repeat++) out.copyWithin(begin + repeat * row, begin, begin + row);
    }
  return out;
}

/** A clip as an animated GIF that loops: one palette of 256 colours over all frames, so that nothing flickers. */
export function encodeGif(clip: VideoClip, options: MediaOptions = {}): Uint8Array {
  const { fps, upscale } = checkClip("gif", clip, options);
  const [height, width] = [clip.height * upscale, clip.width * upscale];
  const palette = gifenc.quantize(toBytes(clip, 1, 4), 256);
  const indices = gifenc.applyPalette(toBytes(clip, upscale, 4), palette);
  const encoder = gifenc.GIFEncoder();
  for (let t = 0; t < clip.frames; t++) {
    const frame = indices.subarray(t * height * width, (t + 1) * height * width);
    // The format counts hundredths of a second and every frame uses the first one's palette.
    encoder.writeFrame(frame, width, height, { delay: 1000 / fps, repeat: 0, ...(t === 0 ? { palette } : {}) });
  }
  encoder.finish();
  return encoder.bytes();
}

/** A clip as an animated WebP that loops, without loss. */
export async function encodeAnimatedWebp(clip: VideoClip, options: MediaOptions = {}): Promise<Uint8Array> {
  const { fps, upscale } = checkClip("webp", clip, options);
  const [height, width] = [clip.height * upscale, clip.width * upscale];
  const raw = { width, height: height * clip.frames, channels: 3, pageHeight: height } as const;
  const delay = Array<number>(clip.frames).fill(Math.round(1000 / fps));
  return sharp(toBytes(clip, upscale, 3), { raw })
    .webp({ lossless: true, effort: 4, loop: 0, delay })
    .toBuffer();
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const sink = await createFile(path);
  try {
    await sink.write(bytes);
    await sink.commit();
  } catch (error) {
    await sink.abort();
    throw error;
  }
}

/** Writes a clip as an animated GIF. */
export async function writeGif(path: string, clip: VideoClip, options: MediaOptions = {}): Promise<void> {
  await writeWhole(path, encodeGif(clip, options));
}

/** Writes a clip as an animated WebP. */
export async function writeAnimatedWebp(path: string, clip: VideoClip, options: MediaOptions = {}): Promise<void> {
  await writeWhole(path, await encodeAnimatedWebp(clip, options));
}

/** Whether a file was written, and if not why. */
export type MediaResult = { written: true } | { written: false; reason: string };

/** Runs ffmpeg with `input` on its standard input. Resolves to undefined, or to the reason of a failure. */
function ffmpeg(command: string, args: readonly string[], input: Uint8Array): Promise<string | undefined> {
  return new Promise((done) => {
    const child = spawn(command, ["-hide_banner", "-loglevel", "error", "-nostdin", "-y", ...args], {
      stdio: ["pipe", "ignore", "pipe"],
    });
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors += text;
    });
    child.on("error", (error: NodeJS.ErrnoException) =>
      done(error.code === "ENOENT" ? `${command} is not installed` : error.message),
    );
    child.on("close", (code, signal) =>
      done(code === 0 ? undefined : errors.trim().split("\n").pop() || `${command} ended with ${signal ?? code}`),
    );
    // An encoder that gives up closes the pipe; its exit code tells why.
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
}

/**
 * Writes a clip as MP4 (H.264, or MPEG-4 part 2 where ffmpeg lacks it) through the system's ffmpeg.
 * Without one, or where it fails, nothing is written and the reason is returned.
 */
export async function writeMp4(
  path: string,
  clip: VideoClip,
  options: MediaOptions & { ffmpeg?: string } = {},
): Promise<MediaResult> {
  const { fps, upscale } = checkClip("mp4", clip, options);
  const size = `${clip.width * upscale}x${clip.height * upscale}`;
  const aside = `${resolve(path)}.${process.pid}.tmp`;
  const args = (codec: string[]) => [
    ...["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", String(fps), "-i", "pipe:0"],
    // 4:2:0 needs even sides.
    ...["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart", ...codec],
    ...["-f", "mp4", `file:${aside}`],
  ];
  const command = options.ffmpeg ?? "ffmpeg";
  const frames = toBytes(clip, upscale, 3);
  let reason: string | undefined;
  try {
    for (const codec of [
      ["-c:v", "libx264", "-crf", "16"],
      ["-c:v", "mpeg4", "-q:v", "2"],
    ]) {
      reason = await ffmpeg(command, args(codec), frames);
      if (reason === undefined) {
        await rename(aside, path);
        return { written: true };
      }
      if (reason.endsWith("is not installed")) break;
    }
  } finally {
    await rm(aside, { force: true });
  }
  return { written: false, reason: reason as string };
}

/** Options of `contactSheet`. */
export interface SheetOptions {
  upscale?: number;
  /** Pixels between pictures. Default 4. */
  gap?: number;
}

/** Clips of one size as a PNG to look at: a row for each clip, a column for each frame, on dark grey. */
export async function contactSheet(clips: readonly VideoClip[], options: SheetOptions = {}): Promise<Uint8Array> {
  if (clips.length === 0) throw new DataError("contact sheet: no clips: 0 were given; give at least one");
  const { height, width } = clips[0];
  const gap = options.gap ?? 4;
  const upscale = options.upscale ?? Math.max(1, Math.round(64 / Math.max(height, width)));
  const columns = Math.max(...clips.map(({ frames }) => frames));
  const [cellHeight, cellWidth] = [height * upscale, width * upscale];
  const sheetWidth = columns * (cellWidth + gap) + gap;
  const sheetHeight = clips.length * (cellHeight + gap) + gap;
  const sheet = new Uint8Array(sheetWidth * sheetHeight * 3).fill(32);
  for (const [r, clip] of clips.entries()) {
    checkClip("contact sheet", clip, { upscale });
    if (clip.height !== height || clip.width !== width)
      throw new DataError(
        `contact sheet: sizes differ: clip ${r} is ${clip.width} x ${clip.height}, the first ${width} x ${height}`,
      );
    const bytes = toBytes(clip, upscale, 3);
    for (let t = 0; t < clip.frames; t++)
      for (let y = 0; y < cellHeight; y++) {
        const from = (t * cellHeight + y) * cellWidth * 3;
        const to = ((gap + r * (cellHeight + gap) + y) * sheetWidth + gap + t * (cellWidth + gap)) * 3;
        sheet.set(bytes.subarray(from, from + cellWidth * 3), to);
      }
  }
  return sharp(sheet, { raw: { width: sheetWidth, height: sheetHeight, channels: 3 } })
    .png()
    .toBuffer();
}

/** Writes a contact sheet of clips as PNG. */
export async function writeContactSheet(
  path: string,
  clips: readonly VideoClip[],
  options: SheetOptions = {},
): Promise<void> {
  await writeWhole(path, await contactSheet(clips, options));
}
