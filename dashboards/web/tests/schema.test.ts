import { expect, test } from "vitest";
import type { JsonSchema } from "../src/api";
import { fields, parseText, range, toText, type Field } from "../src/schema";

const schema: JsonSchema = {
  type: "object",
  required: ["c"],
  $defs: { Rule: { enum: ["none", "sqrt"], type: "string" } },
  properties: {
    c: { type: "number", exclusiveMinimum: 0, default: 1, unit: "1", description: "Target." },
    max: { anyOf: [{ type: "integer", minimum: 1 }, { type: "null" }], default: null, unit: "samples" },
    rule: { $ref: "#/$defs/Rule", default: "sqrt", unit: "rule" },
    instead: { anyOf: [{ enum: ["batch"], type: "string" }, { type: "null" }], default: null },
    shrink: { type: "boolean", default: false },
    betas: { type: "array", items: { type: "number" }, default: [0.9, 0.95] },
    free: { anyOf: [{ type: "string" }, { type: "object" }] },
    either: { anyOf: [{ type: "integer" }, { type: "number" }], default: 2 },
    kind: { const: "noise_scale" },
  },
};
const all = fields(schema);
const field = (name: string): Field => all.find((f) => f.name === name)!;

test("every property has a field, but constants", () => {
  expect(all.map((f) => [f.name, f.kind])).toEqual([
    ["c", "number"],
    ["max", "integer"],
    ["rule", "choice"],
    ["instead", "choice"],
    ["shrink", "boolean"],
    ["betas", "list"],
    ["free", "json"],
    ["either", "number"],
  ]);
});

test("null is lifted out of anyOf, bounds and unit come along", () => {
  expect(field("max")).toMatchObject({ nullable: true, min: 1, above: false, unit: "samples" });
  expect(field("c")).toMatchObject({ nullable: false, required: true, min: 0, above: true, unit: "" });
});

test("references and their defaults are followed", () => {
  expect(field("rule")).toMatchObject({ choices: ["none", "sqrt"], initial: "sqrt", nullable: false });
  expect(field("instead")).toMatchObject({ choices: ["batch"], nullable: true });
});

test("text becomes the value that the schema asks for", () => {
  const parsed = (name: string, text: string): unknown => (parseText(field(name), text) as { value: unknown }).value;
  expect(parsed("c", "0.5")).toBe(0.5);
  expect(parsed("max", " ")).toBeNull();
  expect(parsed("shrink", "true")).toBe(true);
  expect(parsed("betas", "0.9, 0.99")).toEqual([0.9, 0.99]);
  expect(parsed("rule", "none")).toBe("none");
});

test.each([
  ["c", "", "A value is needed."],
  ["c", "x", "A number is needed."],
  ["c", "0", "Allowed: > 0."],
  ["max", "1.5", "A whole number is needed."],
  ["max", "0", "Allowed: ≥ 1."],
  ["free", "{", "This is not valid JSON."],
])("%s = %j is refused: %s", (name, text, error) => {
  expect(parseText(field(name), text)).toEqual({ error });
});

test("a value goes to text and back", () => {
  for (const [name, value] of [
    ["betas", [0.9, 0.95]],
    ["max", 4096],
    ["shrink", false],
    ["max", null],
  ] as const) {
    expect(parseText(field(name), toText(field(name), value))).toEqual({ value });
  }
});

test("ranges read as mathematics", () => {
  expect(range({ min: 0, max: 1, above: true, below: false })).toBe("0 < x ≤ 1");
  expect(range({ min: null, max: 5, above: false, below: true })).toBe("x < 5");
  expect(range({ min: null, max: null, above: false, below: false })).toBe("");
});
