import { expect, test } from "vitest";
import type { HyperParameter } from "../src/api";
import { steps } from "../src/run/waterfall";

const param = (over: Partial<HyperParameter>): HyperParameter => ({
  name: "lr",
  kind: "real",
  value: 0.004,
  base: 0.002,
  factors: [],
  owner: null,
  pin: null,
  min: 0,
  max: 1,
  choices: [],
  unit: "",
  text: "",
  version: 1,
  applied_version: 1,
  ...over,
});

test("equal factors are equally long, and lead from base to value", () => {
  const factors = [
    { by: "batch", value: 4, text: "" },
    { by: "warmup", value: 0.5, text: "" },
    { by: "plateau", value: 0.5, text: "" },
  ];
  const { parts, clamped } = steps(param({ value: 0.002, factors }));
  expect(parts.map((one) => one.tone)).toEqual(["base", "up", "down", "down"]);
  const [, up, first, second] = parts;
  expect(first!.to - first!.from).toBeCloseTo(second!.to - second!.from);
  expect(up!.to - up!.from).toBeCloseTo(2 * (first!.to - first!.from));
  expect(clamped).toBe(false);
});

test("a product beyond the bounds is told to be clamped", () => {
  expect(steps(param({ value: 1, factors: [{ by: "batch", value: 1000, text: "" }] })).clamped).toBe(true);
});

test("a factor of zero and a word are no trouble", () => {
  const { parts } = steps(param({ value: 0, factors: [{ by: "warmup", value: 0, text: "" }] }));
  for (const one of parts) expect(one.from >= 0 && one.to <= 100 && one.to > one.from).toBe(true);
  expect(steps(param({ kind: "choice", base: "sma", value: "sma" })).parts).toHaveLength(1);
});
