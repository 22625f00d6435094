import type { Engine } from "../engine.js";
import { type Kernel, type Params, pack } from "../kernel.js";
import { Key } from "../random/key.js";

/** A launch whose uniform changes from call to call: it draws by a key that the function is given. */
interface Dynamic {
  kernel: Kernel;
  params: Params;
  at: number;
}

const isDynamic = (params: Params): boolean =>
  Object.values(params).some((value) => value instanceof Key && value.isTraced);

/** The uniforms of a plan's launches in one buffer, written once but for those that keys decide. */
export class Uniforms {
  readonly buffer: GPUBuffer;
  private readonly bytes: Uint8Array<ArrayBuffer>;
  private readonly view: DataView;
  private readonly dynamic: Dynamic[] = [];
  private used = 0;

  constructor(
    private readonly engine: Engine,
    kernels: readonly Kernel[],
  ) {
    const size = Math.max(
      16,
      kernels.reduce((n, k) => n + this.room(k), 0),
    );
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    this.buffer = engine.device.createBuffer({ label: "plan", size, usage });
  }

  private room({ uniformBytes }: Kernel): number {
    const align = this.engine.limits.minUniformBufferOffsetAlignment;
    return Math.ceil(uniformBytes / align) * align;
  }

  /** Takes a launch's values; where they lie, unless it has none. */
  add(kernel: Kernel, params: Params): number | undefined {
    if (!kernel.uniformBytes) return undefined;
    const at = this.used;
    pack(kernel, params, this.view, at);
    if (isDynamic(params)) this.dynamic.push({ kernel, params, at });
    this.used += this.room(kernel);
    return at;
  }

  /** Hands all values to the GPU. */
  write(): void {
    this.engine.device.queue.writeBuffer(this.buffer, 0, this.bytes);
  }

  /** Draws by this call's keys. What was recorded with the last call's goes first. */
  refresh(): void {
    if (!this.dynamic.length) return;
    this.engine.submit();
    const [first, last] = [this.dynamic[0], this.dynamic[this.dynamic.length - 1]];
    for (const { kernel, params, at } of this.dynamic) pack(kernel, params, this.view, at);
    const end = last.at + last.kernel.uniformBytes;
    this.engine.device.queue.writeBuffer(this.buffer, first.at, this.bytes, first.at, end - first.at);
  }

  destroy(): void {
    this.buffer.destroy();
  }
}
