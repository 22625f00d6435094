import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Engine, Key, type Tensor } from "../../engine/index.js";
import { TOKENIZER_CONFIG, tokenizerJson, vocabularyOf } from "../../examples/pieces.js";
import { encodeLlamaConfig, llamaConfig } from "../../model/llama/config.js";
import { Llama } from "../../model/llama/llama.js";
import { encodeFloat32, writeSafetensors } from "../../model/safetensors.js";
import { encodeT5Config, t5Config } from "../../model/t5/config.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { encodeVaeConfig, vaeConfig } from "../../model/vae/config.js";
import { AutoencoderKL } from "../../model/vae/vae.js";

/** Writes tensors as f32. */
export async function writeWeights(path: string, state: Readonly<Record<string, Tensor>>): Promise<void> {
  const entries = [];
  for (const [name, t] of Object.entries(state)) {
    const data = encodeFloat32((await t.data()) as Float32Array, "F32");
    entries.push({ name, dtype: "F32" as const, shape: t.shape, data });
  }
  await writeSafetensors(path, entries);
}

const writeJson = (path: string, json: unknown) => writeFile(path, JSON.stringify(json));

/** A small T5 v1.1's folder as Hugging Face lays it out; it knows the words and single letters. */
export async function t5Folder(
  engine: Engine,
  folder: string,
  words: readonly string[],
  hidden = 24,
  seed = 5,
): Promise<string> {
  await mkdir(folder, { recursive: true });
  const config = t5Config({ vocabSize: 64, hidden, headDim: 8, heads: 2, intermediate: 40, depth: 1, buckets: 32 });
  const model = new T5Encoder(engine, config, { key: Key.from(seed) });
  await writeWeights(join(folder, "model.safetensors"), model.stateDict());
  model.dispose();
  await writeJson(join(folder, "config.json"), encodeT5Config(config));
  const pieces = [...words.map((word) => `▁${word}`), ..."▁abcdefghijklmnopqrstuvwxyz"];
  const vocab = [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ...pieces.map((word, i) => [word, -1 - i / 10])];
  const special = ["<pad>", "</s>", "<unk>"].map((content, id) => ({ id, content, special: true, normalized: false }));
  const metaspace = { type: "Metaspace", replacement: "▁" };
  await writeJson(join(folder, "tokenizer.json"), {
    added_tokens: special,
    normalizer: null,
    pre_tokenizer: { ...metaspace, prepend_scheme: "always" },
    post_processor: null,
    decoder: metaspace,
    model: { type: "Unigram", unk_id: 2, vocab },
  });
  return folder;
}

/** A small Llama's folder likewise. */
export async function llamaFolder(engine: Engine, folder: string, words: string[], seed = 3): Promise<string> {
  await mkdir(folder, { recursive: true });
  const config = llamaConfig({
    ...{ vocabSize: 128, hidden: 16, intermediate: 24, depth: 1, heads: 2, kvHeads: 1, maxPositions: 64 },
  });
  const model = new Llama(engine, config, { key: Key.from(seed) });
  await writeWeights(join(folder, "model.safetensors"), model.stateDict());
  model.dispose();
  await writeJson(join(folder, "config.json"), encodeLlamaConfig(config));
  await writeJson(join(folder, "tokenizer.json"), tokenizerJson(vocabularyOf(words, new Map(), 128)));
  await writeJson(join(folder, "tokenizer_config.json"), TOKENIZER_CONFIG);
  return folder;
}

/** A small AutoencoderKL's folder as diffusers writes it: 2 pixels a side to a latent position, 4 channels. */
export async function vaeFolder(engine: Engine, folder: string, seed = 2): Promise<string> {
  await mkdir(folder, { recursive: true });
  const config = vaeConfig({ channels: [8, 16], groups: 4, layersPerBlock: 1, latentChannels: 4 });
  const vae = new AutoencoderKL(engine, config, { key: Key.from(seed) });
  await writeWeights(join(folder, "diffusion_pytorch_model.safetensors"), vae.stateDict());
  vae.dispose();
  await writeJson(join(folder, "config.json"), encodeVaeConfig(config));
  return folder;
}
