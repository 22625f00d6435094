import { computeType } from "../dtype.js";
import type { Engine } from "../engine.js";
import { type Kernel, type Params, textKernel } from "../kernel.js";
import type { Bound, Launch } from "../queue.js";
import { launchAnchored } from "./anchor.js";
import { elementText, fours, gathered, type Output, partsOf, seenBy } from "./element.js";
import type { Group, Layout } from "./group.js";

/** How a fused kernel walks its elements. */
export type Walk = "flat" | "rows" | "scalar" | "columns";

const WG = 64;
const letters = ["x", "y", "z", "w"] as const;

function walkOf(group: Group, { axes, loads }: Layout): Walk {
  if (group.sum) return "columns";
  const dense = (l: Layout["loads"][number]) => axes.length === 1 && l.strides[0] === 1 && l.offset === 0;
  if (loads.every(dense)) return "flat";
  const last = axes.length - 1;
  const isFours =
    axes[last] % 4 === 0 &&
    loads.every(
      ({ strides, offset }) =>
        strides[last] === 0 ||
        (strides[last] === 1 && strides.slice(0, last).every((s) => s % 4 === 0) && offset % 4 === 0),
    );
  return isFours ? "rows" : "scalar";
}

/** WGSL of a group, in one of four walks; strides and sizes are uniforms, so that blocks of one kind share it. */
function textOf(group: Group, layout: Layout, walk: Walk, outputs: readonly Output[], constants: number[]): string {
  const { members } = group;
  const element = elementText(group, layout, outputs);
  constants.push(...element.constants);
  const { loads, axes } = layout;
  const last = axes.length - 1;
  const four = walk !== "scalar";
  const array = (type: string) => (four ? `array<vec4<${type}>>` : `array<${type}>`);
  const bindings = [
    ...loads.map(({ dtype }, i) => `@group(0) @binding(${i + 1}) var<storage, read> in${i}: ${array(dtype)};`),
    ...outputs.map(
      ({ dtype }, i) => `@group(0) @binding(${loads.length + i + 1}) var<storage, read_write> to${i}: ${array(dtype)};`,
    ),
  ];
  const head = [
    `// ${members.map(({ meaning }) => (meaning.kind === "sum" ? `sum (${meaning.op})` : meaning.op)).join(" · ")}`,
    ...(/\bf16\b/.test(bindings.join()) ? ["enable f16;"] : []),
    `struct Params {`,
    `  n: u32,`,
    `  run: u32,  // invocations that share the work of one row, or of all`,
    `  outer: u32, reduced: u32, split: u32, chunk: u32,`,
    `  axes: vec4<u32>,  // sizes, innermost last`,
    `  scale: vec4<f32>,  // of sums`,
    `  constants: array<vec4<u32>, ${Math.max(1, Math.ceil(element.constants.length / 4))}>,  // their bits`,
    `  offset: array<vec4<u32>, ${Math.max(1, Math.ceil(loads.length / 4))}>,`,
    `  stride: array<vec4<u32>, ${Math.max(1, loads.length)}>,`,
    `}`,
    `@group(0) @binding(0) var<uniform> p: Params;`,
    ...bindings,
    ``,
    ...element.lines,
  ];
  const names = loads.map((_, i) => `v${i}`);
  const evaluate = four ? fours(names) : [`let e = element(${names.join(", ")});`];
  const offset = (i: number) => `p.offset[${Math.floor(i / 4)}].${letters[i % 4]}`;
  const load = (i: number, at: string) => {
    const type = computeType(loads[i].dtype);
    if (!four) return `let v${i} = ${type}(in${i}[${at}]);`;
    return loads[i].strides[last] === 0
      ? `let v${i} = vec4<${type}>(${type}(in${i}[(${at}) / 4u][(${at}) % 4u]));`
      : `let v${i} = vec4<${type}>(in${i}[${at}]);`;
  };
  const entry = `@compute @workgroup_size(${WG})\nfn ${walk}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {`;
  const stores = (at: string) => outputs.map(({ dtype }, i) => `to${i}[${at}] = ${gathered(i, dtype)};`);
  const body: string[] = [];
  if (walk === "flat") {
    body.push(
      `  let first = (wg.y * groups.x + wg.x) * p.run;`,
      `  let last = min(first + p.run, (p.n + 3u) / 4u);`,
      `  for (var i = first + lid; i < last; i += ${WG}u) {`,
      ...[...loads.map((_, i) => load(i, "i")), ...evaluate].map((l) => `    ${l}`),
      // What lies behind the last element may belong to another tensor.
      `    if (i * 4u + 3u < p.n) {`,
      ...stores("i").map((l) => `      ${l}`),
      `    } else {`,
      ...outputs.map(
        ({ dtype }, i) =>
          `      to${i}[i] = select(to${i}[i], ${gathered(i, dtype)}, i * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n));`,
      ),
      `    }`,
      `  }`,
    );
  } else if (walk === "columns") {
    body.push(
      `  let id = (wg.y * groups.x + wg.x) * ${WG}u + lid;`,
      `  let width = p.axes.w / 4u;`,
      `  if (id >= p.outer * p.split * width) { return; }`,
      `  let c = id % width;`,
      `  let share = id / width;`,
      `  let o = share / p.split;`,
      `  let start = share % p.split * p.chunk;`,
      `  let end = min(start + p.chunk, p.reduced);`,
      ...outputs.flatMap((o, i) => (o.kind === "sum" ? [`  var s${i}: vec4<f32>;`] : [])),
      `  for (var r = start; r < end; r++) {`,
      ...loads.map((l, i) => {
        const row = `${offset(i)} + o * p.stride[${i}].x + r * p.stride[${i}].y`;
        return `    ${load(i, l.strides[2] === 0 ? row : `(${row}) / 4u + c`)}`;
      }),
      ...evaluate.map((l) => `    ${l}`),
      ...outputs.map((o, i) =>
        o.kind === "sum"
          ? `    s${i} += ${gathered(i, "f32")};`
          : `    to${i}[(o * p.reduced + r) * width + c] = ${gathered(i, o.dtype)};`,
      ),
      `  }`,
      ...outputs.flatMap((o, i) =>
        o.kind === "sum" ? [`  to${i}[id] = vec4<${o.dtype}>(s${i} * p.scale.${letters[sumIndex(outputs, i)]});`] : [],
      ),
    );
  } else {
    const starts = loads.map(
      (_, i) =>
        `  let a${i} = ${offset(i)} + q * p.stride[${i}].x + (z - q * p.axes.y) * p.stride[${i}].y + (row - z * p.axes.z) * p.stride[${i}].z;`,
    );
    const at = (i: number) => {
      if (!four) return `a${i} + w * p.stride[${i}].w`;
      return loads[i].strides[last] === 0 ? `a${i}` : `a${i} / 4u + w`;
    };
    body.push(
      `  let id = (wg.y * groups.x + wg.x) * ${WG}u + lid;`,
      `  let width = p.axes.w${four ? " / 4u" : ""};`,
      `  let row = id / p.run;`,
      `  if (row * p.axes.w >= p.n) { return; }`,
      `  let z = row / p.axes.z;`,
      `  let q = z / p.axes.y;`,
      ...starts,
      `  for (var w = id - row * p.run; w < width; w += p.run) {`,
      ...[...loads.map((_, i) => load(i, at(i))), ...evaluate].map((l) => `    ${l}`),
      ...(four
        ? stores("row * width + w")
        : outputs.map(({ dtype }, i) => `to${i}[row * width + w] = ${dtype}(e.r${i});`)
      ).map((l) => `    ${l}`),
      `  }`,
    );
  }
  return [...head, entry, ...body, "}", ""].join("\n");
}

const sumIndex = (outputs: readonly Output[], i: number): number =>
  outputs.slice(0, i).filter((o) => o.kind === "sum").length;

/** Sums that one launch can scale apart from each other. */
export const MOST_SUMS = 4;

/** The launch that computes a group. */
export function launchOf(engine: Engine, group: Group, layout: Layout, outputs: readonly Output[]): Launch {
  if (group.anchor) return launchAnchored(group, group.anchor, layout, outputs);
  const walk = walkOf(group, layout);
  const constants: number[] = [];
  const text = textOf(group, layout, walk, outputs, constants);
  const kernel: Kernel = textKernel("fused", text, walk);
  const { axes, loads } = layout;
  const { sum, size: n } = group;
  const software = engine.kind === "software";
  const pad = <T>(list: readonly T[], fill: T, to: number): T[] => [...Array<T>(to - list.length).fill(fill), ...list];
  const fill = (list: readonly number[], to: number): number[] => [...list, ...Array<number>(to - list.length).fill(0)];
  const width = walk === "rows" ? axes[axes.length - 1] / 4 : axes[axes.length - 1];
  const rows = n / axes[axes.length - 1];
  const vectors = Math.ceil(n / 4);
  let run = width;
  if (walk === "flat") run = WG * (software ? Math.min(64, Math.max(1, Math.floor(vectors / 256))) : 1);
  else if (software) run = Math.min(width, Math.ceil(256 / rows));
  const owned = sum ? (sum.shape[0] * sum.split * sum.shape[2]) / 4 : rows * run;
  const count = walk === "flat" ? Math.ceil(vectors / run) : Math.ceil(owned / WG);
  const scales = group.members.flatMap(({ meaning }) => (meaning.kind === "sum" ? [meaning.scale] : []));
  const params: Params = {
    n,
    run,
    outer: sum?.shape[0] ?? 0,
    reduced: sum?.shape[1] ?? 0,
    split: sum?.split ?? 0,
    chunk: sum?.chunk ?? 0,
    axes: pad(axes, 1, 4),
    scale: fill(scales, 4),
    constants: fill(constants, Math.max(4, Math.ceil(constants.length / 4) * 4)),
    offset: fill(
      loads.map((l) => l.offset),
      Math.max(4, Math.ceil(loads.length / 4) * 4),
    ),
    stride: loads.length ? loads.flatMap((l) => (sum ? [...l.strides, 0] : pad(l.strides, 0, 4))) : [0, 0, 0, 0],
  };
  const bound: Bound[] = [
    ...loads.map(({ storage }) => ({ storage, offset: 0, size: storage.bytes })),
    ...outputs.map(({ to }) => to),
  ];
  return {
    kernel,
    bound,
    tensors: seenBy(group, layout, outputs),
    params,
    groups: engine.fold(count),
    label: group.members[group.members.length - 1].label,
    parts: partsOf(group),
  };
}
