// Cross entropy of logits x [rows, classes] against labels [rows]: loss = ln Σ e^x - x[label], row by row.
//
// Backward: dx = (e^(x - ln Σ e^x) - 1 at the label) · dy / counted, and 0 in rows that are left out.
// One invocation owns a row. A label outside the classes makes the loss NaN: it cannot be seen before the launch.
// Limits assumed: 64 invocations, 4 buffers.

alias T = f32; // param
alias I = i32; // param
const HAS_IGNORED = 0u; // param
const WG = 64u;

struct Params {
  rows: u32,
  classes: u32,
  ignored: i32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read> labels: array<I>;
// (loss, 1) of a row that counts, (0, 0) of one that is left out.
@group(0) @binding(3) var<storage, read_write> losses: array<vec2<f32>>;
// (largest x, ln Σ e^(x - largest)) of a row.
@group(0) @binding(4) var<storage, read_write> norms: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> known: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<T>;
@group(0) @binding(5) var<storage, read> counted: array<f32>;
@group(0) @binding(6) var<storage, read_write> dx: array<T>;

fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
// Some adapters make a number of e^NaN.
fn weight(v: f32, m: f32) -> f32 {
  let d = v - m;
  return select(exp(d), d, is_nan(d));
}
fn is_ignored(label: I) -> bool { return HAS_IGNORED == 1u && label == I(p.ignored); }

@compute @workgroup_size(WG)
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let first = r * p.classes;
  var m = -3.4028234e38;
  var total = 0.0;
  for (var j = 0u; j < p.classes; j++) {
    let v = f32(x[first + j]);
    let larger = max(m, v);
    total = total * exp(m - larger) + weight(v, larger);
    m = larger;
  }
  let spread = select(log(total), total, is_nan(total));
  norms[r] = vec2<f32>(m, spread);
  let label = labels[r];
  var loss = vec2<f32>();
  if (!is_ignored(label)) {
    let c = u32(max(label, I(0)));
    let v = f32(x[first + min(c, p.classes - 1u)]);
    loss = vec2<f32>(m - v + spread, 1.0);
    if (label < I(0) || c >= p.classes) { loss.x = bitcast<f32>(p.rows | 0x7fc00000u); }
  }
  losses[r] = loss;
}

@compute @workgroup_size(WG)
fn rows_dx(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let r = (wg.y * groups.x + wg.x) * WG + lid;
  if (r >= p.rows) { return; }
  let first = r * p.classes;
  let label = labels[r];
  let g = select(f32(dy[0]) / counted[0], 0.0, is_ignored(label));
  for (var j = 0u; j < p.classes; j++) {
    let share = exp(f32(x[first + j]) - known[r].x - known[r].y);
    dx[first + j] = T((share - select(0.0, 1.0, I(j) == label)) * g);
  }
}
