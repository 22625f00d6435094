import prelude from "../../shaders/elementwise.wgsl";
import { bytesOf, computeType, type DType } from "../dtype.js";
import { EspalierError } from "../errors.js";
import type { Bound, Seen } from "../queue.js";
import type { Shape } from "../shape.js";
import type { Group, Layout, Value } from "./group.js";
import type { Formula, Place } from "./meaning.js";
import { usesConstants } from "./rows.js";

/** A result that is stored or summed, by member. */
export interface Output {
  member: number;
  kind: "store" | "sum";
  dtype: DType;
  /** Type of the value in a register. */
  type: string;
  to: Bound;
}

/** The functions that formulas call, by name, from the shader that runs them one by one. */
const known = (() => {
  const [from, to] = [prelude.indexOf("// Pieces for f."), prelude.indexOf("fn index(")];
  if (from < 0 || to < 0) throw new EspalierError("compile: elementwise.wgsl has lost the marks around its functions.");
  const text = prelude
    .slice(from, to)
    .replace(/^.*\/\/ param$/m, "fn unordered(x: f32) -> bool { return is_nan(x); }")
    .replace(/^\/\/.*\n/gm, "");
  const parts = text.split(/^(?=fn )/m).filter((part) => part.startsWith("fn "));
  return new Map(parts.map((part) => [/^fn (\w+)/.exec(part)![1], part.trim()]));
})();

const callsIn = (text: string): string[] =>
  [...text.matchAll(/\b(\w+)\(/g)].map((m) => m[1]).filter((n) => known.has(n));

/** The functions that a text calls, and those that they call, each before its users. */
export function functionsFor(text: string): string[] {
  const wanted = new Set<string>();
  const take = (name: string) => {
    if (wanted.has(name)) return;
    for (const other of callsIn(known.get(name)!)) if (other !== name) take(other);
    wanted.add(name);
  };
  for (const name of callsIn(text)) take(name);
  return [...wanted].map((name) => known.get(name)!);
}

export const functionNames = (): string[] => [...known.keys()];

const name = (f: Formula, i: number): string => `${f.op.replace(/\W+/g, "_")}_${i}`;
const ref = (v: Value): string => ("load" in v ? `x${v.load}` : `t${v.member}`);

/** The function of one formula, named after its op. */
function formulaText(f: Formula, i: number, constant: (k: number) => string): string {
  const first = computeType(f.operands[0].dtype);
  const parameters = f.names.map((name, k) => `${name}: ${computeType(f.operands[k].dtype)}`).join(", ");
  const body = first === "f32" ? f.expression : f.expression.replace(/unordered\(\w+\)/g, "false");
  const constants = [0, 1, 2, 3]
    .filter((k) => new RegExp(`\\bK${k}\\b`).test(body))
    .map((k) => `let K${k} = bitcast<${first}>(${constant(k)}); `)
    .join("");
  return `fn ${name(f, i)}(${parameters}) -> ${computeType(f.y.dtype)} { ${constants}return ${body}; }`;
}

/** The bits of constant `k` of those that begin at `at` in the uniform. */
const constantAt = (at: number) => (k: number) => `p.constants[${Math.floor((at + k) / 4)}].${"xyzw"[(at + k) % 4]}`;

/**
 * `fn element(…) -> Results`: one element of each result from one element of each load, with the functions that it calls.
 * The value of a member that computes by a kernel of its own comes as `t0`.
 */
export function elementText(
  { members, anchor }: Group,
  { loads, values }: Layout,
  outputs: readonly Output[],
): { lines: string[]; constants: number[] } {
  const constants: number[] = [];
  const formulas = members.flatMap(({ meaning }, i) => {
    if (meaning.kind !== "formula") return [];
    const text = formulaText(meaning, i, constantAt(constants.length));
    if (usesConstants(meaning)) constants.push(...meaning.constants);
    return [text];
  });
  const steps = members.flatMap(({ meaning }, i) =>
    meaning.kind === "formula" ? [`  let t${i} = ${name(meaning, i)}(${values[i].map(ref).join(", ")});`] : [],
  );
  const result = (o: Output): string => (o.kind === "sum" ? ref(values[o.member][0]) : `t${o.member}`);
  const parameters = [...(anchor ? ["t0: f32"] : []), ...loads.map((l, i) => `x${i}: ${computeType(l.dtype)}`)];
  return {
    constants,
    lines: [
      ...functionsFor(formulas.join("\n")),
      "",
      ...formulas,
      "",
      `struct Results { ${outputs.map(({ type }, i) => `r${i}: ${type}`).join(", ")} }`,
      `fn element(${parameters.join(", ")}) -> Results {`,
      ...steps,
      `  return Results(${outputs.map(result).join(", ")});`,
      "}",
      "",
    ],
  };
}

/** Lines that evaluate four neighbours from the vectors `v0`, `v1`, …; and a result of all four as a vector. */
export const fours = (arguments_: readonly string[]): string[] =>
  ["x", "y", "z", "w"].map((c, j) => `let e${j} = element(${arguments_.map((v) => `${v}.${c}`).join(", ")});`);
export const gathered = (i: number, type: string): string =>
  `vec4<${type}>(${[0, 1, 2, 3].map((j) => `${type}(e${j}.r${i})`).join(", ")})`;

/** What a group needs of its results: those that others read, and sums. */
export function outputsOf(group: Group, needed: (index: number) => boolean): Output[] {
  return group.members.flatMap(({ meaning, to }, member): Output[] => {
    if (meaning.kind !== "sum" && !needed(member)) return [];
    const { dtype } = meaning.y;
    const kind = meaning.kind === "sum" ? "sum" : "store";
    return [{ member, kind, dtype, type: kind === "sum" ? "f32" : computeType(dtype), to }];
  });
}

/** The ops that a group stands for. */
export const partsOf = (group: Group): string[] => group.members.map(({ meaning }) => meaning.op);

/** What a fused launch binds, as texts show it: loads, then outputs. */
export function seenBy(group: Group, { axes, loads }: Layout, outputs: readonly Output[]): Seen[] {
  const seen = (shape: Shape, { strides, offset, dtype }: Place, op: string): Seen => ({
    shape,
    strides,
    offset,
    dtype,
    op,
    bytes: bytesOf(dtype) * shape.reduce((size, extent, i) => (strides[i] === 0 ? size : size * extent), 1),
  });
  return [
    ...loads.map((l) => seen(axes, l, l.storage.owned.what)),
    ...outputs.map(({ member }) => {
      const { shape, y, op } = group.members[member].meaning;
      return seen(shape, y, op);
    }),
  ];
}
