import { useSignal, type Signal } from "@preact/signals";
import type { JSX } from "preact";
import * as api from "../api";
import { value } from "../format";
import { Prose } from "../ui/prose";
import { Reason } from "../ui/reason";
import type { Asked } from "../ui/version-trail";
import type { RunStore } from "./store";
import { bounds } from "./bounds";

export interface PinProps {
  store: RunStore;
  param: api.HyperParameter;
  revision: number;
  /** What was asked for here last; its card follows it when the form has closed. */
  asked: Signal<Asked | null>;
  onDone: () => void;
}

/** A person's value instead of the policies', and back. */
export function PinForm({ store, param, revision, asked, onDone }: PinProps): JSX.Element {
  const text = useSignal(param.pin ? String(param.pin.value) : "");
  const reason = useSignal("");
  const problem = useSignal<api.Problem | null>(null);

  const send = async (request: () => Promise<{ version: number }>): Promise<void> => {
    problem.value = null;
    asked.value = { version: null };
    try {
      asked.value = await request();
      await store.refreshHparams();
      onDone();
    } catch (error) {
      const failed = api.Problem.of(error);
      asked.value = null;
      problem.value =
        failed.status === 412
          ? new api.Problem(
              412,
              failed.code,
              "The values changed meanwhile. They are shown anew: look, then send again.",
            )
          : failed;
      if (failed.status === 412) await store.refreshHparams();
    }
  };
  const submit = (event: Event): void => {
    event.preventDefault();
    const typed = text.value.trim();
    const wanted = typed === "" ? null : param.kind === "choice" ? typed : Number(typed);
    if (typeof wanted === "number" && Number.isNaN(wanted)) {
      problem.value = new api.Problem(422, "", "", { value: "A number is needed." });
      return;
    }
    void send(() => api.pin(store.id, param.name, revision, wanted, reason.value));
  };
  const fields = problem.value?.fields ?? {};
  const errorId = `pin-error-${param.name}`;

  return (
    <form class="pin-form" onSubmit={submit} data-testid="pin-form" data-param={param.name} noValidate>
      <label class="field">
        <span>
          Value <small class="num">{param.kind === "choice" ? "" : bounds(param)}</small>
        </span>
        {param.kind === "choice" ? (
          <select value={text.value} onChange={(e) => (text.value = e.currentTarget.value)} data-testid="pin-value">
            <option value="">{value(param.value)} (present)</option>
            {param.choices.map((choice) => (
              <option key={choice} value={choice}>
                {choice}
              </option>
            ))}
          </select>
        ) : (
          <input
            inputMode={param.kind === "integer" ? "numeric" : "decimal"}
            autocomplete="off"
            value={text.value}
            placeholder={`${value(param.value)} (present value)`}
            aria-invalid={fields.value !== undefined}
            aria-describedby={errorId}
            data-testid="pin-value"
            onInput={(e) => (text.value = e.currentTarget.value)}
          />
        )}
      </label>
      <Reason
        reason={reason}
        testid="pin-reason"
        aria-invalid={fields.reason !== undefined}
        aria-describedby={errorId}
      />
      {problem.value && (
        <p class="field-error" role="alert" id={errorId} data-testid="pin-error">
          <Prose text={Object.values(fields).join(" ") || problem.value.message} />
        </p>
      )}
      <footer>
        {param.pin && (
          <button
            type="button"
            data-testid="unpin"
            onClick={() => void send(() => api.unpin(store.id, param.name, revision))}
          >
            Unpin
          </button>
        )}
        <span class="spring" />
        <button type="button" onClick={onDone}>
          Close
        </button>
        <button type="submit" class="solid" data-testid="pin-save">
          Pin
        </button>
      </footer>
    </form>
  );
}
