import type { JSX } from "preact";
import { MODES, type Mode } from "../api";

const MEANING: Readonly<Record<Mode, string>> = {
  active: "It decides, and what it decides is applied",
  shadow: "It decides, and nothing of it is applied",
  off: "It is not asked",
};

interface ModeProps {
  mode: Mode;
  label: string;
  disabled?: boolean;
  testid: string;
  onPick: (mode: Mode) => void;
}

/** Whether a policy acts, only says what it would do, or rests. Buttons: an arrow key must not switch a policy. */
export const ModeSwitch = ({ mode, label, disabled = false, testid, onPick }: ModeProps): JSX.Element => (
  <div class="modes" role="group" aria-label={label} data-testid={testid} data-mode={mode}>
    {MODES.map((one) => (
      <button
        key={one}
        type="button"
        title={MEANING[one]}
        aria-pressed={one === mode}
        disabled={disabled}
        data-testid={`${testid}-${one}`}
        onClick={() => one !== mode && onPick(one)}
      >
        {one}
      </button>
    ))}
  </div>
);
