// What an adapter can do at most, for `inspect.ceilings`.
//
//   fma_chains eight independent chains of fused multiply-adds in registers: 128 flops a turn and invocation
//   copy_1     y[i] = x[i], one f32 an invocation
//   copy_4     y[i] = x[i], one vec4<f32> an invocation
//   nothing    what a launch costs by itself
//
// x and y hold n elements (of f32, or of vec4<f32>). Limits assumed: 64 invocations, 2 buffers.

const WG = 64u; // param

struct Params { n: u32, c: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y4: array<vec4<f32>>;

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

// The factor is below 1, so the chains stay finite; it comes from a uniform, so that nothing is folded away.
@compute @workgroup_size(WG)
fn fma_chains(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  let m = p.c;
  var a = vec4<f32>(f32(lid), 1.0, 2.0, 3.0);
  var b = a + 4.0;
  let k = vec4<f32>(m);
  // Written out eight times: a software adapter would else spend a third of its time on the loop.
  for (var turn = 0u; turn < p.n; turn++) {
    a = fma(a, k, k); b = fma(b, k, k); a = fma(a, k, k); b = fma(b, k, k);
    a = fma(a, k, k); b = fma(b, k, k); a = fma(a, k, k); b = fma(b, k, k);
    a = fma(a, k, k); b = fma(b, k, k); a = fma(a, k, k); b = fma(b, k, k);
    a = fma(a, k, k); b = fma(b, k, k); a = fma(a, k, k); b = fma(b, k, k);
  }
  let s = a + b;
  y[i % 64u] = s.x + s.y + s.z + s.w;
}

@compute @workgroup_size(WG)
fn copy_1(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= p.n) { return; }
  y[i] = x[i];
}

@compute @workgroup_size(WG)
fn copy_4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= p.n) { return; }
  y4[i] = x4[i];
}

@compute @workgroup_size(WG)
fn nothing(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= p.n) { return; }
  y[i] = p.c;
}
