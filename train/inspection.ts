import { decodeConfig, type STDiTConfig } from "../model/config.js";
import { parameterCount } from "../model/count.js";
import { type ForeignKind, foreignKind } from "../model/foreign/origin.js";
import { decodeGrowth, type GrowthRecord } from "../model/growth.js";
import { DTYPE_BYTES, type Safetensors, type SafetensorsDtype, type TensorInfo } from "../model/safetensors.js";

/** Tensors that differ in the numbers of their names alone. */
export interface TensorGroup {
  /** With `*` for the numbers. */
  name: string;
  times: number;
  shape: readonly number[];
  dtype: SafetensorsDtype;
  values: number;
  bytes: number;
}

/** Adapters of one rank. */
export interface AdapterGroup {
  /** Layers, with `*` for numbers. */
  layers: string[];
  count: number;
  rank: number;
  values: number;
}

/** What a safetensors file holds, read from headers and from its gates. */
export interface Inspection {
  file: string;
  tensors: number;
  values: number;
  bytes: number;
  dtypes: { dtype: SafetensorsDtype; tensors: number; values: number; bytes: number }[];
  groups: TensorGroup[];
  /** Metadata, parsed where it is JSON. */
  metadata: Record<string, unknown>;
  /** Of a spatial-temporal transformer that Espalier wrote. */
  config?: STDiTConfig;
  /** Whose names a model has that others wrote. */
  foreign?: ForeignKind;
  /** Parameters that the configuration makes. */
  parameters?: number;
  /** How many numbers n of names "blocks.n." there are. */
  blocks: number;
  growth?: GrowthRecord;
  /** tanh of the gates on the second cross-attention of each block. */
  gates: { block: number; values: number[] }[];
  adapters: AdapterGroup[];
  /** What is wrong with the file, or odd. */
  warnings: string[];
}

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const bytesOf = (info: TensorInfo) => sizeOf(info.shape) * DTYPE_BYTES[info.dtype];
const starred = (name: string) => name.replace(/(^|\.)\d+(?=\.|$)/g, "$1*");

function groupsOf(file: Safetensors): TensorGroup[] {
  const groups = new Map<string, TensorGroup>();
  for (const [name, info] of file.tensors) {
    const pattern = starred(name);
    const key = `${pattern} ${info.shape} ${info.dtype}`;
    const group = groups.get(key) ?? {
      name: pattern,
      times: 0,
      shape: info.shape,
      dtype: info.dtype,
      values: 0,
      bytes: 0,
    };
    group.times++;
    group.values += sizeOf(info.shape);
    group.bytes += bytesOf(info);
    groups.set(key, group);
  }
  // One of a kind is called by its own name.
  for (const [name, info] of file.tensors) {
    const group = groups.get(`${starred(name)} ${info.shape} ${info.dtype}`)!;
    if (group.times === 1) group.name = name;
  }
  return [...groups.values()];
}

function dtypesOf(file: Safetensors): Inspection["dtypes"] {
  const all = new Map<SafetensorsDtype, Inspection["dtypes"][number]>();
  for (const info of file.tensors.values()) {
    const row = all.get(info.dtype) ?? { dtype: info.dtype, tensors: 0, values: 0, bytes: 0 };
    row.tensors++;
    row.values += sizeOf(info.shape);
    row.bytes += bytesOf(info);
    all.set(info.dtype, row);
  }
  return [...all.values()].sort((a, b) => b.bytes - a.bytes);
}

/** PEFT's keys, and those of a model file whose layers have adapters. */
function adaptersOf(file: Safetensors): AdapterGroup[] {
  const groups = new Map<number, AdapterGroup>();
  for (const [name, { shape }] of file.tensors) {
    const found = /^(?:base_model\.model\.)?(.*?)\.?lora_([AB])(?:\.[^.]+)?\.weight$/.exec(name);
    if (!found) continue;
    const rank = found[2] === "A" ? shape[0] : shape[1];
    const group = groups.get(rank) ?? { layers: [], count: 0, rank, values: 0 };
    group.values += sizeOf(shape);
    if (found[2] === "A") {
      group.count++;
      const layer = starred(found[1]);
      if (!group.layers.includes(layer)) group.layers.push(layer);
    }
    groups.set(rank, group);
  }
  return [...groups.values()];
}

async function gatesOf(file: Safetensors): Promise<Inspection["gates"]> {
  const gates: Inspection["gates"] = [];
  for (const name of file.tensors.keys()) {
    const found = /^blocks\.(\d+)\.gate_llm$/.exec(name);
    if (found) gates.push({ block: Number(found[1]), values: Array.from(await file.float32(name), Math.tanh) });
  }
  return gates.sort((a, b) => a.block - b.block);
}

function parsed(text: string): unknown {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Reads what a file holds; of its tensors the gates alone. */
export async function inspectFile(file: Safetensors): Promise<Inspection> {
  const { metadata, tensors } = file;
  const warnings: string[] = [];
  const attempt = <T>(f: () => T): T | undefined => {
    try {
      return f();
    } catch (error) {
      warnings.push((error as Error).message);
      return undefined;
    }
  };
  const numbers = new Set<number>();
  for (const name of tensors.keys()) {
    const found = /^blocks\.(\d+)\./.exec(name);
    if (found) numbers.add(Number(found[1]));
  }
  const config = metadata.model === undefined ? undefined : attempt(() => decodeConfig(metadata.model));
  const { growth: record } = metadata;
  const growth =
    config && record !== undefined ? attempt(() => decodeGrowth(record, config.depth, file.name)) : undefined;
  const depth = config?.depth ?? Math.max(-1, ...numbers) + 1;
  const absent = Array.from({ length: depth }, (_, i) => i).filter((i) => !numbers.has(i));
  if (numbers.size && absent.length)
    warnings.push(`blocks that are not there: ${absent.join(", ")} of 0 to ${depth - 1}`);
  const dtypes = dtypesOf(file);
  const foreign = foreignKind(file);
  return {
    file: file.name,
    tensors: tensors.size,
    values: dtypes.reduce((n, d) => n + d.values, 0),
    bytes: file.bytes,
    dtypes,
    groups: groupsOf(file),
    metadata: Object.fromEntries(Object.entries(metadata).map(([key, text]) => [key, parsed(text)])),
    ...(config && { config, parameters: parameterCount(config) }),
    ...(foreign && { foreign }),
    blocks: numbers.size,
    ...(growth && { growth }),
    gates: await gatesOf(file),
    adapters: adaptersOf(file),
    warnings,
  };
}
