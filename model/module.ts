import { type DType, type Engine, EspalierError, type Key, nearest, type Shape, Tensor, to } from "../engine/index.js";
import type { Init } from "./init.js";
import type { SafetensorsEntry } from "./safetensors.js";
import { type LoadOptions, type LoadReport, loadTensors, type StateSource, saveTensors } from "./state.js";

/** What every layer's constructor takes beside its sizes. */
export interface ModuleOptions {
  /** Decides the initial values. Without it they are undefined until `loadStateDict`. */
  key?: Key;
  /** Storage of parameters and buffers; default "f32". */
  dtype?: DType;
}

/** Called after each run of a module that its pattern matched. */
export type Hook = (path: string, output: any) => void;

/** One line of `Module.table()`. */
export interface TableRow {
  name: string;
  shape: Shape;
  dtype: DType;
  count: number;
  bytes: number;
  /** False for buffers and frozen parameters. */
  trained: boolean;
}

/** "aside": converted and given back with its module, but neither trained nor part of the state. */
type Kind = "parameter" | "buffer" | "aside";

/** What a module's tensors are. Kept beside them, since optimizers may move their memory. */
const kinds = new WeakMap<Tensor, Kind>();

/** Parameters that have a shape but no memory of their own yet. */
const deferrals = new WeakSet<Tensor>();
let deferring = false;

/**
 * Runs `f`; parameters made in it without an initial value have a shape but take no memory until `Module.allocate`. What
 * is replaced before, as by `quantize`, never takes any.
 */
export function deferred<T>(f: () => T): T {
  const outer = deferring;
  deferring = true;
  try {
    return f();
  } finally {
    deferring = outer;
  }
}

/** Whether a parameter waits for its memory. */
export const isDeferred = (t: Tensor): boolean => deferrals.has(t);

/** All numbers of the shape in one place. */
function placeholder(engine: Engine, shape: Shape, dtype: DType): Tensor {
  const one = engine.empty([1], dtype, "parameter");
  const t = one.view(shape, Array(shape.length).fill(0), 0, "parameter");
  one.dispose();
  deferrals.add(t);
  return t;
}

export const isPattern = (pattern: string) => pattern.includes("*");

/** `*` stands for one part of a path, `**` for any number. */
export function matcher(pattern: string): RegExp {
  const parts = pattern
    .split(/(\*\*|\*)/)
    .map((p) => (p === "**" ? ".*" : p === "*" ? "[^.]+" : p.replace(/\./g, "\\.")));
  return new RegExp(`^${parts.join("")}$`);
}

/**
 * A part of a model: parameters, buffers and further modules in its fields, and a `forward` that may be called
 * directly. While it runs, `engine.modulePath` holds its path (field names joined by dots), so that errors, traces and
 * the tape name it.
 *
 * Fields keep JavaScript's names; `names` gives those that checkpoints use. Arrays of modules count as `field.0` ….
 */
export abstract class Module {
  /** Checkpoint names of the fields whose name there is another one, such as `{ qLinear: "q_linear" }`. */
  static readonly names: Readonly<Record<string, string>> = {};
  /** Inner values that hooks may ask for by name; see `emit`. */
  static readonly emits: readonly string[] = [];

  #label = "";
  #bound = false;
  #hooks: { path: string; f: Hook }[] = [];
  #taps: { name: string; path: string; f: Hook }[] = [];

  constructor(readonly engine: Engine) {
    const forward = this.forward;
    // Wrapped once, so that `layer.forward(x)` needs no second name for "forward with path and hooks".
    Object.defineProperty(this, "forward", { value: (...inputs: unknown[]) => this.#run(forward, inputs) });
  }

  abstract forward(...inputs: any[]): unknown;

  #run(forward: (...inputs: any[]) => unknown, inputs: unknown[]): unknown {
    if (!this.#bound) this.#bind();
    const { engine } = this;
    const outer = engine.modulePath;
    const path = this.#label && outer ? `${outer}.${this.#label}` : this.#label || outer;
    return engine.inModule(path, () => {
      const output = forward.apply(this, inputs);
      for (const hook of this.#hooks) hook.f(hook.path, output);
      return output;
    });
  }

  #bind(): void {
    for (const { field, value } of this.#fields()) if (value instanceof Module) value.#label = field;
    this.#bound = true;
  }

  /** Call after a field was given another module, so that its path is known. */
  protected rebind(): void {
    this.#bound = false;
  }

  *#fields(): Generator<{ field: string; state: string; value: Tensor | Module }> {
    const { names } = this.constructor as typeof Module;
    for (const [field, value] of Object.entries(this)) {
      const state = names[field] ?? field;
      if (value instanceof Tensor || value instanceof Module) yield { field, state, value };
      else if (Array.isArray(value))
        for (const [i, item] of value.entries())
          if (item instanceof Module) yield { field: `${field}.${i}`, state: `${state}.${i}`, value: item };
    }
  }

  /** A parameter for a field of this module: outside every scope, and wanting a gradient. */
  protected parameter(shape: Shape, init: Init, { key, dtype = "f32" }: ModuleOptions): Tensor {
    const { engine } = this;
    const t = key
      ? engine.noGrad(() => engine.scope(() => init(engine, shape, key, dtype)))
      : deferring
        ? placeholder(engine, shape, dtype)
        : engine.empty(shape, dtype, "parameter");
    return this.mark(t, "parameter").setRequiresGrad();
  }

  /** Numbers for a field of this module that checkpoints hold but training leaves alone. */
  protected buffer(values: Tensor): Tensor {
    return this.mark(values, "buffer");
  }

  /** Says what the tensor of a field is from now on, and takes it out of every scope. */
  protected mark(t: Tensor, kind: Kind): Tensor {
    t.storage.owned.owner = kind === "buffer" ? "buffers" : "parameters";
    kinds.set(t, kind);
    return t.keep();
  }

  /** Hands an inner value to the hooks that ask for it as `path.name`; without one it is not even computed. */
  protected emit(name: string, value: () => Tensor): void {
    const taps = this.#taps.filter((tap) => tap.name === name);
    if (taps.length === 0) return;
    const output = this.engine.noGrad(value);
    for (const { path, f } of taps) f(path, output);
  }

  /** This module and all below, by path of fields; its own path is "". */
  namedModules(prefix = ""): Map<string, Module> {
    const all = new Map<string, Module>([[prefix, this]]);
    for (const { field, value } of this.#fields())
      if (value instanceof Module)
        for (const [path, module] of value.namedModules(prefix ? `${prefix}.${field}` : field)) all.set(path, module);
    return all;
  }

  /**
   * Puts a module in the place of the one at `path` below this one, a path of fields such as "blocks.0.mlp.fc1". The old
   * one still belongs to the caller.
   */
  replaceModule(path: string, module: Module): void {
    const parts = path.split(".");
    const last = parts.pop()!;
    // An element of an array has its array's owner, whose paths name it.
    const isElement = /^\d+$/.test(last);
    const array = isElement ? parts.pop() : undefined;
    const owner = this.namedModules().get(parts.join("."));
    const place = (array === undefined ? owner : (owner as unknown as Record<string, unknown>)?.[array]) as
      | Record<string, unknown>
      | undefined;
    if (!owner || !(place?.[last] instanceof Module))
      throw this.#unmatched("replaceModule", path, [...this.namedModules().keys()]);
    place[last] = module;
    owner.rebind();
  }

  /** Gives memory to parameters that were made under `deferred`; their values are undefined until `loadStateDict`. */
  allocate(): this {
    for (const { tensor } of this.#named("")) {
      if (!deferrals.delete(tensor)) continue;
      const full = this.engine.empty(tensor.shape, tensor.dtype, "parameter");
      full.storage.owned.owner = tensor.storage.owned.owner;
      tensor.point(full.storage, 0);
      full.dispose();
    }
    return this;
  }

  #state(): { name: string; tensor: Tensor }[] {
    return this.#named("").filter(({ tensor }) => kinds.get(tensor) !== "aside");
  }

  #named(prefix: string): { name: string; tensor: Tensor; owner: Module; field: string }[] {
    return Array.from(this.#fields(), ({ field, state, value }) => {
      const name = `${prefix}${state}`;
      if (value instanceof Module) return value.#named(`${name}.`);
      if (!kinds.has(value))
        throw new EspalierError(
          `${this.constructor.name}.${field}: a tensor in a module's field must be made by parameter() or buffer(): it is ${value.describe()}.`,
        );
      return [{ name, tensor: value, owner: this as Module, field }];
    }).flat();
  }

  /** Parameters by checkpoint name, in the order of the fields. */
  namedParameters(): [name: string, parameter: Tensor][] {
    return this.#named("").flatMap(({ name, tensor }) => (kinds.get(tensor) === "parameter" ? [[name, tensor]] : []));
  }

  parameters(): Tensor[] {
    return this.namedParameters().map(([, p]) => p);
  }

  /** Parameters and buffers by checkpoint name: the tensors themselves, not copies. */
  stateDict(): Record<string, Tensor> {
    return Object.fromEntries(this.#state().map(({ name, tensor }) => [name, tensor]));
  }

  /**
   * Overwrites parameters and buffers, a tensor and a chunk at a time, converting to the dtype that they have here.
   * Everything is checked before the first byte is written.
   * @param source an open safetensors file, or tensors (host or GPU) by name
   * @throws StateError naming what is missing, unexpected (with the nearest name) or of another shape
   */
  loadStateDict(source: StateSource, options: LoadOptions = {}): Promise<LoadReport> {
    return loadTensors(this.engine, this.stateDict(), source, options);
  }

  /** Entries for `writeSafetensors` that read parameters and buffers back as they are written, a chunk at a time. */
  entries(prefix = ""): SafetensorsEntry[] {
    return saveTensors(this.engine, this.stateDict(), prefix);
  }

  /**
   * Converts the storage of float parameters and buffers. They become new tensors: make optimizers afterwards.
   * @throws FeatureError for "f16" on an adapter without it
   */
  to(dtype: DType): this {
    for (const { tensor, owner, field } of this.#named("")) {
      if (tensor.dtype === dtype || (tensor.dtype !== "f32" && tensor.dtype !== "f16")) continue;
      const next = this.engine.noGrad(() => to(tensor, dtype));
      this.mark(next, kinds.get(tensor)!);
      next.requiresGrad = tensor.requiresGrad;
      (owner as unknown as Record<string, Tensor>)[field] = next;
      tensor.dispose();
    }
    return this;
  }

  /** Freezes (`false`) or frees (`true`) parameters; `pattern` limits it to checkpoint names, such as "blocks.*.attn.**". */
  setRequiresGrad(on: boolean, pattern = "**"): this {
    const match = matcher(pattern);
    const list = this.namedParameters().filter(([name]) => match.test(name));
    if (list.length === 0)
      throw this.#unmatched(
        "setRequiresGrad",
        pattern,
        this.namedParameters().map(([name]) => name),
      );
    for (const [, p] of list) p.setRequiresGrad(on);
    return this;
  }

  /** Drops all gradients. */
  zeroGrad(): void {
    for (const p of this.parameters()) {
      p.grad?.dispose();
      p.grad = undefined;
    }
  }

  /**
   * Calls `f(path, output)` after each run of the modules below that match, or with an inner value such as
   * "blocks.0.attn.weights". `*` stands for one part of a path. An output lives as long as the scope it was made in:
   * `keep()` it, or read it, to use it later.
   * @returns a function that takes the hook off
   */
  hook(pattern: string, f: Hook): () => void {
    const match = matcher(pattern);
    const paths: string[] = [];
    const undo: (() => void)[] = [];
    const put = <T>(list: T[], item: T) => {
      list.push(item);
      undo.push(() => list.splice(list.indexOf(item), 1));
    };
    for (const [path, module] of this.namedModules()) {
      paths.push(path);
      if (match.test(path)) put(module.#hooks, { path, f });
      for (const name of (module.constructor as typeof Module).emits) {
        const inner = path ? `${path}.${name}` : name;
        paths.push(inner);
        if (match.test(inner)) put(module.#taps, { name, path: inner, f });
      }
    }
    if (undo.length === 0) throw this.#unmatched("hook", pattern, paths);
    return () => {
      for (const f of undo.splice(0)) f();
    };
  }

  /** Whether hooks look at it or at a part of it: it is then to run op by op, since a compiled run calls no hooks. */
  get isWatched(): boolean {
    return [...this.namedModules().values()].some((m) => m.#hooks.length > 0 || m.#taps.length > 0);
  }

  #unmatched(subject: string, pattern: string, names: string[]): EspalierError {
    const guess = isPattern(pattern) ? undefined : nearest(pattern, names);
    return new EspalierError(
      `${subject}: nothing matches "${pattern}"${guess === undefined ? `; there are ${names.slice(0, 12).join(", ")}${names.length > 12 ? ` and ${names.length - 12} more` : ""}` : `; did you mean "${guess}"?`}`,
    );
  }

  /** Number of parameters, buffers not counted. */
  countParameters(): number {
    return this.parameters().reduce((n, p) => n + p.size, 0);
  }

  /** Every parameter and buffer with its shape and size. */
  table(): TableRow[] {
    return this.#state().map(({ name, tensor }) => ({
      name,
      shape: tensor.shape,
      dtype: tensor.dtype,
      count: tensor.size,
      bytes: tensor.bytes,
      trained: tensor.requiresGrad,
    }));
  }

  /** The table as text; names that differ in a block's number alone share a line. */
  describe(): string {
    const groups = new Map<string, TableRow & { times: number }>();
    for (const row of this.table()) {
      const name = row.name.replace(/\.\d+\./g, ".*.");
      const key = `${name} ${row.shape} ${row.dtype} ${row.trained}`;
      const group = groups.get(key) ?? { ...row, name, count: 0, bytes: 0, times: 0 };
      groups.set(key, {
        ...group,
        count: group.count + row.count,
        bytes: group.bytes + row.bytes,
        times: group.times + 1,
      });
    }
    const lines = Array.from(groups.values(), (g) => [
      g.name,
      `${g.times > 1 ? `${g.times} x ` : ""}[${g.shape.join(", ")}]`,
      g.dtype,
      g.count.toLocaleString("en"),
      g.trained ? "" : "not trained",
    ]);
    const parameters = this.countParameters();
    lines.push([
      "parameters",
      "",
      "",
      parameters.toLocaleString("en"),
      `${(parameters / 1e9).toFixed(3)}e9 = ${(parameters / 2 ** 30).toFixed(3)} x 2^30`,
    ]);
    const widths = [0, 1, 2, 3].map((c) => Math.max(...lines.map((l) => l[c].length)));
    return lines
      .map((l) =>
        [l[0].padEnd(widths[0]), l[1].padEnd(widths[1]), l[2].padEnd(widths[2]), l[3].padStart(widths[3]), l[4]]
          .join("  ")
          .trimEnd(),
      )
      .join("\n");
  }

  /** Gives all parameters and buffers back. */
  dispose(): void {
    for (const { tensor } of this.#named("")) tensor.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
