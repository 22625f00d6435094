import { type ChildProcess, spawn } from "node:child_process";
import { DataError } from "../../engine/errors.js";
import type { Clip } from "./clip.js";

/** Where the system's programs are; names are looked up on the PATH. */
export interface VideoTools {
  ffmpeg: string;
  ffprobe: string;
}

export const SYSTEM_TOOLS: VideoTools = { ffmpeg: "ffmpeg", ffprobe: "ffprobe" };
/** A stuck decoder is ended after this time. */
const PATIENCE_MS = 120_000;

/** Ffmpeg is not installed: no video can be read, so nothing is gained by trying the next one. */
export class NoFfmpegError extends DataError {
  override name = "NoFfmpegError";
}

/** Runs a program to its end and returns what it wrote. No shell is involved, so file names need no quoting. */
function run(program: string, args: readonly string[]): Promise<{ out: Buffer; code: number | null; said: string }> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    // spawn's own timeout option keeps Node alive when the program is not found.
    const timer = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
    const out: Buffer[] = [];
    const said: Buffer[] = [];
    child.stdout?.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr?.on("data", (chunk: Buffer) => said.push(chunk));
    child.on("error", (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(
        new NoFfmpegError(
          `video: ${program} is needed to read videos: it cannot be started (${error.code ?? error.message}); install ffmpeg (Debian: apt-get install ffmpeg), or give WebP or GIF clips`,
        ),
      );
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ out: Buffer.concat(out), code, said: Buffer.concat(said).toString() });
    });
  });
}

const lastLine = (text: string) => text.trim().split("\n").at(-1) ?? "";

// Files only: a list of captions must not make ffmpeg open connections.
const inputOf = (path: string) => ["-protocol_whitelist", "file", "-i", `file:${path}`];

/**
 * Number of frames of a video.
 * @throws NoFfmpegError without ffprobe, DataError when the file holds no readable video
 */
export async function countFrames(path: string, tools: VideoTools = SYSTEM_TOOLS): Promise<number> {
  const { out, code, said } = await run(tools.ffprobe, [
    ...["-v", "error", "-select_streams", "v:0", "-count_packets"],
    ...["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0"],
    ...inputOf(path),
  ]);
  const frames = Number.parseInt(out.toString(), 10);
  if (code !== 0 || !(frames > 0))
    throw new DataError(
      `video: the file holds no readable video: ${path} (${lastLine(said) || "no frames"}); check that ffmpeg plays it`,
    );
  return frames;
}

/** Reads "P6 width height 255" and the pixels after it, for each picture of a stream of PPM pictures. */
function readPictures(stream: Buffer): Clip {
  const clip: Clip = { frames: [], width: 0, height: 0 };
  for (let at = 0; at < stream.length; ) {
    const header = /^P6\s(\d+)\s(\d+)\s255\s/.exec(stream.toString("latin1", at, at + 40));
    if (header === null) break;
    clip.width = Number(header[1]);
    clip.height = Number(header[2]);
    const pixels = clip.width * clip.height;
    const from = at + header[0].length;
    at = from + 3 * pixels;
    if (at > stream.length) break;
    const rgba = new Uint8ClampedArray(pixels * 4).fill(255);
    for (let p = 0; p < pixels; p++) for (let c = 0; c < 3; c++) rgba[4 * p + c] = stream[from + 3 * p + c];
    clip.frames.push(rgba);
  }
  return clip;
}

/**
 * Decodes chosen frames of a video at its own size, turned upright.
 * @param places frame numbers from 0 in rising order; a number may repeat
 * @throws NoFfmpegError without ffmpeg, DataError when a frame cannot be had
 */
export async function readVideo(
  path: string,
  places: readonly number[],
  tools: VideoTools = SYSTEM_TOOLS,
): Promise<Clip> {
  const distinct = [...new Set(places)];
  const chosen = distinct.map((n) => `eq(n,${n})`).join("+");
  // New time stamps at the output's own rate: ffmpeg then neither drops nor repeats a frame.
  const { out, said } = await run(tools.ffmpeg, [
    ...["-v", "error", "-nostdin", ...inputOf(path), "-map", "0:v:0"],
    ...["-vf", `select='${chosen}',settb=1/25,setpts=N`, "-r", "25", "-frames:v", String(distinct.length)],
    ...["-f", "image2pipe", "-c:v", "ppm", "-"],
  ]);
  const clip = readPictures(out);
  if (clip.frames.length !== distinct.length)
    throw new DataError(
      `video: frames ${distinct[0]}..${distinct.at(-1)} must decode: ${clip.frames.length} of ${distinct.length} did in ${path} (${lastLine(said) || "the file ends early"}); re-encode it`,
    );
  return { ...clip, frames: places.map((n) => clip.frames[distinct.indexOf(n)]) };
}
