// y[i, j] = act(scale[j, g(k)] · Σ_k x[i, k] · q[j, k] + bias[j]): linear layers whose weights are small whole numbers.
//
// codes  u32 [n, k'/PER]: row j holds q[j, 0 …] in two's complement, PER = 32/BITS to a word, the first in the lowest bits;
//        k' is k rounded up to a multiple of 32, and codes beyond k are 0
// scale  [n, groups]: one for each `group` neighbours along k (a multiple of 32), or one for the whole row
// x [m, k], y [m, n] and w are dense, but for y's row stride.
// Entry points:
//   naive   an invocation owns one element of y. The plain text of the formula.
//   few     for few rows of x: a workgroup owns COLUMNS columns x ROWS rows; SHARERS invocations share a column's k and
//           meet in workgroup memory. x is loaded by four values.
//   unpack  w[j, k] = scale · q as numbers, for a band of rows and a range of k: an invocation owns 32 values
//   scales  the scale of one group of w, an invocation each
//   pack    the codes of w under those scales: an invocation owns one word
// Limits assumed: 256 invocations, 8 KiB of workgroup memory.

alias T = f32; // param
alias TS = f32; // param
const BITS = 8u; // param
const WG = 64u; // param
const COLUMNS = 4u; // param
const ROWS = 8u; // param
const PER = 32u / BITS;
const SHARERS = WG / COLUMNS;
const ONE_GROUP = false; // param

struct Params {
  m: u32, n: u32, k: u32,
  count: u32,       // elements, groups or words, one for each invocation; tiles for few
  words: u32,       // of one row of codes
  groups: u32,      // of one row
  group: u32,       // values of k in a group
  row: u32,         // first row of codes and scale of a band
  begin: u32,       // first k of a band
  pitch: u32,       // row stride of the band, or of y
  has_bias: u32,
  activation: u32,  // 0 none, 1 geluTanh, 2 silu
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(1) var<storage, read> x4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> codes4: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scale: array<TS>;
@group(0) @binding(4) var<storage, read> bias: array<T>;
@group(0) @binding(5) var<storage, read_write> y: array<T>;
@group(0) @binding(5) var<storage, read_write> w4: array<vec4<T>>;
@group(0) @binding(1) var<storage, read> full: array<T>;
@group(0) @binding(2) var<storage, read_write> codes_out: array<u32>;
@group(0) @binding(3) var<storage, read_write> scale_out: array<TS>;

// Four neighbouring codes of a word, the lowest at bit `first`.
fn quad(word: u32, first: u32) -> vec4<f32> {
  let up = vec4<u32>(32u - BITS, 32u - 2u * BITS, 32u - 3u * BITS, 32u - 4u * BITS) - vec4<u32>(first);
  return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << up) >> vec4<u32>(32u - BITS));
}
// WGSL's own tanh overflows to NaN on some drivers.
fn gelu_tanh(v: f32) -> f32 { return 0.5 * v * (1.0 + tanh(clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), -15.0, 15.0))); }
fn silu(v: f32) -> f32 {
  let e = exp(-abs(v));
  return v * select(e, 1.0, v >= 0.0) / (1.0 + e);
}
fn finish(sum: f32, column: u32) -> f32 {
  var v = sum;
  if (p.has_bias != 0u) { v += f32(bias[column]); }
  if (p.activation == 1u) { return gelu_tanh(v); }
  if (p.activation == 2u) { return silu(v); }
  return v;
}

@compute @workgroup_size(WG)
fn naive(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.count) { return; }
  let row = i / p.n;
  let column = i % p.n;
  var sum = 0.0;
  for (var k = 0u; k < p.k; k++) {
    let word = bitcast<i32>(codes[column * p.words + k / PER]);
    let q = (word << (32u - BITS - k % PER * BITS)) >> (32u - BITS);
    sum += f32(x[row * p.k + k]) * f32(q) * f32(scale[column * p.groups + k / p.group]);
  }
  y[row * p.pitch + column] = T(finish(sum, column));
}

// x[row, k … k + 3] with zeros beyond the end of a row; one load where k divides by 4.
fn x_at(row: u32, k: u32) -> vec4<f32> { return vec4<f32>(x4[(row * p.k + k) / 4u]); } // param
fn x_one(row: u32, k: u32) -> f32 { return select(0.0, f32(x[row * p.k + min(k, p.k - 1u)]), k < p.k); }

var<workgroup> parts: array<f32, ROWS * WG>;

@compute @workgroup_size(WG)
fn few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.count) { return; }
  let j = lid / SHARERS;
  let slice = lid % SHARERS;
  let column = tile * COLUMNS + j;
  // Beyond an edge the last row or column is read again, and dropped when y is written.
  let held = min(column, p.n - 1u);
  let row0 = wg.z * ROWS;
  var sum: array<f32, ROWS>;
  let blocks = p.words * PER / 32u;
  for (var i = slice; i < blocks; i += SHARERS) {
    // Written out: one compiler zeroes a variable without a value once, not in every turn.
    var part = array<f32, ROWS>();
    // Bounds that vary keep the loop a loop: all of it unrolled takes software adapters seconds to compile.
    let end = (i + 1u) * (32u / PER);
    for (var word = end - 32u / PER; word < end; word++) {
      let packed = codes[held * p.words + word];
      for (var h = 0u; h < PER; h += 4u) {
        let w = quad(packed, h * BITS);
        for (var r = 0u; r < ROWS; r++) { part[r] += dot(x_at(min(row0 + r, p.m - 1u), word * PER + h), w); }
      }
    }
    var s = 1.0;
    if (!ONE_GROUP) { s = f32(scale[held * p.groups + i * 32u / p.group]); }
    for (var r = 0u; r < ROWS; r++) { sum[r] = fma(part[r], s, sum[r]); }
  }
  if (ONE_GROUP) {
    let s = f32(scale[held]);
    for (var r = 0u; r < ROWS; r++) { sum[r] *= s; }
  }
  if (SHARERS == 1u) {
    for (var r = 0u; r < ROWS; r++) {
      if (column < p.n && row0 + r < p.m) { y[(row0 + r) * p.pitch + column] = T(finish(sum[r], column)); }
    }
  } else {
    for (var r = 0u; r < ROWS; r++) { parts[r * WG + lid] = sum[r]; }
    workgroupBarrier();
    for (var e = lid; e < ROWS * COLUMNS; e += WG) {
      let row = row0 + e / COLUMNS;
      let to = tile * COLUMNS + e % COLUMNS;
      if (row < p.m && to < p.n) {
        var all = 0.0;
        for (var s = 0u; s < SHARERS; s++) { all += parts[e / COLUMNS * WG + e % COLUMNS * SHARERS + s]; }
        y[row * p.pitch + to] = T(finish(all, to));
      }
    }
  }
}

@compute @workgroup_size(WG)
fn unpack(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.count) { return; }
  let across = p.pitch / 32u;
  let row = p.row + i / across;
  let k = p.begin + i % across * 32u;
  let s = f32(scale[row * p.groups + k / p.group]);
  let first = (row * p.words + k / PER) / 4u;
  for (var q = 0u; q < 8u / PER; q++) {
    let packed = codes4[first + q];
    for (var c = 0u; c < 4u; c++) {
      for (var h = 0u; h < PER; h += 4u) { w4[i * 8u + ((q * 4u + c) * PER + h) / 4u] = vec4<T>(s * quad(packed[c], h * BITS)); }
    }
  }
}

// Largest magnitude of the codes that a scale aims at, and the codes' limits.
const TOP = f32((1u << (BITS - 1u)) - 1u);
const LOW = select(-TOP, -TOP - 1.0, BITS == 4u);

fn code_of(v: f32, s: f32) -> f32 {
  if (s == 0.0) { return 0.0; }
  return clamp(round(v / s), LOW, TOP);
}

// 8 bits: the largest magnitude becomes 127. 4 bits: the largest becomes -8, by a negative scale if it is positive, which
// uses all 16 codes; of nine scales around that, -7 to -8.6, the one with the least squared error is taken, after rounding to TS.
@compute @workgroup_size(WG)
fn scales(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.count) { return; }
  let row = i / p.groups;
  let begin = row * p.k + i % p.groups * p.group;
  let end = min(begin + p.group, (row + 1u) * p.k);
  var largest = 0.0;
  var broken = 0u;
  for (var at = begin; at < end; at++) {
    let v = f32(full[at]);
    if (abs(v) > abs(largest)) { largest = v; }
    // NaN and infinity, which comparisons would lose, must show in what comes out.
    if ((bitcast<u32>(v) & 0x7f800000u) == 0x7f800000u) { broken = 0x7fc00000u; }
  }
  var best = f32(TS(abs(largest) / TOP));
  if (BITS == 4u) {
    var least = 3.4e38;
    for (var c = 0u; c < 9u; c++) {
      let s = f32(TS(largest / (-7.0 - 0.2 * f32(c))));
      var error = 0.0;
      for (var at = begin; at < end; at++) {
        let v = f32(full[at]);
        let d = v - s * code_of(v, s);
        error = fma(d, d, error);
      }
      if (error < least) {
        least = error;
        best = s;
      }
    }
  }
  if (broken != 0u) { best = bitcast<f32>(broken); }
  scale_out[p.row * p.groups + i] = TS(best);
}

@compute @workgroup_size(WG)
fn pack(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = (wg.y * groups.x + wg.x) * WG + lid;
  if (i >= p.count) { return; }
  let row = i / p.words;
  let first = i % p.words * PER;
  var word = 0u;
  for (var b = 0u; b < PER; b++) {
    let k = first + b;
    if (k < p.k) {
      let s = f32(scale[(p.row + row) * p.groups + k / p.group]);
      word |= extractBits(bitcast<u32>(i32(code_of(f32(full[row * p.k + k]), s))), 0u, BITS) << (b * BITS);
    }
  }
  codes_out[p.row * p.words + i] = word;
}
