import { closeSync, mkdirSync, openSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { LogError } from "./log.js";

const table = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0x82f63b78 ^ (c >>> 1) : c >>> 1;
  return c;
});

/** CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) of some bytes. */
export function crc32c(bytes: Uint8Array): number {
  let c = 0xffffffff;
  for (const byte of bytes) c = table[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

/** The rotated and shifted CRC that TFRecord stores, so that a CRC over data with CRCs in it stays a good one. */
export function maskedCrc32c(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** Bytes framed as one TFRecord: length (u64), its CRC, the bytes, their CRC. */
export function tfRecord(data: Uint8Array): Uint8Array {
  const record = new Uint8Array(8 + 4 + data.length + 4);
  const view = new DataView(record.buffer);
  view.setUint32(0, data.length, true);
  view.setUint32(8, maskedCrc32c(record.subarray(0, 8)), true);
  record.set(data, 12);
  view.setUint32(12 + data.length, maskedCrc32c(data), true);
  return record;
}

// Protocol buffers, as far as an Event needs them: a key is (field << 3 | wire type), sizes and integers are varints.
type Field = Uint8Array;

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  bytes.push(rest);
  return bytes;
}

const integerField = (field: number, value: number): Field => Uint8Array.from([field << 3, ...varint(value)]);

function floatField(field: number, value: number, bytes: 4 | 8): Field {
  const out = new Uint8Array(1 + bytes);
  const view = new DataView(out.buffer);
  out[0] = (field << 3) | (bytes === 8 ? 1 : 5);
  if (bytes === 8) view.setFloat64(1, value, true);
  else view.setFloat32(1, value, true);
  return out;
}

function bytesField(field: number, data: Uint8Array | string): Field {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  return Buffer.concat([Uint8Array.from([(field << 3) | 2, ...varint(bytes.length)]), bytes]);
}

const message = (...fields: Field[]): Uint8Array => Buffer.concat(fields);

/**
 * Writes what TensorBoard reads: scalars and pictures by step, in a file `events.out.tfevents.*` of a folder. Fields
 * are those of tensorboard/compat/proto/event.proto and summary.proto.
 */
export class EventLog {
  readonly path: string;
  #file: number | undefined;

  /**
   * Starts a new file in `dir`, as TensorBoard expects of every run of a program.
   * @param resumedStep tells TensorBoard to forget what earlier files say of later steps
   */
  constructor(dir: string, resumedStep?: number) {
    const seconds = String(Math.floor(Date.now() / 1000)).padStart(10, "0");
    // Two logs may start within a second; the counter keeps their order, which is the order TensorBoard reads.
    const name = (turn: number) => `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${turn}`;
    this.path = "";
    for (let turn = 0; this.#file === undefined; turn++) {
      this.path = join(dir, name(turn));
      try {
        mkdirSync(dir, { recursive: true });
        this.#file = openSync(this.path, "wx");
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code === "EEXIST") continue;
        throw new LogError(`log: not writable: ${this.path}: ${(cause as Error).message}`, { cause });
      }
    }
    this.#event(0, bytesField(3, "brain.Event:2"));
    // SessionLog START: everything from this step on is superseded.
    if (resumedStep !== undefined) this.#event(resumedStep + 1, bytesField(7, message(integerField(1, 1))));
  }

  #event(step: number, what: Field): void {
    if (this.#file === undefined) throw new LogError(`log: already closed: ${this.path}`);
    const bytes = tfRecord(message(floatField(1, Date.now() / 1000, 8), integerField(2, step), what));
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#file, bytes, done);
    } catch (cause) {
      throw new LogError(`log: not writable: ${this.path}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Writes numbers of one step under their tags, such as "train/loss". */
  scalars(step: number, values: Readonly<Record<string, number>>): void {
    const list = Object.entries(values).map(([tag, value]) =>
      bytesField(1, message(bytesField(1, tag), floatField(2, value, 4))),
    );
    this.#event(step, bytesField(5, message(...list)));
  }

  /** Writes an encoded picture (PNG, JPEG or GIF; an animated GIF plays) of a step under a tag. */
  image(step: number, tag: string, encoded: Uint8Array, width: number, height: number): void {
    const image = message(integerField(1, height), integerField(2, width), integerField(3, 3), bytesField(4, encoded));
    this.#event(step, bytesField(5, bytesField(1, message(bytesField(1, tag), bytesField(4, image)))));
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}
