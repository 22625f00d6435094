// y[i] = f(a[i], b[i], c[i], d[i]) for up to four operands that broadcast.
//
// The operands are walked through one shape with strides per operand, 0 along a repeated axis. Entry points:
//   flat     all operands dense: a workgroup owns `run` consecutive vec4s
//   rows     <= 4 axes, the innermost divides by 4, its stride is 1 or 0: `run` invocations share a row's vec4s
//   general  <= 4 axes, any strides: `run` invocations share a row
//   deep     <= 8 axes, any strides: `run` invocations share a row
// A row is a run of the innermost axis. Software adapters pay for each invocation: there one owns a whole row.
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
const TAIL = 1u; // param
const WG = 64u; // param

struct Params {
  n: u32,              // elements of y
  run: u32,            // how invocations share the work, as above
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

// Pieces for f. Adapters differ at the edges: WGSL's own tanh overflows, min, max and clamp drop a NaN, log of zero or
// less is a number, and sin is off by 2e-4. These agree everywhere, and a NaN stays one.
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn unordered(x: CA) -> bool { return is_nan(x); } // param
fn nan() -> f32 { return bitcast<f32>(p.n | 0x7fc00000u); }
fn safe_exp(x: f32) -> f32 { return select(exp(x), x, is_nan(x)); }
fn safe_log(x: f32) -> f32 {
  if (x == 0.0) { return -1.0 / abs(x); }
  return select(log(x), nan(), x < 0.0 || is_nan(x));
}
fn sigmoid(x: f32) -> f32 {
  let e = exp(-abs(x));
  return select(select(e, 1.0, x >= 0.0) / (1.0 + e), x, is_nan(x));
}
// Near 0 a minimax polynomial (Cephes), where 1 - e would cancel.
fn safe_tanh(x: f32) -> f32 {
  let z = x * x;
  let near = x + x * z * (-0.333332819422 + z * (0.133314422036 + z * (-0.0537397155531 + z * (0.0206390887954 - z * 0.00570498872745))));
  let e = exp(-2.0 * abs(x));
  let far = (1.0 - e) / (1.0 + e);
  return select(near, select(-far, far, x > 0.0), z > 0.390625);
}
// ln(1 + u), by its series where the rounding of 1 + u would show.
fn log1p(u: f32) -> f32 { return select(log(1.0 + u), u * (1.0 - u * (0.5 - u * (0.3333333333 - u * 0.25))), u < 0.03); }
fn softplus(x: f32) -> f32 { return select(max(x, 0.0) + log1p(exp(-abs(x))), x, is_nan(x)); }
// Near 0 the Taylor series, beyond it the Chebyshev fit of erfc from Numerical Recipes (relative error below 1.2e-7).
fn erf(x: f32) -> f32 {
  let z = abs(x);
  if (z < 0.5) {
    let s = x * x;
    return x * (1.1283791671 + s * (-0.3761263890 + s * (0.1128379167 + s * (-0.0268661706 + s * (0.0052239776 - s * 0.0008548327)))));
  }
  let t = 1.0 / (1.0 + 0.5 * z);
  let q = 1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277)))))));
  let e = t * safe_exp(-z * z - 1.26551223 + t * q);
  return select(e - 1.0, 1.0 - e, x >= 0.0);
}
fn erf_slope(x: f32) -> f32 { return 1.1283791670955126 * safe_exp(-x * x); }
fn silu(x: f32) -> f32 { return x * sigmoid(x); }
// sigmoid(x) (1 - sigmoid(x)).
fn sigmoid_slope(x: f32) -> f32 {
  let e = exp(-abs(x));
  return e / ((1.0 + e) * (1.0 + e));
}
fn silu_slope(x: f32) -> f32 { return sigmoid(x) + clamp(x, -100.0, 100.0) * sigmoid_slope(x); }
// x/2 (1 + tanh u) = x sigmoid(2u): one exponential, and no cancellation for negative x.
fn gelu_tanh(x: f32) -> f32 { return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)); }
fn gelu_tanh_slope(x: f32) -> f32 {
  let z = clamp(x, -30.0, 30.0);
  let u = 1.5957691216057308 * (z + 0.044715 * z * z * z);
  return select(sigmoid(u) + z * sigmoid_slope(u) * (1.5957691216057308 + 0.2140644488 * z * z), x, is_nan(x));
}
fn gelu_erf(x: f32) -> f32 { return 0.5 * x * (1.0 + erf(x * 0.7071067811865476)); }
fn gelu_erf_slope(x: f32) -> f32 {
  let z = clamp(x, -30.0, 30.0);
  return select(0.5 * (1.0 + erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * exp(-0.5 * z * z), x, is_nan(x));
}
// sin(x + quadrant π/2): π/2 is taken off in three parts (Cody and Waite), then Cephes' polynomials on [-π/4, π/4].
fn wave(x: f32, quadrant: i32) -> f32 {
  let k = round(x * 0.6366197723675814);
  let r = x - k * 1.5703125 - k * 4.837512969970703125e-4 - k * 7.549789948768648e-8;
  let z = r * r;
  let s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
  let c = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
  let q = i32(k) + quadrant;
  let v = select(s, c, (q & 1) == 1);
  return select(v, -v, (q & 2) == 2);
}
// Far out the reduction has no digits left: WGSL's own functions stay within [-1, 1] at least.
fn sine(x: f32) -> f32 { return select(wave(x, 0i), select(sin(x), nan(), is_endless(x)), abs(x) > 30000.0); }
fn cosine(x: f32) -> f32 { return select(wave(x, 1i), select(cos(x), nan(), is_endless(x)), abs(x) > 30000.0); }
fn is_endless(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u; }
// x to the power e with C's rules for negative bases and whole exponents.
fn power(x: f32, e: f32) -> f32 {
  if (e == 0.0) { return 1.0; }
  if (is_nan(x) || is_nan(e)) { return nan(); }
  let whole = e == floor(e);
  if (x == 0.0) { return select(0.0, 1.0 / abs(x), e < 0.0); }
  if (whole && abs(e) <= 8.0) {
    var r = 1.0;
    for (var i = 0.0; i < abs(e); i += 1.0) { r *= x; }
    return select(r, 1.0 / r, e < 0.0);
  }
  let m = pow(abs(x), e);
  if (x > 0.0 || (is_endless(x) && !whole)) { return m; }
  let odd = abs(e - 2.0 * floor(e * 0.5)) == 1.0;
  return select(nan(), select(m, -m, odd), whole);
}

fn power_slope(x: f32, e: f32) -> f32 { return select(e * power(x, e - 1.0), 0.0, e == 0.0); }

fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }
fn f4(va: vec4<CA>, vb: vec4<CB>, vc: vec4<CC>, vd: vec4<CD>) -> vec4<TY> {
  return vec4<TY>(TY(f(va.x, vb.x, vc.x, vd.x)), TY(f(va.y, vb.y, vc.y, vd.y)), TY(f(va.z, vb.z, vc.z, vd.z)), TY(f(va.w, vb.w, vc.w, vd.w)));
}

@compute @workgroup_size(WG)
fn flat(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let first = (wg.y * groups.x + wg.x) * p.run;
  let last = min(first + p.run, (p.n + TAIL * 3u) / 4u);
  for (var i = first + lid; i < last; i += WG) {
    let va = vec4<CA>(a4[i]);
    var vb: vec4<CB>; var vc: vec4<CC>; var vd: vec4<CD>;
    if (OPERANDS > 1u) { vb = vec4<CB>(b4[i]); }
    if (OPERANDS > 2u) { vc = vec4<CC>(c4[i]); }
    if (OPERANDS > 3u) { vd = vec4<CD>(d4[i]); }
    var v = f4(va, vb, vc, vd);
    // What lies behind the last element may belong to another tensor.
    if (TAIL == 1u) { v = select(y4[i], v, i * 4u + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n)); }
    y4[i] = v;
  }
}

// Where a row starts in an operand: a row is a run of the innermost axis, the other axes are walked by `row`.
fn start(row: u32, stride: array<vec4<u32>, 2>, offset: u32) -> u32 {
  let z = row / p.shape[1].z;
  let q = z / p.shape[1].y;
  let s = stride[1];
  return offset + (row - z * p.shape[1].z) * s.z + (z - q * p.shape[1].y) * s.y + q * s.x;
}
fn deep_start(row: u32, stride: array<vec4<u32>, 2>, offset: u32) -> u32 {
  var at = offset;
  var rest = row;
  for (var axis = 6i; axis >= 0i; axis--) {
    let size = p.shape[axis / 4i][axis % 4i];
    let next = rest / size;
    at += (rest - next * size) * stride[axis / 4i][axis % 4i];
    rest = next;
  }
  return at;
}

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  let width = p.shape[1].w / 4u;
  let row = i / p.run;
  if (row * p.shape[1].w >= p.n) { return; }
  let ia = start(row, p.stride_a, p.offset.x);
  var ib: u32; var ic: u32; var id: u32;
  if (OPERANDS > 1u) { ib = start(row, p.stride_b, p.offset.y); }
  if (OPERANDS > 2u) { ic = start(row, p.stride_c, p.offset.z); }
  if (OPERANDS > 3u) { id = start(row, p.stride_d, p.offset.w); }
  for (var w = i - row * p.run; w < width; w += p.run) {
    var va = vec4<CA>(a4[ia / 4u + w * p.stride_a[1].w]);
    if (p.stride_a[1].w == 0u) { va = vec4<CA>(va[ia % 4u]); }
    var vb: vec4<CB>; var vc: vec4<CC>; var vd: vec4<CD>;
    if (OPERANDS > 1u) {
      vb = vec4<CB>(b4[ib / 4u + w * p.stride_b[1].w]);
      if (p.stride_b[1].w == 0u) { vb = vec4<CB>(vb[ib % 4u]); }
    }
    if (OPERANDS > 2u) {
      vc = vec4<CC>(c4[ic / 4u + w * p.stride_c[1].w]);
      if (p.stride_c[1].w == 0u) { vc = vec4<CC>(vc[ic % 4u]); }
    }
    if (OPERANDS > 3u) {
      vd = vec4<CD>(d4[id / 4u + w * p.stride_d[1].w]);
      if (p.stride_d[1].w == 0u) { vd = vec4<CD>(vd[id % 4u]); }
    }
    y4[row * width + w] = f4(va, vb, vc, vd);
  }
}

@compute @workgroup_size(WG)
fn general(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  let width = p.shape[1].w;
  let row = i / p.run;
  if (row * width >= p.n) { return; }
  var ia = start(row, p.stride_a, p.offset.x);
  var ib: u32; var ic: u32; var id: u32;
  if (OPERANDS > 1u) { ib = start(row, p.stride_b, p.offset.y); }
  if (OPERANDS > 2u) { ic = start(row, p.stride_c, p.offset.z); }
  if (OPERANDS > 3u) { id = start(row, p.stride_d, p.offset.w); }
  for (var w = i - row * p.run; w < width; w += p.run) { store(row * width + w, w, ia, ib, ic, id); }
}

@compute @workgroup_size(WG)
fn deep(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = index(wg, groups, lid);
  let width = p.shape[1].w;
  let row = i / p.run;
  if (row * width >= p.n) { return; }
  var ia = deep_start(row, p.stride_a, p.offset.x);
  var ib: u32; var ic: u32; var id: u32;
  if (OPERANDS > 1u) { ib = deep_start(row, p.stride_b, p.offset.y); }
  if (OPERANDS > 2u) { ic = deep_start(row, p.stride_c, p.offset.z); }
  if (OPERANDS > 3u) { id = deep_start(row, p.stride_d, p.offset.w); }
  for (var w = i - row * p.run; w < width; w += p.run) { store(row * width + w, w, ia, ib, ic, id); }
}

// One element, w steps along rows that start at ia, ib, ic and id.
fn store(to: u32, w: u32, ia: u32, ib: u32, ic: u32, id: u32) {
  let va = CA(a[ia + w * p.stride_a[1].w]);
  var vb: CB; var vc: CC; var vd: CD;
  if (OPERANDS > 1u) { vb = CB(b[ib + w * p.stride_b[1].w]); }
  if (OPERANDS > 2u) { vc = CC(c[ic + w * p.stride_c[1].w]); }
  if (OPERANDS > 3u) { vd = CD(d[id + w * p.stride_d[1].w]); }
  y[to] = TY(f(va, vb, vc, vd));
}
