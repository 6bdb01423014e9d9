import type { Signal } from "@preact/signals";
import type { InputHTMLAttributes, JSX } from "preact";

type ReasonProps = InputHTMLAttributes<HTMLInputElement> & {
  reason: Signal<string>;
  testid: string;
};

/** Why somebody does what they do. */
export const Reason = ({ reason, testid, ...rest }: ReasonProps): JSX.Element => (
  <label class="field">
    <span>Reason</span>
    <input
      {...rest}
      value={reason.value}
      placeholder="optional, kept in the journal"
      data-testid={testid}
      onInput={(event) => (reason.value = event.currentTarget.value)}
    />
  </label>
);
