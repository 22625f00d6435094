/** Writes the few messages of onnx.proto that a model of f32 needs. */
export interface Node {
  op: string;
  inputs: string[];
  outputs: string[];
  /** Whole numbers, lists of them, fractions (as { float }) and texts. */
  attributes?: Record<string, number | number[] | string | { float: number }>;
}
export interface Graph {
  nodes: Node[];
  inputs: Record<string, readonly number[]>;
  outputs: string[];
  initializers: Record<string, { shape: readonly number[]; data: Float32Array | BigInt64Array }>;
}

const OPSET = 20;
const [FLOAT, INT64] = [1, 7];

function varint(value: number): number[] {
  const bytes = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return [...bytes, Number(rest)];
}
const whole = (field: number, value: number): Buffer => Buffer.from([...varint(field << 3), ...varint(value)]);
const bytes = (field: number, value: string | Uint8Array): Buffer => {
  const body = Buffer.from(value as string);
  return Buffer.concat([Buffer.from([...varint((field << 3) | 2), ...varint(body.length)]), body]);
};
const message = (field: number, ...parts: Buffer[]): Buffer => bytes(field, Buffer.concat(parts));
const float = (field: number, value: number): Buffer => {
  const body = Buffer.alloc(4);
  body.writeFloatLE(value);
  return Buffer.concat([Buffer.from(varint((field << 3) | 5)), body]);
};

function attribute(name: string, value: number | number[] | string | { float: number }): Buffer {
  if (typeof value === "number") return message(5, bytes(1, name), whole(3, value), whole(20, 2));
  if (typeof value === "string") return message(5, bytes(1, name), bytes(4, value), whole(20, 3));
  if (Array.isArray(value)) return message(5, bytes(1, name), ...value.map((v) => whole(8, v)), whole(20, 7));
  return message(5, bytes(1, name), float(2, value.float), whole(20, 1));
}

const valueInfo = (field: number, name: string, shape?: readonly number[]): Buffer => {
  const dims = shape?.map((n) => message(1, whole(1, n))) ?? [];
  const type = message(1, whole(1, FLOAT), ...(shape ? [message(2, ...dims)] : []));
  return message(field, bytes(1, name), message(2, type));
};

/** A model's file in memory. */
export function encodeModel({ nodes, inputs, outputs, initializers }: Graph): Uint8Array {
  const graph = [
    ...nodes.map(({ op, inputs, outputs, attributes = {} }) =>
      message(
        1,
        ...inputs.map((name) => bytes(1, name)),
        ...outputs.map((name) => bytes(2, name)),
        bytes(4, op),
        ...Object.entries(attributes).map(([name, value]) => attribute(name, value)),
      ),
    ),
    bytes(2, "case"),
    ...Object.entries(initializers).map(([name, { shape, data }]) =>
      message(
        5,
        ...shape.map((n) => whole(1, n)),
        whole(2, data instanceof Float32Array ? FLOAT : INT64),
        bytes(8, name),
        bytes(9, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
      ),
    ),
    ...Object.entries(inputs).map(([name, shape]) => valueInfo(11, name, shape)),
    ...outputs.map((name) => valueInfo(12, name)),
  ];
  return Buffer.concat([whole(1, 9), message(7, ...graph), message(8, bytes(1, ""), whole(2, OPSET))]);
}
