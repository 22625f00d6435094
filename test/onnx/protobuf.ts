/** The few messages of onnx.proto that operator test cases are made of, read from their wire format. */
export interface OnnxTensor {
  name: string;
  dims: number[];
  /** ONNX's number of the element type: 1 float, 6 int32, 7 int64, 9 bool, 10 float16, 12 uint32 … */
  type: number;
  values: number[];
}
export interface OnnxNode {
  op: string;
  domain: string;
  inputs: string[];
  outputs: string[];
  attributes: Record<string, number | number[] | string | OnnxTensor | undefined>;
}
export interface OnnxModel {
  opset: number;
  nodes: OnnxNode[];
  inputs: string[];
  outputs: string[];
  initializers: OnnxTensor[];
}

type Value = { varint: bigint } | { bytes: Uint8Array };

function* fields(bytes: Uint8Array): Generator<[field: number, value: Value]> {
  let at = 0;
  const varint = () => {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
      shift += 7n;
    }
  };
  while (at < bytes.length) {
    const tag = Number(varint());
    const kind = tag & 7;
    if (kind === 0) yield [tag >> 3, { varint: varint() }];
    else {
      const length = kind === 2 ? Number(varint()) : kind === 5 ? 4 : 8;
      yield [tag >> 3, { bytes: bytes.subarray(at, at + length) }];
      at += length;
    }
  }
}

const text = (v: Value) => new TextDecoder().decode((v as { bytes: Uint8Array }).bytes);
const body = (v: Value) => (v as { bytes: Uint8Array }).bytes;
const signed = (v: bigint) => Number(BigInt.asIntN(64, v));
const view = (b: Uint8Array) => new DataView(b.buffer, b.byteOffset, b.byteLength);

/** A repeated number: packed into one field, or one field each. */
function numbers(v: Value, kind: "varint" | "float" | "double"): number[] {
  if ("varint" in v) return [signed(v.varint)];
  const b = v.bytes;
  if (kind === "float") return Array.from({ length: b.length / 4 }, (_, i) => view(b).getFloat32(4 * i, true));
  if (kind === "double") return Array.from({ length: b.length / 8 }, (_, i) => view(b).getFloat64(8 * i, true));
  const out: number[] = [];
  for (let at = 0; at < b.length; ) {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const byte = b[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) break;
      shift += 7n;
    }
    out.push(signed(value));
  }
  return out;
}

function half(bits: number): number {
  const [sign, e, m] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (e === 31) return m ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return e === 0 ? sign * m * 2 ** -24 : sign * (1 + m / 1024) * 2 ** (e - 15);
}

const readers: Record<number, [bytes: number, read: (v: DataView, at: number) => number]> = {
  1: [4, (v, at) => v.getFloat32(at, true)],
  2: [1, (v, at) => v.getUint8(at)],
  3: [1, (v, at) => v.getInt8(at)],
  4: [2, (v, at) => v.getUint16(at, true)],
  5: [2, (v, at) => v.getInt16(at, true)],
  6: [4, (v, at) => v.getInt32(at, true)],
  7: [8, (v, at) => Number(v.getBigInt64(at, true))],
  9: [1, (v, at) => v.getUint8(at)],
  10: [2, (v, at) => half(v.getUint16(at, true))],
  11: [8, (v, at) => v.getFloat64(at, true)],
  12: [4, (v, at) => v.getUint32(at, true)],
  13: [8, (v, at) => Number(v.getBigUint64(at, true))],
};

export function readTensor(bytes: Uint8Array): OnnxTensor {
  const t: OnnxTensor = { name: "", dims: [], type: 0, values: [] };
  let raw: Uint8Array | undefined;
  for (const [field, v] of fields(bytes)) {
    if (field === 1) t.dims.push(...numbers(v, "varint"));
    else if (field === 2) t.type = numbers(v, "varint")[0];
    else if (field === 4) t.values.push(...numbers(v, "float"));
    else if (field === 5 || field === 7 || field === 11) t.values.push(...numbers(v, "varint"));
    else if (field === 8) t.name = text(v);
    else if (field === 9) raw = body(v);
    else if (field === 10) t.values.push(...numbers(v, "double"));
  }
  const reader = readers[t.type];
  if (raw && reader) {
    const [size, read] = reader;
    const data = view(raw);
    t.values = Array.from({ length: raw.length / size }, (_, i) => read(data, i * size));
  } else if (t.type === 10) t.values = t.values.map(half);
  return t;
}

function readAttribute(bytes: Uint8Array): [string, OnnxNode["attributes"][string]] {
  let name = "";
  let value: OnnxNode["attributes"][string];
  for (const [field, v] of fields(bytes)) {
    if (field === 1) name = text(v);
    else if (field === 2) value = numbers(v, "float")[0];
    else if (field === 3) value = numbers(v, "varint")[0];
    else if (field === 4) value = text(v);
    else if (field === 5) value = readTensor(body(v));
    else if (field === 7 || field === 8)
      value = [...((value as number[] | undefined) ?? []), ...numbers(v, field === 7 ? "float" : "varint")];
  }
  return [name, value];
}

function readNode(bytes: Uint8Array): OnnxNode {
  const n: OnnxNode = { op: "", domain: "", inputs: [], outputs: [], attributes: {} };
  for (const [field, v] of fields(bytes)) {
    if (field === 1) n.inputs.push(text(v));
    else if (field === 2) n.outputs.push(text(v));
    else if (field === 4) n.op = text(v);
    else if (field === 7) n.domain = text(v);
    else if (field === 5) {
      const [name, value] = readAttribute(body(v));
      n.attributes[name] = value;
    }
  }
  return n;
}

export function readModel(bytes: Uint8Array): OnnxModel {
  const m: OnnxModel = { opset: 0, nodes: [], inputs: [], outputs: [], initializers: [] };
  const nameOf = (b: Uint8Array) => {
    for (const [field, v] of fields(b)) if (field === 1) return text(v);
    return "";
  };
  for (const [field, v] of fields(bytes)) {
    if (field === 8) {
      let [domain, version] = ["", 0];
      for (const [f, w] of fields(body(v))) {
        if (f === 1) domain = text(w);
        else if (f === 2) version = numbers(w, "varint")[0];
      }
      if (domain === "") m.opset = version;
    }
    if (field !== 7) continue;
    for (const [f, w] of fields(body(v))) {
      if (f === 1) m.nodes.push(readNode(body(w)));
      else if (f === 5) m.initializers.push(readTensor(body(w)));
      else if (f === 11) m.inputs.push(nameOf(body(w)));
      else if (f === 12) m.outputs.push(nameOf(body(w)));
    }
  }
  return m;
}
