import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openSafetensors } from "../../model/safetensors.js";
import {
  type DiffusionTables,
  diffusionTables,
  flowTimes,
  linearBetas,
  roundHalfEven,
  shiftTime,
  spacedTimesteps,
} from "../../model/schedule.js";

const test = suite("schedule");
const goldens = await openSafetensors("test/goldens/iddpm_tables.safetensors");

const FIELDS: [keyof DiffusionTables, string][] = [
  ["betas", "betas"],
  ["logBetas", "log_betas"],
  ["alphasCumprod", "alphas_cumprod"],
  ["alphasCumprodPrev", "alphas_cumprod_prev"],
  ["alphasCumprodNext", "alphas_cumprod_next"],
  ["sqrtAlphasCumprod", "sqrt_alphas_cumprod"],
  ["sqrtOneMinusAlphasCumprod", "sqrt_one_minus_alphas_cumprod"],
  ["sqrtRecipAlphasCumprod", "sqrt_recip_alphas_cumprod"],
  ["sqrtRecipm1AlphasCumprod", "sqrt_recipm1_alphas_cumprod"],
  ["posteriorVariance", "posterior_variance"],
  ["posteriorLogVarianceClipped", "posterior_log_variance_clipped"],
  ["posteriorMeanCoef1", "posterior_mean_coef1"],
  ["posteriorMeanCoef2", "posterior_mean_coef2"],
];

const CASES: [string, DiffusionTables][] = [
  ["full1000", diffusionTables()],
  ["resp100", diffusionTables(linearBetas(), 100)],
  ["resp250", diffusionTables(linearBetas(), "250")],
  ["resp10", diffusionTables(linearBetas(), [10])],
];

/** Largest relative difference, absolute where the wanted number is 0. */
function worst(got: Float64Array, want: Float64Array): number {
  assert.is(got.length, want.length);
  let most = 0;
  for (let i = 0; i < want.length; i++)
    most = Math.max(most, Math.abs(got[i] - want[i]) / (want[i] === 0 ? 1 : Math.abs(want[i])));
  return most;
}

for (const [name, tables] of CASES)
  test(`${name} equals the reference to 1e-12`, async () => {
    let compared = 0;
    for (const [field, golden] of FIELDS) {
      if (!goldens.has(`${name}.${golden}`)) continue;
      const difference = worst(tables[field] as Float64Array, await goldens.float64(`${name}.${golden}`));
      assert.ok(difference <= 1e-12, `${name}.${golden}: ${difference}`);
      compared++;
    }
    assert.is(compared, name === "resp250" ? 1 : FIELDS.length);
    assert.equal(tables.timestepMap, await goldens.int32(`${name}.timestep_map`));
  });

test("kept steps equal the reference's exactly", async () => {
  assert.equal(spacedTimesteps(1000, "ddim50"), await goldens.int32("ddim50.timestep_map"));
  const sections = await goldens.int32("sections_10_15_20_of_300.timestep_map");
  assert.equal(spacedTimesteps(300, [10, 15, 20]), sections);
  assert.equal(spacedTimesteps(300, "10,15,20"), sections);
});

test("halves round to the even integer", () => {
  assert.equal([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, 2.4999, 2.5001].map(roundHalfEven), [0, 2, 2, 4, -0, -2, 2, 3]);
  // 999 / 6 = 166.5: every second step is a tie (Python: 0, 166, 333, 500, 666, 832, 999).
  assert.equal([...spacedTimesteps(1000, 7)], [0, 166, 333, 500, 666, 832, 999]);
});

test("one kept step has finite tables", () => {
  const tables = diffusionTables(linearBetas(), 1);
  assert.equal([...tables.timestepMap], [0]);
  for (const [field] of FIELDS)
    for (const value of tables[field] as Float64Array) assert.ok(Number.isFinite(value), `${field}: ${value}`);
});

test("impossible respacings are refused", () => {
  assert.throws(() => spacedTimesteps(1000, "ddim999"), /no integer stride: "ddim999" of 1000 steps/);
  assert.throws(() => spacedTimesteps(100, 101), /section too short: 101 steps asked of 100/);
  assert.throws(() => spacedTimesteps(100, "10,x"), /bad counts: "10,x"/);
  assert.throws(() => spacedTimesteps(100, 0), /bad counts: 0/);
  assert.throws(() => linearBetas(20), /too few steps: 20/);
  assert.throws(() => linearBetas(2.5), /bad step count: 2.5/);
});

test("flow times equal the PyTorch sampler's", () => {
  const want = [
    0.9998749531074154, 0.9754395383170045, 0.947139753801593, 0.9143754909662215, 0.8750644440625537,
    0.8276123648776788, 0.7691982229744023, 0.6955273857928725, 0.5997248968363136, 0.47172859450726984,
    0.287171439780306, 0.0019970044932601095, 0,
  ];
  assert.ok(worst(flowTimes(12), Float64Array.from(want)) < 1e-15);
  assert.equal([...flowTimes(1, 1)], [0.9995, 0]);
  assert.is(shiftTime(1, 4), 1);
  assert.is(shiftTime(0.5, 4), 0.8);
  assert.throws(() => flowTimes(0), /bad step count: 0/);
  assert.throws(() => flowTimes(4, 0), /bad shift: 0/);
});

test.run();
