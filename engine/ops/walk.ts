import source from "../../shaders/elementwise.wgsl";
import type { Formula } from "../compile/meaning.js";
import { computeType, type DType, encode } from "../dtype.js";
import { ShapeError } from "../errors.js";
import { type Kernel, kernel } from "../kernel.js";
import { collapse, denseStrides, expandStrides, show } from "../shape.js";
import { strided, type Tensor } from "../tensor.js";

const WG = 64;

const NO_CONSTANTS: readonly number[] = [0, 0, 0, 0];

/** Bits of a formula's constants in the type it computes with. */
function constants(values: readonly number[], dtype: DType): readonly number[] {
  if (values.length === 0) return NO_CONSTANTS;
  const bytes = encode([...values, 0, 0, 0, 0].slice(0, 4), computeType(dtype));
  return Array.from(new Uint32Array(bytes.slice().buffer, 0, 4));
}

/** The formula of a launch, with its operands spread over y's shape. */
const formulaOf = (
  y: Tensor,
  expression: string,
  names: readonly string[],
  operands: readonly Tensor[],
  bits: readonly number[],
): Formula => ({
  kind: "formula",
  expression,
  names,
  operands: operands.map((t) => ({
    storage: t.storage,
    offset: t.offset,
    strides: expandStrides(t.shape, t.strides, y.shape),
    dtype: t.dtype,
  })),
  constants: bits,
  shape: y.shape,
  y: { storage: y.storage, offset: y.offset, strides: denseStrides(y.shape), dtype: y.dtype },
  op: y.op,
});

const LETTERS = ["A", "B", "C", "D"];
const kernels = new Map<string, Kernel>();

/** The kernel of an expression over operands of given types; found by a short key, since every launch asks for it. */
function kernelOf(
  entry: string,
  tail: number,
  result: DType,
  expression: string,
  names: readonly string[],
  operands: readonly Tensor[],
): Kernel {
  let key = `${entry}${tail}${result}${expression}`;
  for (let i = 0; i < operands.length; i++) key += `|${names[i]}${operands[i].dtype}`;
  const known = kernels.get(key);
  if (known) return known;
  const settings: Record<string, string | number> = {
    OPERANDS: operands.length,
    TAIL: tail,
    WG,
    TY: result,
    CY: computeType(result),
  };
  LETTERS.forEach((l, i) => {
    // Unused operands share a's buffer, so they must share its type.
    const { dtype } = operands[i < operands.length ? i : 0];
    settings[`T${l}`] = dtype;
    settings[`C${l}`] = computeType(dtype);
  });
  if (settings.CA !== "f32") settings.unordered = "return false;";
  const variables = names.map((name, i) => `let ${name} = v${LETTERS[i].toLowerCase()}; `).join("");
  const constantsUsed = ["x", "y", "z", "w"]
    .map((c, i) => (expression.includes(`K${i}`) ? `let K${i} = bitcast<${settings.CA}>(p.k.${c}); ` : ""))
    .join("");
  settings.f = `${variables}${constantsUsed}return ${expression};`;
  const made = kernel("elementwise", source, entry, settings);
  kernels.set(key, made);
  return made;
}

/**
 * Records y = expression(operands) into the dense tensor `y`; operands broadcast to its shape through their strides.
 * @param names what the expression calls the operands; constants are K0 … K3
 */
export function launchElementwise(
  y: Tensor,
  expression: string,
  names: readonly string[],
  operands: readonly Tensor[],
  values: readonly number[] = [],
): void {
  const { engine } = y;
  const n = y.size;
  if (n === 0) return;
  const walk = collapse(
    y.shape,
    operands.map((t) => expandStrides(t.shape, t.strides, y.shape)),
  );
  if (walk.shape.length > 8)
    throw new ShapeError(
      `elementwise: ${show(y.shape)} has more than 8 axes that cannot be merged; reshape it to fewer.`,
    );
  const pad = <T>(list: readonly T[], fill: T) => [...Array<T>(8 - list.length).fill(fill), ...list];
  const shape = pad(walk.shape, 1);
  const strides = walk.strides.map((s) => pad(s, 0));
  const offsets = operands.map((t) => t.offset);
  const isFlat =
    walk.strides.every((s) => (walk.shape.length === 0 ? n === 1 : s.length === 1 && s[0] === 1)) &&
    offsets.every((o) => o === 0);
  const isRows =
    walk.shape.length <= 4 &&
    shape[7] % 4 === 0 &&
    strides.every(
      (s, k) => s[7] === 0 || (s[7] === 1 && s.slice(0, 7).every((v) => v % 4 === 0) && offsets[k] % 4 === 0),
    );
  const entry = isFlat ? "flat" : isRows ? "rows" : walk.shape.length <= 4 ? "general" : "deep";
  const tail = n % 4 ? 1 : 0;
  const none = pad<number>([], 0);
  const k = kernelOf(entry, tail, y.dtype, expression, names, operands);
  const at = (i: number) => operands[i < operands.length ? i : 0];
  const four = entry === "flat" || entry === "rows" ? "4" : "";
  const buffers = {
    [`a${four}`]: strided(at(0)),
    [`b${four}`]: strided(at(1)),
    [`c${four}`]: strided(at(2)),
    [`d${four}`]: strided(at(3)),
    [`y${four}`]: y,
  };
  const vectors = Math.ceil(n / 4);
  const width = entry === "rows" ? shape[7] / 4 : shape[7];
  const rows = n / shape[7];
  // An invocation of a software adapter costs as much as a few elements: each gets many, as long as all cores have work.
  const software = engine.kind === "software";
  const run =
    entry === "flat"
      ? WG * (software ? Math.min(64, Math.max(1, Math.floor(vectors / 256))) : 1)
      : software
        ? Math.min(width, Math.ceil(256 / rows))
        : width;
  const bits = constants(values, operands[0].dtype);
  engine.launch(
    k,
    buffers,
    {
      n,
      run,
      shape,
      k: bits,
      offset: [0, 1, 2, 3].map((i) => offsets[i] ?? 0),
      stride_a: strides[0],
      stride_b: strides[1] ?? none,
      stride_c: strides[2] ?? none,
      stride_d: strides[3] ?? none,
    },
    entry === "flat" ? Math.ceil(vectors / run) : Math.ceil((rows * run) / WG),
    engine.queue.trace && formulaOf(y, expression, names, operands, bits),
  );
}
