// Attention for processors that run a subgroup's lanes as one vector instruction: names, formulas and layouts are those of
// attention.wgsl, the running maximum and sum those of https://arxiv.org/abs/2205.14135.
//
// A workgroup is one subgroup of LANES invocations and owns LANES rows of the result (keys in backward_key). It walks the
// other axis in tiles of LANES. First lane r is row r: it multiplies its own elements with those of the tile's rows, each
// of which one lane loads for all. Then lane r is columns r, r + LANES, ... of all rows, and takes the weights of each row
// from the lane that computed them. A load costs such a processor as much as dozens of shuffles, and here each loaded
// value serves LANES products. Workgroups with z > 0 own further columns, and compute the weights again.
// Limits assumed: LANES invocations that are one subgroup, 8 buffers.
enable subgroups;

alias T = f32; // param
// Elements of the mask; MASK: 0 none, 1 the same for all rows, 2 any; ADDS: it is added to the score.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
const LANES = 8u; // param
// Columns of a lane: of y and dv; of dq and dk.
const W = 2u; // param
const X = 2u; // param
// Divides D and E: that many columns are loaded before they are used.
const STEP = 2u; // param

struct Params {
  rows: u32,           // N, queries of a head
  keys: u32,           // L
  depth: u32,          // D, columns of q and k
  width: u32,          // E, columns of v and y
  count: u32,          // heads in all: of q, or of k where one invocation owns a key
  blocks: u32,         // workgroups (naive: invocations) for each of them
  group: u32,          // heads of q that share a head of k and v
  causal: u32,         // 1: row i attends to keys 0 .. i
  scale: f32,
  lead: vec4<u32>,     // three leading axes, then the heads of q
  // Each tensor: strides of the leading axes and of heads; then first element, stride of rows (or keys), mask: of keys.
  q: array<vec4<u32>, 2>,
  k: array<vec4<u32>, 2>,
  v: array<vec4<u32>, 2>,
  mask: array<vec4<u32>, 2>,
  y: array<vec4<u32>, 2>,
  dy: array<vec4<u32>, 2>,
  dq: array<vec4<u32>, 2>,
  dk: array<vec4<u32>, 2>,
  dv: array<vec4<u32>, 2>,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<T>;
@group(0) @binding(2) var<storage, read> k: array<T>;
@group(0) @binding(3) var<storage, read> v: array<T>;
@group(0) @binding(4) var<storage, read> mask: array<M>;
@group(0) @binding(5) var<storage, read_write> y: array<T>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> dy: array<T>;
@group(0) @binding(7) var<storage, read> out: array<T>;
@group(0) @binding(8) var<storage, read_write> dq: array<T>;
@group(0) @binding(6) var<storage, read> known: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> dk: array<T>;
@group(0) @binding(8) var<storage, read_write> dv: array<T>;

// Scores at or below LOW are masked: their weight is exactly 0.
const LOW = -3.0e38;

fn position(i: u32, heads: u32) -> vec4<u32> {
  let w = i % heads; var rest = i / heads;
  let z = rest % p.lead.z; rest = rest / p.lead.z;
  return vec4<u32>(rest / p.lead.y, rest % p.lead.y, z, w);
}
fn first(pos: vec4<u32>, t: array<vec4<u32>, 2>) -> u32 {
  let m = pos * t[0];
  return m.x + m.y + m.z + m.w + t[1].x;
}
// The position of a head of q to that of the head of k and v it reads.
fn shared_head(pos: vec4<u32>) -> vec4<u32> { return vec4<u32>(pos.xyz, pos.w / p.group); }
// Where the row statistics of a head of q begin.
fn statistics(pos: vec4<u32>) -> u32 { return (((pos.x * p.lead.y + pos.y) * p.lead.z + pos.z) * p.lead.w + pos.w) * p.rows; }
fn masked(score: f32, m: M) -> f32 {
  if (ADDS) { return score + f32(m); }
  return select(score, LOW, m == M());
}
fn weight(s: f32, normal: f32) -> f32 { return select(exp(s - normal), 0.0, s <= LOW); }

// s[t] for a t that is no constant: an array that is indexed so would lie in memory.
fn pick(s: array<f32, LANES>, t: u32) -> f32 {
  var value = s[0];
  for (var n = 1u; n < LANES; n++) { value = select(value, s[n], t == n); }
  return value;
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES;
  // Lanes beyond the last row repeat it and write nothing.
  let i = min(i0 + lane, p.rows - 1u);
  let column = wg.z * W * LANES + lane;
  let qi = first(pos, p.q) + i * p.q[1].y;
  let k0 = first(shared_head(pos), p.k);
  let v0 = first(shared_head(pos), p.v) + column;
  let mi = first(pos, p.mask) + i * p.mask[1].y;
  var high = LOW;
  var total = 0.0;
  var acc = array<f32, LANES * W>();   // [row, column]
  let end = select(p.keys, min(p.keys, i0 + LANES), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += LANES) {
    let mine = min(j0 + lane, p.keys - 1u);
    let kj = k0 + mine * p.k[1].y;
    var s = array<f32, LANES>();
    for (var c = 0u; c < p.depth; c += STEP) {
      for (var u = 0u; u < STEP; u++) {
        let qc = f32(q[qi + c + u]);
        let kc = f32(k[kj + c + u]);
        for (var t = 0u; t < LANES; t++) { s[t] += qc * subgroupShuffle(kc, t); }
      }
    }
    var m = M();
    if (MASK == 1u) { m = mask[mi + mine * p.mask[1].z]; }
    var next = high;
    for (var t = 0u; t < LANES; t++) {
      let j = j0 + t;
      s[t] *= p.scale;
      if (MASK == 1u) { s[t] = masked(s[t], subgroupShuffle(m, t)); }
      if (MASK == 2u) { s[t] = masked(s[t], mask[mi + min(j, p.keys - 1u) * p.mask[1].z]); }
      s[t] = select(s[t], LOW, j >= p.keys || (p.causal != 0u && j > i));
      next = max(next, s[t]);
    }
    let shrink = exp(high - next);
    high = next;
    total *= shrink;
    for (var t = 0u; t < LANES; t++) {
      s[t] = weight(s[t], high);
      total += s[t];
    }
    for (var r = 0u; r < LANES; r++) {
      let factor = subgroupShuffle(shrink, r);
      for (var w = 0u; w < W; w++) { acc[r * W + w] *= factor; }
    }
    for (var t = 0u; t < min(LANES, end - j0); t++) {
      let weight_t = pick(s, t);
      let vj = v0 + (j0 + t) * p.v[1].y;
      for (var w = 0u; w < W; w++) {
        let vc = f32(v[vj + w * LANES]);
        for (var r = 0u; r < LANES; r++) { acc[r * W + w] += subgroupShuffle(weight_t, r) * vc; }
      }
    }
  }
  // A row without any key gives 0.
  let inverse = select(1.0 / total, 0.0, total == 0.0);
  if (wg.z == 0u && i0 + lane < p.rows) { stats[statistics(pos) + i] = vec2<f32>(select(high + log(total), 0.0, total == 0.0), 0.0); }
  let y0 = first(pos, p.y) + i0 * p.y[1].y + column;
  for (var r = 0u; r < LANES; r++) {
    let factor = subgroupShuffle(inverse, r);
    for (var w = 0u; w < W; w++) {
      if (i0 + r < p.rows && column + w * LANES < p.width) { y[y0 + r * p.y[1].y + w * LANES] = T(acc[r * W + w] * factor); }
    }
  }
}

@compute @workgroup_size(LANES)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = (task % p.blocks) * LANES;
  let i = min(i0 + lane, p.rows - 1u);
  let column = wg.z * X * LANES + lane;
  let qi = first(pos, p.q) + i * p.q[1].y;
  let dyi = first(pos, p.dy) + i * p.dy[1].y;
  let yi = first(pos, p.y) + i * p.y[1].y;
  let k0 = first(shared_head(pos), p.k);
  let v0 = first(shared_head(pos), p.v);
  let mi = first(pos, p.mask) + i * p.mask[1].y;
  let row = statistics(pos) + i;
  let normal = stats[row].x;
  var delta = 0.0;
  for (var c = 0u; c < p.width; c++) { delta += f32(dy[dyi + c]) * f32(out[yi + c]); }
  if (wg.z == 0u && i0 + lane < p.rows) { stats[row].y = delta; }
  var acc = array<f32, LANES * X>();
  let end = select(p.keys, min(p.keys, i0 + LANES), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += LANES) {
    let mine = min(j0 + lane, p.keys - 1u);
    let kj = k0 + mine * p.k[1].y;
    let vj = v0 + mine * p.v[1].y;
    var s = array<f32, LANES>();
    var ds = array<f32, LANES>();
    for (var c = 0u; c < p.depth; c += STEP) {
      for (var u = 0u; u < STEP; u++) {
        let qc = f32(q[qi + c + u]);
        let kc = f32(k[kj + c + u]);
        for (var t = 0u; t < LANES; t++) { s[t] += qc * subgroupShuffle(kc, t); }
      }
    }
    for (var c = 0u; c < p.width; c += STEP) {
      for (var u = 0u; u < STEP; u++) {
        let dyc = f32(dy[dyi + c + u]);
        let vc = f32(v[vj + c + u]);
        for (var t = 0u; t < LANES; t++) { ds[t] += dyc * subgroupShuffle(vc, t); }
      }
    }
    var m = M();
    if (MASK == 1u) { m = mask[mi + mine * p.mask[1].z]; }
    for (var t = 0u; t < LANES; t++) {
      let j = j0 + t;
      s[t] *= p.scale;
      if (MASK == 1u) { s[t] = masked(s[t], subgroupShuffle(m, t)); }
      if (MASK == 2u) { s[t] = masked(s[t], mask[mi + min(j, p.keys - 1u) * p.mask[1].z]); }
      s[t] = select(s[t], LOW, j >= p.keys || (p.causal != 0u && j > i));
      ds[t] = weight(s[t], normal) * (ds[t] - delta);
    }
    for (var t = 0u; t < min(LANES, end - j0); t++) {
      let ds_t = pick(ds, t);
      let kt = k0 + (j0 + t) * p.k[1].y + column;
      for (var x = 0u; x < X; x++) {
        let kc = f32(k[kt + x * LANES]);
        for (var r = 0u; r < LANES; r++) { acc[r * X + x] += subgroupShuffle(ds_t, r) * kc; }
      }
    }
  }
  let dq0 = first(pos, p.dq) + i0 * p.dq[1].y + column;
  for (var r = 0u; r < LANES; r++) {
    for (var x = 0u; x < X; x++) {
      if (i0 + r < p.rows && column + x * LANES < p.depth) { dq[dq0 + r * p.dq[1].y + x * LANES] = T(acc[r * X + x] * p.scale); }
    }
  }
}

@compute @workgroup_size(LANES)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let task = wg.y * groups.x + wg.x;
  if (task >= p.count * p.blocks) { return; }
  let shared_pos = position(task / p.blocks, p.lead.w / p.group);
  let j0 = (task % p.blocks) * LANES;
  let j = min(j0 + lane, p.keys - 1u);
  let column_k = wg.z * X * LANES + lane;
  let column_v = wg.z * W * LANES + lane;
  let kj = first(shared_pos, p.k) + j * p.k[1].y;
  let vj = first(shared_pos, p.v) + j * p.v[1].y;
  var acc_k = array<f32, LANES * X>();   // [key, column]
  var acc_v = array<f32, LANES * W>();
  for (var g = 0u; g < p.group; g++) {
    let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + g);
    let q0 = first(pos, p.q);
    let dy0 = first(pos, p.dy);
    let mj = first(pos, p.mask) + j * p.mask[1].z;
    var m = M();
    if (MASK == 1u) { m = mask[mj]; }
    for (var i0 = select(0u, j0, p.causal != 0u); i0 < p.rows; i0 += LANES) {
      let mine = min(i0 + lane, p.rows - 1u);
      let qi = q0 + mine * p.q[1].y;
      let dyi = dy0 + mine * p.dy[1].y;
      let stats_mine = known[statistics(pos) + mine];
      var s = array<f32, LANES>();
      var ds = array<f32, LANES>();
      for (var c = 0u; c < p.depth; c += STEP) {
        for (var u = 0u; u < STEP; u++) {
          let kc = f32(k[kj + c + u]);
          let qc = f32(q[qi + c + u]);
          for (var t = 0u; t < LANES; t++) { s[t] += kc * subgroupShuffle(qc, t); }
        }
      }
      for (var c = 0u; c < p.width; c += STEP) {
        for (var u = 0u; u < STEP; u++) {
          let vc = f32(v[vj + c + u]);
          let dyc = f32(dy[dyi + c + u]);
          for (var t = 0u; t < LANES; t++) { ds[t] += vc * subgroupShuffle(dyc, t); }
        }
      }
      for (var t = 0u; t < LANES; t++) {
        let i = i0 + t;
        s[t] *= p.scale;
        if (MASK == 1u) { s[t] = masked(s[t], m); }
        if (MASK == 2u) { s[t] = masked(s[t], mask[mj + min(i, p.rows - 1u) * p.mask[1].y]); }
        s[t] = select(s[t], LOW, i >= p.rows || (p.causal != 0u && j > i));
        s[t] = weight(s[t], subgroupShuffle(stats_mine.x, t));
        ds[t] = s[t] * (ds[t] - subgroupShuffle(stats_mine.y, t));
      }
      for (var t = 0u; t < min(LANES, p.rows - i0); t++) {
        let ds_t = pick(ds, t);
        let weight_t = pick(s, t);
        let qt = q0 + (i0 + t) * p.q[1].y + column_k;
        for (var x = 0u; x < X; x++) {
          let qc = f32(q[qt + x * LANES]);
          for (var r = 0u; r < LANES; r++) { acc_k[r * X + x] += subgroupShuffle(ds_t, r) * qc; }
        }
        let dyt = dy0 + (i0 + t) * p.dy[1].y + column_v;
        for (var w = 0u; w < W; w++) {
          let dyc = f32(dy[dyt + w * LANES]);
          for (var r = 0u; r < LANES; r++) { acc_v[r * W + w] += subgroupShuffle(weight_t, r) * dyc; }
        }
      }
    }
  }
  let dk0 = first(shared_pos, p.dk) + j0 * p.dk[1].y + column_k;
  let dv0 = first(shared_pos, p.dv) + j0 * p.dv[1].y + column_v;
  for (var r = 0u; r < LANES; r++) {
    for (var x = 0u; x < X; x++) {
      if (j0 + r < p.keys && column_k + x * LANES < p.depth) { dk[dk0 + r * p.dk[1].y + x * LANES] = T(acc_k[r * X + x] * p.scale); }
    }
    for (var w = 0u; w < W; w++) {
      if (j0 + r < p.keys && column_v + w * LANES < p.width) { dv[dv0 + r * p.dv[1].y + w * LANES] = T(acc_v[r * W + w]); }
    }
  }
}
