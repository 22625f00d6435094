// node .build/run.mjs test/bench/peers/process.ts NAME: one engine, which its parent asks to prepare cases and to time them.
import { platform } from "../../../engine/index.js";
import { checkGpu } from "./gpu.js";
import type { Peer, Reply, Request, Waiting, Work } from "./protocol.js";

const openers: Record<string, () => Promise<Peer>> = {
  espalier: async () => (await import("./espalier.js")).open(),
  "jax-js": async () => (await import("./jax.js")).open(),
  tfjs: async () => (await import("./tfjs.js")).open(),
  "ort webgpu": async () => (await import("./onnxruntime.js")).open("webgpu"),
  "ort cpu": async () => (await import("./onnxruntime.js")).open("cpu"),
};

const works = new Map<string, Work>();
const wait = <T>(promise: Promise<T>, waiting: Waiting) => (waiting === "idle" ? platform.wait(promise) : promise);

async function answer(peer: Peer, request: Request): Promise<Reply> {
  if ("prepare" in request) {
    const work = await peer.prepare(request.prepare);
    if (!work) return { firstMs: 0 };
    const start = performance.now();
    const outputs = await wait(work.outputs(), "idle");
    checkGpu();
    works.set(request.key, work);
    return { outputs, firstMs: performance.now() - start };
  }
  const { run, fence } = works.get(request.time)!;
  const start = performance.now();
  for (let i = 0; i < request.runs; i++) {
    const running = run();
    if (running instanceof Promise) await running;
  }
  await wait(fence(), request.waiting);
  const ms = performance.now() - start;
  checkGpu();
  return { ms };
}

const send = (reply: Reply) => process.send!(reply);
const failed = (error: unknown) =>
  send({ error: error instanceof Error ? (error.stack ?? error.message) : `${error}` });

try {
  const peer = await openers[process.argv[2]]();
  process.on("message", (request: Request) => answer(peer, request).then(send, failed));
  process.on("disconnect", () => process.exit(0));
  send({ ready: { adapter: peer.adapter, version: peer.version } });
} catch (error) {
  failed(error);
}
