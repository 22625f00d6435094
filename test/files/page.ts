import { createFile, freeBytes } from "../../model/files/browser.js";
import { memorySink, openSafetensors, type SafetensorsEntry, writeSafetensors } from "../../model/safetensors.js";

const entry = (name: string): SafetensorsEntry => ({
  name,
  dtype: "F32",
  shape: [1000],
  data: new Uint8Array(Float32Array.from({ length: 1000 }, (_, i) => i).buffer),
});

const message = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "none",
    (error) => String(error),
  );

/** Names and one value of a file that the server holds. */
export async function fetched(location: string, name: string) {
  const file = await openSafetensors(location);
  return { count: file.tensors.size, values: [...(await file.float64(name))].slice(0, 3), metadata: file.metadata };
}

/** Writes into the page's own file system and reads it back. */
export async function ownFile() {
  await writeSafetensors("opfs:models/a.safetensors", [entry("w")], { kind: "test" });
  const file = await openSafetensors("opfs:models/a.safetensors");
  const pieces: number[] = [];
  for await (const { data } of file.readInto("w", 1500)) pieces.push(data.length);
  const last = (await file.float32("w"))[999];
  return { metadata: file.metadata, last, pieces, free: await freeBytes("opfs:models/a.safetensors") };
}

/** Splits into shards and reads through their index. */
export async function shards() {
  const names = ["a", "b", "c"];
  const written = await writeSafetensors("opfs:deep/er/m.safetensors", names.map(entry), {}, { maxShardBytes: 4000 });
  const file = await openSafetensors(written.path);
  return { files: written.files.length, names: [...file.tensors.keys()], last: (await file.float32("c"))[999] };
}

/** What an aborted write leaves of an older file, and where there was none. */
export async function aborted() {
  for (const path of ["opfs:models/a.safetensors", "opfs:models/none.safetensors"]) {
    const sink = await createFile(path);
    await sink.write(new Uint8Array(9));
    await sink.abort();
  }
  const old = await openSafetensors("opfs:models/a.safetensors");
  return { bytes: old.bytes, none: await message(openSafetensors("opfs:models/none.safetensors")) };
}

/** Reads a picked file and an index with its shards picked beside it. */
export async function picked() {
  const sink = memorySink();
  await writeSafetensors(sink, [entry("w")]);
  const shard = new File([sink.bytes() as Uint8Array<ArrayBuffer>], "m-1.safetensors");
  const index = new File([JSON.stringify({ weight_map: { w: "m-1.safetensors" } })], "m.safetensors.index.json");
  const whole = await openSafetensors(shard);
  const sharded = await openSafetensors(index, { shard: () => shard });
  return [(await whole.float32("w"))[7], (await sharded.float32("w"))[8]];
}

/** Errors that a page can meet. */
export async function refusals() {
  return [
    await message(writeSafetensors("plain.safetensors", [entry("w")])),
    await message(openSafetensors("/files/none.safetensors")),
  ];
}
