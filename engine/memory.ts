import { OutOfMemoryError } from "./errors.js";

/** Who a buffer is for; memory reports and out-of-memory texts add up by it. */
export type Owner = "parameters" | "gradients" | "optimizer" | "buffers" | "saved" | "activations" | "staging";

/** A reference-counted GPU buffer. Tensors, views and the tape each hold a reference. */
export class Storage {
  refs = 1;
  constructor(
    readonly memory: Memory,
    readonly buffer: GPUBuffer,
    /** Unique for the buffer's life: keys bind-group caches. */
    readonly id: number,
    readonly bytes: number,
    /** Who holds it, and what it was made for. */
    readonly owned: { owner: Owner; what: string },
  ) {}
  retain(): this {
    this.refs++;
    return this;
  }
  release(): void {
    if (--this.refs === 0) this.memory.recycle(this);
  }
}

/** Live bytes by owner, bytes waiting in the pool, and the highest live total seen. */
export type MemoryReport = { live: number; pooled: number; peak: number; byOwner: Partial<Record<Owner, number>> };

export const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 23 ? 2 : 0)} MiB`;

/** Sizes are rounded up so that freed buffers fit later requests: 256-byte steps, then eighths of a power of two. */
function sizeClass(bytes: number): number {
  if (bytes <= 4096) return Math.max(256, Math.ceil(bytes / 256) * 256);
  const step = 2 ** Math.floor(Math.log2(bytes)) / 8;
  return Math.ceil(bytes / step) * step;
}

/** The largest size that a request of at most `limit` bytes may have without being rounded beyond it. */
export function largestClass(limit: number): number {
  const step = 2 ** Math.floor(Math.log2(limit)) / 8;
  return Math.floor(limit / step) * step;
}

/** A pool of storage buffers by size class, with a budget. Reuse is safe at once: the queue runs launches in order. */
export class Memory {
  private readonly free = new Map<number, Storage[]>();
  private readonly liveSet = new Set<Storage>();
  private live = 0;
  private pooled = 0;
  private peak = 0;
  private nextId = 1;
  /** Number of createBuffer calls so far: a steady loop makes none. */
  created = 0;
  onDestroy: (id: number) => void = () => {};

  constructor(
    private readonly device: GPUDevice,
    readonly budget: number,
    private readonly maxBufferSize: number,
  ) {}

  /** A buffer of at least `bytes` bytes; its content is undefined. */
  take(bytes: number, owner: Owner, what: string): Storage {
    const size = sizeClass(bytes);
    if (size > this.maxBufferSize)
      throw new OutOfMemoryError(
        `memory: one buffer cannot be that large: ${what} needs ${megabytes(bytes)}, this adapter allows ${megabytes(this.maxBufferSize)}; use smaller batches, frames or layers.`,
      );
    const list = this.free.get(size);
    let storage = list?.pop();
    if (storage) {
      this.pooled -= storage.bytes;
      storage.refs = 1;
      storage.owned.owner = owner;
      storage.owned.what = what;
    } else {
      if (this.live + this.pooled + size > this.budget) this.trim();
      if (this.live + size > this.budget) throw this.exhausted(bytes, what, `the budget of ${megabytes(this.budget)}`);
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      storage = new Storage(this, this.device.createBuffer({ size, usage }), this.nextId++, size, { owner, what });
      this.created++;
    }
    this.live += storage.bytes;
    this.peak = Math.max(this.peak, this.live);
    this.liveSet.add(storage);
    return storage;
  }

  recycle(storage: Storage): void {
    this.live -= storage.bytes;
    this.pooled += storage.bytes;
    this.liveSet.delete(storage);
    const list = this.free.get(storage.bytes);
    if (list) list.push(storage);
    else this.free.set(storage.bytes, [storage]);
  }

  /** Destroys the pooled buffers. Call only when no recorded launch still waits for submission. */
  trim(): void {
    this.beforeTrim();
    for (const list of this.free.values())
      for (const s of list) {
        this.onDestroy(s.id);
        s.buffer.destroy();
      }
    this.free.clear();
    this.pooled = 0;
  }
  beforeTrim: () => void = () => {};

  exhausted(bytes: number, what: string, limit: string): OutOfMemoryError {
    const { live, byOwner } = this.report();
    const owners = Object.entries(byOwner)
      .sort((a, b) => b[1] - a[1])
      .map(([o, n]) => `${o} ${megabytes(n)}`);
    return new OutOfMemoryError(
      `memory: ${what} needs ${megabytes(bytes)} beyond ${limit}: live are ${megabytes(live)} (${owners.join(", ") || "nothing"}); ` +
        "lower the batch size, frames or resolution, use gradient accumulation or checkpointed blocks, or raise the budget.",
    );
  }

  resetPeak(): void {
    this.peak = this.live;
  }

  /** The largest buffers in use. */
  largest(count: number): readonly Storage[] {
    return [...this.liveSet].sort((a, b) => b.bytes - a.bytes || a.id - b.id).slice(0, count);
  }

  report(): MemoryReport {
    const byOwner: Partial<Record<Owner, number>> = {};
    for (const s of this.liveSet) byOwner[s.owned.owner] = (byOwner[s.owned.owner] ?? 0) + s.bytes;
    return { live: this.live, pooled: this.pooled, peak: this.peak, byOwner };
  }
}
