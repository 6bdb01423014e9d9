import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import type { RollbackWish, Run } from "../api";
import { count } from "../format";
import { Confirm } from "../ui/confirm";

export interface RollBackProps {
  run: Run;
  onClose: () => void;
  onConfirm: (wish: RollbackWish) => void;
}

/** Which checkpoint to go back to, and whether the data since then is seen again. */
export function RollBack({ run, onClose, onConfirm }: RollBackProps): JSX.Element {
  // As they stood when the dialog opened: a list that moves under the hand is answered wrongly.
  const kept = useSignal([...run.checkpoints].reverse()).value;
  const step = useSignal(kept[0]!.step);
  const skip = useSignal(false);
  const fields = (
    <>
      <fieldset class="checkpoints">
        <legend>Checkpoint</legend>
        {kept.map((one) => (
          <label key={one.step} class="choice">
            <input
              type="radio"
              name="checkpoint"
              value={one.step}
              checked={step.value === one.step}
              data-testid="rollback-step"
              onChange={() => (step.value = one.step)}
            />
            <span class="num">
              <b>step {count(one.step)}</b>
              <small>
                {count(one.samples)} samples · v{one.version} · {count(run.progress.steps - one.step)} steps ago
              </small>
            </span>
          </label>
        ))}
      </fieldset>
      <label class="choice">
        <input
          type="checkbox"
          checked={skip.value}
          data-testid="rollback-skip"
          onChange={(event) => (skip.value = event.currentTarget.checked)}
        />
        <span>
          Skip the data seen since <small>go on with the samples that follow, not with those that led here</small>
        </span>
      </label>
    </>
  );
  return (
    <Confirm
      title={`Roll ${run.name} back?`}
      action="Roll back"
      name="rollback"
      asksReason
      fields={fields}
      onClose={onClose}
      onConfirm={(reason) => onConfirm({ step: step.value, skip_data: skip.value, reason })}
    >
      All ranks go back to a checkpoint at one step: model, optimizer, random states, the values and what the policies
      remember, as they were then. Pins stay. What was measured since is void.
    </Confirm>
  );
}
