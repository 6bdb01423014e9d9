import { useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { Dialog } from "./dialog";

interface ConfirmProps {
  title: string;
  action: string;
  /** Prefix of the hooks for browser tests. */
  name: string;
  children: ComponentChildren;
  asksReason?: boolean;
  onClose: () => void;
  onConfirm: (reason: string) => void;
}

/** The one question before what cannot be taken back. */
export function Confirm({
  title,
  action,
  name,
  children,
  asksReason = false,
  onClose,
  onConfirm,
}: ConfirmProps): JSX.Element {
  const reason = useSignal("");
  return (
    <Dialog title={title} onClose={onClose} testid={`${name}-dialog`}>
      <p>{children}</p>
      <form method="dialog" onSubmit={() => onConfirm(reason.value)}>
        {asksReason && (
          <label class="field">
            <span>Reason</span>
            <input
              value={reason.value}
              placeholder="optional, kept in the journal"
              data-testid={`${name}-reason`}
              onInput={(event) => (reason.value = event.currentTarget.value)}
            />
          </label>
        )}
        <footer>
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="danger solid" data-testid={`${name}-confirm`}>
            {action}
          </button>
        </footer>
      </form>
    </Dialog>
  );
}
