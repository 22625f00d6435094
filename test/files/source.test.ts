import { execFileSync } from "node:child_process";
import { mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createFile, freeBytes, openFile, siblingOf } from "../../model/files/node.js";
import { type ByteSource, blobSource, memorySink, memorySource } from "../../model/files/source.js";
import { openSafetensors, writeSafetensors } from "../../model/safetensors.js";
import { bytesOf, rejects } from "./throws.js";

const test = suite("files");
const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 31 + (i >> 8)) & 255);
let folder = "";
let server: Server;
let address = "";
const asked: string[] = [];

/** A small file server; the path says how it misbehaves. */
function serve(): Server {
  return createServer((request, response) => {
    const name = new URL(request.url ?? "/", "http://localhost").pathname.slice(1);
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    asked.push(`${request.method} ${name} ${request.headers.range ?? ""}`);
    if (name === "missing") response.writeHead(404, "Not Found").end();
    else if (request.method === "HEAD") response.writeHead(200, { "content-length": content.length }).end();
    else if (range === null || name === "norange") response.writeHead(200).end(content);
    else {
      const [start, end] = [Number(range[1]), Math.min(Number(range[2]) + 1, content.length)];
      const headers: Record<string, string> = { "content-range": `bytes ${start}-${end - 1}/${content.length}` };
      if (name === "hidden") delete headers["content-range"];
      if (name === "changing") headers.etag = `"${asked.length}"`;
      const part = content.slice(start, name === "short" && start > 0 ? end - 1 : end);
      response.writeHead(206, headers).end(part);
    }
  });
}

test.before(async () => {
  folder = await mkdtemp(join(tmpdir(), "files-"));
  server = serve();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
test.after(async () => {
  server.closeAllConnections();
  server.close();
  await rm(folder, { recursive: true });
});

async function checkSource(source: ByteSource): Promise<void> {
  assert.is(source.size, content.length);
  const ranges = [
    [0, 0],
    [0, 8],
    [65_530, 20],
    [100_000, 150_000],
    [content.length - 1, 1],
    [content.length, 0],
    [0, content.length],
  ];
  await Promise.all(
    ranges.map(async ([offset, length]) =>
      assert.ok(Buffer.compare(await source.read(offset, length), content.subarray(offset, offset + length)) === 0),
    ),
  );
  await rejects(
    () => source.read(content.length - 1, 2),
    "FileError: read: outside the file: bytes 299999 to 300001 of",
  );
  await rejects(() => source.read(-1, 2), "read: outside the file");
  await source.close();
}

test("memory, blobs, paths and addresses give the same bytes", async () => {
  const path = join(folder, "content");
  await writeFile(path, content);
  await checkSource(memorySource(content));
  await checkSource(memorySource(content.buffer));
  await checkSource(blobSource(new Blob([content])));
  await checkSource(await openFile(path));
  await checkSource(await openFile(new URL(`file://${path}`)));
  await checkSource(await openFile(`${address}/good`));
  await checkSource(await openFile(`${address}/hidden`));
});

test("an address is read in ranges, and whole where the server knows none", async () => {
  asked.length = 0;
  const source = await openFile(`${address}/good`);
  await source.read(10, 100);
  await source.read(200_000, 100);
  assert.equal(asked, ["GET good bytes=0-65535", "GET good bytes=200000-200099"]);
  asked.length = 0;
  await checkSource(await openFile(`${address}/norange`));
  assert.equal(asked, ["GET norange bytes=0-65535"]);
});

test("servers that misbehave are named", async () => {
  await rejects(
    () => openFile(`${address}/missing`),
    `FileError: fetch: refused: ${address}/missing answered 404 Not Found`,
  );
  const changing = await openFile(`${address}/changing`);
  await rejects(() => changing.read(100_000, 10), `fetch: file changed: ${address}/changing was replaced`);
  const short = await openFile(`${address}/short`);
  await rejects(() => short.read(100_000, 10), "gave 9 bytes from 100000; asked 10 from 100000");
  await rejects(() => openFile("http://127.0.0.1:1/"), "FileError: fetch: no answer: http://127.0.0.1:1/: ");
});

test("a safetensors file is read over http by ranges", async () => {
  const values = Float32Array.from({ length: 50_000 }, (_, i) => i);
  const sink = memorySink();
  await writeSafetensors(sink, [
    { name: "a", dtype: "F32", shape: [50_000], data: bytesOf(values) },
    { name: "b", dtype: "U8", shape: [2], data: Uint8Array.of(7, 8) },
  ]);
  const bytes = sink.bytes();
  content.set(bytes);
  const file = await openSafetensors(sliced(await openFile(`${address}/good`), bytes.length));
  assert.equal((await file.tensor("b")).data, Uint8Array.of(7, 8));
  assert.equal(await file.float32("a"), values);
});

/** The first `size` bytes of a source. */
function sliced(source: ByteSource, size: number): ByteSource {
  return { ...source, size };
}

test("missing paths and folders are named", async () => {
  await rejects(
    () => openFile(join(folder, "none")),
    `FileError: open: no such file or folder: ${join(folder, "none")}`,
  );
  await rejects(() => openFile(folder), `FileError: open: not a file: ${folder}`);
  await rejects(() => createFile(join(folder, "a", "b")), "FileError: create: no such file or folder: ");
});

test("a file cut while open is named", async () => {
  const path = join(folder, "cut");
  await writeFile(path, content);
  const source = await openFile(path);
  await writeFile(path, content.subarray(0, 100));
  await rejects(() => source.read(50, 100), `FileError: read: file changed: ${path} ended at byte 100; it had 300000`);
  await source.close();
});

test("siblings", () => {
  assert.is(siblingOf("/a/b/index.json", "x y"), "/a/b/x y");
  assert.is(siblingOf("index.json", "x"), "x");
  assert.is(siblingOf("https://host/a/index.json?download=true", "x y"), "https://host/a/x%20y");
});

test("a written file appears whole on commit, and abort leaves nothing", async () => {
  const path = join(folder, "atomic");
  await writeFile(path, "old");
  const sink = await createFile(path);
  await sink.write(content);
  assert.is(await readFile(path, "utf8"), "old");
  await sink.commit();
  assert.ok(Buffer.compare(await readFile(path), content) === 0);
  await rejects(() => sink.write(content), "write: already closed");
  const other = await createFile(path);
  await other.write(new Uint8Array(5));
  await other.abort();
  assert.is((await readFile(path)).length, content.length);
  assert.equal(
    (await readdir(folder)).filter((name) => name.includes("atomic")),
    ["atomic"],
  );
});

const large = { name: "w", dtype: "U8", shape: [1 << 20], data: new Uint8Array(1 << 20) } as const;

/** Runs `write` while every file in the process may grow to 100 kB only, as on a disk that fills up. */
async function onFullDisk(write: () => Promise<unknown>): Promise<void> {
  const probe = await open(join(folder, "probe"), "w");
  const prototype = Object.getPrototypeOf(probe);
  await probe.close();
  const whole = prototype.write;
  let room = 100_000;
  prototype.write = async function (bytes: Uint8Array, offset: number, length: number) {
    if (room === 0) throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
    const part = Math.min(room, length);
    room -= part;
    return whole.call(this, bytes, offset, part);
  };
  try {
    await write();
  } finally {
    prototype.write = whole;
  }
}

test("disk full while writing: the old file stays, the text says what is needed", async () => {
  const path = join(folder, "full.safetensors");
  await writeFile(path, "old");
  await rejects(
    () => onFullDisk(() => writeSafetensors(path, [large])),
    `FileError: write: disk full: ${path} had 100000 bytes written, `,
  );
  await rejects(
    () => onFullDisk(() => writeSafetensors(path, [large])),
    "free some space or choose another folder (1048656 bytes are needed; what was there before is unchanged)",
  );
  assert.is(await readFile(path, "utf8"), "old");
  assert.equal(
    (await readdir(folder)).filter((name) => name.includes("full")),
    ["full.safetensors"],
  );
});

test("disk full known beforehand: nothing is written", async () => {
  assert.ok(((await freeBytes(folder)) as number) > 0);
  const never: AsyncIterable<Uint8Array> = {
    [Symbol.asyncIterator]: () => assert.unreachable("no byte should be asked for") as never,
  };
  const path = join(folder, "huge.safetensors");
  const entry = { name: "w", dtype: "U8", shape: [2 ** 50], data: never } as const;
  await rejects(
    () => writeSafetensors(path, [entry]),
    `FileError: write: disk full: ${path} needs 1125899906842720 bytes, `,
  );
  assert.not((await readdir(folder)).some((name) => name.includes("huge")));
});

test("a file system of 256 kB that is really full", async () => {
  // A private mount needs user namespaces; where the system forbids them the tests above stand alone.
  const mounted = (command: string) =>
    execFileSync("unshare", ["-rm", "sh", "-c", `mount -t tmpfs -o size=256k none "${folder}" && ${command}`], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
  try {
    mounted("true");
  } catch {
    console.log("  (no private mounts here: a really full disk was not tried)");
    return;
  }
  const program = join(tmpdir(), `fill-${process.pid}.mjs`);
  const contents = `
    import { readdirSync, readFileSync, writeFileSync } from "node:fs";
    import { createFile } from "./model/files/node.ts";
    import { writeSafetensors } from "./model/safetensors.ts";
    process.chdir(${JSON.stringify(folder)});
    writeFileSync("w.safetensors", "old");
    const big = { name: "w", dtype: "U8", shape: [1 << 20], data: new Uint8Array(1 << 20) };
    const failures = [];
    await writeSafetensors("w.safetensors", [big]).catch((error) => failures.push(error.message));
    await writeSafetensors(await createFile("w.safetensors"), [big]).catch((error) => failures.push(error.message));
    console.log(JSON.stringify({ failures, files: readdirSync("."), content: readFileSync("w.safetensors", "utf8") }));`;
  await build({
    stdin: { contents, resolveDir: process.cwd(), loader: "ts" },
    bundle: true,
    format: "esm",
    platform: "node",
    outfile: program,
  });
  try {
    const { failures, files, content: left } = JSON.parse(mounted(`node "${program}"`));
    assert.equal({ files, left }, { files: ["w.safetensors"], left: "old" });
    assert.match(failures[0], /^write: disk full: w.safetensors needs 1048656 bytes, \d+ are free; free some space/);
    assert.match(
      failures[1],
      /^write: disk full: w.safetensors had \d+ bytes written, 0 are left in \.; .*1048656 bytes/,
    );
  } finally {
    await rm(program);
  }
});

test("the browser twin has the same exports, and pages bundle without node:*", async () => {
  const bundle = async (stem: string) => {
    const result = await build({
      stdin: { contents: `export * from "./model/files/${stem}.ts"`, resolveDir: process.cwd() },
      bundle: true,
      format: "esm",
      write: false,
      metafile: true,
      platform: stem === "node" ? "node" : "browser",
    });
    return Object.values(result.metafile.outputs)[0].exports.sort();
  };
  const ASIDE = "ASIDE";
  assert.equal(
    await bundle("browser"),
    (await bundle("node")).filter((name) => name !== ASIDE),
  );
  const page = await build({ entryPoints: ["model/safetensors.ts"], bundle: true, format: "esm", write: false });
  assert.not.match(page.outputFiles[0].text, /node:/);
});

test.run();
