import { AbortedError, checkOptions } from "../../engine/errors.js";
import { checkPrompts } from "./encoder.js";
import { fnv1a } from "./table.js";

/** Makes long captions of short ones, the same for the same prompt. */
export interface Recaptioner {
  /** What to call it in a message. */
  readonly name: string;
  /** Identifies its rules or model: two recaptioners with one fingerprint give the same captions. */
  readonly fingerprint: string;
  /** A long caption for each prompt, in order. */
  expand(prompts: string[], signal?: AbortSignal): Promise<string[]>;
}

/** What a short caption says, taken apart. */
export interface Scene {
  /** With its article, as written: "an ox", "two birthday cakes". */
  subject: string;
  motion?: string;
  /** One background colour, or the upper half's and the lower half's; none where the caption names no background. */
  colours: string[];
}

/** Each motion as a sentence that fits any subject, one or many. */
const MOTIONS: Readonly<Record<string, string>> = {
  "standing still": "Nothing moves from its place: it stands still from beginning to end.",
  "moving left": "The movement goes from right to left: it begins at the right and ends at the left.",
  "moving right": "The movement goes from left to right: it begins at the left and ends at the right.",
  "moving up": "The movement goes upwards, from bottom to top: it begins below and ends above.",
  "moving down": "The movement goes downwards, from top to bottom: it begins above and ends below.",
  growing: "It stays where it is and grows: it is small in the beginning and large at the end.",
};

const MOTION = Object.keys(MOTIONS).join("|");
// A colour is one word or a few ("dark blue"); a subject may be anything, so the rest must match around it.
const COLOUR = "[\\p{L}-]+(?: [\\p{L}-]+){0,2}?";
const CAPTION = new RegExp(
  `^(?<subject>\\S(?:.*?\\S)?)(?: (?<motion>${MOTION}))?,?` +
    `(?: on an? (?<plain>${COLOUR}) background| the upper half is (?<upper>${COLOUR}) and the lower half is (?<lower>${COLOUR}))?$`,
  "u",
);
/** What only a caption with more in it than the rules understand has in the place of its subject. */
const BEYOND = /[.,;:!?]|(?:^| )(?:is|are|was|were|then|while|background)(?: |$)/;

/**
 * Takes a caption of the composed clips apart: "an ox moving left on a blue background", "a zebra growing the upper half
 * is blue and the lower half is red", or an image's, without a motion. Subject and colours may be any words.
 * @returns undefined for a caption of another kind
 */
export function parseScene(caption: string): Scene | undefined {
  const plainText = caption.normalize("NFKC").toLowerCase().trim().replace(/\s+/g, " ").replace(/\.$/, "");
  const { subject, motion, plain, upper, lower } = CAPTION.exec(plainText)?.groups ?? {};
  if (subject === undefined) return undefined;
  // Without a motion or a background anything at all would be a subject.
  if ((!motion && !plain && !upper) || BEYOND.test(subject)) return undefined;
  return { subject, motion, colours: plain ? [plain] : upper ? [upper, lower as string] : [] };
}

/** A parsed caption in more words: the subject, where it goes, the background above and below, the style. */
export function describeScene({ subject, motion, colours }: Scene, style: string): string {
  const [upper, lower = upper] = colours;
  const background =
    upper === undefined
      ? []
      : upper === lower
        ? [`The whole background behind it is ${upper}, ${upper} above and ${upper} below.`]
        : [
            `The background has two halves: above, in the upper half, it is ${upper}; below, in the lower half, it is ${lower}.`,
          ];
  const shown = `The picture shows ${subject}.`;
  return [shown, ...(motion === undefined ? [] : [MOTIONS[motion]]), ...background, ...(style ? [style] : [])].join(
    " ",
  );
}

/** Options of `RuleRecaptioner`. */
export interface RuleOptions {
  /** The last sentence of a parsed caption's description; default that of the embedded clips. "" leaves it out. */
  style?: string;
}

const STYLE = "It is drawn as a simple cartoon.";

/**
 * The default recaptioner: rules for captions of composed clips, without any model. What it says follows from the
 * caption alone. A caption of another kind becomes "The following is shown: …", which adds no claim; one that has
 * several sentences is long already and stays as it is.
 */
export class RuleRecaptioner implements Recaptioner {
  readonly name = "rules";
  readonly fingerprint: string;
  private readonly style: string;

  /** @throws ConfigError for an unknown option */
  constructor(options: RuleOptions = {}) {
    checkOptions("recaption", options, ["style"]);
    this.style = options.style ?? STYLE;
    const hash = fnv1a(new globalThis.TextEncoder().encode(this.style), 0);
    this.fingerprint = `rules/1 ${hash.toString(16).padStart(8, "0")}`;
  }

  /** The long caption of one prompt. */
  describe(prompt: string): string {
    const scene = parseScene(prompt);
    if (scene !== undefined) return describeScene(scene, this.style);
    const text = prompt.trim().replace(/\s+/g, " ");
    if (/[.!?]\s+\S/.test(text)) return text;
    return `The following is shown: ${/[.!?…]$/.test(text) ? text : `${text}.`}`;
  }

  /** @throws ConfigError for a prompt that is empty or not text, AbortedError where the signal says so */
  async expand(prompts: string[], signal?: AbortSignal): Promise<string[]> {
    checkPrompts(prompts);
    if (signal?.aborted) throw new AbortedError("recaption: stopped before it began");
    return prompts.map((prompt) => this.describe(prompt));
  }
}
