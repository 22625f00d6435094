import { bytesOf, decode, encode } from "../engine/dtype.js";
import {
  type Data,
  type DType,
  type Engine,
  EspalierError,
  launchElementwise,
  nearest,
  type Shape,
  Tensor,
} from "../engine/index.js";
import {
  DTYPE_BYTES,
  decodeFloat32,
  decodeInt32,
  Safetensors,
  type SafetensorsDtype,
  type SafetensorsEntry,
} from "./safetensors.js";
import { isFloatPart, type PlainSource, type StatePart, type StateView, shapeOf, viewOf } from "./view.js";

/** Numbers on the host with their shape. */
export interface HostTensor {
  shape: Shape;
  data: Data;
}

/** Where parameters may be loaded from. */
export type StateSource = PlainSource | StateView;

export interface LoadOptions {
  /** Refuse missing and unexpected names; shapes must agree in any case. Default true. */
  strict?: boolean;
  /** The source's names begin with this, such as "ema."; names without it are left alone. */
  prefix?: string;
  /** Names of the source (after the prefix) that are for others: exact, or beginnings that end in a dot. */
  ignore?: readonly string[];
  /** Told after each tensor how many bytes of how many have been loaded. */
  onProgress?: (done: number, total: number) => void;
}

/** What `loadStateDict` did. */
export interface LoadReport {
  loaded: string[];
  /** Names of the model that the source lacks. */
  missing: string[];
  /** Names of the source that the model lacks. */
  unexpected: string[];
}

/** Names or shapes of a source do not fit the model. */
export class StateError extends EspalierError {
  override name = "StateError";
  constructor(
    message: string,
    readonly missing: readonly string[],
    readonly unexpected: readonly string[],
    readonly mismatched: readonly string[],
  ) {
    super(message);
  }
}

/** Takes numbers in another form than its tensor's own: full weights, say, that are rounded as they are read. */
export interface Intake {
  /** Shape in which floats are taken, [rows, …]. */
  readonly shape: Shape;
  /** Tensors of the state that need no source of their own then. */
  fills(): readonly Tensor[];
  /** Takes float rows [row, row + rows.shape[0]); they are freed afterwards. */
  take(rows: Tensor, row: number): void;
}

const intakes = new WeakMap<Tensor, Intake>();
/** From now on `loadStateDict` gives floats of the intake's shape to it instead of writing them to the tensor. */
export const setIntake = (t: Tensor, intake: Intake): void => void intakes.set(t, intake);

/** The intake of a tensor, if what a part holds is for it. */
function intakeFor(t: Tensor, part: StatePart): Intake | undefined {
  const intake = intakes.get(t);
  return intake && isFloatPart(part) && `${intake.shape}` === `${shapeOf(part)}` ? intake : undefined;
}

/** A multiple of every buffer alignment in use, and small beside the memory of any host. */
const CHUNK = 4 << 20;
/** Elements of a chunk of host numbers. */
const STEP = CHUNK / 4;
/** Uploaded bytes that may wait in the driver's staging memory. */
const IN_FLIGHT = 64 << 20;

const few = (names: readonly string[]) =>
  `${names.slice(0, 8).join(", ")}${names.length > 8 ? ` and ${names.length - 8} more` : ""}`;

/** Pairs names and shapes of both sides; throws StateError where they do not fit. */
function match(state: Readonly<Record<string, Tensor>>, view: StateView, options: LoadOptions): LoadReport {
  const { strict = true, prefix = "", ignore = [] } = options;
  const given = new Map<string, Shape>();
  const filled = new Set<Tensor>();
  for (const [name, part] of view.parts) {
    if (!name.startsWith(prefix)) continue;
    const short = name.slice(prefix.length);
    if (ignore.some((i) => short === i || (i.endsWith(".") && short.startsWith(i)))) continue;
    const intake = state[short] && intakeFor(state[short], part);
    for (const t of intake?.fills() ?? []) filled.add(t);
    given.set(short, intake ? state[short].shape : shapeOf(part));
  }
  const own = Object.keys(state).filter((name) => !filled.has(state[name]) || given.has(name));
  const missing = own.filter((name) => !given.has(name));
  const unexpected = [...given.keys()].filter((name) => !(name in state));
  const loaded = own.filter((name) => given.has(name));
  const mismatched = loaded.filter((name) => `${given.get(name)}` !== `${state[name].shape}`);
  const lines: string[] = [];
  if (strict && missing.length) lines.push(`missing: ${few(missing)}`);
  if (strict && unexpected.length) {
    // A misspelt name is nearest to one that is missing; beside nothing missing it is simply too many.
    const told = unexpected.map((name) => {
      const guess = nearest(name, missing.length ? missing : own);
      return guess === undefined ? name : `${name} (did you mean ${guess}?)`;
    });
    lines.push(`unexpected: ${few(told)}`);
  }
  if (mismatched.length)
    lines.push(
      `of another shape: ${few(mismatched.map((name) => `${name} is [${given.get(name)!.join(", ")}], the model's is [${state[name].shape.join(", ")}]`))}`,
    );
  if (lines.length) {
    throw new StateError(
      `loadStateDict: ${view.name} does not fit the model (${own.length} tensors, ${loaded.length} found):\n  ${lines.join("\n  ")}`,
      missing,
      unexpected,
      mismatched,
    );
  }
  return { loaded, missing, unexpected };
}

/** Part of a contiguous tensor as one axis, [from, from + length) in elements. */
const piece = (t: Tensor, from: number, length: number) => t.view([length], [1], t.offset + from, "chunk");

/** Overwrites a piece with bytes; unlike a binding, an upload may begin anywhere. */
function put(part: Tensor, bytes: Uint8Array): void {
  const { storage, offset, dtype } = part.check("loadStateDict");
  part.engine.queue.upload({ storage, offset: offset * bytesOf(dtype), size: part.bytes }, bytes);
}

function convert(bytes: Uint8Array, from: SafetensorsDtype, to: DType): Uint8Array {
  const same =
    (from === "F32" && to === "f32") ||
    (from === "F16" && to === "f16") ||
    (from === "I32" && to === "i32") ||
    (from === "U32" && to === "u32");
  if (same) return bytes;
  return encode(to === "f32" || to === "f16" ? decodeFloat32(bytes, from) : decodeInt32(bytes, from), to);
}

/** Writes bytes of a file's dtype over part of `t`. */
function write(
  engine: Engine,
  t: Tensor,
  at: number,
  length: number,
  bytes: Uint8Array,
  dtype: SafetensorsDtype,
): void {
  const part = piece(t, at, length);
  if (t.dtype === "f16" && dtype !== "F16") {
    // Rounding to halves number by number would take the host minutes for a large model.
    const wide = engine.tensor(decodeFloat32(bytes, dtype), [length]);
    overwrite(part, wide);
    wide.dispose();
  } else put(part, convert(bytes, dtype, t.dtype));
  part.dispose();
}

/** Whether the bytes of `from` can be copied to `t` as they lie. */
const copies = (t: Tensor, from: Tensor) =>
  from.dtype === t.dtype &&
  from.size === t.size &&
  from.storage !== t.storage &&
  [t, from].every((u) => u.isContiguous && (u.offset * bytesOf(u.dtype)) % 4 === 0 && u.bytes % 4 === 0);

/** Gives `t` the values of another tensor, converted to its dtype. */
function overwrite(t: Tensor, from: Tensor): void {
  const { engine } = t;
  if (copies(t, from)) {
    const range = (of: Tensor) => ({ storage: of.storage, offset: of.offset * bytesOf(of.dtype), size: of.bytes });
    engine.queue.copy(range(from), range(t), t.bytes);
    return;
  }
  engine.noGrad(() => {
    // A launch may not read and write one buffer, which neighbours in a flat buffer share.
    const source = from.storage === t.storage ? engine.copy(from) : from;
    launchElementwise(t, t.dtype === "f16" ? "f32(x)" : `${t.dtype}(x)`, ["x"], [source]);
    if (source !== from) source.dispose();
  });
}

/** Gives `t` host numbers, a chunk at a time. */
function upload(t: Tensor, { data }: HostTensor, name: string): void {
  const values = ArrayBuffer.isView(data) ? data : Float64Array.from(data);
  if (values.length !== t.size)
    throw new EspalierError(`loadStateDict: "${name}" has ${values.length} numbers for [${t.shape.join(", ")}].`);
  for (let at = 0; at < t.size; at += STEP) {
    const part = piece(t, at, Math.min(STEP, t.size - at));
    put(part, encode(values.subarray(at, at + part.size), t.dtype));
    part.dispose();
  }
}

/** Gives `t` the values of a part; `uploaded` is told of every chunk of a file and may wait. */
async function fill(t: Tensor, part: StatePart, uploaded: (bytes: number) => Promise<void>): Promise<void> {
  const { engine } = t;
  if ("make" in part) {
    const { make, shape } = part;
    const draw = () => (make === "zeros" ? engine.zeros([1]) : make(engine, shape, t.dtype));
    const drawn = engine.noGrad(() => engine.scope(draw));
    overwrite(t, drawn);
    drawn.dispose();
    return;
  }
  const { from, name } = part;
  if (from instanceof Safetensors) {
    const { dtype } = from.info(name);
    const width = DTYPE_BYTES[dtype];
    for await (const { offset, data } of from.readInto(name, CHUNK)) {
      write(engine, t, offset / width, data.length / width, data, dtype);
      await uploaded(data.length);
    }
    return;
  }
  const given = from[name];
  if (given instanceof Tensor) overwrite(t, given);
  else upload(t, given, name);
}

/** Gives the floats of a part to an intake, some rows at a time. */
async function feed(
  engine: Engine,
  intake: Intake,
  part: StatePart,
  uploaded: (bytes: number) => Promise<void>,
): Promise<void> {
  const [count, ...rest] = intake.shape;
  const width = rest.reduce((a, b) => a * b, 1);
  const take = (make: () => Tensor, row: number) => engine.noGrad(() => engine.scope(() => intake.take(make(), row)));
  if ("make" in part) {
    const { make, shape } = part;
    take(() => (make === "zeros" ? engine.zeros(shape) : make(engine, shape, "f32")), 0);
    return;
  }
  const { from, name } = part;
  const rows = Math.max(1, Math.floor(STEP / Math.max(1, width)));
  if (from instanceof Safetensors) {
    const { dtype } = from.info(name);
    const bytes = width * DTYPE_BYTES[dtype];
    for await (const { offset, data } of from.readInto(name, rows * bytes)) {
      const values = decodeFloat32(data, dtype);
      take(() => engine.tensor(values, [values.length / width, ...rest]), offset / bytes);
      await uploaded(4 * values.length);
    }
    return;
  }
  const given = from[name];
  if (given instanceof Tensor) {
    // Not made here, so not freed here.
    engine.noGrad(() => intake.take(given, 0));
    return;
  }
  const values = ArrayBuffer.isView(given.data) ? given.data : Float32Array.from(given.data);
  if (values.length !== count * width)
    throw new EspalierError(`loadStateDict: "${name}" has ${values.length} numbers for [${intake.shape.join(", ")}].`);
  for (let row = 0; row < count; row += rows) {
    const some = Math.min(rows, count - row);
    take(() => engine.tensor(values.subarray(row * width, (row + some) * width), [some, ...rest], "f32"), row);
  }
}

/** Fills `state` from `source`; see `Module.loadStateDict`. */
export async function loadTensors(
  engine: Engine,
  state: Readonly<Record<string, Tensor>>,
  source: StateSource,
  options: LoadOptions = {},
): Promise<LoadReport> {
  const view = viewOf(source);
  const report = match(state, view, options);
  // Names and shapes are checked; numbers would be read for nothing.
  if (engine.memoryPool.dry) return report;
  const { prefix = "", onProgress } = options;
  const total = report.loaded.reduce((n, name) => n + state[name].bytes, 0);
  let done = 0;
  let waiting = 0;
  const uploaded = async (bytes: number) => {
    waiting += bytes;
    // Without a wait the driver would hold a staging copy of every chunk at once.
    if (waiting < IN_FLIGHT) return;
    await engine.finish();
    waiting = 0;
  };
  for (const name of report.loaded) {
    const t = state[name].check("loadStateDict");
    const part = view.parts.get(prefix + name)!;
    const intake = intakeFor(t, part);
    await (intake ? feed(engine, intake, part, uploaded) : fill(t, part, uploaded));
    done += t.bytes;
    onProgress?.(done, total);
  }
  await engine.finish();
  return report;
}

const fileDType: Record<DType, SafetensorsDtype> = { f32: "F32", f16: "F16", i32: "I32", u32: "U32" };

async function* chunks(engine: Engine, t: Tensor): AsyncGenerator<Uint8Array> {
  const step = CHUNK / bytesOf(t.dtype);
  const dense = t.isContiguous ? t : engine.noGrad(() => engine.copy(t));
  try {
    for (let at = 0; at < t.size; at += step) {
      const part = piece(dense, at, Math.min(step, t.size - at));
      const bytes = await engine.read(part).finally(() => part.dispose());
      yield new Uint8Array(bytes, 0, part.bytes);
    }
  } finally {
    if (dense !== t) dense.dispose();
  }
}

/** Safetensors entries of GPU tensors, read back chunk by chunk while they are written. */
export function saveTensors(engine: Engine, state: Readonly<Record<string, Tensor>>, prefix = ""): SafetensorsEntry[] {
  return Object.entries(state).map(([name, t]) => ({
    name: prefix + name,
    dtype: fileDType[t.dtype],
    shape: t.shape,
    data: chunks(engine, t),
  }));
}

/** A tensor of a safetensors file on the GPU, floats as f32 (or `dtype`), integers as i32. */
export async function readTensor(engine: Engine, file: Safetensors, name: string, dtype?: DType): Promise<Tensor> {
  const info = file.info(name);
  const whole = info.dtype.startsWith("I") || info.dtype.startsWith("U") || info.dtype === "BOOL";
  const to = dtype ?? (whole ? "i32" : "f32");
  const { data } = await file.tensor(name);
  const bytes = convert(data, info.dtype, to);
  return engine.tensor(decode(bytes.slice().buffer, to, bytes.length / bytesOf(to)), info.shape, to);
}
