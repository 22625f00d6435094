import type { Engine } from "./engine.js";
import { OutOfMemoryError } from "./errors.js";
import { largestClass, megabytes, type Owner } from "./memory.js";
import { denseStrides, type Shape } from "./shape.js";
import type { Tensor } from "./tensor.js";

/** Elements of f32 between the starts of neighbours: 256 bytes, the strictest alignment of a binding. */
const STEP = 64;

/** Where a tensor lies: in which chunk, and from which element on. */
export interface Slot {
  chunk: number;
  offset: number;
  size: number;
}

/** A part of a chunk, in vectors of four elements. */
export interface Run {
  chunk: number;
  first: number;
  count: number;
}

const homes = new WeakMap<Tensor, { flat: Flat; index: number }>();

/**
 * Many f32 tensors in a few large buffers, so that one launch reaches all of them: WebGPU cannot bind a list of buffers.
 * No chunk is larger than what one binding may hold. What lies between tensors is zero.
 */
export class Flat {
  readonly chunks: readonly Tensor[];
  private users = 1;

  private constructor(
    readonly engine: Engine,
    readonly slots: readonly Slot[],
    private readonly sizes: readonly number[],
    owner: Owner,
    what: string,
  ) {
    this.chunks = sizes.map((n) => {
      const chunk = engine.empty([n], "f32", what, owner).keep();
      const { storage } = chunk;
      engine.queue.clear({ storage, offset: 0, size: storage.bytes });
      return chunk;
    });
  }

  private static plan(engine: Engine, what: string, sizes: readonly number[]): { slots: Slot[]; chunks: number[] } {
    const { maxStorageBufferBindingSize, maxBufferSize } = engine.limits;
    const most = largestClass(Math.min(maxStorageBufferBindingSize, maxBufferSize)) / 4;
    const slots: Slot[] = [];
    const chunks: number[] = [0];
    for (const size of sizes) {
      const room = Math.ceil(size / STEP) * STEP;
      if (room > most)
        throw new OutOfMemoryError(
          `${what}: a parameter of ${megabytes(4 * size)} is larger than this adapter binds at once (${megabytes(4 * most)}); split it along its first axis.`,
        );
      if (chunks[chunks.length - 1] + room > most) chunks.push(0);
      const chunk = chunks.length - 1;
      slots.push({ chunk, offset: chunks[chunk], size });
      chunks[chunk] += room;
    }
    return { slots, chunks };
  }

  /**
   * Moves f32 tensors into flat buffers; they stay the same objects for everyone who holds them. Tensors that lie in
   * flat buffers already, in this order and with no other, stay where they are. Each call wants one `release()`.
   */
  static over(tensors: readonly Tensor[], what: string): Flat {
    const known = homes.get(tensors[0])?.flat;
    if (
      known &&
      known.users > 0 &&
      known.slots.length === tensors.length &&
      tensors.every((t, i) => known.holds(t, i))
    ) {
      known.users++;
      return known;
    }
    const { engine } = tensors[0];
    const { slots, chunks } = Flat.plan(
      engine,
      what,
      tensors.map((t) => t.size),
    );
    const flat = new Flat(engine, slots, chunks, "parameters", what);
    tensors.forEach((t, i) => {
      t.rehome(flat.chunks[slots[i].chunk].storage, slots[i].offset);
      homes.set(t, { flat, index: i });
    });
    // What they lay in has sizes that few ask for: kept, it would be as much again as all of them.
    engine.memoryPool.trim();
    return flat;
  }

  /** Whether tensor `t` lies in slot `i`: another optimizer may have moved it since. */
  holds(t: Tensor, i: number): boolean {
    const home = homes.get(t);
    return home?.flat === this && home.index === i && t.storage === this.chunks[this.slots[i].chunk].storage;
  }

  /** Zeros of the same layout. */
  like(owner: Owner, what: string): Flat {
    return new Flat(this.engine, this.slots, this.sizes, owner, what);
  }

  /** The tensor of slot `i`, a view that lives until it is disposed. */
  view(i: number, shape: Shape, what: string): Tensor {
    const { chunk, offset } = this.slots[i];
    return this.chunks[chunk].view(shape, denseStrides(shape), offset, what).keep();
  }

  /** Copies all values from a flat of the same layout. */
  copyFrom(other: Flat): void {
    this.chunks.forEach((to, k) => {
      const from = other.chunks[k];
      const bytes = 4 * to.size;
      this.engine.queue.copy(
        { storage: from.storage, offset: 0, size: bytes },
        { storage: to.storage, offset: 0, size: bytes },
        bytes,
      );
    });
  }

  /** The slots that are wanted, neighbours of one chunk joined. */
  runs(wanted: (i: number) => boolean): Run[] {
    const runs: Run[] = [];
    this.slots.forEach(({ chunk, offset, size }, i) => {
      if (!wanted(i) || size === 0) return;
      const first = offset / 4;
      const count = Math.ceil(size / STEP) * (STEP / 4);
      const last = runs.at(-1);
      if (last && last.chunk === chunk && last.first + last.count === first) last.count += count;
      else runs.push({ chunk, first, count });
    });
    return runs;
  }

  /** Gives one use back; after the last the buffers live only as long as tensors that lie in them. */
  release(): void {
    if (this.users > 0 && --this.users === 0) for (const c of this.chunks) c.dispose();
  }
}
