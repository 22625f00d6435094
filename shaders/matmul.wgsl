// y[b, i, j] = act(Σ_k a[b, i, k] · w[b, k, j] + bias[j])
//
// a and w are read through strides: row (m or k), column (k or n) and up to four batch axes with stride 0 where they
// repeat, so transposed and broadcast operands need no copy. y is dense, [batch, m, n].
// Entry points:
//   naive    any layout: one invocation owns one element of y. The plain text of the formula.
// Limits assumed: 256 invocations.

alias T = f32; // param
const BIAS = false; // param
const WG = 64u; // param

struct Params {
  m: u32, n: u32, k: u32,
  size: u32,                // elements of y
  batch: vec4<u32>,         // sizes of the batch axes, innermost last
  a: vec4<u32>,             // offset, row stride, column stride
  w: vec4<u32>,             // offset, row stride, column stride
  a_batch: vec4<u32>,
  w_batch: vec4<u32>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> w: array<T>;
@group(0) @binding(3) var<storage, read> bias: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<T>;

fn act(v: f32) -> f32 { return v; } // param
// WGSL's own tanh overflows to NaN on some drivers.
fn gelu_tanh(x: f32) -> f32 { return 0.5 * x * (1.0 + tanh(clamp(0.7978845608028654 * (x + 0.044715 * x * x * x), -15.0, 15.0))); }
fn silu(x: f32) -> f32 {
  let e = exp(-abs(x));
  return x * select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// First elements of matrix `index` of the batch in a and in w.
fn origin(index: u32) -> vec2<u32> {
  let q = vec4<u32>(
    index / (p.batch.y * p.batch.z * p.batch.w), index / (p.batch.z * p.batch.w) % p.batch.y,
    index / p.batch.w % p.batch.z, index % p.batch.w);
  let oa = q * p.a_batch;
  let ow = q * p.w_batch;
  return vec2<u32>(p.a.x + oa.x + oa.y + oa.z + oa.w, p.w.x + ow.x + ow.y + ow.z + ow.w);
}

@compute @workgroup_size(WG)
fn naive(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.size) { return; }
  let column = i % p.n;
  let row = i / p.n % p.m;
  let start = origin(i / (p.n * p.m));
  var at = start + vec2<u32>(row * p.a.y, column * p.w.z);
  var total = 0.0;
  for (var k = 0u; k < p.k; k++) {
    total += f32(a[at.x]) * f32(w[at.y]);
    at += vec2<u32>(p.a.z, p.w.y);
  }
  if (BIAS) { total += f32(bias[column]); }
  y[i] = T(act(total));
}
