import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { platform, requestDevice } from "../../engine/device/adapter.js";
import { ConfigError, FeatureError, NoAdapterError } from "../../engine/errors.js";

const test = suite("adapter");

interface Ended {
  code: number | null;
  signal: string | null;
  output: string;
}

/** Runs probe.ts in a process of its own. */
function probe(mode: string, env: Record<string, string> = {}): Promise<Ended> {
  const child = spawn(process.execPath, [".build/run.mjs", "test/device/probe.ts", mode], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 60_000,
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (chunk) => {
    output += chunk;
  });
  child.stderr.setEncoding("utf8").on("data", (chunk) => {
    output += chunk;
  });
  return new Promise((resolve) => child.on("close", (code, signal) => resolve({ code, signal, output })));
}

async function failure(promise: Promise<unknown>): Promise<Error> {
  return promise.then(
    () => assert.unreachable("should have been refused") as never,
    (error) => error,
  );
}

test("the best adapter is taken and described", async () => {
  const { device, info, limits, features, release } = await requestDevice();
  console.log(`${info.name}: ${info.kind}, ${info.description}, ${[...features].join(" ")}`);
  assert.ok(info.name && info.description && info.backend);
  assert.ok(["software", "integrated", "discrete", "unknown"].includes(info.kind));
  assert.is(info.kind === "software", info.faster !== undefined);
  assert.is(limits.maxComputeInvocationsPerWorkgroup, device.limits.maxComputeInvocationsPerWorkgroup);
  release();
  assert.is((await device.lost).reason, "destroyed");
});

test("features can be left alone, but not be needed as well", async () => {
  const { device, features, release } = await requestDevice({ without: ["subgroups", "shader-f16"] });
  for (const feature of ["subgroups", "shader-f16"] as const) {
    assert.not.ok(features.has(feature));
    assert.not.ok(device.features.has(feature));
  }
  release();
  const error = await requestDevice({ features: ["subgroups"], without: ["subgroups"] }).catch((e: Error) => e);
  assert.match((error as Error).message, /subgroups cannot be both needed \("features"\) and left alone/);
});

test("the adapter's own limits are asked for", async () => {
  const { adapter, limits, release } = await requestDevice();
  assert.is(limits.maxStorageBufferBindingSize, adapter.limits.maxStorageBufferBindingSize);
  assert.is(limits.maxBufferSize, adapter.limits.maxBufferSize);
  assert.is(limits.maxComputeWorkgroupStorageSize, adapter.limits.maxComputeWorkgroupStorageSize);
  release();
});

test("the embedded SwiftShader works beside the system's driver", async () => {
  const before = process.env.VK_ICD_FILENAMES;
  const system = await requestDevice();
  const embedded = await requestDevice({ adapter: "SwiftShader" });
  assert.is(embedded.info.name, "SwiftShader");
  assert.is(embedded.info.source, "embedded");
  assert.is(process.env.VK_ICD_FILENAMES, before);
  const again = await requestDevice();
  assert.is(again.info.name, system.info.name);
  const both = await Promise.all([requestDevice({ adapter: "swiftshader" }), requestDevice()]);
  assert.equal(
    both.map(({ info }) => info.name),
    ["SwiftShader", system.info.name],
  );
  for (const { release } of [system, embedded, again, ...both]) release();
});

test("all adapters are listed, the embedded one last", async () => {
  const names = await platform.adapterNames();
  assert.is(names.at(-1)?.source, "embedded");
  assert.ok(names.every(({ name, backend }) => name && backend));
});

test("a name that no adapter has", async () => {
  const error = await failure(requestDevice({ adapter: "voodoo 2" }));
  assert.instance(error, NoAdapterError);
  assert.match(
    error.message,
    /^adapter: no WebGPU adapter for "voodoo 2": the system has .*\. Take "hardware", "lavapipe"/,
  );
});

test("no adapter at all names the fix", async () => {
  const none = { VK_ICD_FILENAMES: "/nonexistent", VK_DRIVER_FILES: "/nonexistent", ESPALIER_ADAPTER: "lavapipe" };
  const { code, output } = await probe("keep", none);
  assert.is(code, 1);
  assert.match(output, /NoAdapterError: adapter: no WebGPU adapter for "lavapipe": the system has no usable driver\./);
  assert.match(output, /For a software adapter: .+/);
});

test("without a system driver the embedded one is taken", async () => {
  const none = { VK_ICD_FILENAMES: "/nonexistent", VK_DRIVER_FILES: "/nonexistent", ESPALIER_ADAPTER: "" };
  assert.equal(await probe("keep", none), { code: 0, signal: null, output: "SwiftShader\n" });
});

test("processes that unpack the embedded driver at once do not meet", async () => {
  const cache = mkdtempSync(join(tmpdir(), "espalier-"));
  try {
    const env = { XDG_CACHE_HOME: cache, ESPALIER_ADAPTER: "swiftshader" };
    const ended = await Promise.all([probe("keep", env), probe("keep", env), probe("keep", env)]);
    for (const one of ended) assert.equal(one, { code: 0, signal: null, output: "SwiftShader\n" });
    assert.match(readdirSync(join(cache, "espalier")).join(), /^swiftshader-[\d.]+$/);
  } finally {
    rmSync(cache, { recursive: true });
  }
});

test("a wanted feature that is missing is named", async () => {
  const error = await failure(requestDevice({ adapter: "swiftshader", features: ["shader-f16"] }));
  assert.instance(error, FeatureError);
  assert.match(error.message, /^adapter: feature not offered: SwiftShader \(.+\) lacks "shader-f16"; it offers /);
});

test("unknown options are refused", async () => {
  assert.instance(await failure(requestDevice({ adaptor: "x" } as object)), ConfigError);
  assert.instance(await failure(requestDevice({ power: "max" as GPUPowerPreference })), ConfigError);
});

test("the process ends as it should", async () => {
  for (const mode of ["release", "keep"]) {
    const { code, signal } = await probe(mode);
    assert.equal({ mode, code, signal }, { mode, code: 0, signal: null });
  }
  const busy = await probe("busy");
  assert.is(busy.code, 0, busy.output);
  assert.match(busy.output, /AbortError/);
  const thrown = await probe("throw");
  assert.is(thrown.code, 1);
  assert.match(thrown.output, /on purpose/);
  assert.equal((await probe("exit")).code, 3);
});

test("wait gives the value or the error", async () => {
  assert.is(await platform.wait(new Promise((resolve) => setTimeout(() => resolve(7), 20))), 7);
  assert.is((await failure(platform.wait(Promise.reject(new Error("gone"))))).message, "gone");
});

test("the cache keeps and forgets nothing else", async () => {
  const before = process.env.XDG_CACHE_HOME;
  const cache = mkdtempSync(join(tmpdir(), "espalier-"));
  process.env.XDG_CACHE_HOME = cache;
  try {
    assert.is(await platform.cacheRead("tuning/a b"), undefined);
    await platform.cacheWrite("tuning/a b", "[1]");
    assert.is(await platform.cacheRead("tuning/a b"), "[1]");
    assert.is(await platform.cacheRead("tuning"), undefined);
    assert.ok(platform.cachePlace("tuning/a b").startsWith(cache));
    assert.is(await platform.cacheRemove("tuning/a b"), true);
    assert.is(await platform.cacheRemove("tuning/a b"), false);
    assert.is(await platform.cacheRead("tuning/a b"), undefined);
    process.env.XDG_CACHE_HOME = "/dev/null/nowhere";
    await platform.cacheWrite("tuning", "[2]");
  } finally {
    if (before === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = before;
    rmSync(cache, { recursive: true });
  }
});

test.run();
