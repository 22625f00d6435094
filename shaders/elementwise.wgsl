// y[i] = f(a[i], b[i], c[i], d[i]) for up to four operands that broadcast.
//
// The operands are walked through one shape with strides per operand, 0 along a repeated axis. Entry points:
//   flat     all operands dense: one invocation owns 4 consecutive elements
//   rows     <= 4 axes, the innermost divides by 4, its stride is 1 or 0: one invocation owns 4 consecutive elements
//   general  <= 4 axes, any strides: one invocation owns one element
//   deep     <= 8 axes, any strides: one invocation owns one element
// An operand that f does not use is bound to a's buffer and never read.
// Limits assumed: 256 invocations, 6 buffers.

alias TA = f32; // param
alias TB = f32; // param
alias TC = f32; // param
alias TD = f32; // param
alias TY = f32; // param
// Types to compute with: f32 for f16 storage.
alias CA = f32; // param
alias CB = f32; // param
alias CC = f32; // param
alias CD = f32; // param
alias CY = f32; // param
const OPERANDS = 4u; // param
const WG = 64u; // param

struct Params {
  n: u32,              // elements of y
  k: vec4<u32>,        // bits of up to four constants of f
  offset: vec4<u32>,   // first element of a, b, c, d
  shape: array<vec4<u32>, 2>,    // up to eight axes, innermost last; leading ones are 1
  stride_a: array<vec4<u32>, 2>,
  stride_b: array<vec4<u32>, 2>,
  stride_c: array<vec4<u32>, 2>,
  stride_d: array<vec4<u32>, 2>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<TA>;
@group(0) @binding(2) var<storage, read> b: array<TB>;
@group(0) @binding(3) var<storage, read> c: array<TC>;
@group(0) @binding(4) var<storage, read> d: array<TD>;
@group(0) @binding(5) var<storage, read_write> y: array<TY>;
@group(0) @binding(1) var<storage, read> a4: array<vec4<TA>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<TB>>;
@group(0) @binding(3) var<storage, read> c4: array<vec4<TC>>;
@group(0) @binding(4) var<storage, read> d4: array<vec4<TD>>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4<TY>>;

fn f(va: CA, vb: CB, vc: CC, vd: CD) -> CY { return va; } // param

// Numerically safe pieces for f; WGSL's own tanh overflows to NaN on some drivers.
fn safe_tanh(x: f32) -> f32 { return tanh(clamp(x, -15.0, 15.0)); }
fn sigmoid(x: f32) -> f32 {
  let e = exp(-abs(x));
  return select(e, 1.0, x >= 0.0) / (1.0 + e);
}
fn softplus(x: f32) -> f32 { return max(x, 0.0) + log(1.0 + exp(-abs(x))); }
// Near 0 the Taylor series, beyond it the Chebyshev fit of erfc from Numerical Recipes (relative error below 1.2e-7).
fn erf(x: f32) -> f32 {
  let z = abs(x);
  if (z < 0.5) {
    let s = x * x;
    return x * (1.1283791671 + s * (-0.3761263890 + s * (0.1128379167 + s * (-0.0268661706 + s * (0.0052239776 - s * 0.0008548327)))));
  }
  let t = 1.0 / (1.0 + 0.5 * z);
  let q = 1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277)))))));
  let e = t * exp(-z * z - 1.26551223 + t * q);
  return select(e - 1.0, 1.0 - e, x >= 0.0);
}
fn gelu_tanh_inner(x: f32) -> f32 { return safe_tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)); }
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
// x to the power e with C's rules for negative bases and whole exponents.
fn power(x: f32, e: f32) -> f32 {
  if (e == 0.0) { return 1.0; }
  let whole = e == floor(e);
  if (x == 0.0) { return select(0.0, 1.0 / abs(x), e < 0.0); }
  if (whole && abs(e) <= 8.0) {
    var r = 1.0;
    for (var i = 0.0; i < abs(e); i += 1.0) { r *= x; }
    return select(r, 1.0 / r, e < 0.0);
  }
  let m = pow(abs(x), e);
  if (x > 0.0) { return m; }
  let odd = abs(e - 2.0 * floor(e * 0.5)) == 1.0;
  return select((x - x) / (x - x), select(m, -m, odd), whole);
}

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

@compute @workgroup_size(WG)
fn flat(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= p.n) { return; }
  let va = vec4<CA>(a4[i]);
  var vb: vec4<CB>; var vc: vec4<CC>; var vd: vec4<CD>;
  if (OPERANDS > 1u) { vb = vec4<CB>(b4[i]); }
  if (OPERANDS > 2u) { vc = vec4<CC>(c4[i]); }
  if (OPERANDS > 3u) { vd = vec4<CD>(d4[i]); }
  y4[i] = vec4<TY>(TY(f(va.x, vb.x, vc.x, vd.x)), TY(f(va.y, vb.y, vc.y, vd.y)), TY(f(va.z, vb.z, vc.z, vd.z)), TY(f(va.w, vb.w, vc.w, vd.w)));
}

// Position of element i (counted in steps of the innermost axis) along the four axes.
fn position(i: u32, inner: u32) -> vec4<u32> {
  let w = i % inner; var rest = i / inner;
  let z = rest % p.shape[1].z; rest = rest / p.shape[1].z;
  let q = rest % p.shape[1].y; rest = rest / p.shape[1].y;
  return vec4<u32>(rest, q, z, w);
}
fn at(pos: vec4<u32>, stride: vec4<u32>, offset: u32) -> u32 {
  let m = pos * stride;
  return m.x + m.y + m.z + m.w + offset;
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i * 4u >= p.n) { return; }
  var pos = position(i, p.shape[1].w / 4u);
  pos.w *= 4u;
  let ia = at(pos, p.stride_a[1], p.offset.x);
  var va = vec4<CA>(a4[ia / 4u]);
  if (p.stride_a[1].w == 0u) { va = vec4<CA>(va[ia % 4u]); }
  var vb: vec4<CB>; var vc: vec4<CC>; var vd: vec4<CD>;
  if (OPERANDS > 1u) {
    let ib = at(pos, p.stride_b[1], p.offset.y);
    vb = vec4<CB>(b4[ib / 4u]);
    if (p.stride_b[1].w == 0u) { vb = vec4<CB>(vb[ib % 4u]); }
  }
  if (OPERANDS > 2u) {
    let ic = at(pos, p.stride_c[1], p.offset.z);
    vc = vec4<CC>(c4[ic / 4u]);
    if (p.stride_c[1].w == 0u) { vc = vec4<CC>(vc[ic % 4u]); }
  }
  if (OPERANDS > 3u) {
    let id = at(pos, p.stride_d[1], p.offset.w);
    vd = vec4<CD>(d4[id / 4u]);
    if (p.stride_d[1].w == 0u) { vd = vec4<CD>(vd[id % 4u]); }
  }
  y4[i] = vec4<TY>(TY(f(va.x, vb.x, vc.x, vd.x)), TY(f(va.y, vb.y, vc.y, vd.y)), TY(f(va.z, vb.z, vc.z, vd.z)), TY(f(va.w, vb.w, vc.w, vd.w)));
}

@compute @workgroup_size(WG)
fn general(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= p.n) { return; }
  let pos = position(i, p.shape[1].w);
  let va = CA(a[at(pos, p.stride_a[1], p.offset.x)]);
  var vb: CB; var vc: CC; var vd: CD;
  if (OPERANDS > 1u) { vb = CB(b[at(pos, p.stride_b[1], p.offset.y)]); }
  if (OPERANDS > 2u) { vc = CC(c[at(pos, p.stride_c[1], p.offset.z)]); }
  if (OPERANDS > 3u) { vd = CD(d[at(pos, p.stride_d[1], p.offset.w)]); }
  y[i] = TY(f(va, vb, vc, vd));
}

@compute @workgroup_size(WG)
fn deep(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  if (i >= p.n) { return; }
  let low = position(i, p.shape[1].w);
  var rest = low.x / p.shape[1].x;
  let inner = vec4<u32>(low.x % p.shape[1].x, low.y, low.z, low.w);
  let w = rest % p.shape[0].w; rest = rest / p.shape[0].w;
  let z = rest % p.shape[0].z; rest = rest / p.shape[0].z;
  let outer = vec4<u32>(rest / p.shape[0].y, rest % p.shape[0].y, z, w);
  let va = CA(a[at(inner, p.stride_a[1], at(outer, p.stride_a[0], p.offset.x))]);
  var vb: CB; var vc: CC; var vd: CD;
  if (OPERANDS > 1u) { vb = CB(b[at(inner, p.stride_b[1], at(outer, p.stride_b[0], p.offset.y))]); }
  if (OPERANDS > 2u) { vc = CC(c[at(inner, p.stride_c[1], at(outer, p.stride_c[0], p.offset.z))]); }
  if (OPERANDS > 3u) { vd = CD(d[at(inner, p.stride_d[1], at(outer, p.stride_d[0], p.offset.w))]); }
  y[i] = TY(f(va, vb, vc, vd));
}
