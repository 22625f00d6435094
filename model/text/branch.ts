import { ConfigError, type Engine } from "../../engine/index.js";
import type { STDiT } from "../stdit.js";
import type { Identity } from "./encoder.js";
import { type PromptForm, promptForm } from "./form.js";
import { type EncoderAssets, type EncoderSpec, findEncoder, type OpenEncoder, openNamed } from "./spec.js";

/** What a model's file says of the language model that its branch was trained with. */
export interface BranchEncoder extends EncoderSpec {
  /** Of weights, tokenizer, template and options: other vectors would mean nothing to the model. */
  fingerprint: string;
  /** What the language model reads. */
  form: PromptForm;
}

/** A language model that a branch reads, opened. */
export interface OpenBranch {
  encoder: OpenEncoder;
  /** As the model's file is to say it. */
  said: BranchEncoder;
}

const noModel = (encoder: string) =>
  new ConfigError(
    `language: ${encoder} is no language model; take "language", a language model's file or a folder as Hugging Face lays it out.`,
  );

/**
 * A language model for a branch that is new: its width and length, and what the model's file is to say of it. No weights
 * are read.
 * @throws ConfigError for word vectors, which are no language model
 */
export async function identifyBranch(
  engine: Engine,
  spec: EncoderSpec,
  form: PromptForm,
  assets: EncoderAssets,
): Promise<Identity & { said: BranchEncoder }> {
  const found = await findEncoder(spec, assets);
  const { fingerprint, ...sizes } = await found.identify(engine);
  if (fingerprint === undefined || found.kind === "words") throw noModel(spec.encoder);
  return { ...sizes, fingerprint, said: { ...spec, fingerprint, form } };
}

/**
 * Opens a language model for a branch.
 * @param isNamed whether a model's file says where it lies, for the text of errors
 * @throws ConfigError for word vectors, which are no language model
 */
export async function openBranch(
  engine: Engine,
  spec: EncoderSpec,
  form: PromptForm,
  assets: EncoderAssets,
  isNamed = false,
): Promise<OpenBranch> {
  const encoder = await openNamed(engine, spec, assets, "--llm", isNamed);
  const { fingerprint } = encoder as { fingerprint?: string };
  if (fingerprint === undefined || spec.encoder === "words") {
    encoder.dispose?.();
    throw noModel(spec.encoder);
  }
  return { encoder, said: { ...spec, fingerprint, form } };
}

/**
 * The language model that a model's branch was trained with; undefined for a model without a branch.
 * @param where takes the place of what the file says, such as a folder that lies elsewhere here
 * @throws ConfigError when the file does not say which, or what is found gives other vectors
 */
export async function languageOf(
  engine: Engine,
  model: STDiT,
  assets: EncoderAssets,
  where?: string,
): Promise<OpenBranch | undefined> {
  if (!model.config.languageChannels) return undefined;
  const said = model.language?.encoder as BranchEncoder | undefined;
  if (!said && where === undefined)
    throw new ConfigError(
      "language: the file does not say which language model its branch was trained with; name it (--llm, or the encoder of languageOf).",
    );
  const { fingerprint, form = "S", ...spec } = said ?? ({ encoder: where! } as BranchEncoder);
  const { languageLength, languageChannels } = model.config;
  const wanted: EncoderSpec = { ...spec, encoder: where ?? spec.encoder, maxLength: spec.maxLength ?? languageLength };
  const { encoder, said: found } = await openBranch(engine, wanted, promptForm(form), assets, where === undefined);
  try {
    if (fingerprint !== undefined && found.fingerprint !== fingerprint)
      throw new ConfigError(
        `language: the branch was trained with another language model: the file says ${fingerprint}, ${wanted.encoder} is ${found.fingerprint}; give that one.`,
      );
    if (encoder.dim !== languageChannels)
      throw new ConfigError(
        `language: the branch takes vectors of ${languageChannels} numbers: those of ${wanted.encoder} have ${encoder.dim}; give the language model that it was trained with.`,
      );
    return { encoder, said: found };
  } catch (error) {
    encoder.dispose?.();
    throw error;
  }
}
