import { type Pipeline, type SampleRequest, sample } from "../model/pipeline.js";
import type { STDiT } from "../model/stdit.js";
import type { Config } from "./config.js";
import { captionOf, combinations, type Spec } from "./data/world.js";
import { judge, type Marks, mark, type Verdict } from "./judge/judge.js";
import { SpriteJudge } from "./judge/sprite.js";
import type { VideoClip } from "./media.js";
import type { Source } from "./source.js";

/** A sampled clip with what was asked and what the judges saw. */
export interface JudgedClip {
  spec: Spec;
  caption: string;
  clip: VideoClip;
  verdict: Verdict;
  marks: Marks;
}

export interface Evaluation {
  clips: JudgedClip[];
  /** How many clips have it right; `colourPair` counts two-colour backgrounds in either order. */
  right: Record<keyof Marks, number>;
}

/** The sampling part of a configuration as a request to a model. */
export const requestOf = ({ sample: s }: Config, prompts: string[], seed: number, model: STDiT): SampleRequest => ({
  prompts,
  seed,
  sampler: s.sampler,
  steps: s.steps,
  guidance: s.guidance,
  ...(model.config.languageChannels > 0 && { languageGuidance: s.languageGuidance }),
  cfgChannels: s.cfgChannels,
  ...(s.eta > 0 && { eta: s.eta }),
});

/** Cuts [B, 3, T, H, W] into clips. */
export function clipsOf(video: Float32Array, [B, , frames, height, width]: readonly number[]): VideoClip[] {
  const size = video.length / B;
  return Array.from({ length: B }, (_, i) => ({ video: video.slice(i * size, (i + 1) * size), frames, height, width }));
}

/**
 * Samples captions of combinations that were never trained and judges the clips by colour, motion and class.
 * @param count clips; combinations are taken in turn, each time with other noise
 * @param changes to how the configuration samples
 */
export async function evaluate(
  pipeline: Pipeline,
  config: Config,
  source: Source,
  count: number,
  onProgress: (done: number) => void = () => {},
  changes: Partial<SampleRequest> = {},
): Promise<Evaluation> {
  const { world, sprites } = source.composed!;
  const specs = combinations(world, "heldOut");
  const judges = new SpriteJudge(sprites.only(world.classes));
  const clips: JudgedClip[] = [];
  const batch = Math.max(1, config.sample.count);
  while (clips.length < count) {
    const asked = Array.from(
      { length: Math.min(batch, count - clips.length) },
      (_, i) => specs[(clips.length + i) % specs.length],
    );
    // Each batch has a seed of its own, so that repeated captions meet other noise.
    const request = requestOf(config, asked.map(captionOf), config.run.seed + clips.length, pipeline.model);
    const { video, shape } = await sample(pipeline, { ...request, ...changes });
    clipsOf(video, shape).forEach((clip, i) => {
      const verdict = judge(clip.video, world, judges);
      clips.push({ spec: asked[i], caption: captionOf(asked[i]), clip, verdict, marks: mark(verdict, asked[i]) });
    });
    onProgress(clips.length);
  }
  const right = (key: keyof Marks) => clips.filter((c) => c.marks[key]).length;
  return {
    clips,
    right: {
      colour: right("colour"),
      colourPair: right("colourPair"),
      motion: right("motion"),
      class: right("class"),
    },
  };
}
