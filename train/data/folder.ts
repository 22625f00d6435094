import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { dirname, extname, relative } from "node:path";
import { ConfigError, checkOptions, DataError } from "../../engine/errors.js";
import { type Clip, readClip } from "./clip.js";
import type { Dataset, Sample } from "./dataset.js";
import { type Draws, drawsOf, shuffled } from "./draws.js";
import { fitFrames, sampleFrames } from "./frames.js";
import { listRows, type Row, Skips, VIDEO_ENDINGS } from "./rows.js";
import { holdFrame, imageShare } from "./stream.js";
import { countFrames, NoFfmpegError, readVideo, SYSTEM_TOOLS, type VideoTools } from "./video.js";

// Streams of the counter-based generator.
const ORDER = 0x4f524452;
const CUT = 0x43555400;
/** Decoded clips kept for the next pass, in bytes; whole sets of small clips fit. */
const KEPT_BYTES = 256 * 1024 * 1024;

export interface FolderOptions {
  frames: number;
  height: number;
  width: number;
  /** Source frames to a frame of the clip; default 1, 3 for ordinary footage. */
  frameInterval?: number;
  /** Mirror every other clip at random; default true. Set false where captions tell left from right. */
  flip?: boolean;
  /** Share of samples that are images: one frame held for the whole clip. Default 0. */
  imageFraction?: number;
  /** RGB in 0..255 under transparent pixels; default white. */
  background?: readonly [number, number, number];
  seed?: number;
  /**
   * Ways in which each clip is cut (window of frames, mirror image, held frame), taken in turn from pass to pass, so that
   * what is made of them can be kept; they depend on the clip's path alone. Default 0: cut anew each time, by the seed.
   */
  variants?: number;
  /** Programs that read videos; default the system's. */
  tools?: VideoTools;
}
const OPTIONS = [
  "frames",
  "height",
  "width",
  "frameInterval",
  "flip",
  "imageFraction",
  "background",
  "seed",
  "variants",
  "tools",
] as const satisfies readonly (keyof FolderOptions)[];

/** A clip in its turn. */
export interface Take {
  row: Row;
  /** Which of its variants; undefined where clips are cut anew each time. */
  variant: number | undefined;
  /** Reads and cuts it. */
  cut(): Promise<Sample>;
}

const isVideo = (row: Row) => VIDEO_ENDINGS.includes(extname(row.path).toLowerCase());

/**
 * Captioned clips of a folder or a CSV file: WebP strips, animated WebP, GIF, images and videos. Each pass goes
 * through all clips in another order. A clip that turns out to be unreadable is skipped with its reason, and the
 * next one takes its place.
 */
export class FolderDataset implements Dataset {
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  /** What was left out so far; print it. */
  readonly skips: Skips;
  private readonly options: Required<FolderOptions>;
  private readonly broken = new Set<Row>();
  private readonly clips = new Map<Row, Clip>();
  private readonly counts = new Map<Row, number>();
  private keptBytes = 0;
  private pass = -1;
  private order: Uint32Array = new Uint32Array(0);

  private constructor(
    private readonly place: string,
    private readonly rows: readonly Row[],
    skips: Skips,
    options: Required<FolderOptions>,
  ) {
    this.skips = skips;
    this.options = options;
    this.frames = options.frames;
    this.height = options.height;
    this.width = options.width;
  }

  /**
   * Reads the list of a set and tries its clips until one can be read, so that a bad set fails at once.
   * @param place a folder, or a CSV file with columns path and text
   * @throws DataError when the set is empty or no clip can be read, ConfigError for a bad option
   */
  static async open(place: string, options: FolderOptions): Promise<FolderDataset> {
    checkOptions("data", options, OPTIONS);
    for (const key of ["frames", "height", "width", "frameInterval"] as const)
      if (!(Number.isInteger(options[key] ?? 1) && (options[key] ?? 1) > 0))
        throw new ConfigError(`data: ${key} must be a whole number from 1: ${options[key]}; correct it`);
    if (!(Number.isInteger(options.variants ?? 0) && (options.variants ?? 0) >= 0))
      throw new ConfigError(
        `data: variants must be a whole number from 0: ${options.variants}; 1 keeps one cut a clip`,
      );
    imageShare("data", options.imageFraction ?? 0);
    const skips = new Skips();
    const rows = await listRows(place, skips);
    const set = new FolderDataset(place, rows, skips, {
      frames: options.frames,
      height: options.height,
      width: options.width,
      frameInterval: options.frameInterval ?? 1,
      flip: options.flip ?? true,
      imageFraction: options.imageFraction ?? 0,
      background: options.background ?? [255, 255, 255],
      seed: options.seed ?? 0,
      variants: options.variants ?? 0,
      tools: options.tools ?? SYSTEM_TOOLS,
    });
    const video = rows.find(isVideo);
    // Without ffmpeg a mixed set would fail only when the first video comes up.
    if (video !== undefined)
      await set.countOf(video).catch((error: Error) => {
        if (error instanceof NoFfmpegError) throw error;
      });
    await set.sample(0);
    return set;
  }

  /** Clips that have not failed so far. */
  get size(): number {
    return this.rows.length - this.broken.size;
  }

  /** Clips that are listed, readable or not: positions of one pass. */
  get listed(): number {
    return this.rows.length;
  }

  /** Ways in which each clip is cut; 0 where each time is another. */
  get variants(): number {
    return this.options.variants;
  }

  /** @throws DataError when no clip of the set can be read, NoFfmpegError when one needs ffmpeg and it is absent */
  sample(index: number): Promise<Sample> {
    return this.take(index, (take) => take.cut());
  }

  /**
   * Does something with the clip of a position. One that turns out to be unreadable is left out from then on, and the
   * next takes its place.
   * @throws DataError when no clip of the set can be read, NoFfmpegError when one needs ffmpeg and it is absent
   */
  async take<T>(index: number, use: (take: Take) => Promise<T>): Promise<T> {
    const count = this.rows.length;
    const { seed, variants } = this.options;
    const pass = Math.floor(index / count);
    const variant = variants === 0 ? undefined : pass % variants;
    for (let tried = 0; tried < count; tried++) {
      const row = this.rows[this.orderOf(pass)[((index % count) + tried) % count]];
      if (this.broken.has(row)) continue;
      const draws = variant === undefined ? drawsOf(seed, index, CUT) : drawsOf(this.seedOf(row), variant, CUT);
      try {
        return await use({ row, variant, cut: () => this.cut(row, draws) });
      } catch (error) {
        if (!(error instanceof DataError) || error instanceof NoFfmpegError) throw error;
        // Two samples may meet the same clip at once; it counts once.
        if (this.broken.has(row)) continue;
        this.broken.add(row);
        this.skips.add(error.message);
      }
    }
    throw new DataError(`data: no clip of the set can be used: ${this.skips}; correct them in ${this.place}`);
  }

  /**
   * All that the video of a variant follows from, as text: the file by its path within the set, size and time of change,
   * the variant, and every option of the cut.
   * @throws DataError when the file is gone
   */
  async identity({ row, variant }: Take): Promise<string> {
    const about = await stat(row.path).catch(() => {
      throw new DataError(`clip: the file is missing: ${row.path}; check the path in the list of captions`);
    });
    const { frames, height, width, frameInterval, flip, imageFraction, background } = this.options;
    const cut = { frames, height, width, frameInterval, flip, imageFraction, background };
    return JSON.stringify([this.nameOf(row), row.frames ?? null, about.size, Math.round(about.mtimeMs), variant, cut]);
  }

  /** A clip's path within its set, which stays the same when the set is moved. */
  private nameOf(row: Row): string {
    const folder = extname(this.place).toLowerCase() === ".csv" ? dirname(this.place) : this.place;
    return relative(folder, row.path);
  }

  private seedOf(row: Row): number {
    return createHash("sha256").update(this.nameOf(row)).digest().readUIntBE(0, 6);
  }

  /** The order of one pass; the last is kept, since positions rise. */
  private orderOf(pass: number): Uint32Array {
    if (pass !== this.pass) {
      this.order = shuffled(this.rows.length, this.options.seed, pass, ORDER);
      this.pass = pass;
    }
    return this.order;
  }

  private async cut(row: Row, draws: Draws): Promise<Sample> {
    const { frames, height, width, frameInterval, flip, background, imageFraction } = this.options;
    const isImage = draws.next() < imageFraction;
    const held = draws.below(frames);
    const mirrored = draws.next() < 0.5 && flip;
    const filmed = isVideo(row);
    const total = filmed ? await this.countOf(row) : (await this.clipOf(row)).frames.length;
    if (total > 1 && total < frames)
      throw new DataError(
        `clip: ${frames} frames are needed: ${row.path} has ${total}; lower "frames" or leave it out`,
      );
    const places = sampleFrames(total, frames, frameInterval, draws);
    const chosen = filmed ? await readVideo(row.path, places, this.options.tools) : await this.clipOf(row);
    const clip = filmed ? chosen : { ...chosen, frames: places.map((n) => chosen.frames[n]) };
    const video = fitFrames(clip, { height, width, flip: mirrored, background });
    if (isImage) holdFrame(video, held, frames);
    return { video, caption: row.caption, frames, height, width };
  }

  private async countOf(row: Row): Promise<number> {
    let count = this.counts.get(row);
    if (count === undefined) {
      count = await countFrames(row.path, this.options.tools);
      this.counts.set(row, count);
    }
    return count;
  }

  private async clipOf(row: Row): Promise<Clip> {
    const kept = this.clips.get(row);
    if (kept !== undefined) return kept;
    const clip = await readClip(row.path, row.frames);
    const bytes = clip.frames.length * clip.width * clip.height * 4;
    if (this.keptBytes + bytes <= KEPT_BYTES && !this.clips.has(row)) {
      this.clips.set(row, clip);
      this.keptBytes += bytes;
    }
    return clip;
  }
}
