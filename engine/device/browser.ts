import type { AdapterName, AdapterQuery, Candidate, Platform } from "./platform.js";

const CACHE = "espalier";

function gpu(): GPU | undefined {
  return typeof navigator === "undefined" ? undefined : (navigator as Navigator & { gpu?: GPU }).gpu;
}

async function* candidates(query: AdapterQuery, refused: (reason: string) => void): AsyncGenerator<Candidate> {
  const webgpu = gpu();
  if (!webgpu) {
    refused(globalThis.isSecureContext === false ? "the page is not served securely" : "the browser has no WebGPU");
    return;
  }
  const offer = async (options: GPURequestAdapterOptions): Promise<Candidate | undefined> => {
    const adapter = await webgpu.requestAdapter(options);
    if (!adapter) return undefined;
    return { adapter, languageFeatures: webgpu.wgslLanguageFeatures, backend: "webgpu", source: "browser" };
  };
  const name = query.adapter;
  // A page is shown two adapters at most: its usual one, and the software one that it keeps as a fallback.
  for (const forceFallbackAdapter of name === "swiftshader" ? [true, false] : [false, true]) {
    const candidate = await offer({ powerPreference: query.power, forceFallbackAdapter });
    if (!candidate) continue;
    const words = describe(candidate.adapter).toLowerCase();
    const matches =
      name === undefined || name === "hardware" || words.includes(name === "lavapipe" ? "llvmpipe" : name);
    if (matches) yield candidate;
    else refused(`the browser offers ${words}`);
  }
}

function describe(adapter: GPUAdapter): string {
  const { vendor, architecture, device, description } = adapter.info;
  return [vendor, architecture, device, description].filter(Boolean).join(" ") || "an unnamed adapter";
}

async function adapterNames(): Promise<AdapterName[]> {
  const names: AdapterName[] = [];
  for (const forceFallbackAdapter of [false, true]) {
    const adapter = await gpu()?.requestAdapter({ forceFallbackAdapter });
    const name = adapter ? describe(adapter) : undefined;
    if (name && !names.some((known) => known.name === name)) names.push({ name, backend: "webgpu", source: "browser" });
  }
  return names;
}

function noAdapterAdvice(): string {
  if (globalThis.isSecureContext === false)
    return "WebGPU exists only in secure contexts: serve the page over https, or from localhost.";
  const agent = navigator.userAgent;
  if (/Firefox/.test(agent))
    return "In Firefox take version 141 or later (Windows) or 145 or later (macOS), or set dom.webgpu.enabled in about:config.";
  if (/Chrome|Chromium|Edg/.test(agent))
    return "Turn on graphics acceleration in the browser's system settings; on Linux start it with --enable-unsafe-webgpu --enable-features=Vulkan, and see chrome://gpu.";
  if (/Safari/.test(agent)) return "In Safari take version 26 or later.";
  return "Take a browser with WebGPU: Chrome or Edge 113, Safari 26, Firefox 141, or later.";
}

function openCache(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(CACHE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CACHE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inCache<T>(mode: IDBTransactionMode, use: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const database = await openCache();
  try {
    return await new Promise<T>((resolve, reject) => {
      const request = use(database.transaction(CACHE, mode).objectStore(CACHE));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } finally {
    database.close();
  }
}

/** The platform of a page or a worker. */
export const platform: Platform = {
  name: "browser",
  candidates,
  adapterNames,
  noAdapterAdvice,
  faster: () => "a browser that may use this machine's GPU (graphics acceleration on, a current driver)",
  wait: (promise) => promise,
  env: (name) => new URLSearchParams(globalThis.location?.search ?? "").get(name) ?? undefined,
  // A private window may refuse storage: the cache is then empty, and nothing else changes.
  cacheRead: (key) => inCache("readonly", (store) => store.get(key)).catch(() => undefined),
  cacheWrite: (key, value) =>
    inCache("readwrite", (store) => store.put(value, key)).then(
      () => undefined,
      () => undefined,
    ),
  cacheRemove: async (key) => {
    if ((await platform.cacheRead(key)) === undefined) return false;
    await inCache("readwrite", (store) => store.delete(key));
    return true;
  },
  cachePlace: (key) => `IndexedDB "${CACHE}", key "${key}"`,
};
