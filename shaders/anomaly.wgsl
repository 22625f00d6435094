// first = min(first, number) where any of the n elements of x is infinite or NaN.
//
// One invocation owns four elements; what lies beyond n is not looked at. Bits are tested, since comparisons with NaN
// may be optimised away. Limits assumed: 64 invocations, 2 buffers.

alias T = f32; // param
const WG = 64u; // param

struct Params { n: u32, number: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<T>>;
@group(0) @binding(2) var<storage, read_write> first: atomic<u32>;

@compute @workgroup_size(WG)
fn check(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i * 4u >= p.n) { return; }
  let inside = vec4<u32>(i * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n);
  let bits = bitcast<vec4<u32>>(vec4<f32>(x[i])) & vec4<u32>(0x7f800000u);
  if (any((bits == vec4<u32>(0x7f800000u)) & inside)) { atomicMin(&first, p.number); }
}
