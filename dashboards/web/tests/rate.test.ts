import { expect, test } from "vitest";
import { lastRate, Rate } from "../src/rate";

test("two steps are enough, also where each comes by itself", () => {
  const rate = new Rate();
  expect(rate.take([64], [100])).toBeNaN();
  expect(rate.take([128], [108])).toBe(8);
  expect(rate.take([], [])).toBe(8);
  expect(rate.take([192, 256], [112, 116])).toBeCloseTo(0.8 * 8 + 0.2 * 16);
});

test("going back to a checkpoint says nothing of the rate", () => {
  const rate = new Rate();
  expect(rate.take([64, 128], [0, 8])).toBe(8);
  expect(rate.take([64], [30])).toBe(8);
  expect(rate.take([128], [38])).toBe(8);
});

test("before two steps were seen the slowest rank's last step tells", () => {
  const rank = (step_time: number | null) => ({ rank: 0, step: 1, version: 1, step_time, dropped: 0 });
  const plan = { batch_size: 32, micro_batch: 8, accumulation: 2 };
  expect(lastRate({ plan, ranks: [rank(4), rank(8)] })).toBe(4);
  expect(lastRate({ plan, ranks: [rank(null)] })).toBeNaN();
  expect(lastRate({ plan: null, ranks: [] })).toBeNaN();
});
