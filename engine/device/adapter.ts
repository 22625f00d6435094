import { platform as here } from "#platform";
import { ConfigError, checkOptions, FeatureError, NoAdapterError } from "../errors.js";
import type { Candidate, Platform } from "./platform.js";

/** Node's or the page's, as package.json's `#platform` has it. */
export const platform: Platform = here;

/** Options of {@link requestDevice}. */
export interface DeviceOptions {
  /**
   * "hardware", "lavapipe", "swiftshader", or part of an adapter's name. Default: the setting ESPALIER_ADAPTER, else a
   * hardware adapter, else the system's software Vulkan driver, else the SwiftShader of an installed npm package.
   */
  adapter?: string;
  /** Which of several hardware adapters to prefer. Default "high-performance". */
  power?: GPUPowerPreference;
  /** Features that must be there; without this, useful ones are taken where offered and none is required. */
  features?: readonly GPUFeatureName[];
  /** Features to leave alone although they are offered: to see what an adapter without them would do. */
  without?: readonly GPUFeatureName[];
}

/** What is known of the adapter that was taken. */
export interface DeviceInfo {
  /** Short name to show, such as "lavapipe" or "nvidia geforce rtx 4090". */
  name: string;
  vendor: string;
  architecture: string;
  /** Graphics interface beneath: "vulkan", "metal", "d3d12"; "webgpu" in a page. */
  backend: string;
  kind: "software" | "integrated" | "discrete" | "unknown";
  /** The driver's own description, version included where it tells. */
  description: string;
  /** A driver of this machine, the one an npm package carries, or the browser's. */
  source: Candidate["source"];
  /** Smallest and largest subgroup; undefined where the adapter does not say. */
  subgroupSizes?: readonly [number, number];
  /** What would be faster on this machine; only for software adapters. */
  faster?: string;
}

/** A device and all that the engine wants to know of it. */
export interface DeviceHandle {
  device: GPUDevice;
  adapter: GPUAdapter;
  info: DeviceInfo;
  limits: GPUSupportedLimits;
  features: ReadonlySet<string>;
  languageFeatures: ReadonlySet<string>;
  /** Destroys the device; afterwards nothing of it keeps the process alive. May be called twice. */
  release(): void;
}

const OPTIONAL_FEATURES: readonly GPUFeatureName[] = ["shader-f16", "subgroups", "timestamp-query"];

/** The limits that compute work meets; each is asked for at the adapter's own value. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxUniformBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxUniformBuffersPerShaderStage",
  "maxBindGroups",
  "maxBindingsPerBindGroup",
  "maxDynamicStorageBuffersPerPipelineLayout",
  "maxDynamicUniformBuffersPerPipelineLayout",
  "minStorageBufferOffsetAlignment",
  "minUniformBufferOffsetAlignment",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
  "maxComputeWorkgroupsPerDimension",
  "maxImmediateSize",
] as const;

/**
 * Takes the best adapter that is to be had and makes a device with its real limits.
 *
 * @throws NoAdapterError when nothing fits: says what was found and what this platform's user can do.
 * @throws FeatureError when the adapter lacks a feature that `features` names.
 */
export async function requestDevice(options: DeviceOptions = {}): Promise<DeviceHandle> {
  checkOptions("requestDevice", options, ["adapter", "power", "features", "without"]);
  const { power = "high-performance", features = [], without = [] } = options;
  const both = features.filter((feature) => without.includes(feature));
  if (both.length)
    throw new ConfigError(
      `requestDevice: ${both.join(", ")} cannot be both needed ("features") and left alone ("without")`,
    );
  if (power !== "high-performance" && power !== "low-power")
    throw new ConfigError(`requestDevice: unknown power "${power}" ("high-performance", "low-power")`);
  const adapter = (options.adapter ?? platform.env("ESPALIER_ADAPTER"))?.trim() || undefined;

  const refusals: string[] = [];
  const query = { adapter: adapter?.toLowerCase(), power };
  for await (const candidate of platform.candidates(query, (reason) => refusals.push(reason))) {
    const info = describe(candidate);
    if (query.adapter === "hardware" && info.kind === "software") {
      refusals.push(`${info.name} is a software adapter`);
      continue;
    }
    const missing = features.filter((feature) => !candidate.adapter.features.has(feature));
    if (missing.length > 0) throw missingFeature(missing, info, candidate.adapter);
    try {
      return await open(candidate, info, features, without);
    } catch (cause) {
      refusals.push(`${info.name} gave no device (${cause instanceof Error ? cause.message : cause})`);
    }
  }
  const wanted = adapter === undefined ? "no WebGPU adapter" : `no WebGPU adapter for "${adapter}"`;
  const found = refusals.length === 0 ? "none is offered" : refusals.join("; ");
  throw new NoAdapterError(`adapter: ${wanted}: ${found}. ${platform.noAdapterAdvice(query.adapter)}`);
}

async function open(
  candidate: Candidate,
  info: DeviceInfo,
  wanted: readonly GPUFeatureName[],
  without: readonly GPUFeatureName[],
): Promise<DeviceHandle> {
  const { adapter, languageFeatures } = candidate;
  const offered = OPTIONAL_FEATURES.filter((feature) => adapter.features.has(feature) && !without.includes(feature));
  const requiredLimits: Record<string, number> = {};
  for (const limit of LIMITS) {
    const value = (adapter.limits as unknown as Record<string, number | undefined>)[limit];
    if (value !== undefined) requiredLimits[limit] = value;
  }
  const device = await platform.wait(
    adapter.requestDevice({
      label: "espalier",
      requiredFeatures: [...new Set([...offered, ...wanted])],
      requiredLimits,
    }),
  );
  let released = false;
  return {
    device,
    adapter,
    info,
    limits: device.limits,
    features: new Set(device.features as ReadonlySet<string>),
    languageFeatures,
    release() {
      if (!released) device.destroy();
      released = true;
    },
  };
}

function missingFeature(missing: readonly string[], info: DeviceInfo, adapter: GPUAdapter): FeatureError {
  const offered = OPTIONAL_FEATURES.filter((feature) => adapter.features.has(feature));
  return new FeatureError(
    `adapter: feature not offered: ${info.name} (${info.description}) lacks ${missing.map((m) => `"${m}"`).join(" and ")}; ` +
      `it offers ${offered.join(", ") || "none of the optional ones"}. Do without it, or take another adapter (ESPALIER_ADAPTER).`,
  );
}

function describe({ adapter, backend, source }: Candidate): DeviceInfo {
  const { vendor, architecture, device, description, isFallbackAdapter, subgroupMinSize, subgroupMaxSize } =
    adapter.info as GPUAdapterInfo & { isFallbackAdapter?: boolean };
  const words = [vendor, architecture, device, description].join(" ").toLowerCase();
  const software = isFallbackAdapter === true || /llvmpipe|lavapipe|swiftshader|basic render|\bwarp\b/.test(words);
  const name = words.includes("llvmpipe")
    ? "lavapipe"
    : words.includes("swiftshader")
      ? "SwiftShader"
      : device.replace(/-+/g, " ").trim() ||
        description ||
        [vendor, architecture].join(" ").trim() ||
        "unnamed adapter";
  return {
    name,
    vendor,
    architecture,
    backend,
    kind: software ? "software" : hardwareKind(vendor.toLowerCase(), words),
    description: description || [vendor, architecture].join(" ").trim(),
    source,
    subgroupSizes: subgroupMinSize ? [subgroupMinSize, subgroupMaxSize] : undefined,
    faster: software ? platform.faster(name) : undefined,
  };
}

/** WebGPU does not tell integrated from discrete; vendor and model name do in most cases. */
function hardwareKind(vendor: string, words: string): DeviceInfo["kind"] {
  if (/apple|qualcomm|arm|imgtec|img-tec|samsung|broadcom/.test(vendor)) return "integrated";
  if (vendor === "nvidia") return /tegra|orin|xavier|thor/.test(words) ? "integrated" : "discrete";
  if (vendor === "intel") return /hpg|\barc.[ab]\d{3}/.test(words) ? "discrete" : "integrated";
  if (vendor === "amd") {
    if (/radeon.{0,5}(graphics|vega|\d{3}m\b)|renoir|raphael|rembrandt|phoenix|cezanne|van ?gogh/.test(words))
      return "integrated";
    if (/\brx.\d|radeon.pro|instinct|\bmi\d{2}|\bw\d{4}/.test(words)) return "discrete";
  }
  return "unknown";
}
