import { EspalierError } from "../errors.js";
import { type Binding, kernelLike, type Params } from "../kernel.js";
import type { Launch } from "../queue.js";
import { elementText, fours, functionNames, gathered, type Output, partsOf, seenBy } from "./element.js";
import type { Group, Layout } from "./group.js";
import type { Rows } from "./meaning.js";
import { MOST_CONSTANTS, MOST_EXTRA, outerAxes, rowOf } from "./rows.js";

/** Bindings from here on are free in the shaders of anchors. */
const FIRST = 16;

/** Values of the uniform's members `extra` and `constants` where nothing follows in the launch. */
export const nothingFollows: Params = {
  extra: Array<number>(4 * MOST_EXTRA).fill(0),
  constants: Array<number>(4 * MOST_CONSTANTS).fill(0),
};

/** The anchor's launch with the group's other members done where it would store its result. */
export function launchAnchored(
  group: Group,
  { launch, meaning }: { launch: Launch; meaning: Rows },
  layout: Layout,
  outputs: readonly Output[],
): Launch {
  const { kernel } = launch;
  const { axes, loads } = layout;
  const width = meaning.shape[1];
  const element = elementText(group, layout, outputs);
  const outer = outerAxes(axes, width);
  const rows = loads.map((l) => rowOf(outer, axes, l.strides)!);
  const { lanes, keep } = meaning;
  const vector = (type: string) => (lanes === 4 ? `vec4<${type}>` : type);
  const binding = (access: string, name: string, at: number, dtype: string) =>
    `@group(0) @binding(${FIRST + at}) var<storage, ${access}> ${name}: array<${vector(dtype)}>;`;
  const place = (at: string) => (lanes === 4 ? `(${at}) / 4u` : at);
  const values = loads.map((_, i) => `v${i}`);
  const text = [
    "",
    `// What follows in the same launch: ${partsOf(group).slice(1).join(" · ")}`,
    ...loads.map(({ dtype }, i) => binding("read", `in${i}`, i, dtype)),
    ...outputs.map(({ dtype }, i) => binding("read_write", `to${i}`, loads.length + i, dtype)),
    "",
    ...element.lines,
    `fn follow(v: ${vector("f32")}, row: u32, column: u32, at: u32) {`,
    ...loads.map((_, i) => {
      const { mod, step } = rows[i];
      const at = `p.extra[${i}]`;
      const start = step === 0 ? `${at}.x` : `${at}.x + row / ${at}.y${mod === 1 ? "" : ` % ${at}.z`} * ${at}.w`;
      return `  let v${i} = ${vector("f32")}(in${i}[${place(`${start} + column`)}]);`;
    }),
    ...(lanes === 4 ? fours(["v", ...values]) : [`let e0 = element(${["v", ...values].join(", ")});`]).map(
      (l) => `  ${l}`,
    ),
    ...outputs.map(
      ({ dtype }, i) => `  to${i}[${place("at")}] = ${lanes === 4 ? gathered(i, dtype) : `${dtype}(e0.r${i})`};`,
    ),
    "}",
    "",
  ].join("\n");
  // The anchor's shader may have functions of the same names, for vectors.
  const twice = functionNames().filter((name) => new RegExp(`\\bfn ${name}\\(`).test(kernel.source));
  const renamed = twice.reduce((t, name) => t.replace(new RegExp(`\\b${name}\\(`, "g"), `${name}_scalar(`), text);
  const hook = new RegExp(`^fn ${keep}\\(.*// param\\s*$`, "m");
  if (!hook.test(kernel.source))
    throw new EspalierError(`compile: ${kernel.name}.wgsl has no line "fn ${keep}(…) … // param".`);
  const half = /\bf16\b/.test(renamed) && !kernel.source.startsWith("enable f16;") ? "enable f16; " : "";
  const source = `${half}${kernel.source.replace(hook, `fn ${keep}(v: ${vector("f32")}, row: u32, column: u32, at: u32) { follow(v, row, column, at); }`)}${renamed}`;
  const own = kernel.bindings.filter(({ type }) => type !== "uniform").map((b, i) => ({ b, i }));
  // Its result is no longer stored as such; what of it others read is among the outputs.
  const rest = own.filter(({ i }) => launch.bound[i] !== group.members[0].to);
  const added = [
    ...loads.map((_, i): Binding => ({ name: `in${i}`, binding: FIRST + i, type: "read-only-storage" })),
    ...outputs.map((_, i): Binding => ({ name: `to${i}`, binding: FIRST + loads.length + i, type: "storage" })),
  ];
  const uniforms = kernel.bindings.filter(({ type }) => type === "uniform");
  const made = kernelLike(kernel, `${kernel.name}_fused`, source, [...uniforms, ...rest.map(({ b }) => b), ...added]);
  const four = (list: readonly number[], to: number) => [...list, ...Array<number>(to - list.length).fill(0)];
  return {
    ...launch,
    kernel: made,
    meaning: undefined,
    bound: [
      ...rest.map(({ i }) => launch.bound[i]),
      ...loads.map(({ storage }) => ({ storage, offset: 0, size: storage.bytes })),
      ...outputs.map(({ to }) => to),
    ],
    tensors: [...rest.map(({ i }) => launch.tensors[i]), ...seenBy(group, layout, outputs)],
    params: {
      ...launch.params,
      extra: four(
        loads.flatMap(({ offset }, i) => [offset, rows[i].div, rows[i].mod, rows[i].step]),
        4 * MOST_EXTRA,
      ),
      constants: four(element.constants, 4 * MOST_CONSTANTS),
    },
    label: group.members[group.members.length - 1].label,
    parts: partsOf(group),
  };
}
