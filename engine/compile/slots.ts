import type { Memory, Storage } from "../memory.js";

/** From the first command that touches a storage to the last. */
export interface Life {
  storage: Storage;
  first: number;
  last: number;
}

/** Buffers that plans share. Nothing in them outlives a call, so every plan of an engine may use all of them. */
export class Slots {
  private readonly slots: { storage: Storage; users: number }[] = [];

  constructor(private readonly memory: Memory) {}

  /**
   * Gives each storage a buffer that no other uses while it lives: the largest first, each into the smallest buffer that
   * is free for its life.
   */
  assign(lives: readonly Life[]): { homes: Map<Storage, Storage>; release: () => void } {
    const homes = new Map<Storage, Storage>();
    const taken = new Map<Storage, Life[]>();
    const order = [...lives].sort((a, b) => b.storage.bytes - a.storage.bytes || b.last - b.first - a.last + a.first);
    const free = (slot: Storage, life: Life) =>
      !taken.get(slot)?.some((other) => other.first <= life.last && life.first <= other.last);
    for (const life of order) {
      const { bytes, owned } = life.storage;
      let best: Storage | undefined;
      for (const { storage } of this.slots)
        if (storage.bytes >= bytes && (!best || storage.bytes < best.bytes) && free(storage, life)) best = storage;
      if (!best) {
        try {
          best = this.memory.take(bytes, "plan", owned.what);
        } catch (error) {
          this.giveBack();
          throw error;
        }
        this.slots.push({ storage: best, users: 0 });
      }
      homes.set(life.storage, best);
      const list = taken.get(best);
      if (list) list.push(life);
      else taken.set(best, [life]);
    }
    const mine = this.slots.filter(({ storage }) => taken.has(storage));
    for (const slot of mine) slot.users++;
    return {
      homes,
      release: () => {
        for (const slot of mine.splice(0)) slot.users--;
        this.giveBack();
      },
    };
  }

  /** Gives up what no plan uses. */
  private giveBack(): void {
    for (const slot of this.slots.filter(({ users }) => users === 0)) {
      this.slots.splice(this.slots.indexOf(slot), 1);
      slot.storage.release();
    }
  }
}
