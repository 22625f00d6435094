import { WgslReflect } from "wgsl_reflect/wgsl_reflect.module.js";
import { EspalierError } from "./errors.js";
import { Key } from "./random/key.js";

/** Values for the lines of a shader that are marked `// param`: constants, type aliases, one-expression functions. */
export type Settings = Record<string, string | number>;

/** A binding of an entry point as reflected from its WGSL. */
export interface Binding {
  name: string;
  binding: number;
  type: "uniform" | "read-only-storage" | "storage";
}

/** A member of the uniform struct: byte offset and the scalars it holds. */
interface Field {
  name: string;
  offset: number;
  kind: "u32" | "i32" | "f32";
  count: number;
}

/** One entry point of one WGSL file with its settings applied: what can be launched. */
export interface Kernel {
  readonly name: string;
  readonly entry: string;
  /** The exact WGSL that the GPU compiles. */
  readonly source: string;
  readonly bindings: readonly Binding[];
  readonly fields: readonly Field[];
  /** Bytes of the uniform struct, 0 when there is none. */
  readonly uniformBytes: number;
  readonly workgroupSize: readonly [number, number, number];
  /** What was put into the lines marked `// param`. */
  readonly settings: Settings;
  /** Unique per (source, entry): keys pipeline caches. */
  readonly id: number;
}

/** The numbers of a `// param` constant keep the suffix of the literal that they replace. */
const literal = (value: string | number, old: string): string => {
  if (typeof value === "string") return value;
  const suffix = /[uif]$/.exec(old)?.[0] ?? "";
  if (suffix === "u" || suffix === "i") return `${value}${suffix}`;
  return Number.isInteger(value) && (suffix === "f" || old.includes(".")) ? `${value}.0${suffix}` : `${value}${suffix}`;
};

/** Rewrites the lines marked `// param`, in place: line numbers of compiler messages stay those of the file. */
export function specialize(name: string, source: string, settings: Settings): string {
  const left = new Set(Object.keys(settings));
  const lines = source.split("\n").map((line) => {
    if (!/\/\/\s*param\s*$/.test(line)) return line;
    const key = /^\s*(?:const|alias|fn)\s+(\w+)/.exec(line)?.[1];
    if (key === undefined || !left.has(key)) return line;
    left.delete(key);
    const value = settings[key];
    if (/^\s*fn\s/.test(line)) return line.replace(/\{.*\}(?=\s*\/\/\s*param)/, () => `{ ${value} }`);
    return line.replace(/=\s*([^;]*);/, (_, old: string) => `= ${literal(value, old.trim())};`);
  });
  if (left.size)
    throw new EspalierError(
      `kernel ${name}: no line marked "// param" declares ${[...left].join(", ")}; see its .wgsl file.`,
    );
  const text = lines.join("\n");
  // On the first line, so that no other line moves.
  return /\bf16\b/.test(text.replace(/\/\/.*$/gm, "")) ? `enable f16; ${text}` : text;
}

function workgroupSize(name: string, source: string, entry: string): [number, number, number] {
  const match = new RegExp(`@workgroup_size\\(([^)]*)\\)[^{;]*?fn\\s+${entry}\\s*\\(`).exec(source);
  if (!match)
    throw new EspalierError(`kernel ${name}: entry point "${entry}" with a @workgroup_size is not in the file.`);
  const sizes = match[1]
    .split(",")
    .map((s) => s.trim())
    .filter(Boolean)
    .map((s) => {
      const value = /^\d/.test(s) ? s : new RegExp(`const\\s+${s}\\s*(?::\\s*\\w+)?\\s*=\\s*(\\d+)`).exec(source)?.[1];
      if (value === undefined)
        throw new EspalierError(`kernel ${name}: workgroup size "${s}" is not a number or a constant of the file.`);
      return Number.parseInt(value, 10);
    });
  return [sizes[0] ?? 1, sizes[1] ?? 1, sizes[2] ?? 1];
}

const scalars: Record<string, ["u32" | "i32" | "f32", number]> = {
  u32: ["u32", 1],
  i32: ["i32", 1],
  f32: ["f32", 1],
  vec2u: ["u32", 2],
  vec4u: ["u32", 4],
  vec4i: ["i32", 4],
  vec4f: ["f32", 4],
  "vec2<u32>": ["u32", 2],
  "vec4<u32>": ["u32", 4],
  "vec4<i32>": ["i32", 4],
  "vec4<f32>": ["f32", 4],
};

type Reflected = Pick<Kernel, "bindings" | "fields" | "uniformBytes">;
const reflections = new Map<string, WgslReflect>();
const kernels = new Map<string, Kernel>();

function reflect(name: string, source: string, entry: string): Reflected {
  let reflection = reflections.get(source);
  if (!reflection) {
    reflection = new WgslReflect(source);
    reflections.set(source, reflection);
  }
  const info = reflection.entry.compute.find((f) => f.name === entry);
  if (!info) throw new EspalierError(`kernel ${name}: no compute entry point "${entry}" in the file.`);
  const bindings: Binding[] = [];
  const fields: Field[] = [];
  let uniformBytes = 0;
  for (const r of info.resources) {
    const uniform = reflection.uniforms.find((u) => u.name === r.name);
    bindings.push({
      name: r.name,
      binding: r.binding,
      type: uniform ? "uniform" : r.access === "read_write" || r.access === "write" ? "storage" : "read-only-storage",
    });
    if (!uniform) continue;
    uniformBytes = Math.ceil(uniform.type.size / 16) * 16;
    for (const m of (uniform.type as unknown as { members: { name: string; offset: number; type: any }[] }).members) {
      const array = m.type.isArray;
      const inner = array ? m.type.format : m.type;
      const full = inner.format ? `${inner.name}<${inner.format.name}>` : inner.name;
      const kind = scalars[full];
      if (!kind) throw new EspalierError(`kernel ${name}: uniform "${m.name}" of type ${full} cannot be packed.`);
      fields.push({ name: m.name, offset: m.offset, kind: kind[0], count: kind[1] * (array ? m.type.count : 1) });
    }
  }
  return { bindings: bindings.sort((a, b) => a.binding - b.binding), fields, uniformBytes };
}

/**
 * A launchable kernel: `entry` of the WGSL text `source` with `settings` put into its `// param` lines.
 * Bindings, the uniform's layout and the workgroup size are read from the WGSL; nothing is declared twice.
 * @param name the file's stem, shown in traces
 */
export function kernel(name: string, source: string, entry: string, settings: Settings = {}): Kernel {
  let key = `${name}\n${entry}`;
  for (const setting in settings) key += `\n${setting}=${settings[setting]}`;
  let found = kernels.get(key);
  if (!found) {
    const text = specialize(name, source, settings);
    found = {
      name,
      entry,
      settings,
      source: text,
      ...reflect(name, source, entry),
      workgroupSize: workgroupSize(name, text, entry),
      id: kernels.size,
    };
    kernels.set(key, found);
  }
  return found;
}

/** A launchable kernel of a WGSL text as it is; equal texts give the same one. */
export function textKernel(name: string, source: string, entry: string): Kernel {
  const key = `${name}\n${entry}\n${source}`;
  let found = kernels.get(key);
  if (!found) {
    const size = workgroupSize(name, source, entry);
    found = {
      name,
      entry,
      settings: {},
      source,
      ...reflect(name, source, entry),
      workgroupSize: size,
      id: kernels.size,
    };
    kernels.set(key, found);
  }
  return found;
}

/** A kernel whose text is that of another with something added: `bindings` are all that it has then. */
export function kernelLike(base: Kernel, name: string, source: string, bindings: readonly Binding[]): Kernel {
  const key = `${name}\n${base.entry}\n${source}`;
  let found = kernels.get(key);
  if (!found) {
    found = { ...base, name, source, bindings, id: kernels.size };
    kernels.set(key, found);
  }
  return found;
}

/** All kernels made so far, in order. */
export const madeKernels = (): readonly Kernel[] => [...kernels.values()];

/** A uniform's values by member name; a key stands for its words, which a traced one decides at each call. */
export type Params = Record<string, number | readonly number[] | Key>;

/** Writes uniform values at `at`; a missing or an extra name throws, as does an array of the wrong length. */
export function pack(k: Kernel, params: Params, view: DataView, at: number): void {
  let used = 0;
  for (const f of k.fields) {
    const value = params[f.name];
    if (value === undefined) throw new EspalierError(`kernel ${k.name}.${k.entry}: uniform "${f.name}" is not given.`);
    used++;
    const list = typeof value === "number" ? [value] : value instanceof Key ? value.words : value;
    if (list.length !== f.count)
      throw new EspalierError(
        `kernel ${k.name}.${k.entry}: uniform "${f.name}" holds ${f.count} values, got ${list.length}.`,
      );
    for (let i = 0; i < f.count; i++) {
      const to = at + f.offset + 4 * i;
      if (f.kind === "f32") view.setFloat32(to, list[i], true);
      else if (f.kind === "u32") view.setUint32(to, list[i], true);
      else view.setInt32(to, list[i], true);
    }
  }
  if (used !== Object.keys(params).length) {
    const extra = Object.keys(params).filter((n) => !k.fields.some((f) => f.name === n));
    throw new EspalierError(
      `kernel ${k.name}.${k.entry}: no uniform is called ${extra.join(", ")}; it has ${k.fields.map((f) => f.name).join(", ")}.`,
    );
  }
}
