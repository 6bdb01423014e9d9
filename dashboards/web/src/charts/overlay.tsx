import { effect } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { compact, number } from "../format";
import { ink, paint } from "../theme";
import type { overlay } from "../what-if";
import { axisFrame, DASH } from "./plot";

const HEIGHT = 150;

interface OverlayProps {
  title: string;
  data: ReturnType<typeof overlay>;
}

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
          series: [{}, { ...line, stroke: ink("series-2") }, { ...line, stroke: ink("series-1"), dash: DASH }],
          axes: [
            { ...axis, size: 26, values: ticks },
            { ...axis, size: 58, values: ticks },
          ],
          cursor: { show: false },
        },
        [data.x, data.was, data.would] as uPlot.AlignedData,
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
  const [was, would] = [data.was.at(-1), data.would.at(-1)].map((value) => number(value));
  return (
    <figure class="overlay" data-testid="overlay" data-param={title}>
      <figcaption>
        <h3>{title}</h3>
        <ul class="legend">
          <li class="series-2">
            <span>recorded</span>
            <b class="num">{was}</b>
          </li>
          <li class="series-1 shape-shadow">
            <span>would be</span>
            <b class="num">{would}</b>
          </li>
        </ul>
      </figcaption>
      <div ref={host} role="img" aria-label={`${title} over steps: recorded, now ${was}; would be, now ${would}`} />
    </figure>
  );
}
