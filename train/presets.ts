import type { ConfigInput } from "./config.js";

/** A demonstration of a size: what it learns, and the work that it takes. */
export interface Preset {
  name: string;
  /** What a person will see. */
  doc: string;
  /** Options of the configuration; what is left out is the default. */
  config: ConfigInput;
  steps: number;
}

const small = { hidden: 64, depth: 3 };
const large = { hidden: 96, depth: 4 };

/** Demonstrations, the most ambitious first. Each trains from scratch to clips of captions that it never saw. */
export const PRESETS: readonly Preset[] = [
  {
    name: "wide-48",
    doc: "24 classes, 6 colours, 4 motions at 48 x 48 pixels",
    steps: 4000,
    config: {
      data: { world: "wide", size: 48 },
      model: large,
      optim: { lr: 2e-3, warmupSteps: 50 },
      ema: { decay: 0.998 },
      train: { batchSize: 16 },
    },
  },
  {
    name: "wide",
    doc: "24 classes, 6 colours, 4 motions at 32 x 32 pixels",
    steps: 3425,
    config: {
      data: { world: "wide" },
      model: large,
      optim: { lr: 2e-3, warmupSteps: 50 },
      ema: { decay: 0.998 },
      train: { batchSize: 16 },
    },
  },
  {
    name: "base",
    doc: "12 classes, 6 colours, 4 motions at 32 x 32 pixels",
    steps: 1500,
    config: {
      data: { world: "base" },
      model: large,
      optim: { lr: 2e-3, warmupSteps: 50 },
      ema: { decay: 0.998 },
      train: { batchSize: 16 },
    },
  },
  {
    name: "easy-16",
    doc: "6 classes, 4 colours, 4 motions at 32 x 32 pixels, batches of 16",
    steps: 1329,
    config: { data: { world: "easy" }, model: small, train: { batchSize: 16 } },
  },
  {
    name: "easy",
    doc: "6 classes, 4 colours, 4 motions at 32 x 32 pixels",
    steps: 1329,
    config: { data: { world: "easy" }, model: small, train: { batchSize: 8 } },
  },
];
