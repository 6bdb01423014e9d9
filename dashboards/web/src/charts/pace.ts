/** Drawing that is spread over frames: a dozen charts at once would hold up the page's own. */

/** Enough for one chart as a rule: to raster what was drawn comes after this, and takes most of a frame's 16 ms. */
const BUDGET_MS = 1;

const waiting = new Set<() => void>();
let scheduled = false;

/** Draw in one of the next frames; a drawing that waits already is not done twice. */
export function soon(draw: () => void): void {
  waiting.add(draw);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(run);
}

export const forget = (draw: () => void): void => void waiting.delete(draw);

function run(): void {
  const start = performance.now();
  for (const draw of waiting) {
    waiting.delete(draw);
    draw();
    if (performance.now() - start > BUDGET_MS) break;
  }
  scheduled = waiting.size > 0;
  if (scheduled) requestAnimationFrame(run);
}
