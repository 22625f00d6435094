/**
 * What the engine asks of the place it runs in. Two files answer, `node.ts` and `browser.ts`; package.json's `#platform`
 * picks one, and nothing else under engine/ knows where it runs.
 */

/** A WebGPU adapter on offer, before it is known whether it will do. */
export interface Candidate {
  readonly adapter: GPUAdapter;
  /** WGSL language features of the implementation that offers the adapter. */
  readonly languageFeatures: ReadonlySet<string>;
  /** Graphics interface beneath, such as "vulkan", "metal" or "d3d12"; "webgpu" where a browser keeps it to itself. */
  readonly backend: string;
  /** A driver of this machine, the driver that an npm package carries, or a browser's. */
  readonly source: "system" | "embedded" | "browser";
}

/** Which adapters to offer. */
export interface AdapterQuery {
  /** "hardware", "lavapipe", "swiftshader" or part of an adapter's name; undefined offers all, fastest kind first. */
  readonly adapter?: string;
  /** Preference among several hardware adapters. */
  readonly power?: GPUPowerPreference;
}

/** An adapter that exists, whether or not it would be taken. */
export interface AdapterName {
  readonly name: string;
  readonly backend: string;
  readonly source: Candidate["source"];
}

export interface Platform {
  readonly name: "node" | "browser";
  /** Offers adapters one after the other, best first; the next one is looked for only when the last was refused. */
  candidates(query: AdapterQuery, refused: (reason: string) => void): AsyncGenerator<Candidate>;
  /** Names of all adapters present. */
  adapterNames(): Promise<AdapterName[]>;
  /** What a user of this platform does to get an adapter of the wanted kind, or any; one or more full sentences. */
  noAdapterAdvice(wanted?: string): string;
  /** What would be faster than the software adapter of that name here; undefined when nothing is known. */
  faster(name: string): string | undefined;
  /** Waits for a promise that the GPU settles, without taking a core from an adapter that runs on the CPU. */
  wait<T>(promise: Promise<T>): Promise<T>;
  /** A setting by name: an environment variable, or a page's query parameter. */
  env(name: string): string | undefined;
  /**
   * Small values kept between runs, such as tuning results; undefined when nothing is kept under the key, or nothing can
   * be kept. Rejects when something is there that cannot be read.
   */
  cacheRead(key: string): Promise<string | undefined>;
  /** Keeps a value; a cache that cannot be written is no error. */
  cacheWrite(key: string, value: string): Promise<void>;
  /** Forgets a value; false when there was none. */
  cacheRemove(key: string): Promise<boolean>;
  /** Where a value is kept, for people. */
  cachePlace(key: string): string;
}
