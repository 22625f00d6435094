import { platform } from "../../../engine/index.js";

/** What devices of this process refused to do. A refused launch costs no time, so no time counts after one. */
const refusals: string[] = [];

/** @throws Error with the first thing that the GPU refused */
export function checkGpu(): void {
  if (refusals.length) throw new Error(`the GPU refused: ${refusals[0].split("\n")[0]}`);
}

/** Lets `checkGpu` know what a device refuses. */
export function watch(device: GPUDevice): void {
  device.addEventListener("uncapturederror", ({ error }) => refusals.push(error.message));
}

/**
 * Gives this process a `navigator.gpu` with one adapter: the one that Espalier takes on this machine.
 * @returns the adapter's description
 */
export async function provideGpu(): Promise<string> {
  const refused: string[] = [];
  const wanted = process.env.ESPALIER_ADAPTER || undefined;
  for await (const { adapter, languageFeatures } of platform.candidates({ adapter: wanted }, (why) =>
    refused.push(why),
  )) {
    const request = adapter.requestDevice.bind(adapter);
    adapter.requestDevice = async (descriptor) => {
      const device = await request(descriptor);
      watch(device);
      return device;
    };
    const gpu = {
      requestAdapter: async () => adapter,
      getPreferredCanvasFormat: () => "bgra8unorm",
      wgslLanguageFeatures: languageFeatures,
    };
    const navigator = { gpu, userAgent: "Node", hardwareConcurrency: 2 };
    Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
    return `${adapter.info.description || adapter.info.device}`;
  }
  throw new Error(`peers: no adapter: ${refused.join("; ")}`);
}
