import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { Dialog } from "./dialog";

export interface Shortcut {
  /** As `KeyboardEvent.key` has it; two after each other with a space between. */
  keys: string;
  what: string;
  run: (event: KeyboardEvent) => void;
}

const registered = signal<readonly (readonly Shortcut[])[]>([]);
const helping = signal(false);

/** How long the second key of two may take. */
const CHORD_MS = 1000;

const typing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) &&
  !/^(checkbox|radio|range)$/.test((target as HTMLInputElement).type);

/** Keys that work while the component is shown. */
export function useShortcuts(shortcuts: readonly Shortcut[]): void {
  useEffect(() => {
    registered.value = [...registered.peek(), shortcuts];
    return () => {
      registered.value = registered.peek().filter((one) => one !== shortcuts);
    };
  }, [shortcuts]);
}

export const help = (): void => void (helping.value = true);

/** Listens to the keyboard for all of them; `?` tells what there is. */
export function Shortcuts(): JSX.Element | null {
  useEffect(() => {
    let first = "";
    let since = 0;
    const press = (event: KeyboardEvent): void => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      if (typing(event.target) || document.querySelector("dialog[open]")) return;
      if (event.key === "?") return help();
      const keys = performance.now() - since < CHORD_MS ? `${first} ${event.key}` : event.key;
      const all = registered.peek().flat();
      const hit = all.find((one) => one.keys === keys) ?? all.find((one) => one.keys === event.key);
      [first, since] = hit ? ["", 0] : [event.key, performance.now()];
      if (!hit) return;
      event.preventDefault();
      hit.run(event);
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  if (!helping.value) return null;
  return (
    <Dialog title="Keys" onClose={() => (helping.value = false)} testid="keys">
      <dl class="keys">
        {[...registered.value.flat(), { keys: "?", what: "this list" }].map(({ keys, what }) => (
          <div key={keys}>
            <dt>
              {keys.split(" ").map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p class="quiet">
        In a chart: arrows move the cursor, with Shift the window; <kbd>+</kbd> <kbd>-</kbd> zoom, <kbd>0</kbd> shows all.
      </p>
      <footer>
        <button type="button" autoFocus onClick={(event) => event.currentTarget.closest("dialog")!.close()}>
          Close
        </button>
      </footer>
    </Dialog>
  );
}
