import type { Meaning } from "./compile/meaning.js";
import type { Kernel, Params } from "./kernel.js";
import { pack } from "./kernel.js";
import type { Memory, Storage } from "./memory.js";
import { Pipelines } from "./pipeline.js";
import type { Tensor } from "./tensor.js";

/** What a launch binds at one name: a byte range of a buffer. */
export interface Bound {
  storage: Storage;
  offset: number;
  size: number;
}

/** A tensor as texts show it. */
export type Seen = Pick<Tensor, "shape" | "dtype" | "strides" | "offset" | "bytes" | "op">;

/** A launch as traces see it, before it is encoded. */
export interface Launch {
  kernel: Kernel;
  bound: readonly Bound[];
  /** What is bound, in the order of `bound`. */
  tensors: readonly Seen[];
  params: Params;
  groups: readonly [number, number, number];
  label: string;
  /** What it computes, where that allows to compute it together with others. */
  meaning?: Meaning;
  /** The ops that a fused launch stands for. */
  parts?: readonly string[];
}

/** Takes commands in the queue's place while a function is traced. */
export interface CommandTrace {
  launch(launch: Launch): void;
  copy(from: Bound, to: Bound, bytes: number): void;
  clear(to: Bound): void;
  upload(to: Bound, bytes: Uint8Array): void;
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

const ARENA = 1 << 18;
/** Launches per submission: few enough that the GPU starts early, many enough that submissions cost nothing. */
const BATCH = 128;

/** One command of a plan, ready to be recorded again and again. */
export type Step =
  | {
      pipeline: GPUComputePipeline;
      group: GPUBindGroup;
      groups: readonly [number, number, number];
      /** Where its uniform begins, as a list of one: those cost less to hand over than parts of a typed array. */
      offset: readonly number[] | undefined;
      launch: Launch;
    }
  | { pipeline: undefined; encode(encoder: GPUCommandEncoder): void };

/** A plan's commands with all that they bind. */
export interface Program {
  readonly steps: readonly Step[];
  /** Buffers outside the plan that it reads or writes. */
  readonly touched: readonly number[];
}

/**
 * Records launches, copies and uploads into one command encoder and submits them in order.
 * Uniform values of a batch lie in one arena that is written once per submission; launches carry dynamic offsets.
 */
export class Queue {
  readonly pipelines: Pipelines;
  private encoder: GPUCommandEncoder | undefined;
  private pass: GPUComputePassEncoder | undefined;
  /** The pipeline that the open pass has, so that a run of one kernel sets it once. */
  private pipeline: GPUComputePipeline | undefined;
  private readonly offset = [0];
  private readonly arena: GPUBuffer;
  private readonly arenaBytes = new Uint8Array(ARENA);
  private readonly arenaView = new DataView(this.arenaBytes.buffer);
  private arenaUsed = 0;
  private pending = 0;
  private touched = new Set<number>();
  private readonly staging = new Map<number, GPUBuffer[]>();
  readonly limits: Limits;
  readonly features: ReadonlySet<string>;
  private readonly tally = { launches: 0, submits: 0 };
  /** Traces and debug output; usually none. */
  readonly observers = new Set<Observer>();
  /** Told after each submission how many launches and copies it had. */
  onSubmit: ((commands: number) => void) | undefined;
  /** Set while a function is traced: takes every command, and nothing runs. */
  trace: CommandTrace | undefined;

  constructor(
    readonly device: GPUDevice,
    private readonly memory: Memory,
  ) {
    this.limits = Object.fromEntries(LIMITS.map((name) => [name, device.limits[name]])) as Limits;
    this.features = new Set(device.features);
    this.pipelines = new Pipelines(device);
    this.arena = device.createBuffer({ size: ARENA, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    memory.onDestroy = (id) => this.pipelines.forget(id);
    memory.beforeTrim = () => this.submit();
  }

  /** Launches and submissions so far, and what was made for them. */
  get counts(): { launches: number; submits: number; bindGroups: number; pipelines: number } {
    return { ...this.tally, ...this.pipelines.counts };
  }

  /** What observers say of a launch: whether it is timed. */
  private observe(launch: Launch): GPUComputePassTimestampWrites | undefined {
    let timestamps: GPUComputePassTimestampWrites | undefined;
    for (const look of this.observers) timestamps = look(launch)?.timestamps ?? timestamps;
    return timestamps;
  }

  /** Records one launch. `bound` follows the order of the kernel's storage bindings. */
  launch(launch: Launch): void {
    if (this.trace) {
      this.trace.launch(launch);
      return;
    }
    if (this.memory.dry) return;
    const { kernel: k, bound, params, groups } = launch;
    const timestamps = this.observers.size ? this.observe(launch) : undefined;
    const align = this.limits.minUniformBufferOffsetAlignment;
    if (this.arenaUsed + k.uniformBytes > ARENA || this.pending >= BATCH) this.submit();
    const offset = this.arenaUsed;
    pack(k, params, this.arenaView, offset);
    this.arenaUsed += Math.ceil(k.uniformBytes / align) * align;
    const { pipeline } = this.pipelines.of(k);
    const group = this.pipelines.group(k, bound, this.arena);
    for (const b of bound) this.touched.add(b.storage.id);
    this.offset[0] = offset;
    this.dispatch(pipeline, group, k.uniformBytes ? this.offset : undefined, groups, timestamps);
  }

  private dispatch(
    pipeline: GPUComputePipeline,
    group: GPUBindGroup,
    offset: readonly number[] | undefined,
    groups: readonly [number, number, number],
    timestamps: GPUComputePassTimestampWrites | undefined,
  ): void {
    if (timestamps) this.endPass();
    this.encoder ??= this.device.createCommandEncoder();
    this.pass ??= this.encoder.beginComputePass(timestamps ? { timestampWrites: timestamps } : undefined);
    if (this.pipeline !== pipeline) this.pass.setPipeline(pipeline);
    this.pipeline = pipeline;
    if (offset) this.pass.setBindGroup(0, group, offset);
    else this.pass.setBindGroup(0, group);
    this.pass.dispatchWorkgroups(groups[0], groups[1], groups[2]);
    if (timestamps) this.endPass();
    this.pending++;
    this.tally.launches++;
  }

  /** Records a plan's commands. */
  replay({ steps, touched }: Program): void {
    const watched = this.observers.size > 0;
    for (const s of steps) {
      if (this.pending >= BATCH) this.submit();
      if (s.pipeline)
        this.dispatch(s.pipeline, s.group, s.offset, s.groups, watched ? this.observe(s.launch) : undefined);
      else this.encode(s.encode);
    }
    for (const id of touched) this.touched.add(id);
  }

  private endPass(): void {
    this.pass?.end();
    this.pass = undefined;
    this.pipeline = undefined;
  }

  /** Records work on the encoder outside a compute pass. */
  encode(f: (encoder: GPUCommandEncoder) => void): void {
    this.endPass();
    this.encoder ??= this.device.createCommandEncoder();
    f(this.encoder);
    this.pending++;
  }

  /** Copies bytes between the starts of two ranges; offsets and length divide by 4. */
  copy(from: Bound, to: Bound, bytes: number): void {
    if (this.trace) {
      this.trace.copy(from, to, bytes);
      return;
    }
    if (this.memory.dry) return;
    this.encode((e) => e.copyBufferToBuffer(from.storage.buffer, from.offset, to.storage.buffer, to.offset, bytes));
    this.touched.add(from.storage.id).add(to.storage.id);
  }

  /** Fills a range with zeros; offset and size divide by 4. */
  clear(to: Bound): void {
    if (this.trace) {
      this.trace.clear(to);
      return;
    }
    if (this.memory.dry) return;
    this.encode((e) => e.clearBuffer(to.storage.buffer, to.offset, to.size));
    this.touched.add(to.storage.id);
  }

  /** Writes bytes into a buffer, after everything that was recorded before. */
  upload({ storage, offset, size }: Bound, bytes: Uint8Array, shift = 0): void {
    const at = offset + shift;
    if (this.trace) {
      this.trace.upload({ storage, offset: at, size }, bytes);
      return;
    }
    if (this.memory.dry) return;
    // writeBuffer runs before the open encoder's commands, so those that touch this buffer must go first.
    if (this.touched.has(storage.id)) this.submit();
    const whole = bytes.byteLength & ~3;
    if (whole) this.device.queue.writeBuffer(storage.buffer, at, bytes as Uint8Array<ArrayBuffer>, 0, whole);
    if (whole < bytes.byteLength) {
      const tail = new Uint8Array(4);
      tail.set(bytes.subarray(whole));
      this.device.queue.writeBuffer(storage.buffer, at + whole, tail);
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
    this.tally.submits++;
  }

  /** Copies bytes of a buffer to the host. Rejects if the device is lost meanwhile. */
  async read(
    buffer: GPUBuffer,
    offset: number,
    bytes: number,
    wait: <T>(p: Promise<T>) => Promise<T>,
  ): Promise<ArrayBuffer> {
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(Math.max(1, bytes))));
    const target =
      this.staging.get(size)?.pop() ??
      this.device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const length = Math.ceil(bytes / 4) * 4;
    this.encode((e) => e.copyBufferToBuffer(buffer, offset, target, 0, length));
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
