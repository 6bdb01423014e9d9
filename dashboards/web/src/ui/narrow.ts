import { signal } from "@preact/signals";

/** A signal that follows a media query. */
function media(query: string): { readonly value: boolean } {
  const list = matchMedia(query);
  const matches = signal(list.matches);
  list.addEventListener("change", () => (matches.value = list.matches));
  return matches;
}

/** Widths at which the style sheets change the layout: the run's panel goes below, a row has room for more, rows become cards. */
export const stacked = media("(max-width: 1100px)");
export const roomy = media("(min-width: 1400px)");
export const cards = media("(max-width: 760px)");
