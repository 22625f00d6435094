import { createEngine } from "../../engine/index.js";
import { encodeFloat32 } from "../../model/safetensors/dtype.js";
import { memorySink, writeSafetensors } from "../../model/safetensors.js";
import { encodeT5Config, t5Config } from "../../model/t5/config.js";
import { T5Encoder } from "../../model/t5/t5.js";
import { cleanCaption } from "../../model/text/clean.js";
import { openT5 } from "../../model/text/t5.js";
import { openTokenizer } from "../../model/text/tokenizer.js";
import { type Golden, golden } from "../golden.js";
import { relNorm, worstAbs } from "../model/compare.js";

/** The golden T5 on the page's adapter: the largest difference of its states, and the largest norm of its gradients. */
export async function run(): Promise<{ out: number; gradient: number; gradients: number; padded: number }> {
  const engine = await createEngine();
  const { tensors, metadata } = await golden("t5_encoder", "files");
  const cfg = JSON.parse(metadata.cfg);
  const config = t5Config({
    vocabSize: cfg.vocab,
    hidden: cfg.d_model,
    headDim: cfg.d_kv,
    heads: cfg.heads,
    intermediate: cfg.d_ff,
    depth: cfg.layers,
  });
  const weights = Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (name.startsWith("weights.") ? [[name.slice(8), t]] : [])),
  );
  const model = new T5Encoder(engine, config);
  await model.loadStateDict(weights);
  const upload = (t: Golden) => engine.tensor(t.data, t.shape);
  const states = model.forward(upload(tensors["in.ids"]), upload(tensors["in.mask"]));
  const out = worstAbs(await states.data(), tensors["out.last_hidden_state"].data);
  states.mul(upload(tensors["in.loss_rand"])).mean().backward();
  let gradient = 0;
  const list = model.namedParameters();
  for (const [name, p] of list)
    gradient = Math.max(gradient, relNorm(await p.grad!.data(), tensors[`grad.${name}`].data));

  // The same weights as a person picks them: one file, a configuration, a vocabulary.
  const sink = memorySink();
  await writeSafetensors(
    sink,
    Object.entries(weights).map(([name, { shape, data }]) => ({
      name,
      dtype: "F32",
      shape,
      data: encodeFloat32(data as Float32Array, "F32"),
    })),
  );
  const vocab = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁ox"].map((word, i) => [word, -i]);
  const special = ["<pad>", "</s>", "<unk>"].map((content, id) => ({ id, content, special: true }));
  const json = {
    added_tokens: special,
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
    model: { type: "Unigram", unk_id: 2, vocab },
  };
  const encoder = await openT5(
    engine,
    {
      "config.json": new Blob([JSON.stringify(encodeT5Config(config))]),
      "tokenizer.json": new Blob([JSON.stringify(json)]),
      "model.safetensors": new Blob([sink.bytes() as Uint8Array<ArrayBuffer>]),
    },
    { maxLength: 6 },
  );
  const { embeddings, mask } = await encoder.encode(["A red ox"]);
  const alone = engine.noGrad(() => model.forward(engine.tensor([3, 4, 5, 1], [1, 4], "i32")));
  const off = worstAbs(embeddings.slice(0, 4 * config.hidden), await alone.data());
  const padded = String([...mask]) === "1,1,1,1,0,0" ? off : Number.POSITIVE_INFINITY;
  engine.destroy();
  return { out, gradient, gradients: list.length, padded };
}

/** Ids of lines by a SentencePiece model. */
export async function ids(base64: string, lines: readonly string[]): Promise<number[][]> {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const tokenizer = await openTokenizer({ "spiece.model": new Blob([bytes]) });
  return lines.map((line) => tokenizer.encode(line));
}

/** Captions, cleaned twice. */
export const clean = (captions: readonly string[]): string[] =>
  captions.map((text) => cleanCaption(cleanCaption(text)));
