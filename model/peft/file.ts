import { createFile, openFile, siblingOf } from "#files";
import { ConfigError, checkOptions, EspalierError, type Tensor } from "../../engine/index.js";
import { type ByteSink, FileError } from "../files/source.js";
import {
  type Adapted,
  adaptedOf,
  attach,
  loraConfig,
  type NamedLinear,
  namedLinears,
  needAdapters,
  needUnmerged,
  removeLora,
} from "../lora.js";
import type { Module } from "../module.js";
import {
  openSafetensors,
  Safetensors,
  type SafetensorsLocation,
  type Written,
  writeSafetensors,
} from "../safetensors.js";
import { loadTensors, StateError, saveTensors } from "../state.js";
import { StateView } from "../view.js";
import { encodeLora, type Fields, parseFields, peftConfig, positive } from "./config.js";

const CONFIG_FILE = "adapter_config.json";
/** PEFT's keys. Those inside a running PEFT model name the adapter too: `lora_A.default.weight`. */
const KEY = /^base_model\.model\.(?:(.+)\.)?lora_([AB])(?:\.([^.]+))?\.weight$/;

const keyOf = (name: string, half: "A" | "B") => `base_model.model.${name ? `${name}.` : ""}lora_${half}.weight`;
const few = (names: readonly string[]) =>
  `${names.slice(0, 8).join(", ")}${names.length > 8 ? ` and ${names.length - 8} more` : ""}`;

/**
 * The adapters of a model, merged or not, by PEFT's keys: `base_model.model.LAYER.lora_A.weight` [rank, in] and
 * `….lora_B.weight` [out, rank]. The tensors themselves, not copies.
 * @throws EspalierError without adapters
 */
export function loraState(model: Module): Record<string, Tensor> {
  const entries = needAdapters("loraState", model).flatMap(({ name, a, b }) => [
    [keyOf(name, "A"), a.weight] as const,
    [keyOf(name, "B"), b.weight] as const,
  ]);
  return Object.fromEntries(entries);
}

/**
 * Writes the adapters alone: safetensors with PEFT's keys, rank, alpha and layers in its metadata. Beside a path it
 * writes PEFT's adapter_config.json into the same folder, in place of an earlier one; PEFT itself looks for
 * `adapter_model.safetensors` there. Both writes are atomic.
 * @throws EspalierError without adapters, ConfigError when they differ in rank or alpha
 */
export async function saveLora(target: string | ByteSink, model: Module): Promise<Written> {
  needAdapters("saveLora", model);
  const config = loraConfig(model)!;
  const metadata = { format: "pt", lora: encodeLora(config) };
  const written = await writeSafetensors(target, saveTensors(model.engine, loraState(model)), metadata);
  if (typeof target !== "string") return written;
  const text = new TextEncoder().encode(`${JSON.stringify(peftConfig(config), null, 2)}\n`);
  const sink = await createFile(siblingOf(target, CONFIG_FILE));
  try {
    await sink.write(text);
    await sink.commit();
  } catch (error) {
    await sink.abort();
    throw error;
  }
  return { ...written, files: [...written.files, sink.name], bytes: written.bytes + text.length };
}

/** Both halves of each layer's adapter, as keys of a file. */
interface Half {
  A?: string;
  B?: string;
}

/** Pairs the keys of a file. @throws StateError for other keys, two adapters, or half of one */
function pairsIn(file: Safetensors): Map<string, Required<Half>> {
  const pairs = new Map<string, Half>();
  const adapters = new Set<string>();
  const others: string[] = [];
  for (const key of file.tensors.keys()) {
    const match = KEY.exec(key);
    if (!match) {
      others.push(key);
      continue;
    }
    const [, name = "", half, adapter = ""] = match;
    adapters.add(adapter);
    pairs.set(name, { ...pairs.get(name), [half]: key });
  }
  if (!pairs.size || others.length)
    throw new StateError(
      `loadLora: ${file.name} holds ${pairs.size ? "more than adapters of linear layers" : "no adapters"}: ${few(others) || "nothing"}; keys must read base_model.model.LAYER.lora_A.weight and ….lora_B.weight.`,
      [],
      others,
      [],
    );
  if (adapters.size > 1)
    throw new StateError(
      `loadLora: ${file.name} holds several adapters: ${[...adapters].map((a) => a || "(no name)").join(", ")}; save one of them alone.`,
      [],
      [],
      [],
    );
  const missing = [...pairs].flatMap(([name, { A, B }]) => (A && B ? [] : [keyOf(name, A ? "B" : "A")]));
  if (missing.length)
    throw new StateError(
      `loadLora: ${file.name} lacks half of an adapter: ${few(missing)} is missing; A and B belong together.`,
      missing,
      [],
      [],
    );
  return pairs as Map<string, Required<Half>>;
}

/** The one rank of a file's adapters, whose shapes must fit the layers. */
function rankIn(file: Safetensors, pairs: ReadonlyMap<string, Required<Half>>, layers: readonly NamedLinear[]): number {
  const rank = file.info(pairs.get(layers[0].name)!.A).shape[0];
  for (const { name, linear } of layers) {
    const [out, inputs] = linear.weight.shape;
    const { A, B } = pairs.get(name)!;
    const [a, b] = [file.info(A).shape, file.info(B).shape];
    if (a.length !== 2 || b.length !== 2 || a[1] !== inputs || b[0] !== out || a[0] !== b[1])
      throw new StateError(
        `loadLora: ${file.name} does not fit ${name || "the layer"} [${out}, ${inputs}]: A is [${a.join(", ")}] and B is [${b.join(", ")}]; they must be [rank, ${inputs}] and [${out}, rank].`,
        [],
        [],
        [A, B],
      );
    if (a[0] !== rank)
      throw new StateError(
        `loadLora: ${file.name} holds several ranks: ${layers[0].name} has ${rank}, ${name} has ${a[0]}; all must be equal.`,
        [],
        [],
        [A, B],
      );
  }
  return rank;
}

/** What an adapter_config.json beside the file says, or nothing where there is none. */
async function configBeside(location: SafetensorsLocation | Safetensors): Promise<[Fields, string] | undefined> {
  if (typeof location !== "string" && !(location instanceof URL)) return undefined;
  const path = siblingOf(location, CONFIG_FILE);
  try {
    const source = await openFile(path);
    const bytes = await source.read(0, source.size).finally(() => source.close());
    return [parseFields(new TextDecoder().decode(bytes), path), path];
  } catch (error) {
    if (error instanceof FileError && error.code === "ENOENT") return undefined;
    throw error;
  }
}

/** Alpha as the file's own metadata or PEFT's configuration beside it has it. */
async function alphaOf(
  file: Safetensors,
  location: SafetensorsLocation | Safetensors,
  rank: number,
): Promise<number | undefined> {
  const own = file.metadata.lora;
  const where = `metadata "lora" of ${file.name}`;
  const found = own === undefined ? await configBeside(location) : ([parseFields(own, where), where] as const);
  if (!found) return undefined;
  const [json, name] = found;
  const pattern = json.alpha_pattern;
  const refused =
    json.use_dora === true
      ? "use_dora"
      : pattern && typeof pattern === "object" && Object.keys(pattern).length
        ? "alpha_pattern"
        : undefined;
  if (refused)
    throw new ConfigError(`loadLora: ${name}: ${refused} is not supported: got ${JSON.stringify(json[refused])}.`);
  const r = positive(json, "r", name);
  if (r !== rank)
    throw new ConfigError(`loadLora: ranks differ: ${name} says r = ${r}, the tensors of ${file.name} have ${rank}.`);
  const alpha = positive(json, "lora_alpha", name);
  // Rank-stabilized adapters count alpha / √rank; here they count alpha / rank.
  return json.use_rslora === true ? alpha * Math.sqrt(rank) : alpha;
}

/** @throws EspalierError unless the adapters of a model are those of a file */
function checkSame(
  file: Safetensors,
  adapted: readonly Adapted[],
  layers: readonly NamedLinear[],
  { rank, alpha }: { rank: number; alpha: number },
): void {
  const subject = `loadLora: ${file.name}`;
  const inFile = new Set(layers.map(({ name }) => name));
  const inModel = new Set(adapted.map(({ name }) => name));
  const missing = [...inModel].filter((name) => !inFile.has(name));
  const unexpected = [...inFile].filter((name) => !inModel.has(name));
  if (missing.length || unexpected.length)
    throw new StateError(
      `${subject} adapts other layers than the model's adapters: ${[
        ...(missing.length ? [`it lacks ${few(missing)}`] : []),
        ...(unexpected.length ? [`the model has none on ${few(unexpected)}`] : []),
      ].join("; ")}. removeLora first, and the file's own are put on.`,
      missing,
      unexpected,
      [],
    );
  for (const { name, linear, a } of adapted) {
    const own = a.weight.shape[0];
    if (own !== rank || linear.loraAlpha !== alpha)
      throw new EspalierError(
        `${subject} has adapters of rank ${rank} and alpha ${alpha}: those of ${name} have rank ${own} and alpha ${linear.loraAlpha}; removeLora first, and the file's own are put on.`,
      );
  }
}

/**
 * Loads adapters from a file of `saveLora` or of PEFT. A model without adapters gets those of the file, and all its other
 * parameters are frozen; one that has adapters must have the same. Alpha is what the file's metadata says, or else the
 * adapter_config.json beside it.
 * @param options.alpha instead of what the file says; needed when nothing says it
 * @returns checkpoint names of the adapted layers
 * @throws StateError for keys, layers or shapes that do not fit, ConfigError for a configuration that cannot be used,
 * EspalierError when the model's adapters are others or are merged; the model is then as it was
 */
export async function loadLora(
  model: Module,
  location: SafetensorsLocation | Safetensors,
  options: { alpha?: number } = {},
): Promise<string[]> {
  checkOptions("loadLora", options, ["alpha"]);
  needUnmerged("loadLora", model);
  const file = location instanceof Safetensors ? location : await openSafetensors(location);
  try {
    const pairs = pairsIn(file);
    const layers = namedLinears(`loadLora: ${file.name}`, model, [...pairs.keys()]);
    const rank = rankIn(file, pairs, layers);
    const alpha = options.alpha ?? (await alphaOf(file, location, rank));
    if (alpha === undefined)
      throw new ConfigError(
        `loadLora: alpha is unknown: ${file.name} does not say it and has no ${CONFIG_FILE} beside it; pass { alpha }, which is lora_alpha of PEFT's configuration.`,
      );
    const adapted = adaptedOf(model);
    if (adapted.length) checkSame(file, adapted, layers, { rank, alpha });
    else attach("loadLora", model, layers, { rank, alpha });
    const keys = layers.flatMap(({ name }) =>
      (["A", "B"] as const).map((half) => [keyOf(name, half), pairs.get(name)![half]]),
    );
    const view = new StateView(file.name, new Map(keys.map(([key, name]) => [key, { from: file, name }])));
    try {
      await loadTensors(model.engine, loraState(model), view);
    } catch (error) {
      if (!adapted.length) removeLora(model);
      throw error;
    }
    return layers.map(({ name }) => name);
  } finally {
    if (file !== location) await file.close();
  }
}
