// A program that adapter.test.ts runs as a process of its own: what it is asked to do is its first argument.
import { platform, requestDevice } from "../../engine/device/adapter.js";

/** Work of about a tenth of a second, read back. */
function longWork(device: GPUDevice): Promise<void> {
  const code = `
    @group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3u) {
      var a = f32(id.x);
      for (var i = 0; i < 2000; i++) { a = a * 0.999 + 1.0; }
      x[id.x] = a;
    }`;
  const module = device.createShaderModule({ code });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
  const size = 1 << 18;
  const buffer = device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const readback = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const bindGroup = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: [{ binding: 0, resource: { buffer } }],
  });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, bindGroup);
  pass.dispatchWorkgroups(size / 4 / 64);
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, readback, 0, size);
  device.queue.submit([encoder.finish()]);
  return readback.mapAsync(GPUMapMode.READ);
}

const { device, info, release } = await requestDevice();
console.log(info.name);
switch (process.argv[2]) {
  case "release":
    await platform.wait(longWork(device));
    release();
    release();
    break;
  case "keep":
    await platform.wait(longWork(device));
    break;
  case "busy": {
    const refused = longWork(device).catch((error) => console.log(error.name));
    release();
    await refused;
    break;
  }
  case "throw":
    longWork(device).catch(() => undefined);
    throw new Error("on purpose");
  case "exit":
    longWork(device).catch(() => undefined);
    process.exit(3);
}
