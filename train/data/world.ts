import { ConfigError, nearest } from "../../engine/errors.js";

/** Every class with an embedded clip, by its caption word. The place in this list is the class index of `isHeldOut`. */
export const CLASSES = [
  "ox",
  "pig",
  "tiger",
  "whale",
  "snail",
  "turtle",
  "penguin",
  "panda",
  "frog",
  "fox",
  "crab",
  "ladybug",
  "octopus",
  "rooster",
  "bus",
  "taxi",
  "tractor",
  "rocket",
  "helicopter",
  "airplane",
  "star",
  "umbrella",
  "snowman",
  "fire",
  "zebra",
  "lion",
  "elephant",
  "parrot",
  "flamingo",
  "butterfly",
  "owl",
  "bee",
  "ambulance",
  "sailboat",
  "cake",
  "pumpkin",
  "compass",
  "dolphin",
  "squid",
  "giraffe",
  "cat",
  "dog",
  "rabbit",
  "cow",
  "horse",
  "duck",
  "shark",
  "dinosaur",
  "dragon",
  "bear",
  "monkey",
  "car",
  "motorcycle",
  "train",
  "ship",
  "robot",
  "ghost",
  "sun",
  "rainbow",
  "planet",
  "heart",
  "clock",
  "coffee",
] as const;

/** Background colours (RGB, 0..255) in the order of `isHeldOut`. */
export const COLOURS: Readonly<Record<string, readonly [number, number, number]>> = {
  red: [205, 50, 50],
  green: [50, 150, 70],
  blue: [50, 90, 210],
  yellow: [245, 215, 70],
  purple: [140, 65, 180],
  white: [245, 245, 245],
  gray: [130, 130, 130],
  black: [20, 20, 20],
};

/** What a sprite does, in the words of the caption and in the order of `isHeldOut`. */
export const MOTIONS = [
  "standing still",
  "moving left",
  "moving right",
  "moving up",
  "moving down",
  "growing",
] as const;
export type Motion = (typeof MOTIONS)[number];

/** What one clip shows. `motion` is absent for an image. */
export interface Spec {
  class: string;
  motion?: Motion;
  /** One background colour, or the upper half's and the lower half's. */
  colours: string[];
}

/** A set of composed clips: every combination of its classes, motions and background colours. */
export interface World {
  name: string;
  classes: string[];
  colours: string[];
  motions: Motion[];
  /** Backgrounds of two different colours, one above the other. */
  twoColours: boolean;
  /** Start, travel and size of the sprite vary from clip to clip; without it one caption is one exact clip. */
  jitter: boolean;
  /** Height and width of a clip in pixels. */
  size: number;
  /** Frames of a clip: the sprite's whole loop. */
  frames: number;
}

const FIRST_TWELVE = [
  "ladybug",
  "ox",
  "snail",
  "pig",
  "frog",
  "panda",
  "penguin",
  "bus",
  "octopus",
  "star",
  "crab",
  "fox",
];
const TWENTY_FOUR = [
  ...FIRST_TWELVE,
  "tiger",
  "whale",
  "turtle",
  "rooster",
  "taxi",
  "tractor",
  "rocket",
  "helicopter",
  "airplane",
  "umbrella",
  "snowman",
  "fire",
];
const FOUR_MOVES: Motion[] = ["moving left", "moving right", "moving up", "moving down"];
const SIX_COLOURS = ["red", "green", "blue", "yellow", "purple", "white"];
const plain = { twoColours: false, jitter: false, size: 32, frames: 8, motions: FOUR_MOVES };

/** The worlds with known results: `easy` trains in minutes, `base` and `wide` in an hour, `hard` varies, `new` is for going on. */
export const WORLDS: Readonly<Record<string, World>> = {
  easy: { ...plain, name: "easy", classes: FIRST_TWELVE.slice(0, 6), colours: SIX_COLOURS.slice(0, 4) },
  base: { ...plain, name: "base", classes: FIRST_TWELVE, colours: SIX_COLOURS },
  wide: { ...plain, name: "wide", classes: TWENTY_FOUR, colours: SIX_COLOURS },
  hard: {
    ...plain,
    name: "hard",
    classes: TWENTY_FOUR,
    colours: Object.keys(COLOURS),
    motions: [...MOTIONS],
    jitter: true,
  },
  new: {
    ...plain,
    name: "new",
    classes: ["zebra", "lion", "elephant", "parrot", "flamingo", "butterfly"],
    colours: SIX_COLOURS.slice(0, 4),
    twoColours: true,
  },
};

function refuse(subject: string, given: string, options: readonly string[]): never {
  const guess = nearest(given, options);
  throw new ConfigError(
    `world: unknown ${subject}: "${given}"; ${guess ? `did you mean "${guess}"?` : `known are ${options.join(", ")}`}`,
  );
}

/**
 * A named world, changed in part.
 * @param name a key of WORLDS
 * @param changes fields that replace the named world's own
 * @throws ConfigError for an unknown name, class, colour, motion or field, an empty list, or a size that cannot be
 */
export function world(name: string, changes: Partial<World> = {}): World {
  const base = WORLDS[name] ?? refuse("name", name, Object.keys(WORLDS));
  for (const key of Object.keys(changes)) if (!(key in base)) refuse("field", key, Object.keys(base));
  const made: World = { ...base, ...changes };
  const lists: [string, readonly string[], readonly string[]][] = [
    ["class", made.classes, CLASSES],
    ["colour", made.colours, Object.keys(COLOURS)],
    ["motion", made.motions, MOTIONS],
  ];
  for (const [subject, given, known] of lists) {
    if (given.length === 0)
      throw new ConfigError(
        `world: at least one ${subject} is needed: none was given; take some of ${known.slice(0, 4).join(", ")} …`,
      );
    for (const item of given) if (!known.includes(item)) refuse(subject, item, known);
    if (new Set(given).size !== given.length)
      throw new ConfigError(`world: each ${subject} counts once: ${given.join(", ")}; drop the repeated one`);
  }
  if (made.twoColours && made.colours.length < 2)
    throw new ConfigError(
      `world: two-colour backgrounds need two colours: ${made.colours.join(", ")}; add one or set twoColours to false`,
    );
  for (const [key, least] of [
    ["size", 8],
    ["frames", 1],
  ] as const)
    if (!Number.isInteger(made[key]) || made[key] < least)
      throw new ConfigError(
        `world: ${key} must be a whole number from ${least}: ${made[key]}; for example ${base[key]}`,
      );
  return made;
}

/**
 * Whether a combination is kept out of training, to be sampled afterwards: one in eleven of all.
 * (7 class + 3 colour + 5 motion) mod 11 = 0, with places in CLASSES, COLOURS (both summed, where there are two) and MOTIONS.
 */
export function isHeldOut(spec: Spec): boolean {
  if (spec.motion === undefined) return false;
  const colours = Object.keys(COLOURS);
  const colour = spec.colours.reduce((sum, c) => sum + colours.indexOf(c), 0);
  const place = (CLASSES as readonly string[]).indexOf(spec.class);
  return (7 * place + 3 * colour + 5 * MOTIONS.indexOf(spec.motion)) % 11 === 0;
}

/** Every combination of a world in a fixed order, or only those held out, or only those trained. */
export function combinations(of: World, part: "all" | "trained" | "heldOut" = "all"): Spec[] {
  const backgrounds = of.twoColours
    ? of.colours.flatMap((a) => of.colours.filter((b) => b !== a).map((b) => [a, b]))
    : of.colours.map((a) => [a]);
  const specs: Spec[] = of.classes.flatMap((name) =>
    backgrounds.flatMap((colours) => of.motions.map((motion) => ({ class: name, motion, colours }))),
  );
  return part === "all" ? specs : specs.filter((s) => isHeldOut(s) === (part === "heldOut"));
}

const withArticle = (noun: string) => `${/^[aeiou]/.test(noun) ? "an" : "a"} ${noun}`;

/** The caption of a spec: "an ox moving left on a blue background", "a zebra growing the upper half is blue and the lower half is red". */
export function captionOf(spec: Spec): string {
  const subject = withArticle(spec.class) + (spec.motion === undefined ? "" : ` ${spec.motion}`);
  const [first, second] = spec.colours;
  return second === undefined
    ? `${subject} on ${withArticle(first)} background`
    : `${subject} the upper half is ${first} and the lower half is ${second}`;
}
