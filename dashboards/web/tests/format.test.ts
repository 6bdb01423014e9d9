import { expect, test } from "vitest";
import { ago, compact, number, percent, plain, quantity, seconds, spans, value } from "../src/format";
import { parse } from "../src/http";
import { visible } from "../src/runs/window";

test.each([
  [0.0113, "0.0113"],
  [2.31, "2.31"],
  [60000, "60,000"],
  [1024, "1,024"],
  [1234.5678, "1,235"],
  [999.96, "1,000"],
  [0, "0"],
  [1e-6, "1e−6"],
  [-0.5, "−0.5"],
  [3e12, "3e12"],
  [NaN, "NaN"],
  [Infinity, "∞"],
  [null, "–"],
  [undefined, "–"],
])("number %j reads %s", (of, text) => expect(number(of)).toBe(text));

test.each([
  [60000, "60k"],
  [1_115_394, "1.115M"],
  [500, "500"],
  [0.25, "0.25"],
])("count %d fits as %s", (of, text) => expect(compact(of)).toBe(text));

test.each([
  [3.1e-5, "31 µs"],
  [0.0203, "20.3 ms"],
  [1.5, "1.5 s"],
  [600, "10 min"],
  [10_000, "2.8 h"],
  [0, "0 s"],
])("%d s reads %s", (of, text) => expect(seconds(of)).toBe(text));

test("units follow the number", () => {
  expect(quantity(0.02, "s")).toBe("20 ms");
  expect(quantity(512, "samples")).toBe("512 samples");
  expect(quantity(null, "samples")).toBe("–");
});

test("values of every kind", () => {
  expect([0.1, "sma", true, null].map(value)).toEqual(["0.1", "sma", "true", "–"]);
});

test("shares and ages", () => {
  expect(percent(0.128)).toBe("13 %");
  expect(percent(0.0016)).toBe("0.2 %");
  expect(ago("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:01:06Z"))).toBe("66 s ago");
});

test("numbers that JSON does not know arrive as words", () => {
  expect(parse('{"a":["NaN",1,"Infinity","-Infinity"],"b":"text"}')).toEqual({
    a: [NaN, 1, Infinity, -Infinity],
    b: "text",
  });
});

test("only the rows in the window are drawn", () => {
  expect(visible(0, 880, 44, 5000)).toEqual({ from: 0, to: 28 });
  expect(visible(44_000, 880, 44, 5000)).toEqual({ from: 992, to: 1028 });
  expect(visible(-500, 400, 44, 5)).toEqual({ from: 0, to: 5 });
});

test("what stands between backticks is code", () => {
  expect(spans("Cut by `factor`, not `` x ``.").filter((one) => one.code)).toEqual([
    { text: "factor", code: true },
    { text: " x ", code: true },
  ]);
  expect(spans("`a")).toEqual([{ text: "`a", code: false }]);
  expect(plain("Cut by `factor`")).toBe("Cut by factor");
});
