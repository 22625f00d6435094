// Attention without subgroups and without barriers, for software adapters that have neither at a good price: names,
// formulas and layouts are those of attention.wgsl, the running maximum and sum those of https://arxiv.org/abs/2205.14135.
//
// An invocation owns 8 rows of the result (keys in backward_key) and walks the other axis by 8: their 64 weights are four
// matrices of 4 x 4, which stay in registers as no index into them varies (SwiftShader keeps what is indexed by a variable
// in memory, at a third of the speed). Only the sums are indexed so, once for 8 x 8 multiplications. Invocations of a
// workgroup may work on different heads. Workgroups with z > 0 own further columns, and compute the weights again.
// backward gives all three gradients: an invocation owns a head of k and v, and adds to dq where it lies, once for each 8
// keys. It computes the weights once where backward_query and backward_key compute them twice, but needs many heads.
// Columns are read as vec4: D, E, strides and offsets divide by 4.
// Limits assumed: 8 buffers.

alias T = f32; // param
// Elements of the mask; MASK: 0 none, 1 the same for all rows, 2 any; ADDS: it is added to the score.
alias M = u32; // param
const MASK = 0u; // param
const ADDS = false; // param
// An invocation owns up to C4 * 4 columns.
const C4 = 8u; // param
const WG = 4u; // param

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
@group(0) @binding(1) var<storage, read> q4: array<vec4<T>>;
@group(0) @binding(2) var<storage, read> k4: array<vec4<T>>;
@group(0) @binding(3) var<storage, read> v4: array<vec4<T>>;
@group(0) @binding(4) var<storage, read> mask: array<M>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4<T>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> dy4: array<vec4<T>>;
@group(0) @binding(7) var<storage, read> out4: array<vec4<T>>;
@group(0) @binding(8) var<storage, read_write> dq4: array<vec4<T>>;
@group(0) @binding(6) var<storage, read> known: array<vec2<f32>>;
// dk and dv share a buffer
@group(0) @binding(7) var<storage, read_write> dkv4: array<vec4<T>>;
// dq, dk and dv share a buffer
@group(0) @binding(8) var<storage, read_write> d4: array<vec4<T>>;

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

const FOUR = vec4<u32>(0u, 1u, 2u, 3u);

// sum + x w, a row and a block at a time.
fn row_product(sum: vec4<f32>, x: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), w[3], fma(vec4<f32>(x.z), w[2], fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], sum))));
}
fn product(sum: mat4x4<f32>, x: mat4x4<f32>, w: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(row_product(sum[0], x[0], w), row_product(sum[1], x[1], w), row_product(sum[2], x[2], w), row_product(sum[3], x[3], w));
}
// Rows of m times those of f.
fn scaled(m: mat4x4<f32>, f: vec4<f32>) -> mat4x4<f32> { return mat4x4<f32>(m[0] * f.x, m[1] * f.y, m[2] * f.z, m[3] * f.w); }
fn multiplied(a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> { return mat4x4<f32>(a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]); }
fn highest(m: mat4x4<f32>) -> vec4<f32> {
  let t = transpose(m);
  return max(max(t[0], t[1]), max(t[2], t[3]));
}
fn weights(s: mat4x4<f32>, normal: mat4x4<f32>) -> mat4x4<f32> {
  let low = vec4<f32>(LOW); let z = vec4<f32>(); let d = s - normal;
  return mat4x4<f32>(select(exp(d[0]), z, s[0] <= low), select(exp(d[1]), z, s[1] <= low), select(exp(d[2]), z, s[2] <= low), select(exp(d[3]), z, s[3] <= low));
}
// Four columns, or four rows, of the same values.
fn columns(v: vec4<f32>) -> mat4x4<f32> { return mat4x4<f32>(vec4<f32>(v.x), vec4<f32>(v.y), vec4<f32>(v.z), vec4<f32>(v.w)); }
fn rows(v: vec4<f32>) -> mat4x4<f32> { return mat4x4<f32>(v, v, v, v); }

// Scores of row i with keys j .. j + 3, or of rows i .. i + 3 with key j: what is hidden becomes LOW.
fn scores(product: vec4<f32>, i: vec4<u32>, j: vec4<u32>, m0: u32) -> vec4<f32> {
  var s = product * p.scale;
  if (MASK > 0u) {
    var at = m0 + min(j, vec4<u32>(p.keys - 1u)) * p.mask[1].z;
    if (MASK > 1u) { at += min(i, vec4<u32>(p.rows - 1u)) * p.mask[1].y; }
    s = vec4<f32>(masked(s.x, mask[at.x]), masked(s.y, mask[at.y]), masked(s.z, mask[at.z]), masked(s.w, mask[at.w]));
  }
  let hidden = (j >= vec4<u32>(p.keys)) | (i >= vec4<u32>(p.rows)) | ((j > i) & vec4<bool>(p.causal != 0u));
  return select(s, vec4<f32>(LOW), hidden);
}

fn scores_by_row(m: mat4x4<f32>, i: vec4<u32>, j: vec4<u32>, m0: u32) -> mat4x4<f32> {
  return mat4x4<f32>(scores(m[0], vec4<u32>(i.x), j, m0), scores(m[1], vec4<u32>(i.y), j, m0), scores(m[2], vec4<u32>(i.z), j, m0), scores(m[3], vec4<u32>(i.w), j, m0));
}
fn scores_by_key(m: mat4x4<f32>, i: vec4<u32>, j: vec4<u32>, m0: u32) -> mat4x4<f32> {
  return mat4x4<f32>(scores(m[0], i, vec4<u32>(j.x), m0), scores(m[1], i, vec4<u32>(j.y), m0), scores(m[2], i, vec4<u32>(j.z), m0), scores(m[3], i, vec4<u32>(j.w), m0));
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = (wg.y * groups.x + wg.x) * WG + lid;
  if (task >= p.count * p.blocks) { return; }
  let from_w = wg.z * C4;
  let end_w = min(from_w + C4, p.width / 4u);
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = task % p.blocks * 8u;
  // Rows beyond the last repeat it and are not written.
  let ia = min(i0 + FOUR, vec4<u32>(p.rows - 1u)); let ib = min(i0 + 4u + FOUR, vec4<u32>(p.rows - 1u));
  let q0 = first(pos, p.q); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  let qa = (q0 + ia * p.q[1].y) / 4u; let qb = (q0 + ib * p.q[1].y) / 4u;
  var high_a = vec4<f32>(LOW); var high_b = vec4<f32>(LOW);
  var total_a = vec4<f32>(); var total_b = vec4<f32>();
  var acc = array<mat4x4<f32>, 2u * C4>();
  let end = select(p.keys, min(p.keys, i0 + 8u), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += 8u) {
    let ja = min(j0 + FOUR, vec4<u32>(p.keys - 1u)); let jb = min(j0 + 4u + FOUR, vec4<u32>(p.keys - 1u));
    let ka = (k0 + ja * p.k[1].y) / 4u; let kb = (k0 + jb * p.k[1].y) / 4u;
    let va = (v0 + ja * p.v[1].y) / 4u; let vb = (v0 + jb * p.v[1].y) / 4u;
    var aa = mat4x4<f32>(); var ab = mat4x4<f32>(); var ba = mat4x4<f32>(); var bb = mat4x4<f32>();
    for (var c = 0u; c < p.depth / 4u; c++) {
      let xa = mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c])); let xb = mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c]));
      let wa = transpose(mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c])));
      aa = product(aa, xa, wa); ab = product(ab, xa, wb); ba = product(ba, xb, wa); bb = product(bb, xb, wb);
    }
    aa = scores_by_row(aa, ia, j0 + FOUR, m0); ab = scores_by_row(ab, ia, j0 + 4u + FOUR, m0);
    ba = scores_by_row(ba, ib, j0 + FOUR, m0); bb = scores_by_row(bb, ib, j0 + 4u + FOUR, m0);
    let next_a = max(high_a, max(highest(aa), highest(ab))); let next_b = max(high_b, max(highest(ba), highest(bb)));
    let shrink_a = exp(high_a - next_a); let shrink_b = exp(high_b - next_b);
    high_a = next_a; high_b = next_b;
    aa = weights(aa, columns(next_a)); ab = weights(ab, columns(next_a));
    ba = weights(ba, columns(next_b)); bb = weights(bb, columns(next_b));
    total_a = total_a * shrink_a + vec4<f32>(1.0) * (aa + ab); total_b = total_b * shrink_b + vec4<f32>(1.0) * (ba + bb);
    for (var c = from_w; c < end_w; c++) {
      let wa = mat4x4<f32>(vec4<f32>(v4[va.x + c]), vec4<f32>(v4[va.y + c]), vec4<f32>(v4[va.z + c]), vec4<f32>(v4[va.w + c])); let wb = mat4x4<f32>(vec4<f32>(v4[vb.x + c]), vec4<f32>(v4[vb.y + c]), vec4<f32>(v4[vb.z + c]), vec4<f32>(v4[vb.w + c]));
      acc[2u * (c - from_w)] = product(product(scaled(acc[2u * (c - from_w)], shrink_a), aa, wa), ab, wb);
      acc[2u * (c - from_w) + 1u] = product(product(scaled(acc[2u * (c - from_w) + 1u], shrink_b), ba, wa), bb, wb);
    }
  }
  // A row without any key gives 0.
  let inverse_a = select(1.0 / total_a, vec4<f32>(), total_a == vec4<f32>()); let inverse_b = select(1.0 / total_b, vec4<f32>(), total_b == vec4<f32>());
  let yi = (first(pos, p.y) + i0 * p.y[1].y) / 4u;
  let step = p.y[1].y / 4u;
  for (var r = 0u; r < min(8u, p.rows - i0); r++) {
    let half = r / 4u;
    let inverse = select(inverse_a, inverse_b, half == 1u)[r % 4u];
    let total = select(total_a, total_b, half == 1u)[r % 4u]; let high = select(high_a, high_b, half == 1u)[r % 4u];
    if (wg.z == 0u) { stats[statistics(pos) + i0 + r] = vec2<f32>(select(high + log(total), 0.0, total == 0.0), 0.0); }
    for (var c = from_w; c < end_w; c++) { y4[yi + r * step + c] = vec4<T>(acc[2u * (c - from_w) + half][r % 4u] * inverse); }
  }
}

@compute @workgroup_size(WG)
fn backward_query(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = (wg.y * groups.x + wg.x) * WG + lid;
  if (task >= p.count * p.blocks) { return; }
  let from_x = wg.z * C4;
  let end_x = min(from_x + C4, p.depth / 4u);
  let pos = position(task / p.blocks, p.lead.w);
  let i0 = task % p.blocks * 8u;
  let ia = min(i0 + FOUR, vec4<u32>(p.rows - 1u)); let ib = min(i0 + 4u + FOUR, vec4<u32>(p.rows - 1u));
  let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let y0 = first(pos, p.y); let m0 = first(pos, p.mask);
  let k0 = first(shared_head(pos), p.k); let v0 = first(shared_head(pos), p.v);
  let qa = (q0 + ia * p.q[1].y) / 4u; let qb = (q0 + ib * p.q[1].y) / 4u;
  let da = (dy0 + ia * p.dy[1].y) / 4u; let db = (dy0 + ib * p.dy[1].y) / 4u;
  let ya = (y0 + ia * p.y[1].y) / 4u; let yb = (y0 + ib * p.y[1].y) / 4u;
  var delta_a = vec4<f32>(); var delta_b = vec4<f32>();
  for (var c = 0u; c < p.width / 4u; c++) {
    delta_a += vec4<f32>(1.0) * multiplied(mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c])), mat4x4<f32>(vec4<f32>(out4[ya.x + c]), vec4<f32>(out4[ya.y + c]), vec4<f32>(out4[ya.z + c]), vec4<f32>(out4[ya.w + c])));
    delta_b += vec4<f32>(1.0) * multiplied(mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c])), mat4x4<f32>(vec4<f32>(out4[yb.x + c]), vec4<f32>(out4[yb.y + c]), vec4<f32>(out4[yb.z + c]), vec4<f32>(out4[yb.w + c])));
  }
  let at = statistics(pos);
  let normal_a = columns(vec4<f32>(stats[at + ia.x].x, stats[at + ia.y].x, stats[at + ia.z].x, stats[at + ia.w].x));
  let normal_b = columns(vec4<f32>(stats[at + ib.x].x, stats[at + ib.y].x, stats[at + ib.z].x, stats[at + ib.w].x));
  if (wg.z == 0u) {
    // Rows beyond the last store what it stores.
    stats[at + ia.x].y = delta_a.x; stats[at + ia.y].y = delta_a.y; stats[at + ia.z].y = delta_a.z; stats[at + ia.w].y = delta_a.w;
    stats[at + ib.x].y = delta_b.x; stats[at + ib.y].y = delta_b.y; stats[at + ib.z].y = delta_b.z; stats[at + ib.w].y = delta_b.w;
  }
  var acc = array<mat4x4<f32>, 2u * C4>();
  let end = select(p.keys, min(p.keys, i0 + 8u), p.causal != 0u);
  for (var j0 = 0u; j0 < end; j0 += 8u) {
    let ja = min(j0 + FOUR, vec4<u32>(p.keys - 1u)); let jb = min(j0 + 4u + FOUR, vec4<u32>(p.keys - 1u));
    let ka = (k0 + ja * p.k[1].y) / 4u; let kb = (k0 + jb * p.k[1].y) / 4u;
    let va = (v0 + ja * p.v[1].y) / 4u; let vb = (v0 + jb * p.v[1].y) / 4u;
    var aa = mat4x4<f32>(); var ab = mat4x4<f32>(); var ba = mat4x4<f32>(); var bb = mat4x4<f32>();
    for (var c = 0u; c < p.depth / 4u; c++) {
      let xa = mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c])); let xb = mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c]));
      let wa = transpose(mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c])));
      aa = product(aa, xa, wa); ab = product(ab, xa, wb); ba = product(ba, xb, wa); bb = product(bb, xb, wb);
    }
    aa = weights(scores_by_row(aa, ia, j0 + FOUR, m0), normal_a); ab = weights(scores_by_row(ab, ia, j0 + 4u + FOUR, m0), normal_a);
    ba = weights(scores_by_row(ba, ib, j0 + FOUR, m0), normal_b); bb = weights(scores_by_row(bb, ib, j0 + 4u + FOUR, m0), normal_b);
    var daa = mat4x4<f32>(); var dab = mat4x4<f32>(); var dba = mat4x4<f32>(); var dbb = mat4x4<f32>();
    for (var c = 0u; c < p.width / 4u; c++) {
      let xa = mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c])); let xb = mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c]));
      let wa = transpose(mat4x4<f32>(vec4<f32>(v4[va.x + c]), vec4<f32>(v4[va.y + c]), vec4<f32>(v4[va.z + c]), vec4<f32>(v4[va.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(v4[vb.x + c]), vec4<f32>(v4[vb.y + c]), vec4<f32>(v4[vb.z + c]), vec4<f32>(v4[vb.w + c])));
      daa = product(daa, xa, wa); dab = product(dab, xa, wb); dba = product(dba, xb, wa); dbb = product(dbb, xb, wb);
    }
    daa = multiplied(aa, daa - columns(delta_a)); dab = multiplied(ab, dab - columns(delta_a));
    dba = multiplied(ba, dba - columns(delta_b)); dbb = multiplied(bb, dbb - columns(delta_b));
    for (var c = from_x; c < end_x; c++) {
      let wa = mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c])); let wb = mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c]));
      acc[2u * (c - from_x)] = product(product(acc[2u * (c - from_x)], daa, wa), dab, wb);
      acc[2u * (c - from_x) + 1u] = product(product(acc[2u * (c - from_x) + 1u], dba, wa), dbb, wb);
    }
  }
  let dqi = (first(pos, p.dq) + i0 * p.dq[1].y) / 4u;
  let step = p.dq[1].y / 4u;
  for (var r = 0u; r < min(8u, p.rows - i0); r++) {
    for (var c = from_x; c < end_x; c++) { dq4[dqi + r * step + c] = vec4<T>(acc[2u * (c - from_x) + r / 4u][r % 4u] * p.scale); }
  }
}

@compute @workgroup_size(WG)
fn backward_key(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = (wg.y * groups.x + wg.x) * WG + lid;
  if (task >= p.count * p.blocks) { return; }
  // Neither part of the columns may begin beyond the end: the wider of the two decided how many there are.
  let from_x = min(wg.z * C4, p.depth / 4u); let end_x = min(from_x + C4, p.depth / 4u);
  let from_w = min(wg.z * C4, p.width / 4u); let end_w = min(from_w + C4, p.width / 4u);
  let shared_pos = position(task / p.blocks, p.lead.w / p.group);
  let j0 = task % p.blocks * 8u;
  let ja = min(j0 + FOUR, vec4<u32>(p.keys - 1u)); let jb = min(j0 + 4u + FOUR, vec4<u32>(p.keys - 1u));
  let k0 = first(shared_pos, p.k); let v0 = first(shared_pos, p.v);
  let ka = (k0 + ja * p.k[1].y) / 4u; let kb = (k0 + jb * p.k[1].y) / 4u;
  let va = (v0 + ja * p.v[1].y) / 4u; let vb = (v0 + jb * p.v[1].y) / 4u;
  var acc_k = array<mat4x4<f32>, 2u * C4>();
  var acc_v = array<mat4x4<f32>, 2u * C4>();
  for (var h = 0u; h < p.group; h++) {
    let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + h);
    let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let m0 = first(pos, p.mask); let at = statistics(pos);
    for (var i0 = select(0u, j0, p.causal != 0u); i0 < p.rows; i0 += 8u) {
      let ia = min(i0 + FOUR, vec4<u32>(p.rows - 1u)); let ib = min(i0 + 4u + FOUR, vec4<u32>(p.rows - 1u));
      let qa = (q0 + ia * p.q[1].y) / 4u; let qb = (q0 + ib * p.q[1].y) / 4u;
      let da = (dy0 + ia * p.dy[1].y) / 4u; let db = (dy0 + ib * p.dy[1].y) / 4u;
      // [own key, row]
      var aa = mat4x4<f32>(); var ab = mat4x4<f32>(); var ba = mat4x4<f32>(); var bb = mat4x4<f32>();
      for (var c = 0u; c < p.depth / 4u; c++) {
        let xa = mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c])); let xb = mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c]));
        let wa = transpose(mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c])));
        aa = product(aa, xa, wa); ab = product(ab, xa, wb); ba = product(ba, xb, wa); bb = product(bb, xb, wb);
      }
      let stats_a = transpose(mat4x2<f32>(known[at + ia.x], known[at + ia.y], known[at + ia.z], known[at + ia.w]));
      let stats_b = transpose(mat4x2<f32>(known[at + ib.x], known[at + ib.y], known[at + ib.z], known[at + ib.w]));
      aa = weights(scores_by_key(aa, i0 + FOUR, ja, m0), rows(stats_a[0])); ab = weights(scores_by_key(ab, i0 + 4u + FOUR, ja, m0), rows(stats_b[0]));
      ba = weights(scores_by_key(ba, i0 + FOUR, jb, m0), rows(stats_a[0])); bb = weights(scores_by_key(bb, i0 + 4u + FOUR, jb, m0), rows(stats_b[0]));
      for (var c = from_w; c < end_w; c++) {
        let wa = mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c])); let wb = mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c]));
        acc_v[2u * (c - from_w)] = product(product(acc_v[2u * (c - from_w)], aa, wa), ab, wb);
        acc_v[2u * (c - from_w) + 1u] = product(product(acc_v[2u * (c - from_w) + 1u], ba, wa), bb, wb);
      }
      var daa = mat4x4<f32>(); var dab = mat4x4<f32>(); var dba = mat4x4<f32>(); var dbb = mat4x4<f32>();
      for (var c = 0u; c < p.width / 4u; c++) {
        let xa = mat4x4<f32>(vec4<f32>(v4[va.x + c]), vec4<f32>(v4[va.y + c]), vec4<f32>(v4[va.z + c]), vec4<f32>(v4[va.w + c])); let xb = mat4x4<f32>(vec4<f32>(v4[vb.x + c]), vec4<f32>(v4[vb.y + c]), vec4<f32>(v4[vb.z + c]), vec4<f32>(v4[vb.w + c]));
        let wa = transpose(mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c])));
        daa = product(daa, xa, wa); dab = product(dab, xa, wb); dba = product(dba, xb, wa); dbb = product(dbb, xb, wb);
      }
      daa = multiplied(aa, daa - rows(stats_a[1])); dab = multiplied(ab, dab - rows(stats_b[1]));
      dba = multiplied(ba, dba - rows(stats_a[1])); dbb = multiplied(bb, dbb - rows(stats_b[1]));
      for (var c = from_x; c < end_x; c++) {
        let wa = mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c])); let wb = mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c]));
        acc_k[2u * (c - from_x)] = product(product(acc_k[2u * (c - from_x)], daa, wa), dab, wb);
        acc_k[2u * (c - from_x) + 1u] = product(product(acc_k[2u * (c - from_x) + 1u], dba, wa), dbb, wb);
      }
    }
  }
  let dkj = (first(shared_pos, p.dk) + j0 * p.dk[1].y) / 4u; let step_k = p.dk[1].y / 4u;
  let dvj = (first(shared_pos, p.dv) + j0 * p.dv[1].y) / 4u; let step_v = p.dv[1].y / 4u;
  for (var r = 0u; r < min(8u, p.keys - j0); r++) {
    for (var c = from_x; c < end_x; c++) { dkv4[dkj + r * step_k + c] = vec4<T>(acc_k[2u * (c - from_x) + r / 4u][r % 4u] * p.scale); }
    for (var c = from_w; c < end_w; c++) { dkv4[dvj + r * step_v + c] = vec4<T>(acc_v[2u * (c - from_w) + r / 4u][r % 4u]); }
  }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let task = (wg.y * groups.x + wg.x) * WG + lid;
  if (task >= p.count) { return; }
  let shared_pos = position(task, p.lead.w / p.group);
  let k0 = first(shared_pos, p.k); let v0 = first(shared_pos, p.v);
  let dk0 = first(shared_pos, p.dk); let dv0 = first(shared_pos, p.dv);
  var acc_k = array<mat4x4<f32>, 2u * C4>();
  var acc_v = array<mat4x4<f32>, 2u * C4>();
  for (var j0 = 0u; j0 < p.keys; j0 += 8u) {
    let ja = min(j0 + FOUR, vec4<u32>(p.keys - 1u)); let jb = min(j0 + 4u + FOUR, vec4<u32>(p.keys - 1u));
    let ka = (k0 + ja * p.k[1].y) / 4u; let kb = (k0 + jb * p.k[1].y) / 4u;
    let va = (v0 + ja * p.v[1].y) / 4u; let vb = (v0 + jb * p.v[1].y) / 4u;
    for (var h = 0u; h < p.group; h++) {
      let pos = vec4<u32>(shared_pos.xyz, shared_pos.w * p.group + h);
      let q0 = first(pos, p.q); let dy0 = first(pos, p.dy); let y0 = first(pos, p.y); let dq0 = first(pos, p.dq);
      let m0 = first(pos, p.mask); let at = statistics(pos);
      // The first keys reach every row's dq, which begins there.
      for (var i0 = select(0u, j0, p.causal != 0u); i0 < p.rows; i0 += 8u) {
        let ia = min(i0 + FOUR, vec4<u32>(p.rows - 1u)); let ib = min(i0 + 4u + FOUR, vec4<u32>(p.rows - 1u));
        let qa = (q0 + ia * p.q[1].y) / 4u; let qb = (q0 + ib * p.q[1].y) / 4u;
        let da = (dy0 + ia * p.dy[1].y) / 4u; let db = (dy0 + ib * p.dy[1].y) / 4u;
        let stats_a = transpose(mat4x2<f32>(stats[at + ia.x], stats[at + ia.y], stats[at + ia.z], stats[at + ia.w]));
        let stats_b = transpose(mat4x2<f32>(stats[at + ib.x], stats[at + ib.y], stats[at + ib.z], stats[at + ib.w]));
        let normal_a = stats_a[0]; let normal_b = stats_b[0];
        var delta_a = stats_a[1]; var delta_b = stats_b[1];
        if (j0 == 0u) {
          let ya = (y0 + ia * p.y[1].y) / 4u; let yb = (y0 + ib * p.y[1].y) / 4u;
          delta_a = vec4<f32>(); delta_b = vec4<f32>();
          for (var c = 0u; c < p.width / 4u; c++) {
            delta_a += vec4<f32>(1.0) * multiplied(mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c])), mat4x4<f32>(vec4<f32>(out4[ya.x + c]), vec4<f32>(out4[ya.y + c]), vec4<f32>(out4[ya.z + c]), vec4<f32>(out4[ya.w + c])));
            delta_b += vec4<f32>(1.0) * multiplied(mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c])), mat4x4<f32>(vec4<f32>(out4[yb.x + c]), vec4<f32>(out4[yb.y + c]), vec4<f32>(out4[yb.z + c]), vec4<f32>(out4[yb.w + c])));
          }
          stats[at + ia.x].y = delta_a.x; stats[at + ia.y].y = delta_a.y; stats[at + ia.z].y = delta_a.z; stats[at + ia.w].y = delta_a.w;
          stats[at + ib.x].y = delta_b.x; stats[at + ib.y].y = delta_b.y; stats[at + ib.z].y = delta_b.z; stats[at + ib.w].y = delta_b.w;
        }
        // [own key, row]
        var aa = mat4x4<f32>(); var ab = mat4x4<f32>(); var ba = mat4x4<f32>(); var bb = mat4x4<f32>();
        for (var c = 0u; c < p.depth / 4u; c++) {
          let xa = mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c])); let xb = mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c]));
          let wa = transpose(mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c]))); let wb = transpose(mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c])));
          aa = product(aa, xa, wa); ab = product(ab, xa, wb); ba = product(ba, xb, wa); bb = product(bb, xb, wb);
        }
        aa = weights(scores_by_key(aa, i0 + FOUR, j0 + FOUR, m0), rows(normal_a)); ab = weights(scores_by_key(ab, i0 + 4u + FOUR, j0 + FOUR, m0), rows(normal_b));
        ba = weights(scores_by_key(ba, i0 + FOUR, j0 + 4u + FOUR, m0), rows(normal_a)); bb = weights(scores_by_key(bb, i0 + 4u + FOUR, j0 + 4u + FOUR, m0), rows(normal_b));
        // One look at dy for both dv and the weights' gradients.
        var daa = mat4x4<f32>(); var dab = mat4x4<f32>(); var dba = mat4x4<f32>(); var dbb = mat4x4<f32>();
        for (var c = 0u; c < p.width / 4u; c++) {
          let wa = mat4x4<f32>(vec4<f32>(dy4[da.x + c]), vec4<f32>(dy4[da.y + c]), vec4<f32>(dy4[da.z + c]), vec4<f32>(dy4[da.w + c])); let wb = mat4x4<f32>(vec4<f32>(dy4[db.x + c]), vec4<f32>(dy4[db.y + c]), vec4<f32>(dy4[db.z + c]), vec4<f32>(dy4[db.w + c]));
          acc_v[2u * c] = product(product(acc_v[2u * c], aa, wa), ab, wb);
          acc_v[2u * c + 1u] = product(product(acc_v[2u * c + 1u], ba, wa), bb, wb);
          let xa = mat4x4<f32>(vec4<f32>(v4[va.x + c]), vec4<f32>(v4[va.y + c]), vec4<f32>(v4[va.z + c]), vec4<f32>(v4[va.w + c])); let xb = mat4x4<f32>(vec4<f32>(v4[vb.x + c]), vec4<f32>(v4[vb.y + c]), vec4<f32>(v4[vb.z + c]), vec4<f32>(v4[vb.w + c]));
          let ta = transpose(wa); let tb = transpose(wb);
          daa = product(daa, xa, ta); dab = product(dab, xa, tb); dba = product(dba, xb, ta); dbb = product(dbb, xb, tb);
        }
        daa = multiplied(aa, daa - rows(delta_a)); dab = multiplied(ab, dab - rows(delta_b));
        dba = multiplied(ba, dba - rows(delta_a)); dbb = multiplied(bb, dbb - rows(delta_b));
        for (var c = 0u; c < p.depth / 4u; c++) {
          let wa = mat4x4<f32>(vec4<f32>(q4[qa.x + c]), vec4<f32>(q4[qa.y + c]), vec4<f32>(q4[qa.z + c]), vec4<f32>(q4[qa.w + c])); let wb = mat4x4<f32>(vec4<f32>(q4[qb.x + c]), vec4<f32>(q4[qb.y + c]), vec4<f32>(q4[qb.z + c]), vec4<f32>(q4[qb.w + c]));
          acc_k[2u * c] = product(product(acc_k[2u * c], daa, wa), dab, wb);
          acc_k[2u * c + 1u] = product(product(acc_k[2u * c + 1u], dba, wa), dbb, wb);
        }
        // [row, own key]
        daa = transpose(daa); dab = transpose(dab); dba = transpose(dba); dbb = transpose(dbb);
        let dqa = (dq0 + ia * p.dq[1].y) / 4u; let dqb = (dq0 + ib * p.dq[1].y) / 4u;
        for (var c = 0u; c < p.depth / 4u; c++) {
          let wa = mat4x4<f32>(vec4<f32>(k4[ka.x + c]), vec4<f32>(k4[ka.y + c]), vec4<f32>(k4[ka.z + c]), vec4<f32>(k4[ka.w + c])) * p.scale; let wb = mat4x4<f32>(vec4<f32>(k4[kb.x + c]), vec4<f32>(k4[kb.y + c]), vec4<f32>(k4[kb.z + c]), vec4<f32>(k4[kb.w + c])) * p.scale;
          var ra = mat4x4<f32>(); var rb = mat4x4<f32>();
          if (j0 > 0u) {
            ra = mat4x4<f32>(vec4<f32>(d4[dqa.x + c]), vec4<f32>(d4[dqa.y + c]), vec4<f32>(d4[dqa.z + c]), vec4<f32>(d4[dqa.w + c]));
            rb = mat4x4<f32>(vec4<f32>(d4[dqb.x + c]), vec4<f32>(d4[dqb.y + c]), vec4<f32>(d4[dqb.z + c]), vec4<f32>(d4[dqb.w + c]));
          }
          ra = product(product(ra, daa, wa), dba, wb); rb = product(product(rb, dab, wa), dbb, wb);
          // Rows beyond the last stand for it and have nothing to add: the last itself is stored after them.
          d4[dqb.w + c] = vec4<T>(rb[3]); d4[dqb.z + c] = vec4<T>(rb[2]); d4[dqb.y + c] = vec4<T>(rb[1]); d4[dqb.x + c] = vec4<T>(rb[0]);
          d4[dqa.w + c] = vec4<T>(ra[3]); d4[dqa.z + c] = vec4<T>(ra[2]); d4[dqa.y + c] = vec4<T>(ra[1]); d4[dqa.x + c] = vec4<T>(ra[0]);
        }
      }
    }
    for (var r = 0u; r < min(8u, p.keys - j0); r++) {
      let dkj = (dk0 + (j0 + r) * p.dk[1].y) / 4u; let dvj = (dv0 + (j0 + r) * p.dv[1].y) / 4u;
      for (var c = 0u; c < p.depth / 4u; c++) { d4[dkj + c] = vec4<T>(acc_k[2u * c + r / 4u][r % 4u] * p.scale); }
      for (var c = 0u; c < p.width / 4u; c++) { d4[dvj + c] = vec4<T>(acc_v[2u * c + r / 4u][r % 4u]); }
    }
    for (var c = 0u; c < 2u * max(p.depth, p.width) / 4u; c++) { acc_k[c] = mat4x4<f32>(); acc_v[c] = mat4x4<f32>(); }
  }
}
