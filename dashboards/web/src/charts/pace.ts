/** Drawing that is spread over frames: a dozen charts at once would hold up the page's own. */

/** Of a frame's 16 ms the rest is the browser's. */
const BUDGET_MS = 6;

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
