import { useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { Dialog } from "./dialog";
import { Reason } from "./reason";

interface ConfirmProps {
  title: string;
  action: string;
  /** Prefix of the hooks for browser tests. */
  name: string;
  children: ComponentChildren;
  /** What else is to be said before. */
  fields?: ComponentChildren;
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
  fields,
  asksReason = false,
  onClose,
  onConfirm,
}: ConfirmProps): JSX.Element {
  const reason = useSignal("");
  return (
    <Dialog title={title} onClose={onClose} testid={`${name}-dialog`}>
      <p>{children}</p>
      <form method="dialog" onSubmit={() => onConfirm(reason.value)}>
        {fields}
        {asksReason && <Reason reason={reason} testid={`${name}-reason`} />}
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
