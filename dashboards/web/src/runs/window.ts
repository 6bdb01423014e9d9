/** Rows drawn beyond either edge, so that a quick scroll meets no gap. */
const SPARE = 8;

/** Which of `total` rows of one height lie in a window that has scrolled `scrolled` pixels into them. */
export function visible(scrolled: number, height: number, row: number, total: number): { from: number; to: number } {
  const first = Math.floor(scrolled / row) - SPARE;
  const last = Math.ceil((scrolled + height) / row) + SPARE;
  const clamp = (i: number): number => Math.min(total, Math.max(0, i));
  return { from: clamp(first), to: clamp(last) };
}
