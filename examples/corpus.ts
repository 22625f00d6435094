// Text that the small language model learns from: captions of composed clips, and WordNet's explanations of words.
import { philox4x32 } from "../engine/random/philox.js";
import { RuleRecaptioner } from "../model/text/recaption.js";
import { CLASSES, COLOURS, captionOf, combinations, MOTIONS, type Spec, world } from "../train/data/world.js";
import type { WordNet } from "./wordnet.js";

/** Captions of one world; the held-out ones are only ever measured. */
export interface CaptionSet {
  name: string;
  trained: Spec[];
  heldOut: Spec[];
}

/** The worlds `wide` and `new`, each on backgrounds of one and of two colours. */
export function captionSets(): CaptionSet[] {
  return ["wide", "new"].flatMap((name) =>
    [false, true].map((twoColours) => {
      const of = world(name, { twoColours });
      return {
        name: `${name}, ${twoColours ? "two colours" : "one colour"}`,
        trained: combinations(of, "trained"),
        heldOut: combinations(of, "heldOut"),
      };
    }),
  );
}

const recaptioner = new RuleRecaptioner();

/** The caption in more words. */
export const longCaptionOf = (spec: Spec): string => recaptioner.describe(captionOf(spec));

/** What the assistant answers to a caption: the same content, thing by thing. */
export function answerOf({ class: thing, motion, colours: [first, second] }: Spec): string {
  const where = second === undefined ? `${first} everywhere` : `${first} above, ${second} below`;
  return `${thing}, ${motion}, ${where}.`;
}

/** Every word that captions, answers and the instruction are made of. */
export function captionWords(): string[] {
  const texts = [
    ...captionSets().flatMap(({ trained }) =>
      trained.flatMap((spec) => [captionOf(spec), longCaptionOf(spec), answerOf(spec)]),
    ),
    ...CLASSES,
    ...Object.keys(COLOURS),
    ...MOTIONS,
    "describe the clip",
  ];
  return [...new Set(texts.flatMap((text) => text.toLowerCase().match(/[a-z]+/g) ?? []))];
}

/** An explained word: "ox: an adult castrated bull of the genus Bos". */
export function explanations({ synsets }: WordNet): string[] {
  return Array.from(
    synsets.values(),
    ({ lemmas, gloss }) => `${lemmas[0].lemma.replaceAll("_", " ")}: ${gloss.join(" ")}`,
  );
}

/** Row `row` of step `step` as four whole numbers below 2^32: a pure function of these and the seed. */
export const draws = (seed: number, step: number, row: number) => philox4x32([step, row, 0, 0], [seed, 0x6c616e67]);
