import { ConfigError, checkOptions, type Key, type Shape } from "../engine/index.js";
import { type LanguageGate, type STDiTConfig, stditConfig } from "./config.js";
import { type Init, normal, xavierUniform } from "./init.js";
import { buildModel, type Origin, originOf } from "./origin.js";
import type { StateSource } from "./state.js";
import type { STDiT } from "./stdit.js";
import { isZero, type StatePart, StateView, viewOf } from "./view.js";

/** The branch to add. */
export interface LanguageOptions {
  /** Width of the language model's vectors. */
  channels: number;
  /** The longest caption, in tokens: rows of the branch's null caption. Default 256. */
  maxLength?: number;
  /** Default "scalar": one gate a block. */
  gate?: LanguageGate;
  /**
   * Start each block's second cross-attention as a copy of its first (default), or by Xavier's rule, its projection
   * included.
   */
  duplicate?: boolean;
  /** Weights of the branch's caption MLP: N(0, 0.02) (default), or Xavier's rule. */
  captionInit?: "normal" | "xavier";
  /** Decides what is drawn: the caption MLP, the null caption, and without duplication the attentions. */
  key: Key;
  /** What to say of the language model in the model's file. */
  encoder?: Readonly<Record<string, unknown>>;
}

/** How a model's language branch began. */
export interface LanguageRecord {
  readonly gate: LanguageGate;
  readonly duplicated: boolean;
  readonly encoder?: Readonly<Record<string, unknown>>;
}

const LAYERS = ["q_linear", "kv_linear", "proj"].flatMap((l) => [`${l}.weight`, `${l}.bias`]);

/** For each block the nearest one, the earlier of two, whose attention to the caption does anything. */
async function livingBlocks(view: StateView, depth: number): Promise<number[]> {
  const living: number[] = [];
  for (let i = 0; i < depth; i++) {
    const name = `blocks.${i}.cross_attn.proj`;
    const parts = [`${name}.bias`, `${name}.weight`].map((n) => view.parts.get(n)).filter((p) => p !== undefined);
    for (const part of parts)
      if (!(await isZero(part))) {
        living.push(i);
        break;
      }
  }
  if (living.length === 0)
    throw new ConfigError(
      `language: cross_attn.proj is zero in every block of ${view.name}: a copy of it beside a gate of zero would never learn, since the gate's gradient has the projection as a factor and the projection's has the gate; train the model first, or pass duplicate: false, which draws the projection by Xavier's rule.`,
    );
  return Array.from({ length: depth }, (_, i) =>
    living.reduce((best, j) => (Math.abs(j - i) < Math.abs(best - i) ? j : best)),
  );
}

const drawn = (shape: Shape, init: Init, key: Key): StatePart => ({
  shape,
  make: (engine, shape, dtype) => init(engine, shape, key, dtype),
});
const zero = (shape: Shape): StatePart => ({ shape, make: "zeros" });

/** The second caption's embedder under its names in a checkpoint. */
function embedder(config: STDiTConfig, options: LanguageOptions): [string, StatePart][] {
  const { hidden: C, languageChannels: D, languageLength: L } = config;
  const key = options.key.fold(0);
  const init = options.captionInit === "xavier" ? xavierUniform : normal(0.02);
  const name = "y_embedder_llm";
  return [
    [`${name}.y_proj.fc1.weight`, drawn([C, D], init, key.fold(0))],
    [`${name}.y_proj.fc1.bias`, zero([C])],
    [`${name}.y_proj.fc2.weight`, drawn([C, C], init, key.fold(1))],
    [`${name}.y_proj.fc2.bias`, zero([C])],
    [`${name}.y_embedding`, drawn([L, D], normal(1 / Math.sqrt(D)), key.fold(2))],
  ];
}

/** A source of the model before as one of the model with the branch, whose configuration is given. */
async function languageSource(source: StateSource, config: STDiTConfig, options: LanguageOptions): Promise<StateView> {
  const view = viewOf(source);
  const { depth, hidden: C, heads, languageGate } = config;
  const parts = new Map([...view.parts, ...embedder(config, options)]);
  const from = options.duplicate === false ? undefined : await livingBlocks(view, depth);
  const gates = { scalar: 1, head: heads, channel: C }[languageGate];
  for (let i = 0; i < depth; i++) {
    const key = options.key.fold(1).fold(i);
    for (const [j, name] of LAYERS.entries()) {
      const shape = [name.startsWith("kv") ? 2 * C : C, ...(name.endsWith("weight") ? [C] : [])];
      const fresh = name.endsWith("weight") ? drawn(shape, xavierUniform, key.fold(j)) : zero(shape);
      const copied = from && view.parts.get(`blocks.${from[i]}.cross_attn.${name}`);
      // What the source lacks stays out, so that loading names it.
      if (!from || copied) parts.set(`blocks.${i}.cross_attn_llm.${name}`, copied ?? fresh);
    }
    parts.set(`blocks.${i}.gate_llm`, zero([gates]));
  }
  return new StateView(view.name, parts);
}

/** The origin of a model with the branch; see `addLanguage`. */
export async function languageOrigin(origin: Origin, options: LanguageOptions): Promise<Origin> {
  checkOptions("language", options, ["channels", "maxLength", "gate", "duplicate", "captionInit", "key", "encoder"]);
  const { channels, maxLength = 256, gate = "scalar", duplicate = true, captionInit = "normal", encoder } = options;
  const refuse = (rule: string, value: unknown) => {
    throw new ConfigError(`language: ${rule}: got ${typeof value === "number" ? value : JSON.stringify(value)}.`);
  };
  if (origin.config.languageChannels)
    throw new ConfigError(
      `language: the model has a language branch already, of ${origin.config.languageChannels} channels; a model has one.`,
    );
  if (!(Number.isSafeInteger(channels) && channels >= 1))
    refuse("channels must be the width of the language model's vectors, a whole number from 1", channels);
  if (typeof duplicate !== "boolean") refuse("duplicate must be true or false", duplicate);
  if (captionInit !== "normal" && captionInit !== "xavier") refuse("captionInit must be normal or xavier", captionInit);
  if (!options.key) throw new ConfigError("language: key missing: what is drawn needs one; pass Key.from(seed).");
  const config = stditConfig({
    ...origin.config,
    languageChannels: channels,
    languageLength: maxLength,
    languageGate: gate,
  });
  return {
    ...origin,
    config,
    source: await languageSource(origin.source, config, options),
    language: { gate, duplicated: duplicate, ...(encoder && { encoder }) },
  };
}

/**
 * A trained model with a second cross-attention to what a language model makes of the caption, as a new model on the
 * same engine. Its gates are 0, so that outputs stay equal to the last bit; at first they alone of the branch get a
 * gradient. Attentions are copies of each block's attention to the caption, or, where that does nothing yet (in blocks
 * that were just added), of the nearest one's that does. The model given stays as it is.
 * @throws ConfigError for a branch that could never learn, a model that has one, and options that are none
 */
export async function addLanguage(model: STDiT, options: LanguageOptions): Promise<STDiT> {
  const origin = await languageOrigin(originOf(model), options);
  const next = await buildModel(model.engine, origin, { dtype: model.dtype });
  next.checkpointBlocks = model.checkpointBlocks;
  return next;
}

/** The record as checkpoints hold it. */
export const encodeLanguage = (language: LanguageRecord): string => JSON.stringify(language);

/**
 * Reads what `encodeLanguage` wrote for a model of this configuration.
 * @throws ConfigError for text that is no record, or one of another model
 */
export function decodeLanguage(text: string, config: STDiTConfig, file = "the file"): LanguageRecord {
  const refuse = (rule: string): never => {
    throw new ConfigError(
      `language: the record in ${file} ${rule}; take the metadata "language" out to read the model without it.`,
    );
  };
  let json: Partial<LanguageRecord> | null;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    return refuse(`is no JSON: ${(cause as Error).message}`);
  }
  const { gate, duplicated, encoder } = json ?? {};
  if (!config.languageChannels) return refuse("is of a branch, the model has none");
  if (gate !== config.languageGate)
    return refuse(`says gate ${JSON.stringify(gate)}, the model's is "${config.languageGate}"`);
  if (typeof duplicated !== "boolean") return refuse('must say "duplicated", true or false');
  if (encoder !== undefined && (typeof encoder !== "object" || encoder === null || Array.isArray(encoder)))
    return refuse(`must have an object as encoder: ${JSON.stringify(encoder).slice(0, 60)}`);
  return { gate, duplicated, ...(encoder && { encoder }) };
}
