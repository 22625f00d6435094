import { normal, type Tensor } from "../../engine/index.js";
import { Key } from "../../engine/random/key.js";
import { Batches } from "../batch.js";
import { languageInput } from "../loop.js";
import { languageReader, type Setup } from "../setup.js";
import type { Source } from "../source.js";

/** Whether two models' outputs agree. */
export interface Unchanged {
  values: number;
  /** Values whose bits differ. */
  different: number;
  /** The largest difference. */
  largest: number;
  /** The same in words. */
  text: string;
}

/** Runs a grown model and the one it grew from on the same clips, times and captions, and compares every output. */
export async function unchanged(base: Setup, grown: Setup, source: Source): Promise<Unchanged> {
  const { engine } = base.model;
  const options = { batchSize: 4, conditionDropout: 0, languageDropout: 0, seed: 0 };
  const batch = await new Batches(source.dataset, grown.text, options, languageReader(grown)).get(0);
  const outputs = ({ model, codec, objective }: Setup): Tensor =>
    engine.noGrad(() =>
      engine.scope(() => {
        const shape = codec.latentShape(batch.shape);
        const x = normal(engine, Key.from(0), shape); // [B, C, T, H, W]
        const y = engine.tensor(batch.embeddings, batch.textShape); // [B, L, D]
        const mask = engine.tensor(batch.mask, batch.textShape.slice(0, 2)); // [B, L]
        const spoken = batch.language && model.yEmbedderLlm && languageInput(engine, batch.language);
        return model.forward(x, objective.timesteps(objective.times(batch.time)), y, mask, { language: spoken }); // [B, out, T, H, W]
      }),
    );
  const [a, b] = [outputs(base), outputs(grown)];
  const [before, after] = [(await a.data()) as Float32Array, (await b.data()) as Float32Array];
  a.dispose();
  b.dispose();
  const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
  const [left, right] = [bits(before), bits(after)];
  let [different, largest] = [0, 0];
  for (let i = 0; i < left.length; i++) {
    if (left[i] !== right[i]) different++;
    largest = Math.max(largest, Math.abs(before[i] - after[i]));
  }
  const values = left.length.toLocaleString("en");
  const text = different
    ? `${different.toLocaleString("en")} of ${values} values differ, by up to ${largest.toExponential(1)}`
    : `all ${values} values are equal bit for bit`;
  return { values: left.length, different, largest, text };
}
