import { createEngine, type Engine, inspect, platform } from "../../engine/index.js";
import { parseArguments } from "../arguments.js";

const usage = `Usage: espalier doctor [--adapter NAME]

Says which adapters are here and which one Espalier takes, what it offers, how fast it is at most, and what would be faster.`;

/** Features that change what Espalier does. */
const FEATURES: readonly (readonly [GPUFeatureName, string])[] = [
  ["shader-f16", "half-precision storage"],
  ["subgroups", "exchange within a subgroup"],
  ["timestamp-query", "times of single launches"],
];

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupsPerDimension",
  "minStorageBufferOffsetAlignment",
] as const;

const bytes = (n: number) =>
  n >= 2 ** 30
    ? `${(n / 2 ** 30).toFixed(1)} GiB`
    : n >= 2 ** 20
      ? `${Math.round(n / 2 ** 20)} MiB`
      : n >= 2 ** 10
        ? `${Math.round(n / 2 ** 10)} KiB`
        : `${n}`;

function describe(engine: Engine): string {
  const { info } = engine;
  const limits = LIMITS.map((l) => `  ${l.padEnd(34)} ${/Size$/.test(l) ? bytes(engine.limits[l]) : engine.limits[l]}`);
  const features = FEATURES.map(([f, doc]) => `  ${f.padEnd(34)} ${engine.has(f) ? "yes" : "no "}  ${doc}`);
  const subgroup = info.subgroupSizes
    ? [`  ${"subgroup size".padEnd(34)} ${[...new Set(info.subgroupSizes)].join(" to ")}`]
    : [];
  return [
    `taken    ${info.name} (${info.kind}, through ${info.backend})`,
    `driver   ${info.description || "does not say"}`,
    "features",
    ...features,
    "limits",
    ...limits,
    ...subgroup,
  ].join("\n");
}

export async function run(args: string[]): Promise<number> {
  const { values, help } = parseArguments("doctor", args, { adapter: "text" });
  if (help) {
    console.log(usage);
    return 0;
  }
  console.log(`espalier on ${platform.name}`);
  const names = await platform.adapterNames();
  console.log(
    `found    ${names.map((a) => `${a.name}${a.source === "embedded" ? " (from an npm package)" : ""}`).join(", ") || "no adapter"}`,
  );
  const engine = await createEngine({ adapter: values.adapter as string | undefined });
  try {
    console.log(describe(engine));
    const c = await inspect.ceilings(engine);
    console.log(
      [
        "ceilings (measured now; other work on the machine lowers them)",
        `  ${"multiply-adds in registers".padEnd(34)} ${c.fma.toFixed(1)} GFLOP/s`,
        `  ${"copy, one f32 at a time".padEnd(34)} ${c.copyScalar.toFixed(2)} GB/s`,
        `  ${"copy, four f32 at a time".padEnd(34)} ${c.copyVec4.toFixed(2)} GB/s`,
        `  ${"launch".padEnd(34)} ${c.launch.toFixed(1)} µs`,
      ].join("\n"),
    );
    console.log(
      engine.info.faster
        ? `faster   ${engine.info.faster}`
        : "faster   nothing that is known: this is a hardware adapter",
    );
    return 0;
  } finally {
    engine.destroy();
  }
}
