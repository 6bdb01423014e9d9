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

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  if (theme.value === "auto") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, theme.value);
  paint.value = paint.peek() + 1;
});
media.addEventListener("change", () => (paint.value += 1));

/** A design token's colour as the canvas needs it: `light-dark()` resolved by a real element. */
export function ink(token: string): string {
  const probe = document.createElement("i");
  probe.style.color = `var(--${token})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
