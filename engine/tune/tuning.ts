import { DataError } from "../errors.js";

/** What is known of one shape class on one adapter. */
export interface Winner {
  way: string;
  /** Milliseconds of one launch when it was timed. */
  ms: number;
  /** The second best way; undefined where there was only one. */
  second?: string;
  secondMs?: number;
}

const FORMAT = "espalier-tuning-1";

/** Ways of launching that measurements have shown to be fastest, by kernel family and shape class. */
export class Tuning {
  private readonly winners = new Map<string, Map<string, Winner>>();
  /** Shape classes that were asked for, by family; collected while it is set. */
  asked: Map<string, Set<string>> | undefined;

  /** Whether asking can be left out: no winner is known, and nobody collects. */
  get idle(): boolean {
    return this.winners.size === 0 && this.asked === undefined;
  }

  /** The fastest way for a shape class; undefined when it was not timed here. */
  winner(family: string, key: string): string | undefined {
    if (this.asked) {
      const keys = this.asked.get(family);
      if (keys) keys.add(key);
      else this.asked.set(family, new Set([key]));
    }
    return this.winners.get(family)?.get(key)?.way;
  }

  set(family: string, key: string, winner: Winner): void {
    const known = this.winners.get(family);
    if (known) known.set(key, winner);
    else this.winners.set(family, new Map([[key, winner]]));
  }

  /** Forgets families that are not among `ids`: those of other revisions. */
  keepOnly(ids: Iterable<string>): void {
    const kept = new Set(ids);
    for (const id of [...this.winners.keys()]) if (!kept.has(id)) this.winners.delete(id);
  }

  clear(): void {
    this.winners.clear();
  }

  /** Shape classes with a winner. */
  get size(): number {
    let n = 0;
    for (const keys of this.winners.values()) n += keys.size;
    return n;
  }

  /** JSON that `Tuning.decode` reads, for the adapter of this name. */
  encode(adapter: string): string {
    const winners = Object.fromEntries([...this.winners].map(([id, keys]) => [id, Object.fromEntries(keys)]));
    return JSON.stringify({ format: FORMAT, adapter, winners }, undefined, 1);
  }

  /**
   * Reads what `encode` wrote.
   * @throws DataError when the text is something else, or was written for another adapter
   */
  static decode(text: string, adapter: string): Tuning {
    const broken = (what: string) => new DataError(`tuning: the cache ${what}`);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      throw broken("is no JSON");
    }
    const isRecord = (v: unknown): v is Record<string, unknown> =>
      typeof v === "object" && v !== null && !Array.isArray(v);
    if (!isRecord(value) || value.format !== FORMAT || !isRecord(value.winners))
      throw broken("has a form that this version does not know");
    if (value.adapter !== adapter) throw broken(`was written for another adapter (${String(value.adapter)})`);
    const tuning = new Tuning();
    for (const [id, keys] of Object.entries(value.winners)) {
      if (!isRecord(keys)) throw broken(`holds no shape classes at ${id}`);
      for (const [key, winner] of Object.entries(keys)) {
        if (!isRecord(winner) || typeof winner.way !== "string" || typeof winner.ms !== "number")
          throw broken(`holds no way of launching at ${id}, ${key}`);
        tuning.set(id, key, winner as unknown as Winner);
      }
    }
    return tuning;
  }
}
