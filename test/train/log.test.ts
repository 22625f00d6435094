import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { JsonLog, readLog } from "../../train/log.js";
import { duration, Progress } from "../../train/progress.js";
import { crc32c, EventLog, maskedCrc32c } from "../../train/tfevents.js";

const test = suite("log");
let folder = "";
test.before(() => {
  folder = mkdtempSync(join(tmpdir(), "log-"));
});
test.after(() => rmSync(folder, { recursive: true }));

test("lines are on disk as soon as they are written, and odd numbers survive", () => {
  const path = join(folder, "deep", "a.jsonl");
  const log = new JsonLog(path);
  log.write({ step: 1, loss: 0.5, text: "ü\n" });
  assert.is(readFileSync(path, "utf8"), '{"step":1,"loss":0.5,"text":"ü\\n"}\n');
  log.write({ step: 2, loss: Number.NaN, norm: Number.POSITIVE_INFINITY, low: [Number.NEGATIVE_INFINITY] });
  assert.is(readFileSync(path, "utf8").split("\n")[1], '{"step":2,"loss":"NaN","norm":"Infinity","low":["-Infinity"]}');
  assert.equal(readLog(path)[1], { step: 2, loss: Number.NaN, norm: Infinity, low: [-Infinity] });
  log.sync();
  log.close();
  assert.throws(() => log.write({ step: 3 }), /log: already closed/);
  new JsonLog(path).close();
  assert.is(readFileSync(path, "utf8"), "", "a new run starts an empty log");
});

test("resuming cuts later lines and a torn one", () => {
  const path = join(folder, "resume.jsonl");
  const lines = [1, 2, 2, 3, 4].map((step) => `${JSON.stringify({ step, loss: step / 10 })}\n`);
  for (const [resumed, kept] of [
    [0, 0],
    [2, 3],
    [3, 4],
    [9, 5],
  ]) {
    writeFileSync(path, lines.join(""));
    appendFileSync(path, '{"step":5,"lo');
    const log = new JsonLog(path, resumed);
    log.write({ step: 77 });
    log.close();
    assert.is(readFileSync(path, "utf8"), `${lines.slice(0, kept).join("")}{"step":77}\n`);
  }
  writeFileSync(path, `${lines.join("")}{"step":5}`);
  assert.is(readLog(path).length, 5, "a last line without its end counts as torn");
  const fresh = new JsonLog(join(folder, "fresh.jsonl"), 4);
  fresh.close();
  assert.equal(readLog(fresh.path), []);
  assert.throws(() => readLog(join(folder, "none")), /^log: not readable: .*none/m);
  assert.throws(() => new JsonLog(join(path, "under-a-file", "x")), /log: not writable/);
});

/** Fields of a protocol buffer message: [number, wire type, value]. */
function* fieldsOf(bytes: Buffer): Generator<[number, number, number | Buffer]> {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = BigInt(bytes[at++]);
      value |= (byte & 127n) << shift;
      if (byte < 128n) return Number(value);
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const [field, wire] = [key >> 3, key & 7];
    if (wire === 0) yield [field, wire, varint()];
    else if (wire === 1) {
      at += 8;
      yield [field, wire, bytes.readDoubleLE(at - 8)];
    } else if (wire === 5) {
      at += 4;
      yield [field, wire, bytes.readFloatLE(at - 4)];
    } else {
      const length = varint();
      at += length;
      yield [field, wire, bytes.subarray(at - length, at)];
    }
  }
}

const message = (bytes: Buffer) =>
  Object.fromEntries(Array.from(fieldsOf(bytes), ([field, , value]) => [field, value]));

/** The events of a file; fails where a length or a CRC is wrong. */
function eventsOf(path: string): Record<number, number | Buffer>[] {
  const bytes = readFileSync(path);
  const events: Record<number, number | Buffer>[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    assert.is(bytes.readUInt32LE(at + 8), maskedCrc32c(bytes.subarray(at, at + 8)), "CRC of the length");
    const data = bytes.subarray(at + 12, at + 12 + length);
    assert.is(bytes.readUInt32LE(at + 12 + length), maskedCrc32c(data), "CRC of the data");
    events.push(message(data));
    at += 16 + length;
  }
  return events;
}

test("CRC-32C gives the published answers", () => {
  assert.is(crc32c(Buffer.from("123456789")), 0xe3069283);
  // RFC 3720, B.4.
  assert.is(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.is(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
  assert.is(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e);
  const crc = 0xe3069283;
  assert.is(maskedCrc32c(Buffer.from("123456789")), (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
});

test("events read back: version, scalars, a picture, a restart", () => {
  const dir = join(folder, "events");
  const log = new EventLog(dir);
  log.scalars(0, { "train/loss": 0.25, "train/lr": 1e-3 });
  log.scalars(3_000_000_000, { "train/loss": Number.NaN });
  log.image(7, "clips/ox ü", Uint8Array.of(1, 2, 3), 160, 80);
  log.close();
  const resumed = new EventLog(dir, 7);
  resumed.close();
  assert.throws(() => log.scalars(1, {}), /log: already closed/);
  const names = readdirSync(dir).sort();
  assert.is(names.length, 2);
  for (const name of names) assert.match(name, /^events\.out\.tfevents\.\d{10}\./);

  const events = eventsOf(log.path);
  assert.is(events.length, 4);
  assert.is(String(events[0][3]), "brain.Event:2");
  for (const event of events)
    assert.ok(Math.abs((event[1] as number) - Date.now() / 1000) < 60, "wall time in seconds");
  const values = Array.from(fieldsOf(events[1][5] as Buffer), ([, , value]) => message(value as Buffer));
  assert.equal(
    values.map((v) => [String(v[1]), v[2]]),
    [
      ["train/loss", 0.25],
      ["train/lr", Math.fround(1e-3)],
    ],
  );
  assert.is(events[1][2], 0);
  assert.is(events[2][2], 3_000_000_000);
  const [nan] = Array.from(fieldsOf(events[2][5] as Buffer), ([, , value]) => message(value as Buffer));
  assert.ok(Number.isNaN(nan[2]));
  const [picture] = Array.from(fieldsOf(events[3][5] as Buffer), ([, , value]) => message(value as Buffer));
  const image = message(picture[4] as Buffer);
  assert.equal([String(picture[1]), image[1], image[2], image[3]], ["clips/ox ü", 80, 160, 3]);
  assert.equal([...(image[4] as Buffer)], [1, 2, 3]);
  const restart = eventsOf(resumed.path)[1];
  assert.is(restart[2], 8);
  assert.equal(message(restart[7] as Buffer), { 1: 1 });
});

/** A stream that remembers what was written to it. */
function fakeStream(isTTY: boolean) {
  let text = "";
  const stream = {
    isTTY,
    columns: 200,
    write: (part: string) => {
      text += part;
      return true;
    },
  };
  return { stream: stream as unknown as NodeJS.WriteStream, text: () => text };
}

test("without a terminal: a line at once, then one every few seconds, and a last one", () => {
  const { stream, text } = fakeStream(false);
  let now = 0;
  const progress = new Progress({ total: 100, stream, every: 10, now: () => now });
  for (let step = 1; step <= 60; step++) {
    now += 500;
    progress.update(step, { loss: 1 / step, lr: 3e-3, samples: 8 });
  }
  progress.print("a clip was sampled");
  progress.stop();
  progress.stop();
  const lines = text().split("\n");
  assert.equal(lines, [
    "train ░░░░░░░░░░░░░░░░░░░░ 1/100 · loss 1.0000 · lr 3.0e-3 · 16.0 samples/s · 50s left",
    "train ████░░░░░░░░░░░░░░░░ 21/100 · loss 0.0476 · lr 3.0e-3 · 16.0 samples/s · 40s left",
    "train ████████░░░░░░░░░░░░ 41/100 · loss 0.0244 · lr 3.0e-3 · 16.0 samples/s · 30s left",
    "a clip was sampled",
    "train ████████████░░░░░░░░ 60/100 · loss 0.0167 · lr 3.0e-3 · 16.0 samples/s · 20s left",
    "",
  ]);
});

test("the time left follows the last half minute", () => {
  const { stream } = fakeStream(false);
  let now = 0;
  const progress = new Progress({ total: 1000, start: 100, stream, now: () => now });
  assert.is(progress.line(), "train ██░░░░░░░░░░░░░░░░░░ 100/1000");
  now += 600_000;
  progress.update(101, { loss: Number.NaN });
  for (let step = 102; step <= 200; step++) {
    now += 1000;
    progress.update(step);
  }
  assert.is(progress.line(), "train ████░░░░░░░░░░░░░░░░ 200/1000 · loss NaN · 13m 20s left");
  progress.stop();
});

test("on a terminal one line redraws, and text goes above it", () => {
  const { stream, text } = fakeStream(true);
  Object.assign(stream, { cursorTo: () => true, clearLine: () => true, moveCursor: () => true });
  const progress = new Progress({ total: 10, stream, label: "sample", now: () => 0 });
  progress.update(5, { loss: 0.5 });
  progress.print("above");
  progress.stop();
  const drawn = text();
  assert.match(drawn, /sample ░{20} 0\/10/);
  assert.ok(drawn.indexOf("above\n") < drawn.lastIndexOf("sample ██████████░░░░░░░░░░ 5/10"));
  assert.ok(drawn.endsWith("sample ██████████░░░░░░░░░░ 5/10 · loss 0.5000\n"));
});

test("durations", () => {
  assert.equal([0, 59.4, 60, 185, 3600, 7620, -3].map(duration), [
    "0s",
    "59s",
    "1m 00s",
    "3m 05s",
    "1h 00m",
    "2h 07m",
    "0s",
  ]);
});

test.run();
