import type { JSX } from "preact";
import { plain } from "../format";
import { Prose } from "../ui/prose";
import { range, toText, type Field } from "../schema";

interface SchemaFieldProps {
  field: Field;
  /** What the field belongs to, where there are several forms. */
  within: string;
  text: string;
  error: string;
  onInput: (text: string) => void;
}

/** One field of a form made from a schema, with its unit, range and description. */
export function SchemaField({ field, within, text, error, onInput }: SchemaFieldProps): JSX.Element {
  const id = `field-${within}-${field.name}`;
  const limits = range(field);
  const shared = {
    "data-field": field.name,
    "aria-describedby": `${id}-about`,
    "aria-invalid": error !== "",
    title: plain(field.description),
  };
  return (
    <div class={`field kind-${field.kind}`}>
      <label>
        <span>
          {field.label}
          {field.unit && <small> {field.unit}</small>}
        </span>
        <Input field={field} text={text} shared={shared} onInput={onInput} />
      </label>
      <p id={`${id}-about`} class={error ? "field-error" : "about"} data-error={error ? field.name : undefined}>
        {error ? (
          <Prose text={error} />
        ) : (
          <>
            {limits && <b class="num">{limits} </b>}
            <Prose text={field.description} />
          </>
        )}
      </p>
    </div>
  );
}

type InputProps = Omit<SchemaFieldProps, "error" | "within"> & { shared: Readonly<Record<string, string | boolean>> };

function Input({ field, text, shared, onInput }: InputProps): JSX.Element {
  const blank = field.nullable ? "none" : "";
  const choose = (values: readonly unknown[]): JSX.Element => (
    <select {...shared} value={text} onChange={(e) => onInput(e.currentTarget.value)}>
      {field.nullable && <option value="">none</option>}
      {values.map((choice) => (
        <option key={String(choice)} value={String(choice)}>
          {String(choice)}
        </option>
      ))}
    </select>
  );
  switch (field.kind) {
    case "choice":
      return choose(field.choices);
    case "boolean":
      return field.nullable ? (
        choose([true, false])
      ) : (
        <input
          {...shared}
          type="checkbox"
          checked={text === "true"}
          onChange={(e) => onInput(String(e.currentTarget.checked))}
        />
      );
    case "json":
      return <textarea {...shared} rows={3} value={text} onInput={(e) => onInput(e.currentTarget.value)} />;
    case "number":
    case "integer":
      return (
        <input
          {...shared}
          type="number"
          step={field.kind === "integer" ? 1 : "any"}
          min={field.min ?? undefined}
          max={field.max ?? undefined}
          value={text}
          placeholder={blank || toText(field, field.initial)}
          onInput={(e) => onInput(e.currentTarget.value)}
        />
      );
    default:
      return <input {...shared} value={text} placeholder={blank} onInput={(e) => onInput(e.currentTarget.value)} />;
  }
}
