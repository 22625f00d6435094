import { EspalierError } from "../errors.js";
import { philox4x32, type Words2 } from "./philox.js";

/**
 * The last counter word tells apart what a key is used for: tensors of draws count under 0 (see random.wgsl), so a
 * derived key never repeats a number that was drawn.
 */
const SPLIT = 1;
const FOLD = 2;
const SEED = 3;

const halves = (n: number): [number, number] => [n >>> 0, Math.floor(n / 2 ** 32) >>> 0];

function whole(subject: string, n: number): void {
  if (!Number.isSafeInteger(n) || n < 0)
    throw new EspalierError(`${subject}: needs a whole number from 0 to 2^53 - 1: got ${n}.`);
}

/**
 * The name of a stream of random numbers, 64 bits. A key is a value: the same key draws the same numbers in Node, in a
 * page, on every adapter and after a resume. Use a key for one tensor only, and derive new ones with `split` and `fold`.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
 */
export class Key {
  private constructor(private readonly own: Words2 | (() => Words2)) {}

  /** Two unsigned 32-bit words: Philox's key. */
  get words(): Words2 {
    return typeof this.own === "function" ? this.own() : this.own;
  }

  /** True for the keys of a traced function: their words change from call to call. */
  get isTraced(): boolean {
    return typeof this.own === "function";
  }

  /** A key whose words, and those of all keys derived from it, are asked for anew each time they are used. */
  static traced(now: () => Key): Key {
    return new Key(() => now().words);
  }

  /** The key of a seed, a whole number below 2^53. */
  static from(seed: number): Key {
    whole("Key.from", seed);
    // Seeds that are used as Philox keys directly, such as the data's, share no numbers with these.
    return Key.derive([0, 0, 0, SEED], halves(seed));
  }

  /** The key that `toString` wrote: 16 hexadecimal digits. */
  static parse(text: string): Key {
    if (!/^[0-9a-f]{16}$/.test(text)) throw new EspalierError(`Key.parse: needs 16 hexadecimal digits: got "${text}".`);
    return new Key([Number.parseInt(text.slice(0, 8), 16), Number.parseInt(text.slice(8), 16)]);
  }

  private static derive(counter: readonly [number, number, number, number], words: Words2): Key {
    const [a, b] = philox4x32(counter, words);
    return new Key([a, b]);
  }

  private child(counter: readonly [number, number, number, number]): Key {
    return this.isTraced ? Key.traced(() => Key.derive(counter, this.words)) : Key.derive(counter, this.words);
  }

  /** `n` new keys. */
  split(n = 2): Key[] {
    whole("Key.split", n);
    return Array.from({ length: n }, (_, i) => this.child([...halves(i), 0, SPLIT]));
  }

  /** The key of number `i` of this one: a step, a layer, a sample. `i` is a whole number below 2^53. */
  fold(i: number): Key {
    whole("Key.fold", i);
    return this.child([...halves(i), 0, FOLD]);
  }

  /** 16 hexadecimal digits, for checkpoints. */
  toString(): string {
    return this.words.map((w) => w.toString(16).padStart(8, "0")).join("");
  }
  toJSON(): string {
    return this.toString();
  }
}
