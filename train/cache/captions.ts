import type { Recaptioner } from "../../model/text/recaption.js";
import { CacheStore, keyOf, type StoreOptions } from "./store.js";

/** Captions asked for before those that came are stored. */
const CHUNK = 32;

/** A recaptioner whose long captions are kept, so that an endpoint is asked once for each short one. */
export class CachedRecaptioner implements Recaptioner {
  readonly name: string;
  readonly fingerprint: string;

  private constructor(
    private readonly inner: Recaptioner,
    private readonly store: CacheStore,
  ) {
    this.name = inner.name;
    this.fingerprint = inner.fingerprint;
  }

  /** @param root the cache's folder */
  static async open(
    root: string,
    inner: Recaptioner,
    options: Pick<StoreOptions, "warn"> = {},
  ): Promise<CachedRecaptioner> {
    const store = await CacheStore.open(root, { kind: "captions", fingerprint: inner.fingerprint }, options);
    store.describe({});
    return new CachedRecaptioner(inner, store);
  }

  /** @param onDone is told how many distinct prompts are done. Throws what the recaptioner throws; what came is kept. */
  async expand(prompts: string[], signal?: AbortSignal, onDone: (done: number) => void = () => {}): Promise<string[]> {
    const long = new Map<string, string>();
    for (const prompt of new Set(prompts)) {
      const entry = await this.store.get(keyOf(prompt));
      if (typeof entry?.note === "string") long.set(prompt, entry.note);
    }
    const missing = [...new Set(prompts)].filter((prompt) => !long.has(prompt));
    onDone(long.size);
    for (let at = 0; at < missing.length; at += CHUNK) {
      const part = missing.slice(at, at + CHUNK);
      const texts = await this.inner.expand(part, signal);
      for (const [i, prompt] of part.entries()) {
        long.set(prompt, texts[i]);
        await this.store.put(keyOf(prompt), { tensors: {}, note: texts[i] });
      }
      await this.store.flush();
      onDone(long.size);
    }
    return prompts.map((prompt) => long.get(prompt) as string);
  }

  close(): Promise<void> {
    return this.store.close();
  }
}
