// Scaled dot-product attention as its definition says it, with its gradients: what attention_rows, attention_lanes and
// attention_tiles are checked against.
//
//   s[i, j] = scale * q[i] . k[j] + mask[i, j]      w[i, j] = exp(s[i, j]) / sum over j of exp(s[i, j])
//   y[i] = sum over j of w[i, j] v[j]
//   dw[i, j] = dy[i] . v[j]     ds[i, j] = w[i, j] (dw[i, j] - delta[i])     delta[i] = dy[i] . y[i]
//   dv[j] = sum over i of w[i, j] dy[i]    dq[i] = scale * sum over j of ds[i, j] k[j]    dk[j] = scale * sum over i of ds[i, j] q[i]
//
// for each head by itself. No matrix over i and j is stored: backward finds w again from the row's log of the sum of
// exponentials, which forward leaves in stats (https://arxiv.org/abs/2205.14135).
//
//   q, dq [..., H, N, D]   k, dk [..., H/group, L, D]   v, dv [..., H/group, L, E]   y, dy [..., H, N, E]
//   mask [..., H, N, L], 0 = masked, or added to s     stats [..., H, N, 2] dense: log-sum-exp, delta
//
// All but stats through strides, the last axis of each dense. One invocation owns up to COLUMNS columns of one row of the
// result; backward_mask owns one element of dmask (dense), which is ds. Limits assumed: 64 invocations, 8 buffers.

alias T = f32; // param
// Elements of the mask; MASK = 0: there is none, else there is one; ADDS: it is added.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
const COLUMNS = 4u;
const WG = 64u;

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
// forward
@group(0) @binding(5) var<storage, read_write> y: array<T>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
// backward_query writes delta into stats, for backward_key and backward_mask
@group(0) @binding(5) var<storage, read> dy: array<T>;
@group(0) @binding(7) var<storage, read> out: array<T>;
@group(0) @binding(8) var<storage, read_write> dq: array<T>;
@group(0) @binding(6) var<storage, read> known: array<vec2<f32>>;
// dk and dv share a buffer
@group(0) @binding(7) var<storage, read_write> dkv: array<T>;
@group(0) @binding(7) var<storage, read_write> dmask: array<f32>;

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

// s[i, j] of the head whose tensors begin at q0, k0 and m0.
fn score(q0: u32, k0: u32, m0: u32, i: u32, j: u32) -> f32 {
  let qi = q0 + i * p.q[1].y;
  let kj = k0 + j * p.k[1].y;
  var s = 0.0;
  for (var c = 0u; c < p.depth; c++) { s += f32(q[qi + c]) * f32(k[kj + c]); }
  s *= p.scale;
  if (MASK > 0u) { s = masked(s, mask[m0 + i * p.mask[1].y + j * p.mask[1].z]); }
  return select(s, LOW, p.causal != 0u && j > i);
}
fn weight(s: f32, normal: f32) -> f32 { return select(exp(s - normal), 0.0, s <= LOW); }
// dy[i] . v[j]
fn product(dyi: u32, vj: u32) -> f32 {
  var sum = 0.0;
  for (var c = 0u; c < p.width; c++) { sum += f32(dy[dyi + c]) * f32(v[vj + c]); }
  return sum;
}

struct Place { pos: vec4<u32>, row: u32, column: u32 }
// What an invocation owns: `rows` x `blocks` pieces a head.
fn place(id: u32, rows: u32, heads: u32) -> Place {
  let pieces = rows * p.blocks;
  return Place(position(id / pieces, heads), (id % pieces) / p.blocks, (id % p.blocks) * COLUMNS);
}
fn index(wg: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 { return (wg.y * groups.x + wg.x) * WG + lid; }

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let id = index(wg, groups, lid);
  if (id >= p.count * p.rows * p.blocks) { return; }
  let at = place(id, p.rows, p.lead.w);
  let i = at.row;
  let q0 = first(at.pos, p.q); let m0 = first(at.pos, p.mask);
  let k0 = first(shared_head(at.pos), p.k); let v0 = first(shared_head(at.pos), p.v);
  var high = LOW;
  for (var j = 0u; j < p.keys; j++) { high = max(high, score(q0, k0, m0, i, j)); }
  var total = 0.0;
  var acc = array<f32, COLUMNS>();
  for (var j = 0u; j < p.keys; j++) {
    let w = weight(score(q0, k0, m0, i, j), high);
    let vj = v0 + j * p.v[1].y + at.column;
    total += w;
    for (var c = 0u; c < min(COLUMNS, p.width - at.column); c++) { acc[c] += w * f32(v[vj + c]); }
  }
  // A row without any key gives 0.
  let inverse = select(1.0 / total, 0.0, total == 0.0);
  let yi = first(at.pos, p.y) + i * p.y[1].y + at.column;
  for (var c = 0u; c < min(COLUMNS, p.width - at.column); c++) { y[yi + c] = T(acc[c] * inverse); }
  if (at.column == 0u) { stats[statistics(at.pos) + i] = vec2<f32>(select(high + log(total), 0.0, total == 0.0), 0.0); }
}

@compute @workgroup_size(WG)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let id = index(wg, groups, lid);
  if (id >= p.count * p.rows * p.blocks) { return; }
  let at = place(id, p.rows, p.lead.w);
  let i = at.row;
  let q0 = first(at.pos, p.q); let m0 = first(at.pos, p.mask);
  let k0 = first(shared_head(at.pos), p.k); let v0 = first(shared_head(at.pos), p.v);
  let dyi = first(at.pos, p.dy) + i * p.dy[1].y;
  let yi = first(at.pos, p.y) + i * p.y[1].y;
  var delta = 0.0;
  for (var c = 0u; c < p.width; c++) { delta += f32(dy[dyi + c]) * f32(out[yi + c]); }
  let row = statistics(at.pos) + i;
  let normal = stats[row].x;
  var acc = array<f32, COLUMNS>();
  for (var j = 0u; j < p.keys; j++) {
    let w = weight(score(q0, k0, m0, i, j), normal);
    let ds = w * (product(dyi, v0 + j * p.v[1].y) - delta);
    let kj = k0 + j * p.k[1].y + at.column;
    for (var c = 0u; c < min(COLUMNS, p.depth - at.column); c++) { acc[c] += ds * f32(k[kj + c]); }
  }
  let dqi = first(at.pos, p.dq) + i * p.dq[1].y + at.column;
  for (var c = 0u; c < min(COLUMNS, p.depth - at.column); c++) { dq[dqi + c] = T(acc[c] * p.scale); }
  if (at.column == 0u) { stats[row].y = delta; }
}

@compute @workgroup_size(WG)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let id = index(wg, groups, lid);
  if (id >= p.count * p.keys * p.blocks) { return; }
  let at = place(id, p.keys, p.lead.w / p.group);
  let j = at.row;
  let k0 = first(at.pos, p.k); let v0 = first(at.pos, p.v);
  // Neither list of columns may end before 0: the wider of the two decided how many pieces there are.
  let depth = min(COLUMNS, max(p.depth, at.column) - at.column);
  let width = min(COLUMNS, max(p.width, at.column) - at.column);
  var acc_k = array<f32, COLUMNS>();
  var acc_v = array<f32, COLUMNS>();
  for (var g = 0u; g < p.group; g++) {
    let pos = vec4<u32>(at.pos.xyz, at.pos.w * p.group + g);
    let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let m0 = first(pos, p.mask);
    let row = statistics(pos);
    for (var i = 0u; i < p.rows; i++) {
      let w = weight(score(q0, k0, m0, i, j), known[row + i].x);
      let dyi = dy0 + i * p.dy[1].y;
      let ds = w * (product(dyi, v0 + j * p.v[1].y) - known[row + i].y);
      let qi = q0 + i * p.q[1].y + at.column;
      for (var c = 0u; c < depth; c++) { acc_k[c] += ds * f32(q[qi + c]); }
      for (var c = 0u; c < width; c++) { acc_v[c] += w * f32(dy[dyi + at.column + c]); }
    }
  }
  let dkj = first(at.pos, p.dk) + j * p.dk[1].y + at.column;
  let dvj = first(at.pos, p.dv) + j * p.dv[1].y + at.column;
  for (var c = 0u; c < depth; c++) { dkv[dkj + c] = T(acc_k[c] * p.scale); }
  for (var c = 0u; c < width; c++) { dkv[dvj + c] = T(acc_v[c]); }
}

@compute @workgroup_size(WG)
fn backward_mask(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let id = index(wg, groups, lid);
  if (id >= p.count * p.rows * p.keys) { return; }
  let pos = position(id / (p.rows * p.keys), p.lead.w);
  let i = (id / p.keys) % p.rows; let j = id % p.keys;
  let s = score(first(pos, p.q), first(shared_head(pos), p.k), first(pos, p.mask), i, j);
  let row = known[statistics(pos) + i];
  let dw = product(first(pos, p.dy) + i * p.dy[1].y, first(shared_head(pos), p.v) + j * p.v[1].y);
  dmask[id] = weight(s, row.x) * (dw - row.y);
}
