// Copies up to six tensors a .. f to their places in a larger one, y: concatenation in one launch.
//
// Each source is read, and y written, through strides over <= 4 axes of the source. Workgroups with z = k own source k.
//   place   one invocation owns one element
//   place4  one invocation owns 4 consecutive elements: innermost strides are 1, sizes, other strides and offsets divide
//           by 4
//
// T may be any dtype: values are moved, never computed with. Limits assumed: 64 invocations, 7 buffers.

alias T = f32; // param
const WG = 64u; // param

struct Place {
  n: array<vec4<u32>, 2>,        // elements of each source
  first: array<vec4<u32>, 2>,    // first element of each source
  to: array<vec4<u32>, 2>,       // where it goes in y
  shape: array<vec4<u32>, 6>,    // axes of each source, innermost last; leading ones are 1
  stride: array<vec4<u32>, 6>,
  stride_y: array<vec4<u32>, 6>,
}
@group(0) @binding(0) var<uniform> p: Place;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read> c: array<T>;
@group(0) @binding(4) var<storage, read> d: array<T>;
@group(0) @binding(5) var<storage, read> e: array<T>;
@group(0) @binding(6) var<storage, read> f: array<T>;
@group(0) @binding(7) var<storage, read_write> y: array<T>;
@group(0) @binding(1) var<storage, read> a4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> c4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read> d4: array<vec4<T>>;
@group(0) @binding(5) var<storage, read> e4: array<vec4<T>>;
@group(0) @binding(6) var<storage, read> f4: array<vec4<T>>;
@group(0) @binding(7) var<storage, read_write> y4: array<vec4<T>>;

fn position(i: u32, shape: vec4<u32>) -> vec4<u32> {
  let w = i % shape.w; var rest = i / shape.w;
  let z = rest % shape.z; rest = rest / shape.z;
  return vec4<u32>(rest / shape.y, rest % shape.y, z, w);
}
fn at(pos: vec4<u32>, stride: vec4<u32>, offset: u32) -> u32 {
  let m = pos * stride;
  return m.x + m.y + m.z + m.w + offset;
}

@compute @workgroup_size(WG)
fn place(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let k = wg.z;
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.n[k / 4u][k % 4u]) { return; }
  let pos = position(i, p.shape[k]);
  let source = at(pos, p.stride[k], p.first[k / 4u][k % 4u]);
  var v: T;
  switch (k) {
    case 0u: { v = a[source]; }
    case 1u: { v = b[source]; }
    case 2u: { v = c[source]; }
    case 3u: { v = d[source]; }
    case 4u: { v = e[source]; }
    default: { v = f[source]; }
  }
  y[at(pos, p.stride_y[k], p.to[k / 4u][k % 4u])] = v;
}

@compute @workgroup_size(WG)
fn place4(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let k = wg.z;
  let i = ((wg.y * groups.x + wg.x) * WG + lid) * 4u;
  if (i >= p.n[k / 4u][k % 4u]) { return; }
  let pos = position(i, p.shape[k]);
  let source = at(pos, p.stride[k], p.first[k / 4u][k % 4u]) / 4u;
  var v: vec4<T>;
  switch (k) {
    case 0u: { v = a4[source]; }
    case 1u: { v = b4[source]; }
    case 2u: { v = c4[source]; }
    case 3u: { v = d4[source]; }
    case 4u: { v = e4[source]; }
    default: { v = f4[source]; }
  }
  y4[at(pos, p.stride_y[k], p.to[k / 4u][k % 4u]) / 4u] = v;
}
