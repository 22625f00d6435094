import { ConfigError } from "../../engine/index.js";
import { type STDiTConfig, stditConfig } from "../config.js";
import { posTable1d, posTable2d } from "../embed.js";
import type { Safetensors } from "../safetensors.js";

/** What a checkpoint's tensors tell of their model, with what had to be assumed. */
export interface Deduced {
  config: STDiTConfig;
  notes: string[];
}

/** Heads of STDiT where nothing says otherwise. */
const HEADS = 16;

/** The object that Open-Sora's constructor arguments were saved as: its keys by our names. */
const ARGUMENTS: Readonly<Record<string, (value: any) => Partial<STDiTConfig>>> = {
  input_size: (v) => ({ frames: v[0], latent: [v[1], v[2]] }),
  in_channels: (v) => ({ inChannels: v }),
  patch_size: (v) => ({ patch: v }),
  hidden_size: (v) => ({ hidden: v }),
  depth: (v) => ({ depth: v }),
  num_heads: (v) => ({ heads: v }),
  mlp_ratio: (v) => ({ mlpRatio: v }),
  pred_sigma: (v) => ({ predSigma: v }),
  caption_channels: (v) => ({ captionChannels: v }),
  model_max_length: (v) => ({ maxLength: v }),
  space_scale: (v) => ({ spaceScale: v }),
  time_scale: (v) => ({ timeScale: v }),
};
/** Arguments that change neither parameters nor function where nothing is trained. */
const WITHOUT_EFFECT =
  /^(_.*|architectures|auto_map|model_type|torch_dtype|dtype|transformers_version|class_dropout_prob|drop_path|freeze|no_temporal_pos_emb|enable_.*)$/;

/**
 * Reads the config.json of an Open-Sora 1.0 model.
 * @throws ConfigError for one of another model or a value that cannot be
 */
export function readArguments(
  json: Readonly<Record<string, unknown>>,
  file: string,
): Deduced & { given: Partial<STDiTConfig> } {
  const kind = json.model_type;
  if (kind !== undefined && kind !== "STDiT")
    throw new ConfigError(
      `openOpenSora: ${file} is of another model: model_type ${JSON.stringify(kind)}; STDiT of Open-Sora 1.0 is what is read here.`,
    );
  if (json.no_temporal_pos_emb === true)
    throw new ConfigError(
      `openOpenSora: ${file} says no_temporal_pos_emb: models without positions of frames are not known here.`,
    );
  const given: Partial<STDiTConfig> = {};
  const notes: string[] = [];
  for (const [key, value] of Object.entries(json)) {
    const read = Object.hasOwn(ARGUMENTS, key) ? ARGUMENTS[key] : undefined;
    if (read) {
      const isList = key === "input_size" || key === "patch_size";
      if (isList && !(Array.isArray(value) && value.length === 3))
        throw new ConfigError(`openOpenSora: ${key} of ${file} must be three numbers: got ${JSON.stringify(value)}.`);
      Object.assign(given, read(value));
    } else if (!WITHOUT_EFFECT.test(key)) notes.push(`${file}: "${key}" means nothing here`);
  }
  return { config: stditConfig(), given, notes };
}

const isSquare = (n: number) => Number.isInteger(Math.sqrt(n));

/**
 * What positions were divided by, from a table of them: the angles of its second place, from the slowest on, each of
 * which says to which turn the next belongs. Ratios of small numbers are taken exactly.
 * @param row sines then cosines of one place
 */
function scaleOf(row: Float32Array): number {
  const half = row.length / 2;
  let inverse = 0;
  for (let k = half - 1; k >= 0; k--) {
    const frequency = 10000 ** (-k / half);
    const angle = Math.atan2(row[k], row[half + k]);
    const turns = Math.round((inverse * frequency - angle) / (2 * Math.PI));
    inverse = (angle + 2 * Math.PI * turns) / frequency;
  }
  for (let d = 1; d <= 16; d++) {
    const n = Math.round((1 / inverse) * d);
    if (n > 0 && Math.abs(inverse * (n / d) - 1) < 0.01) return n / d;
  }
  return 1 / inverse;
}

/** Largest difference of two tables. */
const apart = (a: Float32Array, b: Float32Array) => a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - b[i])), 0);
/** What rounding to bf16 may do to a sine. */
const ROUNDED = 0.01;

/**
 * Deduces the configuration of an Open-Sora 1.0 STDiT from its tensors; what `given` holds is taken where tensors cannot
 * tell, or says for which grid the model is to be.
 * @throws ConfigError when a tensor that decides it is missing, contradicts what is given, or sizes cannot be told
 */
export async function deduceConfig(file: Safetensors, given: Partial<STDiTConfig>): Promise<Deduced> {
  const notes: string[] = [];
  const shape = (name: string): readonly number[] => {
    if (file.has(name)) return file.info(name).shape;
    throw new ConfigError(
      `openOpenSora: ${file.name} is no STDiT of Open-Sora 1.0: it lacks ${name}, which decides the configuration.`,
    );
  };
  const patchWeight = shape("x_embedder.proj.weight");
  if (patchWeight.length !== 5)
    throw new ConfigError(
      `openOpenSora: ${file.name} embeds images, not clips: x_embedder.proj.weight is [${patchWeight.join(", ")}]; initFromPixArt takes such a file.`,
    );
  const [hidden, inChannels, ...patch] = patchWeight;
  const blocks = [...file.tensors.keys()].map((name) => Number(/^blocks\.(\d+)\./.exec(name)?.[1] ?? -1));
  const outputs = shape("final_layer.linear.weight")[0] / patch.reduce((a, b) => a * b, 1);
  const told: Partial<STDiTConfig> = {
    hidden,
    inChannels,
    patch: patch as [number, number, number],
    depth: Math.max(...blocks) + 1,
    mlpRatio: shape("blocks.0.mlp.fc1.weight")[0] / hidden,
    predSigma: outputs === 2 * inChannels,
    captionChannels: shape("y_embedder.y_proj.fc1.weight")[1],
    ...(file.has("y_embedder.y_embedding") && { maxLength: shape("y_embedder.y_embedding")[0] }),
  };
  for (const [key, value] of Object.entries(told)) {
    const other = given[key as keyof STDiTConfig];
    if (other !== undefined && `${other}` !== `${value}`)
      throw new ConfigError(
        `openOpenSora: ${key} is said to be ${JSON.stringify(other)}, the tensors of ${file.name} say ${JSON.stringify(value)}; leave it out.`,
      );
  }
  const config: Partial<STDiTConfig> = { ...given, ...told };
  if (given.heads === undefined) {
    config.heads = HEADS;
    notes.push(`heads: ${HEADS}, STDiT's; tensors do not tell them`);
  }

  const S = file.has("pos_embed") ? shape("pos_embed")[1] : undefined;
  const T = file.has("pos_embed_temporal") ? shape("pos_embed_temporal")[1] : undefined;
  if (given.frames === undefined && T !== undefined) config.frames = T * patch[0];
  if (given.latent === undefined && S !== undefined) {
    if (!isSquare(S))
      throw new ConfigError(
        `openOpenSora: latent cannot be told from ${S} places, which form no square; give it as config: { latent: [rows, columns] }.`,
      );
    config.latent = [Math.sqrt(S) * patch[1], Math.sqrt(S) * patch[2]];
  }
  for (const key of ["frames", "latent"] as const)
    if (config[key] === undefined)
      throw new ConfigError(
        `openOpenSora: ${key} cannot be told: ${file.name} has no table of positions and no config.json; give it as config: { ${key} }.`,
      );

  // The second column's code is the first half of the second row; a column of 1 has no second place.
  if (S !== undefined && S > 1) {
    const table = await file.float32("pos_embed");
    const own = scaleOf(table.subarray(hidden, hidden + hidden / 2));
    const scale = given.spaceScale ?? own;
    config.spaceScale = scale;
    if (isSquare(S) && apart(table, posTable2d(hidden, Math.sqrt(S), Math.sqrt(S), scale)) > ROUNDED)
      notes.push(`spaceScale: ${scale} does not give the file's pos_embed, which looks like ${own}`);
    else if (given.spaceScale === undefined) notes.push(`spaceScale: ${scale}, read off pos_embed`);
  }
  if (T !== undefined && T > 1) {
    const table = await file.float32("pos_embed_temporal");
    const own = scaleOf(table.subarray(hidden, 2 * hidden));
    const scale = given.timeScale ?? own;
    config.timeScale = scale;
    if (apart(table, posTable1d(hidden, T, scale)) > ROUNDED)
      notes.push(`timeScale: ${scale} does not give the file's pos_embed_temporal, which looks like ${own}`);
    else if (given.timeScale === undefined) notes.push(`timeScale: ${scale}, read off pos_embed_temporal`);
  }
  return { config: stditConfig(config), notes };
}
