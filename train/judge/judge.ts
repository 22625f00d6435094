import { COLOURS, type Motion, type Spec, type World } from "../data/world.js";
import { borderColours, checkClip, type Foreground, foregroundOf } from "./scene.js";
import type { SpriteJudge } from "./sprite.js";

/** What a clip shows, in the words of a spec. */
export interface Verdict {
  /** Background colours, upper first. */
  colours: string[];
  motion: Motion;
  /** The nearest class, or "nothing" where no frame has a foreground. */
  class: string;
}

/** Which parts of a spec a clip has right. */
export interface Marks {
  /** All colours at their place. */
  colour: boolean;
  /** All colours, in either order. */
  colourPair: boolean;
  motion: boolean;
  class: boolean;
}

/** Background colours by name: the named colour nearest in L1 to the border's median. */
export function judgeColours(video: Float32Array, of: World): string[] {
  return borderColours(video, of).map((seen) => {
    const distance = (name: string) => COLOURS[name].reduce((sum, v, c) => sum + Math.abs(v - seen[c]), 0);
    return Object.keys(COLOURS).reduce((a, b) => (distance(b) < distance(a) ? b : a));
  });
}

/** Slope of the least-squares line through evenly spaced values, times the number of steps. */
function drift(values: readonly number[]): number {
  const middle = (values.length - 1) / 2;
  let above = 0;
  let below = 0;
  values.forEach((v, t) => {
    above += (t - middle) * v;
    below += (t - middle) ** 2;
  });
  return below === 0 ? 0 : (above / below) * (values.length - 1);
}

/**
 * The motion that foregrounds (one a frame) make: "growing" where the area's log ratio, last two frames to first
 * two, is above 0.75; "standing still" where the drift is under an eighth of the frame; else the larger direction.
 */
export function judgeMotion(seen: readonly Foreground[], size: number): Motion {
  const areas = seen.map((f) => Math.max(f.area, 1));
  const ends = Math.min(2, areas.length);
  const sum = (list: readonly number[]) => list.reduce((a, b) => a + b, 0);
  if (Math.log(sum(areas.slice(-ends)) / sum(areas.slice(0, ends))) > 0.75) return "growing";
  const dx = drift(seen.map((f) => f.x));
  const dy = drift(seen.map((f) => f.y));
  if (Math.max(Math.abs(dx), Math.abs(dy)) < size / 8) return "standing still";
  if (Math.abs(dx) >= Math.abs(dy)) return dx < 0 ? "moving left" : "moving right";
  return dy < 0 ? "moving up" : "moving down";
}

/**
 * Judges a clip without any learned part: colours by the border, motion by the foreground's path, class by the
 * nearest sprite.
 * @param video [3, T, H, W] of the world's size, values in [-1, 1]
 * @throws ConfigError for a clip of another size
 */
export function judge(video: Float32Array, of: World, sprites: SpriteJudge): Verdict {
  checkClip(video, of);
  const background = borderColours(video, of);
  const seen = Array.from({ length: of.frames }, (_, t) => foregroundOf(video, t, of.frames, of.size, background));
  return {
    colours: judgeColours(video, of),
    motion: judgeMotion(seen, of.size),
    class: sprites.classOf(video, of, background, seen),
  };
}

/** Marks a verdict against what was asked for. An image asks for no motion, so any motion is right. */
export function mark(verdict: Verdict, asked: Spec): Marks {
  const same = (a: readonly string[], b: readonly string[]) => a.length === b.length && a.every((x, i) => x === b[i]);
  return {
    colour: same(verdict.colours, asked.colours),
    colourPair: same([...verdict.colours].sort(), [...asked.colours].sort()),
    motion: asked.motion === undefined || verdict.motion === asked.motion,
    class: verdict.class === asked.class,
  };
}
