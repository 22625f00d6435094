// y[q, i, j] = act(Σ_k a[q, i, k] · b[q, k, j] + bias[j]): see matmul.wgsl for the layouts and the split of k.
//
// For lavapipe, where each lane's load from memory costs as much as a dozen multiplications and subgroup shuffles cost
// nearly nothing. A workgroup is one subgroup of LANES lanes and owns ROWS x 4·LANES elements of y, a lane ROWS x 4 of
// them. k is walked by 2. Each lane loads two values of one row of a, which the shuffles then show to all lanes; its own
// four columns of b it loads itself. No value is loaded twice within a workgroup.
// The loop must stay small: code beyond some 16 KiB no longer fits the processor's decoded-instruction cache. More rows
// pay where b's k is contiguous, because its columns then cost more instructions to load.
// Entry points: lanes, and lanes_summing, which also writes Σ_k a[0, i, k] into row_sums [m].
// Limits assumed: subgroups of exactly LANES lanes.
enable subgroups;

alias T = f32; // param
alias TY = f32; // param
const LANES = 8u; // param
const ROWS = 16u; // param
// Rows that leave together: more are longer to compile, and no faster.
const STEP = 2u;

struct Params {
  m: u32, n: u32, k: u32,
  size: u32,        // elements of y
  tiles: u32,       // tiles of one matrix
  across: u32,      // tiles side by side
  split: u32,       // shares of k
  chunk: u32,       // k of one share, even
  first: u32,       // first share (over all matrices) of this launch
  has_bias: u32,    // 0 none, 1 one value per column, 2 one per row
  activation: u32,  // 0 none, 1 geluTanh, 2 silu
  batch: vec4<u32>, // sizes of the batch axes, innermost last
  a: vec4<u32>,     // offset, row stride, column stride
  b: vec4<u32>,     // offset, row stride, column stride
  to: vec4<u32>,    // y's offset, row stride, matrix stride
  a_batch: vec4<u32>,
  b_batch: vec4<u32>,
  // For what a compiled function does to a result before it is stored: places of further tensors, and constants.
  extra: array<vec4<u32>, 4>,
  constants: array<vec4<u32>, 4>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(1) var<storage, read> a2: array<vec2<T>>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(2) var<storage, read> b2: array<vec2<T>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> bias: array<T>;
@group(0) @binding(4) var<storage, read_write> y: array<TY>;
@group(0) @binding(5) var<storage, read_write> row_sums: array<TY>;

// Two values of k from `at` on, `step` apart; one load where k is contiguous and all addresses are even.
fn a_pair(at: u32, step: u32) -> vec2<f32> { return vec2<f32>(f32(a[at]), f32(a[at + step])); } // param
// Four columns (at their addresses) by two values of k (`step` apart): two loads where columns are contiguous and all
// addresses divide by 4, four where k is contiguous and all are even, else eight.
fn b_block(at: vec4<u32>, step: u32) -> mat2x4<f32> { return mat2x4<f32>(vec4<f32>(b4[at.x / 4u]), vec4<f32>(b4[(at.x + step) / 4u])); } // param
// WGSL's own tanh overflows to NaN on some drivers.
fn gelu_tanh(v: vec4<f32>) -> vec4<f32> {
  return 0.5 * v * (1.0 + tanh(clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), vec4<f32>(-15.0), vec4<f32>(15.0))));
}
fn silu(v: vec4<f32>) -> vec4<f32> {
  let e = exp(-abs(v));
  return v * select(e, vec4<f32>(1.0), v >= vec4<f32>()) / (1.0 + e);
}
fn finish(v: vec4<f32>) -> vec4<f32> {
  if (p.activation == 1u) { return gelu_tanh(v); }
  if (p.activation == 2u) { return silu(v); }
  return v;
}

// Four neighbours of y, from column `column` of a row, element `at` of all.
fn keep(v: vec4<f32>, row: u32, column: u32, at: u32) { for (var j = 0u; j < 4u; j++) { if (column + j < p.n) { y[at + j] = TY(v[j]); } } } // param

// First elements of matrix `index` of the batch in a and in b.
fn origin(index: u32) -> vec2<u32> {
  var q = vec4<u32>(0u, 0u, 0u, index);
  if (p.batch.z > 1u) {
    q = vec4<u32>(
      index / (p.batch.y * p.batch.z * p.batch.w), index / (p.batch.z * p.batch.w) % p.batch.y,
      index / p.batch.w % p.batch.z, index % p.batch.w);
  }
  let oa = q * p.a_batch;
  let ob = q * p.b_batch;
  return vec2<u32>(p.a.x + oa.x + oa.y + oa.z + oa.w, p.b.x + ob.x + ob.y + ob.z + ob.w);
}

// A tile of y; returns the sums over k of the rows of a of which the lane loaded its pairs.
fn product(tile: u32, share: u32, lane: u32) -> array<f32, ROWS / LANES> {
  let m0 = tile / p.across * ROWS;
  let n0 = (tile % p.across * LANES + lane) * 4u;
  let start = origin(share / p.split);
  // Beyond an edge the last row or column is read again, and dropped when y is written.
  var at_a: array<u32, ROWS / LANES>;
  for (var i = 0u; i < ROWS / LANES; i++) { at_a[i] = start.x + min(m0 + i * LANES + lane, p.m - 1u) * p.a.y; }
  let at_b = start.y + min(n0 + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * p.b.z;
  let begin = share % p.split * p.chunk;
  let end = min(begin + p.chunk, p.k);
  var sums = array<f32, ROWS / LANES>();
  var c: array<vec4<f32>, ROWS>;
  if (p.has_bias == 1u) {
    let v = vec4<f32>(f32(bias[n0]), f32(bias[n0 + 1u]), f32(bias[n0 + 2u]), f32(bias[n0 + 3u]));
    for (var r = 0u; r < ROWS; r++) { c[r] = v; }
  }
  for (var k = begin; k < end; k += 2u) {
    // Beyond an odd end both factors are zero: one alone would not silence a NaN that lies there.
    let odd = k + 1u == end;
    var pair: array<vec2<f32>, ROWS / LANES>;
    for (var i = 0u; i < ROWS / LANES; i++) {
      let v = a_pair(at_a[i] + k * p.a.z, p.a.z);
      pair[i] = vec2<f32>(v.x, select(v.y, 0.0, odd));
      sums[i] += pair[i].x + pair[i].y;
    }
    var w = b_block(at_b + k * p.b.y, p.b.y);
    w[1] = select(w[1], vec4<f32>(), odd);
    for (var r = 0u; r < ROWS; r++) {
      let x = subgroupShuffle(pair[r / LANES], r % LANES);
      c[r] = fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], c[r]));
    }
  }
  if (n0 >= p.n) { return sums; }
  var at = p.to.x + share * p.to.z + m0 * p.to.y + n0;
  let rows = min(ROWS, p.m - m0);
  for (var r = 0u; r < rows; r += STEP) {
    for (var i = 0u; i < STEP; i++) {
      if (p.has_bias == 2u) { c[i] += f32(bias[m0 + r + i]); }
      let v = finish(c[i]);
      if (r + i < rows) { keep(v, m0 + r + i, n0, at + i * p.to.y); }
    }
    at += STEP * p.to.y;
    // All rows leave through the first ones: an index that varies would keep c out of registers.
    for (var i = STEP; i < ROWS; i++) { c[i - STEP] = c[i]; }
  }
  return sums;
}

@compute @workgroup_size(LANES)
fn lanes(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  _ = product(tile, p.first + wg.z, lane);
}

// For one matrix whose k is in one piece.
@compute @workgroup_size(LANES)
fn lanes_summing(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * groups.x + wg.x;
  if (tile >= p.tiles) { return; }
  let sums = product(tile, 0u, lane);
  // All tiles of a row of tiles have the same sums: the first of them writes.
  if (tile % p.across != 0u) { return; }
  for (var i = 0u; i < ROWS / LANES; i++) {
    let row = tile / p.across * ROWS + i * LANES + lane;
    if (row < p.m) { row_sums[row] = TY(sums[i]); }
  }
}
