import type { ComponentChildren, JSX } from "preact";
import { elsewhere, go, write, type View } from "../url";

interface LinkProps {
  to: Partial<View>;
  children: ComponentChildren;
  class?: string;
  testid?: string;
  current?: boolean;
  label?: string;
  title?: string;
}

/** A link to another view: a click stays on the page, with a modifier key the browser does as it always does. */
export const Link = ({ to, children, class: name, testid, current, label, title }: LinkProps): JSX.Element => (
  <a
    href={write(elsewhere(to))}
    class={name}
    data-testid={testid}
    aria-current={current ? "page" : undefined}
    aria-label={label}
    title={title}
    onClick={(event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go(to);
    }}
  >
    {children}
  </a>
);
