import { effect } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { compact, number } from "../format";
import { ink, paint } from "../theme";
import type { Overlaid } from "../what-if";
import { axisFrame, DASH } from "./plot";

const HEIGHT = 150;

interface OverlayProps {
  title: string;
  data: Overlaid;
}

/** Colours of what was, of what would have been, and of what policies in shadow would have set. */
const COLORS = [2, 1, 4, 3, 0, 5] as const;
const color = (k: number): number => COLORS[k % COLORS.length]!;

/** A value as it was, and dashed as it would have been. */
export function Overlay({ title, data }: OverlayProps): JSX.Element {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = host.current!;
    let plot: uPlot | null = null;
    const undraw = effect(() => {
      paint.value;
      plot?.destroy();
      const axis = axisFrame();
      const ticks = (_: uPlot, at: number[]): string[] => at.map(compact);
      const line = { width: 1.5, spanGaps: true, points: { show: false }, paths: uPlot.paths.stepped!({ align: 1 }) };
      plot = new uPlot(
        {
          width: element.clientWidth,
          height: HEIGHT,
          padding: [8, 10, 0, 0],
          legend: { show: false },
          scales: { x: { time: false } },
          series: [
            {},
            ...data.lines.map((_, k) => ({ ...line, stroke: ink(`series-${color(k)}`), ...(k > 0 ? { dash: DASH } : {}) })),
          ],
          axes: [
            { ...axis, size: 26, values: ticks },
            { ...axis, size: 58, values: ticks },
          ],
          cursor: { show: false },
        },
        [data.x, ...data.lines.map((one) => one.y)] as uPlot.AlignedData,
        element,
      );
    });
    const resize = new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: HEIGHT }));
    resize.observe(element);
    return () => {
      resize.disconnect();
      undraw();
      plot?.destroy();
    };
  }, [data]);
  const ends = data.lines.map(({ label, y }) => ({ label, end: number(y.at(-1)) }));
  return (
    <figure class="overlay" data-testid="overlay" data-param={title}>
      <figcaption>
        <h3>{title}</h3>
        <ul class="legend">
          {ends.map(({ label, end }, k) => (
            <li key={label} class={`series-${color(k)} ${k > 0 ? "shape-shadow" : ""}`}>
              <span>{label}</span>
              <b class="num">{end}</b>
            </li>
          ))}
        </ul>
      </figcaption>
      <div ref={host} role="img" aria-label={`${title} over steps: ${ends.map(({ label, end }) => `${label}, now ${end}`).join("; ")}`} />
    </figure>
  );
}
