import { type Engine, type Key, normal, type Tensor } from "../../engine/index.js";
import type { STDiTConfig } from "../../model/config.js";
import type { Module } from "../../model/module.js";
import type { LanguageCall, STDiT } from "../../model/stdit.js";

/** A model that is quick to build and run. */
export const SMALL: Partial<STDiTConfig> = {
  inChannels: 2,
  hidden: 8,
  heads: 2,
  mlpRatio: 2,
  frames: 2,
  latent: [2, 4],
  captionChannels: 3,
  maxLength: 4,
};

/** Gives every parameter random numbers, so that nothing that fresh models have at zero hides a difference. */
export async function randomize(model: Module, key: Key, std = 0.3): Promise<void> {
  const { engine } = model;
  const values = Object.fromEntries(
    model.namedParameters().map(([name, p], i) => [name, normal(engine, key.fold(i), p.shape, { std })]),
  );
  await model.loadStateDict(values, { strict: false });
  for (const t of Object.values(values)) t.dispose();
}

export interface Inputs {
  x: Tensor;
  t: number[];
  y: Tensor;
  mask: Tensor;
  language?: LanguageCall;
}

/** A batch of two for models of a configuration, with a second caption where they take one. */
export function inputsOf(engine: Engine, config: Partial<STDiTConfig>): Inputs {
  const wave = (shape: number[], pace: number) =>
    engine.tensor(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(pace * (i + 1))),
      shape,
    );
  const channels = config.languageChannels;
  return {
    x: wave([2, config.inChannels!, config.frames!, ...config.latent!], 0.7),
    t: [17, 803],
    y: wave([2, 4, config.captionChannels!], 1.3),
    mask: engine.tensor(Int32Array.of(1, 1, 0, 0, 1, 1, 1, 0), [2, 4]),
    ...(channels && {
      language: { y: wave([2, 3, channels], 1.9), mask: engine.tensor(Int32Array.of(1, 1, 1, 1, 0, 0), [2, 3]) },
    }),
  };
}

export async function outputOf(model: STDiT, { x, t, y, mask, language }: Inputs): Promise<Float32Array> {
  const { engine } = model;
  const call = model.config.languageChannels ? { language } : {};
  const out = engine.noGrad(() => engine.scope(() => model.forward(x, t, y, mask, call)));
  const values = (await out.data()) as Float32Array;
  out.dispose();
  return values;
}

/** Whether two arrays of f32 are equal bit for bit, and hold something other than zeros. */
export function equalBits(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  const bits = (values: ArrayLike<number>) => new Uint32Array(Float32Array.from(values).buffer);
  const [left, right] = [bits(a), bits(b)];
  return left.length === right.length && left.every((v, i) => v === right[i]) && left.some((v) => v !== 0);
}

/** The error of a promise that must fail. */
export async function thrown(f: () => Promise<unknown>): Promise<Error> {
  let value: unknown;
  try {
    value = await f();
  } catch (error) {
    return error as Error;
  }
  throw new Error(`did not throw but gave ${value}`);
}
