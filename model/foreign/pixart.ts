import { ConfigError, checkOptions, type Key, type Shape } from "../../engine/index.js";
import { type Init, xavierUniform } from "../init.js";
import type { Safetensors, SafetensorsLocation } from "../safetensors.js";
import { type LoadOptions, StateError } from "../state.js";
import type { STDiT } from "../stdit.js";
import { type StatePart, StateView } from "../view.js";
import { openCheckpoint } from "./open.js";
import { withoutPrefix } from "./opensora.js";
import { grouped, type ImportReport, importReport } from "./report.js";

/** Options of `initFromPixArt`. */
export interface PixArtOptions extends Pick<LoadOptions, "onProgress"> {
  /** Decides the temporal attentions, which images do not teach. Default: the engine's key. */
  key?: Key;
}

/** What the file is of images alone, or of sizes that clips do not tell. */
const DROPPED = /^(pos_embed$|csize_embedder\.|ar_embedder\.)/;
/** What an image model lacks and this one computes or was given. */
const OWN = /^(pos_embed|pos_embed_temporal)$|^y_embedder_llm\.|\.cross_attn_llm\.|\.gate_llm$/;
const TEMPORAL = /\.attn_temp\.(qkv|proj)\.(weight|bias)$/;

const drawn = (shape: Shape, init: Init, key: Key): StatePart => ({
  shape,
  make: (engine, size, dtype) => init(engine, size, key, dtype),
});

/** @throws ConfigError for a file of diffusers', whose names are others */
function checkNames(file: Safetensors): void {
  if (file.has("pos_embed.proj.weight") || [...file.tensors.keys()].some((n) => n.startsWith("transformer_blocks.")))
    throw new ConfigError(
      `initFromPixArt: ${file.name} has diffusers' names; give PixArt's own file, PixArt-XL-2-512x512.pth, converted to safetensors.`,
    );
}

/** What a model of clips takes of a file, its patch embedding as one of clips of one frame. */
const mappedOf = (file: Safetensors): Safetensors =>
  file.mapped(({ name, shape }) => {
    if (DROPPED.test(name)) return undefined;
    if (name === "x_embedder.proj.weight" && shape.length === 4)
      return { name, shape: [shape[0], shape[1], 1, shape[2], shape[3]] };
    return { name };
  });

const NOTE = "attn_temp: queries, keys and values drawn, outputs zero: each frame is what PixArt makes of it";

/**
 * The parts of a model that begins as `initFromPixArt` lets it, without the tables of positions.
 * @param file under PixArt's own names
 * @throws ConfigError for diffusers' names
 */
export function pixartParts(
  file: Safetensors,
  key: Key,
): { mapped: Safetensors; temporal: Map<string, StatePart>; note: string } {
  checkNames(file);
  const temporal = new Map<string, StatePart>();
  const depth = [...file.tensors.keys()].filter((name) => /^blocks\.\d+\.attn\.qkv\.weight$/.test(name)).length;
  for (let i = 0; i < depth; i++)
    for (const [j, layer] of ["qkv", "proj"].entries()) {
      const [weight, bias] = ["weight", "bias"].map((name) => file.info(`blocks.${i}.attn.${layer}.${name}`).shape);
      const name = `blocks.${i}.attn_temp.${layer}`;
      const first = drawn(weight, xavierUniform, key.fold(4 * i));
      temporal.set(`${name}.weight`, j === 0 ? first : { shape: weight, make: "zeros" });
      temporal.set(`${name}.bias`, { shape: bias, make: "zeros" });
    }
  return { mapped: mappedOf(file), temporal, note: NOTE };
}

/**
 * Initialises a model from PixArt-alpha's image model (https://github.com/PixArt-alpha/PixArt-alpha, XL-2-512x512) as
 * Open-Sora was: its patch embedding [C, 4, 2, 2] becomes one of clips of one frame, its positions are dropped, and the
 * temporal attentions begin with an output of zero, so that the model is PixArt applied to each frame.
 * @param source safetensors under PixArt's own names: a file, the index of its shards, or their folder
 * @throws SafetensorsError for a pickle, with the line that converts it; ConfigError for diffusers' names or a patch of
 *   several frames; StateError for names or shapes that do not fit. The model is whole as it was then.
 */
export async function initFromPixArt(
  model: STDiT,
  source: SafetensorsLocation | Safetensors,
  options: PixArtOptions = {},
): Promise<ImportReport> {
  checkOptions("initFromPixArt", options, ["key", "onProgress"]);
  const { key = model.engine.key(), onProgress } = options;
  const found = await openCheckpoint("initFromPixArt", source);
  try {
    const { file } = withoutPrefix(found.file);
    checkNames(file);
    if (model.config.patch[0] !== 1)
      throw new ConfigError(
        `initFromPixArt: images fill patches of one frame: the model's patch is ${model.config.patch.join(", ")}; build it with patch 1, ${model.config.patch.slice(1).join(", ")}.`,
      );
    const own = model.stateDict();
    const mapped = mappedOf(file);
    const unexpected = [...mapped.tensors.keys()].filter((name) => !(name in own));
    const missing = Object.keys(own).filter((name) => !mapped.has(name));
    const lacking = missing.filter((name) => !OWN.test(name) && !TEMPORAL.test(name));
    if (lacking.length || unexpected.length)
      throw new StateError(
        `initFromPixArt: ${file.name} does not fit the model of ${model.config.depth} blocks:${lacking.length ? `\n  missing: ${grouped(lacking)}` : ""}${unexpected.length ? `\n  unexpected: ${grouped(unexpected)}` : ""}`,
        lacking,
        unexpected,
        [],
      );
    const parts = new Map<string, StatePart>();
    for (const name of mapped.tensors.keys()) parts.set(name, { from: mapped, name });
    for (const [i, name] of missing.filter((n) => TEMPORAL.test(n)).entries()) {
      const { shape } = own[name];
      const isDrawn = name.endsWith("qkv.weight");
      parts.set(name, isDrawn ? drawn(shape, xavierUniform, key.fold(i)) : { shape, make: "zeros" });
    }
    await model.loadStateDict(new StateView(file.name, parts), { strict: false, onProgress });
    const ignored = [...file.tensors.keys()].filter((name) => !mapped.has(name));
    return importReport(file.name, [...mapped.tensors.values()], { missing, ignored, notes: [NOTE] });
  } finally {
    if (found.file !== source) await found.file.close();
  }
}
