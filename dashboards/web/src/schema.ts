/** From a policy's JSON Schema to form fields, and from what was typed back to values. */
import type { JsonSchema } from "./api";
import { number } from "./format";

export type FieldKind = "number" | "integer" | "boolean" | "choice" | "text" | "list" | "json";

export interface Field {
  name: string;
  label: string;
  kind: FieldKind;
  nullable: boolean;
  required: boolean;
  choices: readonly unknown[];
  min: number | null;
  max: number | null;
  /** The bound itself is not allowed. */
  above: boolean;
  below: boolean;
  unit: string;
  description: string;
  initial: unknown;
}

/** Follow `$ref` and single `allOf`, and lift `null` out of `anyOf`. */
function resolve(schema: JsonSchema, root: JsonSchema): { schema: JsonSchema; nullable: boolean } {
  const target = schema.$ref ? root.$defs?.[schema.$ref.split("/").pop() ?? ""] : schema.allOf?.[0];
  if (target) return resolve({ ...target, ...without(schema, "$ref", "allOf") }, root);
  if (!schema.anyOf) return { schema, nullable: false };
  const options = schema.anyOf.filter((option) => option.type !== "null");
  const [only, ...others] = options;
  const nullable = options.length < schema.anyOf.length;
  if (options.every((option) => option.type === "number" || option.type === "integer")) {
    return { schema: { ...(options.find((o) => o.type === "number") ?? only), ...without(schema, "anyOf") }, nullable };
  }
  if (!only || others.length) return { schema: without(schema, "anyOf"), nullable };
  return { schema: { ...resolve(only, root).schema, ...without(schema, "anyOf") }, nullable };
}

function without(schema: JsonSchema, ...names: (keyof JsonSchema)[]): JsonSchema {
  return Object.fromEntries(Object.entries(schema).filter(([name]) => !names.includes(name as keyof JsonSchema)));
}

function kindOf(schema: JsonSchema): FieldKind {
  if (schema.enum) return "choice";
  if (schema.type === "array") return schema.items?.type === "object" ? "json" : "list";
  if (schema.type === "number" || schema.type === "integer" || schema.type === "boolean") return schema.type;
  return schema.type === "string" ? "text" : "json";
}

export function fields(root: JsonSchema): Field[] {
  const required = new Set(root.required);
  return Object.entries(root.properties ?? {})
    .filter(([, property]) => property.const === undefined)
    .map(([name, property]) => {
      const { schema, nullable } = resolve(property, root);
      const kind = kindOf(schema);
      return {
        name,
        label: name.replaceAll("_", " "),
        kind,
        nullable,
        required: required.has(name),
        choices: schema.enum ?? [],
        min: schema.minimum ?? schema.exclusiveMinimum ?? null,
        max: schema.maximum ?? schema.exclusiveMaximum ?? null,
        above: schema.exclusiveMinimum !== undefined,
        below: schema.exclusiveMaximum !== undefined,
        unit: kind === "number" || kind === "integer" || kind === "list" ? (schema.unit ?? "").replace(/^1$/, "") : "",
        description: schema.description ?? "",
        initial: schema.default,
      };
    });
}

/** What the input shows for a value. */
export function toText(field: Field, value: unknown): string {
  if (value === null || value === undefined) return "";
  if (field.kind === "list" && Array.isArray(value)) return value.join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export type Parsed = { value: unknown } | { error: string };

export function parseText(field: Field, text: string): Parsed {
  const typed = text.trim();
  if (typed === "") {
    if (field.nullable) return { value: null };
    return field.kind === "text" ? { value: "" } : { error: "A value is needed." };
  }
  switch (field.kind) {
    case "number":
    case "integer":
      return checkNumber(field, Number(typed));
    case "boolean":
      return { value: typed === "true" };
    case "choice":
      return { value: field.choices.find((choice) => String(choice) === typed) };
    case "list":
      return {
        value: typed
          .split(",")
          .map((part) => part.trim())
          .filter(Boolean)
          .map((p) => (Number.isNaN(Number(p)) ? p : Number(p))),
      };
    case "json":
      try {
        return { value: JSON.parse(typed) as unknown };
      } catch {
        return { error: "This is not valid JSON." };
      }
    case "text":
      return { value: text };
  }
}

function checkNumber(field: Field, value: number): Parsed {
  if (Number.isNaN(value)) return { error: "A number is needed." };
  if (field.kind === "integer" && !Number.isInteger(value)) return { error: "A whole number is needed." };
  const low = field.min !== null && (field.above ? value <= field.min : value < field.min);
  const high = field.max !== null && (field.below ? value >= field.max : value > field.max);
  return low || high ? { error: `Allowed: ${range(field)}.` } : { value };
}

/** The allowed range in mathematical words: `0 < x ≤ 1`. */
export function range({ min, max, above, below }: Pick<Field, "min" | "max" | "above" | "below">): string {
  if (min === null && max === null) return "";
  const left = min === null ? "" : `${number(min)} ${above ? "<" : "≤"} `;
  const right = max === null ? "" : ` ${below ? "<" : "≤"} ${number(max)}`;
  if (!right) return `${above ? ">" : "≥"} ${number(min)}`;
  return `${left}x${right}`;
}

/** What was typed into all fields, as parameters; what is wrong, by the field's name. */
export function collect(
  all: readonly Field[],
  texts: Readonly<Record<string, string>>,
): { params: Record<string, unknown>; wrong: Record<string, string> } {
  const params: Record<string, unknown> = {};
  const wrong: Record<string, string> = {};
  for (const field of all) {
    const parsed = parseText(field, texts[field.name] ?? "");
    if ("error" in parsed) wrong[field.name] = parsed.error;
    else params[field.name] = parsed.value;
  }
  return { params, wrong };
}

/** What is wrong with the other fields, once one is edited. */
export const corrected = (errors: Readonly<Record<string, string>>, field: string): Record<string, string> =>
  Object.fromEntries(Object.entries(errors).filter(([name]) => name !== field));
