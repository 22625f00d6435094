import { requestDevice, platform } from "./adapter.js";
const mode = process.argv[2];
const h = await requestDevice({});
const buf = () => h.device.createBuffer({ size: 1 << 20, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
const heavy = () => { const module = h.device.createShaderModule({ code: `@group(0) @binding(0) var<storage, read_write> x: array<f32>; @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) { var a = f32(id.x); for (var i = 0; i < 2000; i++) { a = a * 0.999 + 1.0; } x[id.x] = a; }` });
  const p = h.device.createComputePipeline({ layout: "auto", compute: { module } });
  const b = h.device.createBuffer({ size: 1<<20, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const r = buf();
  const g = h.device.createBindGroup({ layout: p.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: b } }] });
  const e = h.device.createCommandEncoder(); const c = e.beginComputePass(); c.setPipeline(p); c.setBindGroup(0, g); c.dispatchWorkgroups(4096); c.end(); e.copyBufferToBuffer(b, 0, r, 0, 1<<20); h.device.queue.submit([e.finish()]); return r; };
h.device.lost.then((x) => console.log("lost", x.reason));
if (mode === "plain") console.log("no release");
if (mode === "release") h.release();
if (mode === "pending") { heavy().mapAsync(1).then(() => console.log("mapped")); }
if (mode === "pendingrelease") { heavy().mapAsync(1).then(() => console.log("mapped"), (e) => console.log(String(e))); h.release(); }
if (mode === "pendingexit") { heavy().mapAsync(1); process.exit(3); }
if (mode === "throw") { heavy().mapAsync(1); throw new Error("boom"); }
if (mode === "timeout") { setTimeout(() => console.log("t"), 300); }
if (mode === "gc") { for (let i = 0; i < 20; i++) { const r = heavy(); await platform.wait(r.mapAsync(1)); r.unmap(); (globalThis as any).gc?.(); } h.release(); (globalThis as any).gc?.(); }
if (mode === "many") { h.release(); for (let i = 0; i < 8; i++) { const k = await requestDevice({}); k.release(); } console.log("8"); }
if (mode === "workbefore") { const r = heavy(); await platform.wait(r.mapAsync(1)); console.log(new Float32Array(r.getMappedRange())[5]); throw new Error("after"); }
if (mode === "oom") { h.device.pushErrorScope("out-of-memory"); const b = h.device.createBuffer({ size: 4294967292, usage: 128 }); console.log(String((await h.device.popErrorScope())?.message)); }
if (mode === "sigint") { heavy().mapAsync(1); setTimeout(() => process.kill(process.pid, "SIGINT"), 50); }
