import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

const KEY = "trimtab-theme";
const media = matchMedia("(prefers-color-scheme: dark)");

export const theme = signal<Theme>((localStorage.getItem(KEY) as Theme | null) ?? "auto");

/** Counts up when colours change, so that canvases are drawn anew. */
export const paint = signal(0);

export const isDark = (): boolean => (theme.value === "auto" ? media.matches : theme.value === "dark");

export function toggle(): void {
  theme.value = isDark() ? "light" : "dark";
}

const inks = new Map<string, string>();

function repaint(): void {
  inks.clear();
  paint.value = paint.peek() + 1;
}

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  if (theme.value === "auto") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, theme.value);
  repaint();
});
media.addEventListener("change", repaint);

/** A design token's colour as the canvas needs it. */
export function ink(token: string): string {
  const color = inks.get(token) ?? resolved(token);
  inks.set(token, color);
  return color;
}

/** `light-dark()` is resolved by a real element, which makes the browser compute styles: once a token. */
function resolved(token: string): string {
  const probe = document.createElement("i");
  probe.style.color = `var(--${token})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
