import { expect, test } from "vitest";
import { align, lowerBound, Series, smooth } from "../src/series";

const buckets = (
  x: number[],
  values = x,
): { x: number[]; last: number[]; min: number[]; max: number[]; mean: number[] } => ({
  x,
  last: values,
  min: values,
  max: values,
  mean: values,
});

test("a live point that the first load already brought is not doubled", () => {
  const series = Series.of(buckets([1, 2, 3]));
  for (const x of [2, 3, 4]) series.append(x, 10 * x);
  expect([...series.column("x")]).toEqual([1, 2, 3, 4]);
  expect([...series.column("last")]).toEqual([1, 2, 3, 40]);
});

test("old points are merged in pairs, extremes survive, the newest stay single", () => {
  const series = new Series();
  for (let i = 0; i < 100_000; i++) series.append(i, i === 1234 ? 99 : 0);
  expect(series.length).toBeLessThanOrEqual(40_000);
  expect(Math.max(...series.column("max"))).toBe(99);
  expect([...series.column("x").slice(-3)]).toEqual([99_997, 99_998, 99_999]);
  expect(series.column("x").every((x, i, all) => i === 0 || x > all[i - 1]!)).toBe(true);
});

test("finer buckets take the place of those that they cover, and coarser ones do not", () => {
  const series = Series.of(buckets([0, 10, 20, 30]));
  series.refine(buckets([10, 12, 14, 16, 18, 20]));
  expect([...series.column("x")]).toEqual([0, 10, 12, 14, 16, 18, 20, 30]);
  series.refine(buckets([10, 20]));
  expect(series.length).toBe(8);
});

test("thinning keeps extremes, the last value and the mean of each bucket", () => {
  const series = new Series();
  [5, 1, 9, 2, 4].forEach((value, x) => series.append(x, value));
  const thin = series.thin(4);
  expect([...thin.column("x")]).toEqual([3, 4]);
  expect([...thin.column("min")]).toEqual([1, 4]);
  expect([...thin.column("max")]).toEqual([9, 4]);
  expect([...thin.column("last")]).toEqual([2, 4]);
  expect([...thin.column("mean")]).toEqual([4.25, 4]);
});

test("an undefined point does not hide its neighbours' extremes", () => {
  const series = new Series();
  [NaN, 3, NaN, 1].forEach((value, x) => series.append(x, value));
  const thin = series.thin(8);
  expect([thin.column("min")[0], thin.column("max")[0], thin.column("last")[0]]).toEqual([1, 3, 1]);
});

test("smoothing leaves a constant as it is, from the first point on", () => {
  const x = [0, 1, 2, 3, 50];
  expect([...smooth(x, [7, 7, 7, 7, 7], 0.9, 50)].map((v) => Number(v.toFixed(9)))).toEqual([7, 7, 7, 7, 7]);
});

test("smoothing forgets by distance along x, not by number of points", () => {
  const dense = Array.from({ length: 101 }, (_, i) => i);
  const sparse = [0, 100];
  const step = (x: number): number => (x === 0 ? 0 : 1);
  const end = (x: number[]): number => smooth(x, x.map(step), 0.9, 10_000).at(-1)!;
  expect(end(dense)).toBeGreaterThan(0.6);
  expect(end(sparse)).toBeGreaterThan(0.6);
});

test("smoothing passes over what is not finite", () => {
  const out = smooth([0, 1, 2], [1, NaN, 1], 0.5, 2);
  expect(Number.isNaN(out[1]!)).toBe(true);
  expect(out[2]).toBeCloseTo(1);
});

test("axes are joined once, in order", () => {
  const { x, at } = align([Float64Array.of(1, 2, 4), Float64Array.of(2, 3)]);
  expect([...x]).toEqual([1, 2, 3, 4]);
  expect(at.map((places) => [...places])).toEqual([
    [0, 1, 3],
    [1, 2],
  ]);
});

test("lowerBound finds the first element that is not below", () => {
  expect([0, 2, 3, 9].map((v) => lowerBound([1, 3, 5], v))).toEqual([0, 1, 1, 3]);
});
