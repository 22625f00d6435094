import { suite } from "uvu";
import * as assert from "uvu/assert";
import { rateOf } from "../../train/rate.js";

const test = suite("rate");
const near = (a: number, b: number) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);

test("constant and warm-up", () => {
  const flat = rateOf({ schedule: "constant", lr: 2e-5, steps: 10, warmupSteps: 5 });
  for (const s of [0, 3, 9]) assert.is(flat(s), 2e-5);
  const rise = rateOf({ schedule: "warmup", lr: 1, steps: 100, warmupSteps: 4 });
  assert.equal([0, 1, 2, 3, 4, 99].map(rise), [0.25, 0.5, 0.75, 1, 1, 1]);
  assert.is(rateOf({ schedule: "warmup", lr: 1, steps: 100 })(0), 1);
});

test("cosine ends at its final share", () => {
  const r = rateOf({ schedule: "cosine", lr: 2, steps: 101, finalFraction: 0.1 });
  near(r(0), 2);
  near(r(50), 1.1);
  near(r(100), 0.2);
  near(r(500), 0.2);
  const warm = rateOf({ schedule: "cosine", lr: 2, steps: 101, warmupSteps: 11 });
  near(warm(0), 2 / 11);
  near(warm(10), 2);
  near(warm(100), 0);
});

test("linear decay keeps lr for its first part and falls in a straight line", () => {
  const r = rateOf({
    schedule: "linear-decay",
    lr: 3e-3,
    steps: 1000,
    warmupSteps: 20,
    decayFraction: 0.3,
    finalFraction: 0.02,
  });
  near(r(19), 3e-3);
  near(r(699), 3e-3);
  assert.ok(r(700) < 3e-3);
  near(r(849), 3e-3 * (1 - 0.98 * 0.5));
  near(r(999), 6e-5);
  const falls = Array.from({ length: 300 }, (_, i) => r(699 + i) - r(700 + i));
  for (const d of falls) near(d, falls[0]);
});

test("a run shorter than its warm-up stays below lr, one of a single step is no division by zero", () => {
  const r = rateOf({ schedule: "linear-decay", lr: 1, steps: 3, warmupSteps: 20, finalFraction: 0.02 });
  for (const s of [0, 1, 2]) assert.ok(r(s) > 0 && r(s) <= 0.15);
  for (const schedule of ["cosine", "linear-decay"] as const)
    assert.ok(Number.isFinite(rateOf({ schedule, lr: 1, steps: 1 })(0)));
  assert.throws(() => rateOf({ schedule: "step" as "constant", lr: 1, steps: 1 }), /rate: unknown schedule "step"/);
});
test.run();
