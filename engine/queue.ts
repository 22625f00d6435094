import type { Kernel, Params } from "./kernel.js";
import { pack } from "./kernel.js";
import type { Memory } from "./memory.js";
import type { Tensor } from "./tensor.js";

/** What a launch binds at one name: a buffer with a byte range. */
export interface Bound {
  buffer: GPUBuffer;
  id: number;
  offset: number;
  size: number;
}

/** A launch as traces see it, before it is encoded. */
export interface Launch {
  kernel: Kernel;
  bound: readonly Bound[];
  /** What is bound, in the order of `bound`. */
  tensors: readonly Tensor[];
  params: Params;
  groups: readonly [number, number, number];
  label: string;
}

/** Receives each launch; `timestamps`, when given, make it run in a pass of its own that is timed on the GPU. */
export type Observer = (launch: Launch) => { timestamps?: GPUComputePassTimestampWrites } | undefined;

/** The device's limits as plain numbers: reading them from the device costs a call into it each time. */
export type Limits = Readonly<Record<(typeof LIMITS)[number], number>>;
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupsPerDimension",
  "minStorageBufferOffsetAlignment",
  "minUniformBufferOffsetAlignment",
] as const;

interface Compiled {
  pipeline: GPUComputePipeline;
  layout: GPUBindGroupLayout;
}

const ARENA = 1 << 18;
/** Launches per submission: few enough that the GPU starts early, many enough that submissions cost nothing. */
const BATCH = 128;
/**
 * Bind groups kept, more than any training step needs. Each is a mapping of a software adapter, of which Linux allows a
 * process 65,530; those that are dropped here stay until they are collected.
 */
const BIND_GROUPS = 1 << 14;

/**
 * Records launches, copies and uploads into one command encoder and submits them in order.
 * Uniform values of a batch lie in one arena that is written once per submission; launches carry dynamic offsets.
 */
export class Queue {
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  /** The pipeline that the open pass has, so that a run of one kernel sets it once. */
  private pipeline: GPUComputePipeline | undefined;
  private readonly offsets = new Uint32Array(1);
  private readonly arena: GPUBuffer;
  private readonly arenaBytes = new Uint8Array(ARENA);
  private readonly arenaView = new DataView(this.arenaBytes.buffer);
  private arenaUsed = 0;
  private pending = 0;
  private touched = new Set<number>();
  private readonly compiled = new Map<number, Compiled>();
  private readonly bindGroups = new Map<string, GPUBindGroup>();
  private readonly keysOfBuffer = new Map<number, Set<string>>();
  private readonly staging = new Map<number, GPUBuffer[]>();
  readonly limits: Limits;
  readonly features: ReadonlySet<string>;
  readonly counts = { launches: 0, submits: 0, bindGroups: 0, pipelines: 0 };
  /** Traces and debug output; usually none. */
  readonly observers = new Set<Observer>();
  /** Told after each submission how many launches and copies it had. */
  onSubmit: ((commands: number) => void) | undefined;

  constructor(
    readonly device: GPUDevice,
    memory: Memory,
  ) {
    this.limits = Object.fromEntries(LIMITS.map((name) => [name, device.limits[name]])) as Limits;
    this.features = new Set(device.features);
    this.arena = device.createBuffer({ size: ARENA, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    memory.onDestroy = (id) => this.forget(id);
    memory.beforeTrim = () => this.submit();
  }

  private forget(id: number): void {
    for (const key of [...(this.keysOfBuffer.get(id) ?? [])]) this.drop(key);
  }

  private drop(key: string): void {
    this.bindGroups.delete(key);
    for (const part of key.split(":").slice(1)) {
      const id = Number.parseInt(part, 10);
      const keys = this.keysOfBuffer.get(id);
      keys?.delete(key);
      if (keys?.size === 0) this.keysOfBuffer.delete(id);
    }
  }

  private compile(k: Kernel): Compiled {
    let c = this.compiled.get(k.id);
    if (c) return c;
    const { device } = this;
    const layout = device.createBindGroupLayout({
      label: `${k.name}.${k.entry}`,
      entries: k.bindings.map((b) => ({
        binding: b.binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: b.type, hasDynamicOffset: b.type === "uniform" },
      })),
    });
    const module = device.createShaderModule({ label: k.name, code: k.source });
    const pipeline = device.createComputePipeline({
      label: `${k.name}.${k.entry}`,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: k.entry },
    });
    this.counts.pipelines++;
    c = { pipeline, layout };
    this.compiled.set(k.id, c);
    return c;
  }

  private bindGroup(k: Kernel, c: Compiled, bound: readonly Bound[]): GPUBindGroup {
    let key = `${k.id}`;
    for (const b of bound) key += `:${b.id},${b.offset},${b.size}`;
    let group = this.bindGroups.get(key);
    if (group) return group;
    if (this.bindGroups.size >= BIND_GROUPS) this.drop(this.bindGroups.keys().next().value!);
    let i = 0;
    group = this.device.createBindGroup({
      layout: c.layout,
      entries: k.bindings.map((b) => {
        if (b.type === "uniform")
          return { binding: b.binding, resource: { buffer: this.arena, offset: 0, size: k.uniformBytes } };
        const at = bound[i++];
        return { binding: b.binding, resource: { buffer: at.buffer, offset: at.offset, size: at.size } };
      }),
    });
    this.counts.bindGroups++;
    this.bindGroups.set(key, group);
    for (const b of bound) {
      const keys = this.keysOfBuffer.get(b.id);
      if (keys) keys.add(key);
      else this.keysOfBuffer.set(b.id, new Set([key]));
    }
    return group;
  }

  /** Records one launch. `bound` follows the order of the kernel's storage bindings. */
  launch(launch: Launch): void {
    const { kernel: k, bound, params, groups } = launch;
    let timestamps: GPUComputePassTimestampWrites | undefined;
    for (const observe of this.observers) timestamps = observe(launch)?.timestamps ?? timestamps;
    const align = this.limits.minUniformBufferOffsetAlignment;
    if (this.arenaUsed + k.uniformBytes > ARENA || this.pending >= BATCH) this.submit();
    const offset = this.arenaUsed;
    pack(k, params, this.arenaView, offset);
    this.arenaUsed += Math.ceil(k.uniformBytes / align) * align;
    const c = this.compile(k);
    const group = this.bindGroup(k, c, bound);
    for (const b of bound) this.touched.add(b.id);
    if (timestamps) this.endPass();
    this.encoder ??= this.device.createCommandEncoder();
    this.pass ??= this.encoder.beginComputePass(timestamps ? { timestampWrites: timestamps } : undefined);
    if (this.pipeline !== c.pipeline) this.pass.setPipeline(c.pipeline);
    this.pipeline = c.pipeline;
    if (k.uniformBytes) {
      this.offsets[0] = offset;
      this.pass.setBindGroup(0, group, this.offsets, 0, 1);
    } else this.pass.setBindGroup(0, group);
    this.pass.dispatchWorkgroups(groups[0], groups[1], groups[2]);
    if (timestamps) this.endPass();
    this.pending++;
    this.counts.launches++;
  }

  private endPass(): void {
    this.pass?.end();
    this.pass = undefined;
    this.pipeline = undefined;
  }

  /** Records work on the encoder outside a compute pass; `ids` are the buffers that it reads or writes. */
  encode(f: (encoder: GPUCommandEncoder) => void, ids: readonly number[]): void {
    this.endPass();
    this.encoder ??= this.device.createCommandEncoder();
    f(this.encoder);
    for (const id of ids) this.touched.add(id);
    this.pending++;
  }

  /** Writes bytes into a buffer, after everything that was recorded before. */
  upload(to: Bound, bytes: Uint8Array, offset = 0): void {
    // writeBuffer runs before the open encoder's commands, so those that touch this buffer must go first.
    if (this.touched.has(to.id)) this.submit();
    const whole = bytes.byteLength & ~3;
    if (whole) this.device.queue.writeBuffer(to.buffer, to.offset + offset, bytes as Uint8Array<ArrayBuffer>, 0, whole);
    if (whole < bytes.byteLength) {
      const tail = new Uint8Array(4);
      tail.set(bytes.subarray(whole));
      this.device.queue.writeBuffer(to.buffer, to.offset + offset + whole, tail);
    }
  }

  /** Hands the recorded batch to the GPU. */
  submit(): void {
    this.endPass();
    if (!this.encoder) return;
    if (this.arenaUsed)
      this.device.queue.writeBuffer(this.arena, 0, this.arenaBytes, 0, Math.ceil(this.arenaUsed / 4) * 4);
    this.device.queue.submit([this.encoder.finish()]);
    this.onSubmit?.(this.pending);
    this.encoder = undefined;
    this.arenaUsed = 0;
    this.pending = 0;
    this.touched.clear();
    this.counts.submits++;
  }

  /** Copies bytes of a buffer to the host. Rejects if the device is lost meanwhile. */
  async read(from: Bound, bytes: number, wait: <T>(p: Promise<T>) => Promise<T>): Promise<ArrayBuffer> {
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(Math.max(1, bytes))));
    const target =
      this.staging.get(size)?.pop() ??
      this.device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const length = Math.ceil(bytes / 4) * 4;
    this.encode((e) => e.copyBufferToBuffer(from.buffer, from.offset, target, 0, length), [from.id]);
    this.submit();
    await wait(target.mapAsync(GPUMapMode.READ, 0, Math.max(4, length)));
    const copy = target.getMappedRange(0, Math.max(4, length)).slice(0);
    target.unmap();
    const list = this.staging.get(size);
    // Large staging buffers are rare (checkpoints): keeping them would double their cost.
    if (size > 1 << 22) target.destroy();
    else if (list) list.push(target);
    else this.staging.set(size, [target]);
    return copy;
  }
}
