import { ConfigError, checkOptions, Key } from "../../engine/index.js";
import { type STDiTConfig, stditConfig } from "../config.js";
import { posTable1d, posTable2d } from "../embed.js";
import type { Origin } from "../origin.js";
import type { Safetensors } from "../safetensors.js";
import { type StatePart, StateView, shapeOf, viewOf } from "../view.js";
import { deduceConfig, readArguments } from "./config.js";
import { LANDMARK, withoutPrefix } from "./opensora.js";
import { pixartParts } from "./pixart.js";
import { grouped, type ImportReport, importReport } from "./report.js";

/** Whose names a checkpoint without a configuration of ours goes by. */
export type ForeignKind = "Open-Sora" | "PixArt";

/** What others' files do not say. */
export interface ForeignOptions {
  /** The object of the config.json that came with the file. */
  json?: Readonly<Record<string, unknown>>;
  /** What tensors cannot tell (heads), or the grid (frames, latent) that the model is to be for instead of the file's. */
  config?: Partial<STDiTConfig>;
  /** Decides the temporal attentions that a PixArt lacks. Default: `Key.from(0)`. */
  key?: Key;
}

/** Tells Open-Sora 1.0's STDiT and PixArt-alpha by their names; undefined for any other file, and for our own. */
export function foreignKind(file: Safetensors): ForeignKind | undefined {
  const { model, objective, codec, text } = file.metadata;
  // A file of ours that lost its configuration must not be read by guesses: it would say how many heads it has nowhere.
  if ([model, objective, codec, text].some((said) => said !== undefined)) return undefined;
  if (file.has("pos_embed.proj.weight") && [...file.tensors.keys()].some((n) => n.startsWith("transformer_blocks.")))
    return "PixArt";
  const { file: short } = withoutPrefix(file);
  if (!short.has(LANDMARK) || !short.has("t_block.1.weight")) return undefined;
  return short.info(LANDMARK).shape.length === 4 ? "PixArt" : "Open-Sora";
}

/** Tables of positions that the file has for this grid, and computed ones where it has none or others. */
function withTables(view: StateView, config: STDiTConfig): { view: StateView; computed: string[] } {
  const { hidden: C, patch, spaceScale, timeScale } = config;
  const [T, GH, GW] = [config.frames, ...config.latent].map((n, i) => n / patch[i]);
  const parts = new Map(view.parts);
  const computed: string[] = [];
  for (const [name, rows, table] of [
    ["pos_embed", GH * GW, () => posTable2d(C, GH, GW, spaceScale)],
    ["pos_embed_temporal", T, () => posTable1d(C, T, timeScale)],
  ] as const) {
    const shape = [1, rows, C];
    const own = parts.get(name);
    if (own && `${shapeOf(own)}` === `${shape}`) continue;
    const part: StatePart = { shape, make: (engine, of, dtype) => engine.tensor(table(), of, dtype) };
    parts.set(name, part);
    computed.push(name);
  }
  return { view: new StateView(view.name, parts), computed };
}

async function openSoraOrigin(given: Safetensors, options: ForeignOptions) {
  const { file, prefix } = withoutPrefix(given);
  const { json, config: wanted = {} } = options;
  const said = json ? readArguments(json, "config.json") : { given: {}, notes: [] };
  const { config, notes } = await deduceConfig(file, { ...said.given, ...wanted });
  const { view, computed } = withTables(viewOf(file), config);
  const matched = [...file.tensors.values()].filter(({ name }) => !computed.includes(name));
  const ignored = computed.filter((name) => file.has(name));
  return {
    config,
    view,
    report: importReport(file.name, matched, {
      missing: computed,
      ignored,
      notes: [
        ...said.notes,
        ...notes,
        ...(computed.length ? [gridNote(config, computed)] : []),
        ...(prefix ? [`names begin with "${prefix}" in the file`] : []),
      ],
    }),
  };
}

const gridNote = (c: STDiTConfig, names: readonly string[]) =>
  `computed for the grid of ${c.frames} x ${c.latent.join(" x ")}: ${grouped(names)}`;

/** Places along a side of the grid of PixArt-XL-2-512x512, whose positions its models go on from. */
const PIXART_SIDE = 32;

async function pixartOrigin(given: Safetensors, options: ForeignOptions) {
  const { config: wanted = {}, key = Key.from(0) } = options;
  const { frames, latent } = { ...stditConfig(), ...wanted };
  const { file: images, prefix } = withoutPrefix(given);
  const { mapped, temporal, note } = pixartParts(images, key);
  const ph = images.info(LANDMARK).shape[2];
  const side = images.has("pos_embed") ? Math.sqrt(images.info("pos_embed").shape[1]) : PIXART_SIDE;
  // Positions are to span what they did: a smaller grid takes larger steps.
  const spaceScale = wanted.spaceScale ?? latent[0] / ph / side;
  const { config, notes } = await deduceConfig(mapped, { timeScale: 1, ...wanted, frames, latent, spaceScale });
  const all = viewOf(mapped);
  const withTime = new StateView(all.name, new Map([...all.parts, ...temporal]));
  const { view, computed } = withTables(withTime, config);
  const scale =
    wanted.spaceScale === undefined
      ? [`spaceScale: ${spaceScale}, so that positions span those of the images' ${side} x ${side} places`]
      : [];
  return {
    config,
    view,
    report: importReport(images.name, [...mapped.tensors.values()], {
      missing: [...computed, ...temporal.keys()],
      ignored: [...images.tensors.keys()].filter((name) => !mapped.has(name)),
      notes: [
        ...notes,
        ...scale,
        gridNote(config, computed),
        note,
        ...(prefix ? [`names begin with "${prefix}" in the file`] : []),
      ],
    }),
  };
}

/**
 * An Open-Sora 1.0 STDiT, or a STDiT that begins from PixArt-alpha, as the origin of a model: nothing is loaded yet, so
 * that it can grow on the way. What the file lacks of a STDiT is told when it is built.
 * @throws ConfigError for a config.json of another model or a contradiction
 */
export async function foreignOrigin(
  file: Safetensors,
  kind: ForeignKind,
  options: ForeignOptions = {},
): Promise<{ origin: Origin; report: ImportReport }> {
  checkOptions("foreign", options, ["json", "config", "key"]);
  const { config, view, report } = await (kind === "PixArt" ? pixartOrigin : openSoraOrigin)(file, options);
  if (config.languageChannels)
    throw new ConfigError(`foreign: ${file.name} has no language branch: languageChannels was given; leave it out.`);
  return { origin: { config, source: view }, report };
}
