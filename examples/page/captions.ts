/** Captions to begin with; those with a word that a model does not know are not offered. */
export const CAPTIONS = [
  "an ox moving left on a blue background",
  "a frog moving up on a red background",
  "a panda moving right on a green background",
  "a ladybug moving down on a yellow background",
];
