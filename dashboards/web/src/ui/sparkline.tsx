import type { JSX } from "preact";

const WIDTH = 88;
const HEIGHT = 22;

/** The last values of a trace as one small line; its numbers stand beside it. */
export function Sparkline({ values }: { values: readonly number[] }): JSX.Element | null {
  const shown = values.filter(Number.isFinite);
  if (shown.length < 2) return <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true" />;
  const min = Math.min(...shown);
  const span = Math.max(...shown) - min || 1;
  const place = (value: number, i: number): string =>
    `${((i / (shown.length - 1)) * (WIDTH - 4) + 2).toFixed(1)} ${(HEIGHT - 3 - ((value - min) / span) * (HEIGHT - 6)).toFixed(1)}`;
  const points = shown.map(place);
  const [x, y] = points[points.length - 1]!.split(" ");
  return (
    <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
      <polyline points={points.join(" ")} />
      <circle cx={x} cy={y} r="1.8" />
    </svg>
  );
}
