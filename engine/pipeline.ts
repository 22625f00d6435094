import type { Kernel } from "./kernel.js";
import type { Bound } from "./queue.js";

/** A kernel as the device runs it. */
export interface Compiled {
  pipeline: GPUComputePipeline;
  layout: GPUBindGroupLayout;
}

/**
 * Bind groups kept, more than any training step needs. Each is a mapping of a software adapter, of which Linux allows a
 * process 65,530; those that are dropped here stay until they are collected.
 */
const BIND_GROUPS = 1 << 14;

/** Pipelines by kernel, and bind groups by kernel and buffers: both are made once. */
export class Pipelines {
  private readonly compiled = new Map<number, Compiled>();
  private readonly groups = new Map<string, GPUBindGroup>();
  private readonly keysOfBuffer = new Map<number, Set<string>>();
  readonly counts = { pipelines: 0, bindGroups: 0 };

  constructor(private readonly device: GPUDevice) {}

  private describe(k: Kernel): { layout: GPUBindGroupLayout; descriptor: GPUComputePipelineDescriptor } {
    const { device } = this;
    const label = `${k.name}.${k.entry}`;
    const layout = device.createBindGroupLayout({
      label,
      entries: k.bindings.map((b) => ({
        binding: b.binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: b.type, hasDynamicOffset: b.type === "uniform" },
      })),
    });
    const module = device.createShaderModule({ label: k.name, code: k.source });
    return {
      layout,
      descriptor: {
        label,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: k.entry },
      },
    };
  }

  private keep(k: Kernel, c: Compiled): Compiled {
    this.counts.pipelines++;
    this.compiled.set(k.id, c);
    return c;
  }

  /** The kernel's pipeline; the first call compiles it, and the device waits. */
  of(k: Kernel): Compiled {
    const known = this.compiled.get(k.id);
    if (known) return known;
    const { layout, descriptor } = this.describe(k);
    return this.keep(k, { pipeline: this.device.createComputePipeline(descriptor), layout });
  }

  /** Compiles all that are not compiled yet, at the same time, without holding up the device. */
  async warm(kernels: Iterable<Kernel>): Promise<void> {
    const wanted = [...new Set(kernels)].filter((k) => !this.compiled.has(k.id));
    await Promise.all(
      wanted.map(async (k) => {
        const { layout, descriptor } = this.describe(k);
        const pipeline = await this.device.createComputePipelineAsync(descriptor);
        if (!this.compiled.has(k.id)) this.keep(k, { pipeline, layout });
      }),
    );
  }

  /** A bind group of its own, for a plan that keeps it. */
  bind(k: Kernel, bound: readonly Bound[], uniforms: GPUBuffer): GPUBindGroup {
    let i = 0;
    this.counts.bindGroups++;
    return this.device.createBindGroup({
      layout: this.of(k).layout,
      entries: k.bindings.map((b) => {
        if (b.type === "uniform")
          return { binding: b.binding, resource: { buffer: uniforms, offset: 0, size: k.uniformBytes } };
        const { storage, offset, size } = bound[i++];
        return { binding: b.binding, resource: { buffer: storage.buffer, offset, size } };
      }),
    });
  }

  /** The bind group of a kernel over these buffers, which all such launches share. */
  group(k: Kernel, bound: readonly Bound[], uniforms: GPUBuffer): GPUBindGroup {
    let key = `${k.id}`;
    for (const b of bound) key += `:${b.storage.id},${b.offset},${b.size}`;
    let group = this.groups.get(key);
    if (group) return group;
    if (this.groups.size >= BIND_GROUPS) this.drop(this.groups.keys().next().value!);
    group = this.bind(k, bound, uniforms);
    this.groups.set(key, group);
    for (const { storage } of bound) {
      const keys = this.keysOfBuffer.get(storage.id);
      if (keys) keys.add(key);
      else this.keysOfBuffer.set(storage.id, new Set([key]));
    }
    return group;
  }

  /** Drops the bind groups of a buffer that is destroyed. */
  forget(id: number): void {
    for (const key of [...(this.keysOfBuffer.get(id) ?? [])]) this.drop(key);
  }

  private drop(key: string): void {
    this.groups.delete(key);
    for (const part of key.split(":").slice(1)) {
      const id = Number.parseInt(part, 10);
      const keys = this.keysOfBuffer.get(id);
      keys?.delete(key);
      if (keys?.size === 0) this.keysOfBuffer.delete(id);
    }
  }
}
