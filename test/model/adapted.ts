import * as assert from "uvu/assert";
import { createEngine, Key, normal, type Tensor } from "../../engine/index.js";
import { addLora, Linear, type LoraOptions, Module, memorySink, STDiT, saveLora } from "../../model/index.js";

export const engine = await createEngine();
export const key = Key.from(11);

export const SMALL = {
  inChannels: 3,
  predSigma: false,
  hidden: 16,
  depth: 2,
  heads: 2,
  frames: 2,
  latent: [4, 6] as [number, number],
  captionChannels: 5,
  maxLength: 6,
};
export const ATTENTION = ["blocks.*.attn.**", "blocks.*.crossAttn.**"];
export const NAMES = [0, 1].flatMap((i) =>
  ["attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"].map(
    (layer) => `blocks.${i}.${layer}`,
  ),
);

/** Fills tensors that begin as zeros, so that no path hides another. */
export async function fill(model: Module, names: RegExp, seed: Key): Promise<void> {
  const chosen = model.namedParameters().filter(([name]) => names.test(name));
  const values = Object.fromEntries(
    chosen.map(([n, p], i) => [n, normal(engine, seed.fold(i), p.shape, { std: 0.3 })]),
  );
  await model.loadStateDict(values, { strict: false });
  for (const t of Object.values(values)) t.dispose();
}

export async function small(seed = key): Promise<STDiT> {
  const model = new STDiT(engine, SMALL, { key: seed });
  await fill(model, /\.proj\.|final_layer\.linear/, seed);
  return model;
}
export const adapted = async (options: Partial<LoraOptions> = {}) => {
  const model = await small();
  addLora(model, { pattern: ATTENTION, rank: 4, alpha: 6, key, ...options });
  await fill(model, /lora_B/, key.fold(9));
  return model;
};

export const inputs = () => ({
  x: normal(engine, key.fold(50), [2, 3, 2, 4, 6]),
  y: normal(engine, key.fold(51), [2, 6, 5]),
});
export const forward = (model: STDiT): Tensor => {
  const { x, y } = inputs();
  return model.forward(x, [10, 600], y);
};
export const output = async (model: STDiT) => {
  using out = engine.noGrad(() => engine.scope(() => forward(model)));
  return await out.data();
};

/** Values by name, and their bits for comparison. */
export const bits = async (state: Readonly<Record<string, Tensor>>): Promise<Record<string, string>> => {
  const found: Record<string, string> = {};
  for (const [name, t] of Object.entries(state)) {
    const values = await t.data();
    found[name] = Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
  }
  return found;
};
export const bytesOf = async (model: Module) => {
  const sink = memorySink("memory");
  await saveLora(sink, model);
  return sink.bytes();
};
/** Fails unless `f` throws this. */
export const refused = async (f: () => unknown, message: string | RegExp): Promise<void> => {
  try {
    await f();
  } catch (error) {
    const got = (error as Error).message;
    if (typeof message === "string") assert.is(got, message);
    else assert.match(got, message);
    return;
  }
  assert.unreachable(`did not throw ${message}`);
};

/** A model of one layer beside a plain one. */
export class Pair extends Module {
  readonly inner: Linear;
  readonly outer: Linear;
  constructor(inputs = 6, outputs = 5) {
    super(engine);
    this.inner = new Linear(engine, inputs, outputs, { key: key.fold(1) });
    this.outer = new Linear(engine, outputs, 3, { key: key.fold(2), bias: false });
  }
  forward(x: Tensor): Tensor {
    return this.outer.forward(this.inner.forward(x, "geluTanh"));
  }
}
