import { EspalierError, OutOfMemoryError } from "./errors.js";

/** Who a buffer is for; memory reports and out-of-memory texts add up by it. */
export type Owner = "parameters" | "gradients" | "optimizer" | "buffers" | "saved" | "activations" | "staging" | "plan";

/** Told of memory that is taken and given back while a function is traced: nothing is allocated meanwhile. */
export interface MemoryTrace {
  taken(storage: Storage): void;
  freed(storage: Storage): void;
}

/** A reference-counted GPU buffer. Tensors, views and the tape each hold a reference. */
export class Storage {
  refs = 1;
  /** Tensors that were moved here (`Tensor.point`) less those that moved away: a plan's parameters must stay. */
  shown = 0;
  /** Times it went back to the pool: what was kept of an earlier life is no longer true. */
  life = 0;
  constructor(
    readonly memory: Memory,
    private made: GPUBuffer | undefined,
    /** Unique for the buffer's life: keys bind-group caches. */
    readonly id: number,
    readonly bytes: number,
    /** Who holds it, and what it was made for. */
    readonly owned: { owner: Owner; what: string },
    /** True while it is only a name in a trace. */
    public isVirtual = false,
  ) {}
  get buffer(): GPUBuffer {
    if (this.made) return this.made;
    const why = this.isVirtual
      ? "it was made by a function while that was traced; return it from the function to read it"
      : "this engine only reckons with memory (dry); make one without dry to compute";
    throw new EspalierError(`memory: "${this.owned.what}" has no memory: ${why}.`);
  }
  /** Gives a virtual storage memory of its own. */
  realize(): void {
    if (!this.isVirtual) return;
    this.isVirtual = false;
    this.made = this.memory.makeReal(this);
  }
  retain(): this {
    this.refs++;
    return this;
  }
  release(): void {
    if (--this.refs === 0) this.memory.recycle(this);
  }
}

/** Live bytes by owner, bytes waiting in the pool, and the highest totals seen. */
export type MemoryReport = {
  live: number;
  pooled: number;
  peak: number;
  /** Most bytes held at once, live or waiting in the pool: what the GPU must have. */
  held: number;
  byOwner: Partial<Record<Owner, number>>;
};

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
  private held = 0;
  private nextId = 1;
  /** Number of createBuffer calls so far: a steady loop makes none. */
  created = 0;
  /** Set while a function is traced. */
  trace: MemoryTrace | undefined;
  onDestroy: (id: number) => void = () => {};

  constructor(
    private readonly device: GPUDevice,
    readonly budget: number,
    private readonly maxBufferSize: number,
    /** Counts bytes without allocating any. */
    readonly dry = false,
  ) {}

  /** A buffer of at least `bytes` bytes; its content is undefined. */
  take(bytes: number, owner: Owner, what: string): Storage {
    const size = sizeClass(bytes);
    if (size > this.maxBufferSize)
      throw new OutOfMemoryError(
        `memory: one buffer cannot be that large: ${what} needs ${megabytes(bytes)}, this adapter allows ${megabytes(this.maxBufferSize)}; use smaller batches, frames or layers.`,
      );
    if (this.trace) {
      const named = new Storage(this, undefined, this.nextId++, size, { owner, what }, true);
      this.trace.taken(named);
      return named;
    }
    let storage = this.free.get(size)?.pop();
    if (storage) {
      this.pooled -= storage.bytes;
      storage.refs = 1;
      storage.owned.owner = owner;
      storage.owned.what = what;
    } else storage = new Storage(this, this.allocate(size, bytes, what), this.nextId++, size, { owner, what });
    this.enter(storage);
    return storage;
  }

  private allocate(size: number, bytes: number, what: string): GPUBuffer | undefined {
    if (this.live + this.pooled + size > this.budget) this.trim();
    if (this.live + size > this.budget) throw this.exhausted(bytes, what, `the budget of ${megabytes(this.budget)}`);
    this.created++;
    if (this.dry) return undefined;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return this.device.createBuffer({ size, usage });
  }

  private enter(storage: Storage): void {
    this.live += storage.bytes;
    this.peak = Math.max(this.peak, this.live);
    this.held = Math.max(this.held, this.live + this.pooled);
    this.liveSet.add(storage);
  }

  /** A buffer for a storage that was virtual until now. */
  makeReal(storage: Storage): GPUBuffer | undefined {
    const buffer = this.allocate(storage.bytes, storage.bytes, storage.owned.what);
    this.enter(storage);
    return buffer;
  }

  recycle(storage: Storage): void {
    this.trace?.freed(storage);
    storage.life++;
    if (storage.isVirtual) return;
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
        if (!this.dry) s.buffer.destroy();
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
    this.held = this.live + this.pooled;
  }

  /** The largest buffers in use. */
  largest(count: number): readonly Storage[] {
    return [...this.liveSet].sort((a, b) => b.bytes - a.bytes || a.id - b.id).slice(0, count);
  }

  report(): MemoryReport {
    const byOwner: Partial<Record<Owner, number>> = {};
    for (const s of this.liveSet) byOwner[s.owned.owner] = (byOwner[s.owned.owner] ?? 0) + s.bytes;
    return { live: this.live, pooled: this.pooled, peak: this.peak, held: this.held, byOwner };
  }
}
