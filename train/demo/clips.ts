import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { compose } from "../data/compose.js";
import type { JudgedClip } from "../evaluate.js";
import { encodeAnimatedWebp, writeContactSheet, writeGif, writeMp4 } from "../media.js";
import type { ReportClip } from "../report.js";
import type { Source } from "../source.js";

/** The first clip of each caption, in order. */
export function firstOfEach(clips: readonly JudgedClip[]): JudgedClip[] {
  const seen = new Set<string>();
  return clips.filter((c) => !seen.has(c.caption) && seen.add(c.caption));
}

/** All clips as WebP and GIF; the first of some captions as MP4 too, and together on one sheet. */
export async function writeClips(clips: readonly JudgedClip[], dir: string): Promise<void> {
  await mkdir(dir, { recursive: true });
  const nameOf = (c: JudgedClip) =>
    join(dir, `${String(clips.indexOf(c)).padStart(2, "0")}-${c.caption.replace(/ /g, "-")}`);
  for (const c of clips) {
    await writeFile(`${nameOf(c)}.webp`, await encodeAnimatedWebp(c.clip));
    await writeGif(`${nameOf(c)}.gif`, c.clip);
  }
  const first = firstOfEach(clips);
  for (const c of first.slice(0, 8)) {
    const mp4 = await writeMp4(`${nameOf(c)}.mp4`, c.clip);
    if (!mp4.written) {
      console.error(`no MP4: ${mp4.reason}`);
      break;
    }
  }
  if (first.length)
    await writeContactSheet(
      join(dir, "sheet.png"),
      first.slice(0, 12).map((c) => c.clip),
    );
}

/** Judged clips beside real ones of the same caption, for a report. */
export function reportClips(clips: readonly JudgedClip[], { composed }: Source): Promise<ReportClip[]> {
  const { world, sprites } = composed!;
  return Promise.all(
    firstOfEach(clips)
      .slice(0, 24)
      .map(async (c) => ({
        caption: c.caption,
        sampled: await encodeAnimatedWebp(c.clip),
        real: await encodeAnimatedWebp({ ...c.clip, video: compose(c.spec, world, sprites) }),
        verdict: { colour: c.marks.colour, motion: c.marks.motion, class: c.marks.class },
      })),
  );
}
