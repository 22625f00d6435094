import {
  type Activation,
  ConfigError,
  checkOptions,
  checkQuantizedForm,
  type Engine,
  EspalierError,
  launchQuantize,
  linearQuantized,
  nearest,
  type QuantizedForm,
  quantizedShapes,
  ShapeError,
  type Tensor,
} from "../engine/index.js";
import type { ByteSink } from "./files/source.js";
import type { Linear } from "./layers.js";
import { linearsOf } from "./lora.js";
import { deferred, isDeferred, isPattern, Module, matcher } from "./module.js";
import {
  openSafetensors,
  Safetensors,
  type SafetensorsLocation,
  type Written,
  writeSafetensors,
} from "./safetensors.js";
import { type LoadOptions, setIntake } from "./state.js";

/** How the weights of linear layers are stored. */
export interface QuantizeForm {
  bits: 8 | 4;
  /** Neighbouring inputs that share a scale: a multiple of 32, or 0 for one scale for each output. Default 32. */
  group?: number;
  /** Storage of scales; "f16" takes half a bit of each weight in groups of 32, "f32" a whole one. Default "f32". */
  scale?: "f32" | "f16";
}

/** What `quantize` takes. */
export interface QuantizeOptions extends QuantizeForm {
  /**
   * Which linear layers: one pattern or several, each of a path of fields ("blocks.*.crossAttn.**") or of a checkpoint
   * name ("blocks.*.cross_attn.**"). Default "**": all.
   */
  pattern?: string | readonly string[];
}

/** What `quantize` did. */
export interface QuantizeReport {
  /** Checkpoint names of the layers, such as "blocks.0.attn.qkv". */
  layers: string[];
  /** Bytes of their weights before and after. */
  before: number;
  after: number;
}

const formOf = ({ bits, group = 32 }: QuantizeForm): QuantizedForm => ({ bits, group });

/**
 * y = x Wᵀ + b with W in 8 or 4 bits. The weight is frozen: gradients flow to x and to the bias. Its state is `weight`
 * (u32 codes), `weight_scale` and `bias`; where a checkpoint holds a full weight instead, `loadStateDict` rounds it as it
 * is read, some rows at a time.
 */
export class QuantizedLinear extends Module {
  static override readonly names = { weightScale: "weight_scale" };
  /** u32 [out, words]; see `quantizedShapes`. */
  readonly weight: Tensor;
  /** [out, groups] */
  readonly weightScale: Tensor;
  readonly bias?: Tensor;
  readonly form: QuantizedForm;

  /** @param bias a parameter of another layer, which this one takes over */
  constructor(
    engine: Engine,
    readonly inputs: number,
    readonly outputs: number,
    options: QuantizeForm & { bias?: Tensor },
  ) {
    super(engine);
    checkOptions("quantizedLinear", options, ["bits", "group", "scale", "bias"]);
    this.form = formOf(options);
    checkQuantizedForm("quantizedLinear", this.form);
    const { scale = "f32", bias } = options;
    if (scale !== "f32" && scale !== "f16")
      throw new ConfigError(`quantizedLinear: scale must be "f32" or "f16": got ${JSON.stringify(scale)}.`);
    const shapes = quantizedShapes(outputs, inputs, this.form);
    this.weight = this.buffer(engine.empty(shapes.codes, "u32", "quantizedLinear"));
    this.weightScale = this.buffer(engine.empty(shapes.scale, scale, "quantizedLinear"));
    if (bias) this.bias = bias;
    setIntake(this.weight, {
      shape: [outputs, inputs],
      fills: () => [this.weightScale],
      take: (rows, row) => this.round(rows, row),
    });
  }

  /** Rounds rows [row, row + rows.shape[0]) of a full weight, [rows, in], into this one. */
  round(rows: Tensor, row = 0): void {
    if (rows.rank !== 2 || rows.shape[1] !== this.inputs)
      throw new ShapeError(`quantizedLinear: needs rows of ${this.inputs} inputs: got [${rows.shape.join(", ")}].`);
    launchQuantize(this.weight, this.weightScale, rows, this.form, row);
  }

  /** [..., in] to [..., out], with an activation in the same launch where no gradient is recorded. */
  forward(x: Tensor, activation: Activation = "none"): Tensor {
    return linearQuantized(x, this.weight, this.weightScale, { ...this.form, bias: this.bias, activation }); // [..., out]
  }

  /** x Wᵀ without the bias, for callers that add it in a way of their own. */
  product(x: Tensor): Tensor {
    return linearQuantized(x, this.weight, this.weightScale, this.form); // [..., out]
  }
}

/** A linear layer with its weight rounded; the bias is shared with the given one. Nothing is freed. */
export function quantizeLinear(linear: Linear, options: QuantizeForm): QuantizedLinear {
  const [outputs, inputs] = linear.weight.shape;
  const q = new QuantizedLinear(linear.engine, inputs, outputs, { ...options, bias: linear.bias });
  if (!isDeferred(linear.weight)) linear.engine.noGrad(() => q.round(linear.weight));
  return q;
}

/**
 * Rounds the weights of linear layers to 8 or 4 bits, in place, and frees the full ones layer by layer. Layers that are
 * quantised already stay as they are. Make optimizers afterwards.
 * @throws ConfigError when a pattern matches no linear layer, or a layer has an adapter
 */
export function quantize(module: Module, options: QuantizeOptions): QuantizeReport {
  checkOptions("quantize", options, ["bits", "group", "scale", "pattern"]);
  const { pattern = "**", ...form } = options;
  checkQuantizedForm("quantize", formOf(form));
  const linears = linearsOf(module);
  const chosen = new Set<(typeof linears)[number]>();
  for (const p of [pattern].flat()) {
    const match = matcher(p);
    const found = linears.filter(({ name, path }) => match.test(name) || match.test(path));
    if (found.length === 0) {
      const names = linears.map(({ name }) => name);
      const guess = isPattern(p) ? undefined : nearest(p, names);
      throw new ConfigError(
        `quantize: no linear layer matches "${p}"${guess ? `; did you mean "${guess}"?` : `; there are ${names.slice(0, 8).join(", ") || "none"}${names.length > 8 ? ` and ${names.length - 8} more` : ""}`}`,
      );
    }
    for (const layer of found) chosen.add(layer);
  }
  for (const { name, path, linear } of chosen) {
    if (linear.loraA)
      throw new ConfigError(
        `quantize: "${name}" has an adapter (LoRA); call mergeLora and removeLora with keepMerged first, or quantise before adding it elsewhere.`,
      );
    if (path === "")
      throw new ConfigError("quantize: the module is itself the linear layer; quantizeLinear makes a rounded one.");
  }
  const report: QuantizeReport = { layers: [], before: 0, after: 0 };
  for (const { name, path, linear } of chosen) {
    const q = quantizeLinear(linear, form);
    report.layers.push(name);
    report.before += linear.weight.bytes;
    report.after += q.weight.bytes + q.weightScale.bytes;
    module.replaceModule(path, q);
    linear.weight.dispose();
  }
  return report;
}

/**
 * Builds a module with its linear layers quantised from the start: no full weight of theirs is ever on the device, and
 * `loadStateDict` rounds each as it is read. Values are undefined until then.
 * @param build makes the module without initial values (no key)
 */
export function quantized<M extends Module>(build: () => M, options: QuantizeOptions): M {
  const module = deferred(build);
  try {
    quantize(module, options);
    return module.allocate();
  } catch (error) {
    module.dispose();
    throw error;
  }
}

/** A module as it is built, or with all of its linear layers quantised where bits are given; see `quantized`. */
export const builtWith = <M extends Module>(bits: 8 | 4 | undefined, build: () => M): M =>
  bits === undefined ? build() : quantized(build, { bits });

/** The quantised layers of a module by checkpoint name. */
function layersOf(module: Module): Map<string, QuantizedLinear> {
  const names = new Map(Object.entries(module.stateDict()).map(([name, t]) => [t, name]));
  const found = new Map<string, QuantizedLinear>();
  for (const m of module.namedModules().values())
    if (m instanceof QuantizedLinear) found.set(names.get(m.weight)!.replace(/\.?weight$/, ""), m);
  return found;
}

/** Metadata for a file with a module's state: which layers are quantised and how. */
export function quantizationMetadata(module: Module): { quantization: string } {
  const groups = new Map<string, Required<QuantizeForm> & { layers: string[] }>();
  for (const [name, { form, weightScale }] of layersOf(module)) {
    const entry = { ...form, scale: weightScale.dtype as "f32" | "f16" };
    const key = JSON.stringify(entry);
    if (!groups.has(key)) groups.set(key, { ...entry, layers: [] });
    groups.get(key)!.layers.push(name);
  }
  return { quantization: JSON.stringify([...groups.values()]) };
}

/** Writes a module's state, codes and scales as they are, atomically. `openQuantized` reads it. */
export function saveQuantized(
  target: string | ByteSink,
  module: Module,
  metadata: Readonly<Record<string, string>> = {},
): Promise<Written> {
  if ("quantization" in metadata)
    throw new ConfigError('saveQuantized: metadata "quantization" is written already; take another name.');
  return writeSafetensors(target, module.entries(), { ...metadata, ...quantizationMetadata(module) });
}

function readQuantization(file: Safetensors): (QuantizeForm & { layers: string[] })[] {
  const text = file.metadata.quantization;
  if (text === undefined)
    throw new ConfigError(
      `openQuantized: ${file.name} does not say how it is quantised: its metadata has no "quantization"; load full weights into quantized(…) instead.`,
    );
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`openQuantized: metadata "quantization" of ${file.name} is no JSON.`, { cause });
  }
  const isEntry = (e: any) =>
    typeof e === "object" &&
    e !== null &&
    Array.isArray(e.layers) &&
    e.layers.every((l: unknown) => typeof l === "string");
  if (!Array.isArray(list) || !list.every(isEntry))
    throw new ConfigError(
      `openQuantized: metadata "quantization" of ${file.name} is no list of forms with their layers.`,
    );
  return list;
}

/**
 * Builds a module as a file of `saveQuantized` says and loads it, bit for bit.
 * @param build makes the module without initial values (no key)
 * @throws ConfigError when the file does not say how it is quantised; StateError when it does not fit the module
 */
export async function openQuantized<M extends Module>(
  build: () => M,
  location: SafetensorsLocation | Safetensors,
  options: LoadOptions = {},
): Promise<M> {
  const file = location instanceof Safetensors ? location : await openSafetensors(location);
  let module: M | undefined;
  try {
    const forms = readQuantization(file);
    module = deferred(build);
    for (const { layers, ...form } of forms) if (layers.length) quantize(module, { ...form, pattern: layers });
    module.allocate();
    await module.loadStateDict(file, options);
    return module;
  } catch (error) {
    module?.dispose();
    throw error;
  } finally {
    if (file !== location) await file.close();
  }
}

/** How far outputs lie from those of full weights. */
export interface QuantizationError {
  /** ‖y − y₀‖ / ‖y₀‖ over all numbers. */
  relative: number;
  /** The same for the row (last axis) where it is largest. */
  worstRow: number;
  /** Smallest cosine of the angle between a row and its reference. */
  cosine: number;
}

/** Compares outputs [..., C] with the reference that full weights gave. */
export async function quantizationError(output: Tensor, reference: Tensor): Promise<QuantizationError> {
  if (`${output.shape}` !== `${reference.shape}` || output.rank === 0)
    throw new ShapeError(
      `quantizationError: shapes must be equal and have a last axis: got [${output.shape.join(", ")}] and [${reference.shape.join(", ")}].`,
    );
  const [y, r] = [await output.data(), await reference.data()];
  const width = output.shape.at(-1)!;
  const result = { relative: 0, worstRow: 0, cosine: 1 };
  let [all, norm] = [0, 0];
  for (let at = 0; at < y.length; at += width) {
    let [d, yy, rr, yr] = [0, 0, 0, 0];
    for (let i = at; i < at + width; i++) {
      d += (y[i] - r[i]) ** 2;
      yy += y[i] ** 2;
      rr += r[i] ** 2;
      yr += y[i] * r[i];
    }
    all += d;
    norm += rr;
    if (d > 0) result.worstRow = Math.max(result.worstRow, Math.sqrt(d / rr));
    if (yy > 0 && rr > 0) result.cosine = Math.min(result.cosine, yr / Math.sqrt(yy * rr));
  }
  if (all > 0) result.relative = Math.sqrt(all / norm);
  if (!Number.isFinite(all + norm))
    throw new EspalierError("quantizationError: outputs or reference hold NaN or infinite values.");
  return result;
}
