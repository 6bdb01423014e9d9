import { expect, test } from "vitest";
import { bucketWidth, columns, heldAt, meanOver, summary, valueAt, worth } from "../src/charts/columns";
import { constantText, keysOf, onlyValue, panels, shadowColors, stillConstant } from "../src/charts/panels";
import { Series } from "../src/series";

const noise = panels(["hp/batch_size", "noise_scale", "noise_scale_high", "noise_scale_low"])[0]!;

function filled(values: Record<string, number[]>): Map<string, Series> {
  return new Map(
    Object.entries(values).map(([key, column]) => {
      const series = new Series();
      column.forEach((value, i) => series.append(i + 1, value));
      return [key, series];
    }),
  );
}

test("built-in charts come first, and every metric has exactly one chart", () => {
  const keys = [
    "val_loss",
    "zeta",
    "hp/momentum",
    "grad_norm",
    "hp/lr",
    "loss",
    "noise_scale",
    "noise_scale_low",
    "noise_scale_high",
    "alpha",
  ];
  const all = panels(keys);
  expect(all.map((p) => p.key)).toEqual([
    "loss",
    "hp/lr",
    "hp/batch_size",
    "grad_norm",
    "hp/momentum",
    "alpha",
    "zeta",
  ]);
  expect(all.flatMap(keysOf).sort()).toEqual([...keys].sort());
});

test("a run without a validation loss has no empty line", () => {
  expect(panels(["loss"])[0]!.lines.map((l) => l.key)).toEqual(["loss"]);
});

test("an interval without an upper end goes out of sight, one that is undefined is a gap", () => {
  const series = filled({
    noise_scale: [NaN, 5, 6],
    noise_scale_low: [NaN, 2, 3],
    noise_scale_high: [NaN, Infinity, 9],
    "hp/batch_size": [4, 4, 8],
  });
  const { y } = columns(noise, series, { from: 1, to: 3 }, 0, true);
  expect(y[0]).toEqual([null, 2, 3]);
  expect(y[1]![0]).toBeNull();
  expect(y[1]![1]).toBeGreaterThan(1e9);
  expect(y[4]).toEqual([null, 5, 6]);
});

test("what is set and not measured is never smoothed", () => {
  const { y } = columns(noise, filled({ "hp/batch_size": [4, 4, 8] }), { from: 1, to: 3 }, 0.9, true);
  expect(y[8]).toEqual([4, 4, 8]);
  expect(y[9]).toEqual([null, null, null]);
});

test("a logarithmic axis leaves out what it cannot show", () => {
  const loss = panels(["loss"])[0]!;
  expect(columns(loss, filled({ loss: [1, 0, -2] }), { from: 1, to: 3 }, 0, true).y[2]).toEqual([1, null, null]);
});

test("bucket edges stay put while the window grows a little", () => {
  expect(bucketWidth({ from: 0, to: 1500 })).toBe(2);
  expect(bucketWidth({ from: 0, to: 1990 })).toBe(2);
  expect(bucketWidth({ from: 0, to: 2100 })).toBe(4);
});

test("the value under the cursor is the one that still holds there", () => {
  expect(valueAt([1, null, null, 4], 2)).toBe(1);
  expect(valueAt([null, 2], 0)).toBeNull();
});

test("beyond the end of a run its values hold no longer", () => {
  const x = Float64Array.of(10, 20, 30);
  expect([0, 1, 2].map((i) => heldAt(x, [1, null, null], i, 20))).toEqual([1, 1, null]);
  expect(heldAt(x, [1, null, null], 2, Infinity)).toBe(1);
});

test("a summary tells of the window only", () => {
  expect(summary(Float64Array.of(1, 2, 3, 4), [9, 5, null, 1], 2, 3)).toEqual({ last: 5, min: 5, max: 5 });
  expect(summary(Float64Array.of(1), [null], 0, 2)).toBeNull();
});

test("would-be values are drawn on the chart of their parameter, a colour for each policy", () => {
  const keys = [
    "hp/lr",
    "hp/clip",
    "shadow/cosine/lr",
    "shadow/plateau/lr",
    "shadow/plateau/clip",
    "shadow/plateau/gone",
  ];
  const all = panels(keys);
  expect(all.map((p) => p.lines.map((l) => [l.key, l.shape, l.color]))).toEqual([
    [
      ["hp/lr", "exact", 2],
      ["shadow/cosine/lr", "shadow", 1],
      ["shadow/plateau/lr", "shadow", 4],
    ],
    [
      ["hp/clip", "steps", 0],
      ["shadow/plateau/clip", "shadow", 4],
    ],
  ]);
  expect([...shadowColors(keys)]).toEqual([
    ["cosine", 1],
    ["plateau", 4],
  ]);
});

test("a would-be value holds to the end while its policy is in shadow", () => {
  const panel = panels(["hp/lr", "shadow/cosine/lr"])[0]!;
  const series = filled({ "hp/lr": [1, 1, 1], "shadow/cosine/lr": [0.5] });
  const line = (held: string[]): unknown => columns(panel, series, { from: 1, to: 3 }, 0.9, false, new Set(held)).y[6];
  expect(line(["shadow/cosine/lr"])).toEqual([0.5, 0.5, 0.5]);
  expect(line([])).toEqual([0.5, null, null]);
});

test("what a policy would set is a gap from its end on until the policy is in shadow again", () => {
  const panel = panels(["hp/lr", "shadow/cosine/lr"])[0]!;
  const series = filled({ "hp/lr": [1, 1, 1, 1, 1, 1] });
  const shadow = new Series();
  for (const [x, value] of [[1, 0.5], [3, NaN], [5, 0.2]] as const) shadow.append(x, value);
  series.set("shadow/cosine/lr", shadow);
  const drawn = columns(panel, series, { from: 1, to: 6 }, 0, false, new Set(["shadow/cosine/lr"]));
  expect(drawn.y[6]).toEqual([0.5, 0.5, null, null, 0.2, 0.2]);
  expect([1, 3, 5].map((i) => worth(drawn, panel, 1, i, Infinity))).toEqual([0.5, null, 0.2]);
  expect(worth(drawn, panel, 0, 3, Infinity)).toBe(1);
  shadow.append(6, NaN);
  const ended = columns(panel, series, { from: 1, to: 6 }, 0, false);
  expect(ended.y[6]).toEqual([0.5, 0.5, null, null, 0.2, null]);
  expect(worth(ended, panel, 1, 5, Infinity)).toBeNull();
});

test("a legend tells over how many steps its value is a mean, and nothing where it is one step's own", () => {
  const [loss] = panels(["loss", "val_loss"]);
  const many = Array.from({ length: 4096 }, (_, i) => Math.sin(i));
  const series = filled({ loss: many, val_loss: [1, 2] });
  const wide = columns(loss!, series, { from: 0, to: 4096 }, 0, false);
  expect(meanOver(wide, loss!, 0, wide.x.length - 2)).toBe(8);
  expect(meanOver(wide, loss!, 1, wide.x.length - 2)).toBe(0);
  const close = columns(loss!, series, { from: 0, to: 500 }, 0, false);
  expect(meanOver(close, loss!, 0, 400)).toBe(0);
});

test("a value is constant until it moves", () => {
  const before = new Map([["hp/beta1", 0.9]]);
  expect(stillConstant(before, { "hp/beta1": [0.9, 0.9], loss: [1] }, new Set())).toBe(before);
  expect(stillConstant(before, { "hp/beta1": [0.9, 0.8] }, new Set())).toEqual(new Map());
  const fresh = stillConstant(before, { "hp/a": [1, 1], "hp/b": [1, 2], "hp/c": [] }, new Set(["hp/a", "hp/b", "hp/c"]));
  expect([...fresh.keys()]).toEqual(["hp/beta1", "hp/a"]);
});

test("what is constant is told once, or for each run where they differ", () => {
  expect(onlyValue([2, 2], [2, 2])).toBe(2);
  expect(onlyValue([2, 2], [2, 3])).toBeNull();
  expect(onlyValue([], [])).toBeNull();
  const [panel] = panels(["hp/workers"]);
  const lines = ["a", "b", "c"].map((key) => ({ ...panel!.lines[0]!, key }));
  const told = (...values: number[]): string =>
    constantText({ ...panel!, lines }, new Map(lines.map(({ key }, i) => [key, values[i]!])));
  expect(told(2, 2, 2)).toBe("workers 2");
  expect(told(2, 2, 4)).toBe("workers 2 / 2 / 4");
});
