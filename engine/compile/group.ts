import type { Storage } from "../memory.js";
import type { Bound, Launch, Limits } from "../queue.js";
import { collapse, isDense, sizeOf } from "../shape.js";
import { refine, restride } from "./axes.js";
import type { Meaning, Place, Rows, Sum } from "./meaning.js";
import { constantsOf, MOST_CONSTANTS, rowsLayout } from "./rows.js";

/** A launch with a meaning, as a member of a group. */
export interface Member {
  meaning: Meaning;
  /** Where its result is bound. */
  to: Bound;
  label: string;
  /** The launch itself, of members that compute by a kernel of their own. */
  launch: Launch;
}

/** A member's value or a tensor from outside, by number. */
export type Value = { load: number } | { member: number };

/** Members with what they read, over axes that all of them share. */
export interface Layout {
  axes: number[];
  /** Tensors from outside with a stride for each axis. */
  loads: Place[];
  /** For each member what its operands are. */
  values: Value[][];
}

/** Axes that a fused kernel walks at most. */
const AXES = 4;

const same = (a: Place, b: Place): boolean => a.storage === b.storage && a.offset === b.offset && a.dtype === b.dtype;

/**
 * Launches over the same elements in the same order, computed by one launch: what one hands to another stays in
 * registers, what several read is loaded once, what nobody else reads is not stored.
 */
export class Group {
  readonly members: Member[] = [];
  /** Storages that its results lie in. */
  readonly writes = new Map<Storage, number>();
  readonly reads = new Set<Storage>();
  readonly size: number;

  constructor(
    first: Member,
    private readonly limits: Limits,
  ) {
    this.size = sizeOf(first.meaning.shape);
    this.join(first);
  }

  get sum(): Sum | undefined {
    return this.members.map((m) => m.meaning).find((m): m is Sum => m.kind === "sum");
  }

  /** The first member, where that computes by a kernel of its own and the others follow in it. */
  get anchor(): { launch: Launch; meaning: Rows } | undefined {
    const { launch, meaning } = this.members[0];
    return meaning.kind === "rows" ? { launch, meaning } : undefined;
  }

  private get constants(): number {
    return this.members.reduce((n, m) => n + constantsOf(m.meaning), 0);
  }

  /** Whether a member reads what this group makes, or something large that it reads as well. */
  isNear({ meaning }: Member): boolean {
    return meaning.operands.some(({ storage }) => this.writes.has(storage) || this.reads.has(storage));
  }

  /** The members' axes and loads; undefined when they cannot be walked together. */
  layout(members: readonly Member[] = this.members): Layout | undefined {
    const refined = refine(members.map((m) => m.meaning.shape));
    if (!refined) return undefined;
    const made = new Map<Storage, number>();
    const loads: Place[] = [];
    const values: Value[][] = [];
    for (const [index, { meaning }] of members.entries()) {
      const { shape, y } = meaning;
      const list: Value[] = [];
      for (const operand of meaning.operands) {
        const by = made.get(operand.storage);
        if (by !== undefined) {
          const { meaning: maker } = members[by];
          if (maker.kind === "sum" || !same(operand, maker.y) || !isDense(shape, operand.strides)) return undefined;
          list.push({ member: by });
          continue;
        }
        const place = { ...operand, strides: restride(shape, operand.strides, refined) };
        let load = loads.findIndex((l) => same(l, place) && l.strides.every((s, i) => s === place.strides[i]));
        if (load < 0) load = loads.push(place) - 1;
        list.push({ load });
      }
      if (made.has(y.storage) || loads.some((l) => l.storage === y.storage)) return undefined;
      made.set(y.storage, index);
      values.push(list);
    }
    for (const l of loads) if (made.has(l.storage)) return undefined;
    const [{ meaning: first }] = members;
    if (first.kind === "rows") return rowsLayout(first, refined, loads, values);
    const sum = members.map((m) => m.meaning).find((m) => m.kind === "sum");
    if (!sum) {
      const { shape, strides } = collapse(
        refined,
        loads.map((l) => l.strides),
      );
      const axes = shape.length ? shape : [1];
      if (axes.length > AXES) return undefined;
      return { axes, loads: loads.map((l, i) => ({ ...l, strides: shape.length ? strides[i] : [0] })), values };
    }
    // Sums walk [outer, reduced, inner]: each of the three must be one axis.
    const parts: number[][] = [[], [], []];
    const places: number[][] = [[], [], []];
    const [, reduced, inner] = sum.shape;
    let step = 1;
    for (let i = refined.length - 1; i >= 0; i--) {
      const part = step < inner ? 2 : step < inner * reduced ? 1 : 0;
      parts[part].unshift(refined[i]);
      places[part].unshift(i);
      step *= refined[i];
    }
    const strides = loads.map(() => [0, 0, 0]);
    for (const part of [0, 1, 2]) {
      if (!parts[part].length) continue;
      const one = collapse(
        parts[part],
        loads.map((l) => places[part].map((i) => l.strides[i])),
      );
      if (one.shape.length > 1) return undefined;
      if (one.shape.length) for (const [k, s] of one.strides.entries()) strides[k][part] = s[0];
    }
    const fits = loads.every(
      ({ offset }, k) =>
        strides[k][2] === 0 ||
        (strides[k][2] === 1 && strides[k][0] % 4 === 0 && strides[k][1] % 4 === 0 && offset % 4 === 0),
    );
    return fits
      ? { axes: [...sum.shape], loads: loads.map((l, i) => ({ ...l, strides: strides[i] })), values }
      : undefined;
  }

  /** Whether `m` can be computed along, and stays within what one launch may bind. */
  accepts(m: Member): boolean {
    const { meaning } = m;
    if (sizeOf(meaning.shape) !== this.size || meaning.kind === "rows") return false;
    const { sum, anchor } = this;
    if (anchor && (meaning.kind === "sum" || this.constants + constantsOf(meaning) > MOST_CONSTANTS)) return false;
    if (meaning.kind === "sum" && sum) {
      const alike = meaning.shape.every((n, i) => n === sum.shape[i]) && meaning.split === sum.split;
      if (!alike) return false;
    }
    const layout = this.layout([...this.members, m]);
    if (!layout) return false;
    const outputs = this.members.length + 1 + (anchor?.launch.bound.length ?? 0);
    return layout.loads.length + outputs <= this.limits.maxStorageBuffersPerShaderStage;
  }

  /** Takes in a member that it accepts. */
  join(m: Member): void {
    this.writes.set(m.meaning.y.storage, this.members.length);
    this.members.push(m);
    for (const { storage } of m.meaning.operands) if (!this.writes.has(storage)) this.reads.add(storage);
  }
}
