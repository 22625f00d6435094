import { spawnSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { conversionLine } from "../../model/safetensors/pickle.js";
import {
  copyEntries,
  DTYPE_BYTES,
  decodeFloat32,
  decodeFloat64,
  decodeInt32,
  encodeFloat32,
  memorySink,
  openSafetensors,
  type SafetensorsDtype,
  type SafetensorsEntry,
  writeSafetensors,
} from "../../model/safetensors.js";
import { bytesOf, rejects } from "./throws.js";

const test = suite("safetensors");
let folder = "";
test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "safetensors-"));
});
test.after(() => rm(folder, { recursive: true }));

/** A file from a header written by hand; `length` lies about the header where given. */
function fileOf(header: unknown, dataBytes = 0, length?: number): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + text.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(length ?? text.length), true);
  file.set(text, 8);
  return file;
}

const f32 = (begin: number, end: number, shape = [(end - begin) / 4]) => ({
  dtype: "F32",
  shape,
  data_offsets: [begin, end],
});

test("reads what it wrote: every type, scalars, empty tensors, metadata, awkward names", async () => {
  const dtypes = Object.keys(DTYPE_BYTES) as SafetensorsDtype[];
  const entries: SafetensorsEntry[] = dtypes.map((dtype, i) => ({
    name: `all.${dtype}`,
    dtype,
    shape: [2, i + 1],
    data: Uint8Array.from({ length: 2 * (i + 1) * DTYPE_BYTES[dtype] }, (_, k) => (k * 7 + i) & 255),
  }));
  for (const name of ["scalar", "__proto__", "7", 'quote " and \\ and ü\n', "constructor"])
    entries.push({ name, dtype: "F32", shape: [], data: bytesOf(Float32Array.of(name.length)) });
  entries.push({ name: "empty", dtype: "F16", shape: [3, 0, 5], data: new Uint8Array(0) });
  const path = join(folder, "all.safetensors");
  const written = await writeSafetensors(path, entries, { a: "1", config: '{"b":"\\"}{"}' });
  const bytes = await readFile(path);
  assert.is(written.bytes, bytes.length);
  assert.is(Number(bytes.readBigUInt64LE(0)) % 8, 0);
  for (const location of [path, bytes, new Blob([bytes]), new File([bytes], "picked.safetensors")]) {
    const file = await openSafetensors(location);
    assert.equal(file.metadata, { a: "1", config: '{"b":"\\"}{"}' });
    assert.is(file.tensors.size, entries.length);
    for (const { name, dtype, shape, data } of entries) {
      const tensor = await file.tensor(name);
      assert.equal({ dtype: tensor.dtype, shape: tensor.shape }, { dtype, shape });
      assert.equal([...tensor.data], [...(data as Uint8Array)], name);
      if (tensor.data.length > 0) assert.is(tensor.begin % DTYPE_BYTES[dtype], 0, `${name} is aligned`);
    }
    await file.close();
  }
  assert.equal(await readdir(folder), ["all.safetensors"]);
});

test("opening reads the header only", async () => {
  const reads: [number, number][] = [];
  const bytes = fileOf({ a: f32(0, 4000), b: f32(4000, 8000) }, 8000);
  const file = await openSafetensors({
    name: "counted",
    size: bytes.length,
    async read(offset, length) {
      reads.push([offset, length]);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  });
  assert.is(Math.max(...reads.map(([offset, length]) => offset + length)), bytes.length - 8000);
  reads.length = 0;
  await file.tensor("b");
  assert.equal(reads, [[bytes.length - 4000, 4000]]);
});

test("chunks cover a tensor once, in order, in whole elements", async () => {
  const values = Float64Array.from({ length: 1000 }, (_, i) => i / 7);
  const path = join(folder, "chunks.safetensors");
  await writeSafetensors(path, [
    { name: "x", dtype: "F64", shape: [1000], data: bytesOf(values) },
    { name: "none", dtype: "F64", shape: [0], data: new Uint8Array(0) },
  ]);
  const file = await openSafetensors(path);
  for (const chunkBytes of [8, 15, 1024, 8000, 1e9]) {
    const got = new Uint8Array(8000);
    let next = 0;
    for await (const { offset, data } of file.readInto("x", chunkBytes)) {
      assert.is(offset, next);
      assert.ok(data.length <= chunkBytes && data.length % 8 === 0);
      got.set(data, offset);
      next += data.length;
    }
    assert.is(next, 8000);
    assert.equal(new Float64Array(got.buffer), values);
  }
  for await (const _ of file.readInto("none", 64)) assert.unreachable("an empty tensor has no chunk");
  await rejects(async () => {
    for await (const _ of file.readInto("x", 7)) assert.unreachable();
  }, 'SafetensorsError: safetensors: chunk too small: 7 bytes; "x" is F64, so give at least 8');
  await file.close();
});

const BROKEN: [string, Uint8Array, string][] = [
  ["no bytes", new Uint8Array(0), "file too short: memory has 0 bytes"],
  ["seven bytes", new Uint8Array(7), "file too short: memory has 7 bytes"],
  ["a picture", new TextEncoder().encode("\x89PNG\r\n\x1a\n rest"), "header too long: memory claims "],
  [
    "101 MB header",
    fileOf("{}", 0, 101_000_000),
    "header too long: memory claims 101000000 bytes, the limit is 100000000",
  ],
  ["2^63 header", fileOf("{}", 0, 2 ** 62), "header too long"],
  ["cut header", fileOf({ a: f32(0, 4) }, 0, 999), "header beyond the file: memory claims a header of 999 bytes"],
  ["not JSON", fileOf("{oops}"), "header is not JSON"],
  ["not UTF-8", fileOf("{}").fill(0xff, 8), "header is not JSON"],
  ["a list", fileOf("[1]"), "header is not an object: memory has [1]"],
  ["null", fileOf("null"), "header is not an object"],
  ["entry 5", fileOf({ a: 5 }), 'entry is not an object: tensor "a" of memory is 5'],
  [
    "dtype",
    fileOf({ a: { ...f32(0, 4), dtype: "F8_E4M3" } }, 4),
    'unsupported dtype: tensor "a" of memory is "F8_E4M3"; supported are F64',
  ],
  ["shape", fileOf({ a: { ...f32(0, 4), shape: [-1] } }, 4), 'bad shape: tensor "a" of memory has [-1]'],
  ["half shape", fileOf({ a: { ...f32(0, 4), shape: [0.5] } }, 4), "bad shape"],
  [
    "no shape",
    fileOf({ a: { dtype: "F32", data_offsets: [0, 4] } }, 4),
    'bad shape: tensor "a" of memory has undefined',
  ],
  ["offsets", fileOf({ a: { ...f32(0, 4), data_offsets: [4, 0] } }, 4), 'bad offsets: tensor "a" of memory has [4,0]'],
  ["one offset", fileOf({ a: { ...f32(0, 4), data_offsets: [0] } }, 4), "bad offsets"],
  [
    "beyond",
    fileOf({ a: f32(0, 8) }, 4),
    'data beyond the file: tensor "a" of memory ends at byte 8 of the data, which has 4',
  ],
  [
    "size",
    fileOf({ a: { ...f32(0, 8), shape: [3] } }, 8),
    'size differs from its range: tensor "a" of memory is F32 [3] = 12 bytes, its range [0, 8] has 8',
  ],
  ["huge", fileOf({ a: { ...f32(0, 8), shape: [2 ** 40, 2 ** 40] } }, 8), "= more than 2^53 bytes"],
  ["overlap", fileOf({ a: f32(0, 8), b: f32(4, 12) }, 12), 'tensors overlap: "b" begins 4 bytes before "a" ends'],
  ["hole", fileOf({ a: f32(0, 4), b: f32(8, 12) }, 12), 'hole in the data: 4 bytes before "b" belong to no tensor'],
  ["first hole", fileOf({ a: f32(4, 8) }, 8), 'hole in the data: 4 bytes before "a"'],
  ["left over", fileOf({ a: f32(0, 4) }, 7), "bytes left over: 3 after the last tensor"],
  [
    "twice",
    fileOf(`{"a":${JSON.stringify(f32(0, 4))},"\\u0061":${JSON.stringify(f32(0, 4))}}`, 4),
    'key given twice: "a"',
  ],
  [
    "field twice",
    fileOf('{"a":{"dtype":"F32","dtype":"I32","shape":[],"data_offsets":[0,4]}}', 4),
    'key given twice: "dtype"',
  ],
  ["metadata 3", fileOf({ __metadata__: { n: 3 } }), 'metadata is not text: __metadata__["n"] is 3'],
  ["metadata list", fileOf({ __metadata__: [] }), "__metadata__ is not an object: []"],
];

for (const [name, bytes, message] of BROKEN)
  test(`refused: ${name}`, () => rejects(async () => openSafetensors(bytes), message));

test("any cut or flipped header byte is an error or a readable file, never another exception", async () => {
  const sink = memorySink();
  await writeSafetensors(sink, [
    { name: "a", dtype: "F32", shape: [2, 2], data: new Uint8Array(16) },
    { name: "b", dtype: "U8", shape: [3], data: new Uint8Array(3) },
  ]);
  const good = sink.bytes();
  const open = async (bytes: Uint8Array) => {
    try {
      const file = await openSafetensors(bytes);
      for (const name of file.tensors.keys()) await file.tensor(name);
      return true;
    } catch (error) {
      assert.is((error as Error).name, "SafetensorsError", String(error));
      return false;
    }
  };
  for (let cut = 0; cut < good.length; cut++) assert.not(await open(good.subarray(0, cut)), `cut at ${cut}`);
  await fc.assert(
    fc.asyncProperty(fc.nat(good.length - 20), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
      const bytes = good.slice();
      bytes[at] ^= flip;
      await open(bytes);
    }),
    { numRuns: 1000 },
  );
});

test("a missing tensor names the nearest", async () => {
  const file = await openSafetensors(fileOf({ "blocks.0.attn.qkv.weight": f32(0, 4) }, 4));
  const message =
    'SafetensorsError: safetensors: no such tensor: "blocks.0.attn.qkv.wieght" in memory, which holds 1; did you mean "blocks.0.attn.qkv.weight"?';
  await rejects(() => file.tensor("blocks.0.attn.qkv.wieght"), message);
});

test("half floats: all 65536 decode and encode back, and rounding goes to even", () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const values = decodeFloat32(bytesOf(bits), "F16");
  assert.equal(
    [values[0x3c00], values[0xc000], values[0x7bff], values[1], values[0x7c00]],
    [1, -2, 65504, 2 ** -24, Infinity],
  );
  const back = new Uint16Array(encodeFloat32(values, "F16").buffer);
  for (let i = 0; i < 65536; i++)
    assert.ok(
      back[i] === i || (Number.isNaN(values[i]) && (back[i] & 0x7c00) === 0x7c00 && (back[i] & 0x3ff) !== 0),
      `${i}`,
    );
  assert.equal(
    decodeFloat32(encodeFloat32(Float32Array.of(2049, 2051, 65520, 65519), "F16"), "F16"),
    Float32Array.of(2048, 2052, Infinity, 65504),
  );
});

test("bfloat16: all 65536 decode and encode back, and rounding goes to even", () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const values = decodeFloat32(bytesOf(bits), "BF16");
  assert.equal([values[0x3f80], values[0xc000], values[0x7f80]], [1, -2, Infinity]);
  const back = new Uint16Array(encodeFloat32(values, "BF16").buffer);
  for (let i = 0; i < 65536; i++)
    assert.ok(back[i] === i || (Number.isNaN(values[i]) && back[i] === (i | 0x40)), `${i}`);
  assert.equal(
    decodeFloat32(encodeFloat32(Float32Array.of(257, 259, 3.4e38), "BF16"), "BF16"),
    Float32Array.of(256, 260, Infinity),
  );
});

test("integers and bools decode, unaligned bytes too", () => {
  const big = BigInt64Array.of(-1n, 2n ** 33n, -(2n ** 40n), 5n);
  assert.equal([...decodeFloat64(bytesOf(big), "I64")], [-1, 2 ** 33, -(2 ** 40), 5]);
  assert.equal([...decodeFloat32(bytesOf(big), "I64")], [-1, 2 ** 33, -(2 ** 40), 5]);
  assert.equal(decodeInt32(bytesOf(BigInt64Array.of(-7n, 2n ** 31n - 1n)), "I64"), Int32Array.of(-7, 2 ** 31 - 1));
  assert.throws(() => decodeInt32(bytesOf(big), "I64"), /beyond i32: 8589934592 in I64/);
  assert.throws(() => decodeInt32(new Uint8Array(4), "F32"), /not integers: F32/);
  assert.equal(decodeInt32(Uint8Array.of(0, 1, 2), "BOOL"), Int32Array.of(0, 1, 1));
  assert.equal(decodeInt32(bytesOf(Uint32Array.of(7)), "U32"), Int32Array.of(7));
  assert.throws(() => decodeInt32(bytesOf(Uint32Array.of(2 ** 31)), "U32"), /beyond i32/);
  assert.equal(decodeFloat32(bytesOf(Float64Array.of(0.1)), "F64"), Float32Array.of(0.1));
  assert.equal(decodeFloat32(bytesOf(Int8Array.of(-3, 4)), "I8"), Float32Array.of(-3, 4));
  assert.equal(decodeFloat32(bytesOf(Int16Array.of(-300)), "I16"), Float32Array.of(-300));
  const shifted = new Uint8Array(9);
  shifted.set(bytesOf(Float32Array.of(1.5, -2)), 1);
  assert.equal(decodeFloat32(shifted.subarray(1), "F32"), Float32Array.of(1.5, -2));
  assert.throws(() => decodeFloat32(new Uint8Array(5), "F32"), /bytes cut inside an element/);
});

async function* pieces(...sizes: number[]): AsyncGenerator<Uint8Array> {
  for (const size of sizes) yield new Uint8Array(size).fill(size);
}

test("entries that contradict themselves are refused before anything is written", async () => {
  const path = join(folder, "refused.safetensors");
  const one = { name: "w", dtype: "F32", shape: [2], data: new Uint8Array(8) } as const;
  const cases: [SafetensorsEntry[], Record<string, string>, string][] = [
    [[one, one], {}, 'name given twice: tensor "w"'],
    [
      [{ ...one, data: new Uint8Array(7) }],
      {},
      'size differs from its shape: tensor "w" is F32 [2] = 8 bytes, given 7',
    ],
    [[{ ...one, shape: [-2] }], {}, 'bad shape: tensor "w" has [-2]'],
    [[{ ...one, name: "__metadata__" }], {}, "reserved name"],
    [[{ ...one, dtype: "F8" as "F32" }], {}, 'unsupported dtype: tensor "w" is F8'],
    [[one], { step: 3 as unknown as string }, 'metadata is not text: "step" is number'],
    [
      [{ ...one, data: pieces(4) }],
      {},
      'size differs from its shape: tensor "w" is F32 [2] = 8 bytes, its pieces gave 4',
    ],
    [[{ ...one, data: pieces(4, 4, 4) }], {}, "its pieces gave more"],
  ];
  for (const [entries, metadata, message] of cases) {
    await rejects(() => writeSafetensors(path, entries, metadata), message);
    assert.not(
      (await readdir(folder)).some((name) => name.includes("refused")),
      "nothing is left",
    );
  }
});

test("a failed write leaves the earlier file", async () => {
  const path = join(folder, "kept.safetensors");
  await writeSafetensors(path, [{ name: "w", dtype: "U8", shape: [2], data: Uint8Array.of(1, 2) }]);
  async function* failing() {
    yield new Uint8Array(1 << 20);
    throw new Error("the GPU went away");
  }
  const entry = { name: "w", dtype: "U8", shape: [1 << 21], data: failing() } as const;
  await rejects(() => writeSafetensors(path, [entry]), "Error: the GPU went away");
  const file = await openSafetensors(path);
  assert.equal((await file.tensor("w")).data, Uint8Array.of(1, 2));
  await file.close();
});

test("shards: split, opened through the index, replaced as a set", async () => {
  const inner = await mkdtemp(join(folder, "shards-"));
  const path = join(inner, "model.safetensors");
  const make = (fill: number): SafetensorsEntry[] =>
    Array.from({ length: 5 }, (_, i) => ({
      name: `t${i}`,
      dtype: "F32",
      shape: [25],
      data: bytesOf(new Float32Array(25).fill(fill + i)),
    }));
  const check = async (fill: number) => {
    const file = await openSafetensors(join(inner, "model.safetensors.index.json"));
    assert.equal([...file.tensors.keys()].sort(), ["t0", "t1", "t2", "t3", "t4"]);
    for (let i = 0; i < 5; i++) assert.is((await file.float32(`t${i}`))[24], fill + i);
    assert.is(file.metadata.kind, "test");
    assert.is(file.bytes, 500);
    await file.close();
  };
  const first = await writeSafetensors(path, make(0), { kind: "test" }, { maxShardBytes: 200 });
  assert.is(first.files.length, 4);
  assert.ok((await readdir(inner)).includes("model-00001-of-00003.safetensors"));
  await check(0);
  await writeSafetensors(path, make(10), { kind: "test" }, { maxShardBytes: 200 });
  await check(10);
  assert.is((await readdir(inner)).length, 4, "the replaced shards are removed");
  const one = await writeSafetensors(join(inner, "small.safetensors"), make(0), {}, { maxShardBytes: 500 });
  assert.is(one.files.length, 1);

  const index = join(inner, "model.safetensors.index.json");
  const text = await readFile(index, "utf8");
  const files = await readdir(inner);
  const picked = new File([text], "model.safetensors.index.json");
  const blobs = await openSafetensors(picked, { shard: (name) => join(inner, name) });
  assert.is((await blobs.float32("t2"))[0], 12);
  await blobs.close();
  await rejects(() => openSafetensors(picked), "SafetensorsError: safetensors: shards not found: ");
  await writeFile(index, text.replace('"t2"', '"t9"'));
  await rejects(() => openSafetensors(index), 'SafetensorsError: safetensors: tensor missing from its shard: "t9"');
  await writeFile(index, text.replace(/: "model-[^"]*"/, ': "../model.safetensors"'));
  await rejects(() => openSafetensors(index), "SafetensorsError: safetensors: bad shard name: ");
  await writeFile(index, "{}");
  await rejects(() => openSafetensors(index), "SafetensorsError: safetensors: index without weight_map");
  await writeFile(index, "{");
  await rejects(() => openSafetensors(index), "SafetensorsError: safetensors: index is not JSON");
  await writeFile(index, text);
  const shard = files.find((name) => name.includes("00002-of"))!;
  await rm(join(inner, shard));
  await rejects(
    () => openSafetensors(index),
    `safetensors: shard missing: ${index} names "${shard}" for 2 of its tensors: open: no such file or folder: ${join(inner, shard)}; put`,
  );
});

test("copies keep every bit, name, type and shape; tensors under other names", async () => {
  const dtypes = Object.keys(DTYPE_BYTES) as SafetensorsDtype[];
  const entries = dtypes.map((dtype, i) => ({
    name: `t.${dtype}`,
    dtype,
    shape: [3, 2],
    data: Uint8Array.from({ length: 6 * DTYPE_BYTES[dtype] }, (_, k) => (k * 37 + i * 11) & 255),
  }));
  const path = join(folder, "copied.safetensors");
  await writeSafetensors(path, entries, { made: "here" });
  const file = await openSafetensors(path);
  const sink = memorySink();
  await writeSafetensors(sink, copyEntries(file), file.metadata);
  assert.equal(sink.bytes(), new Uint8Array(await readFile(path)));
  // Over itself, in parts.
  await writeSafetensors(path, copyEntries(file, ["t.BF16", "t.F16"]), {});
  await file.close();
  const part = await openSafetensors(path);
  assert.equal([...part.tensors.keys()], ["t.BF16", "t.F16"]);
  assert.equal((await part.tensor("t.BF16")).data, entries[dtypes.indexOf("BF16")].data);
  const renamed = part.mapped(({ name, dtype }) =>
    dtype === "BF16" ? { name: `new.${name}`, shape: [6] } : undefined,
  );
  assert.equal([...renamed.tensors.keys()], ["new.t.BF16"]);
  assert.equal({ ...(await renamed.tensor("new.t.BF16")) }.shape, [6]);
  assert.equal((await renamed.tensor("new.t.BF16")).data, entries[dtypes.indexOf("BF16")].data);
  await rejects(async () => part.mapped(({ name }) => ({ name, shape: [5] })), 'tensor "t.BF16" is [3, 2], to be [5]');
  await rejects(
    async () => part.mapped(() => ({ name: "one" })),
    'name given twice: tensor "t.F16" is to be "one" too',
  );
  await part.close();
});

test("pickles are refused by name and by content, with a line that converts them", async () => {
  const zip = (entry: string) =>
    new Uint8Array([0x50, 0x4b, 3, 4, 0, 0, 8, 8, 0, 0, ...Array(20).fill(0), ...new TextEncoder().encode(entry)]);
  const opcodes = (...bytes: number[]) => new Uint8Array([...bytes, ...Array(40).fill(0x71), 0x2e]);
  const contents: [string, Uint8Array, boolean][] = [
    ["zip", zip("archive/data.pkl"), true],
    ["protocol 2", opcodes(0x80, 2, 0x7d, 0x71, 0, 0x28, 0x58, 5), true],
    ["protocol 4", opcodes(0x80, 4, 0x95, 0, 0, 0, 0, 0, 0, 0, 0, 0x7d), true],
    ["protocol 0", opcodes(0x28, 0x64, 0x70, 0x30, 0x0a, 0x53), true],
    ["another zip", zip("notes.txt"), false],
    ["a header that is cut", new Uint8Array([0x80, 2, 0, 0, 0, 0, 0, 0, 0x7b]), false],
  ];
  for (const [what, bytes, pickled] of contents) {
    const told = await openSafetensors(bytes).catch((error: Error) => error.message);
    assert.is(/a pickle is a program/.test(told as string), pickled, what);
  }
  const path = join(folder, "it's.pth");
  await writeFile(path, "anything");
  await rejects(() => openSafetensors(path), `safetensors: a pickle is a program, and none is run here: ${path}`);
  const good = join(folder, "good.bin");
  await writeSafetensors(good, [{ name: "a", dtype: "U8", shape: [1], data: new Uint8Array(1) }], {});
  const found = await openSafetensors(good);
  assert.ok(found.has("a"), "what holds the format is read under any name");
  await found.close();
  const index = join(folder, "pytorch_model.bin.index.json");
  const shards = [1, 2].map((i) => `pytorch_model-0000${i}-of-00002.bin`);
  for (const shard of shards) await writeFile(join(folder, shard), zip("pytorch_model/data.pkl"));
  await writeFile(index, JSON.stringify({ weight_map: { a: shards[0], b: shards[1] } }));
  await rejects(() => openSafetensors(index), shards.map((s) => join(folder, s)).join(", "));
});

test("the line that converts pickles runs: nested states, averaged weights first, several shards", async () => {
  const has = spawnSync("python3", ["--version"]);
  if (has.error) return;
  // Stands for PyTorch: pickles are JSON here, tensors are lists.
  const stub = join(folder, "stub");
  await mkdir(join(stub, "safetensors"), { recursive: true });
  await writeFile(
    join(stub, "torch.py"),
    [
      "import json",
      "class T(list):",
      "    detach = clone = contiguous = lambda s: s",
      "is_tensor = lambda v: isinstance(v, T)",
      "of = lambda v: T(v) if isinstance(v, list) else {k: of(x) for k, x in v.items()} if isinstance(v, dict) else v",
      "def load(p, map_location, weights_only):",
      "    assert map_location == 'cpu' and weights_only",
      "    return of(json.load(open(p)))",
    ].join("\n"),
  );
  await writeFile(join(stub, "safetensors/__init__.py"), "");
  await writeFile(
    join(stub, "safetensors/torch.py"),
    "import json\ndef save_file(d, p):\n    json.dump(d, open(p, 'w'))",
  );
  const convert = async (files: Record<string, unknown>) => {
    const paths = Object.keys(files).map((name) => join(folder, name));
    for (const path of paths) await writeFile(path, JSON.stringify(files[path.slice(folder.length + 1)]));
    const run = spawnSync("sh", ["-c", conversionLine(paths)], { env: { ...process.env, PYTHONPATH: stub } });
    assert.is(run.status, 0, `${run.stderr}`);
    const out = paths[0].replace(/(-0*1-of-\d+)?\.\w+$/, ".safetensors");
    return JSON.parse(await readFile(out, "utf8"));
  };
  assert.equal(await convert({ "flat's $x.pth": { w: [1], epoch: 3 } }), { w: [1] });
  assert.equal(await convert({ "a.ckpt": { state_dict: { w: [1] }, optimizer: { w: [9] } } }), { w: [1] });
  assert.equal(await convert({ "b.pt": { state_dict: { model: { w: [2] } }, ema: { w: [3] } } }), { w: [3] });
  assert.equal(await convert({ "m-00001-of-00002.bin": { a: [1] }, "m-00002-of-00002.bin": { b: [2] } }), {
    a: [1],
    b: [2],
  });
});

test.run();
