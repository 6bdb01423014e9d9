import uPlot from "uplot";
import type { Axis, Window } from "../api";
import { compact, moment, quantity, seconds } from "../format";
import type { Mark } from "../marks";
import { ink } from "../theme";
import { BAND_COLUMNS, LINE_COLUMNS, type Columns } from "./columns";
import { drawMarks } from "./flags";
import { isWouldBe, type Line, type Panel } from "./panels";

export interface PlotState {
  marks: readonly Mark[];
  picked: number | null;
  smoothed: boolean;
}

export interface PlotEvents {
  zoom: (window: Window | null) => void;
  cursor: (plot: uPlot) => void;
}

const AXIS_WIDTH = 58;
const FONT = "11px system-ui, sans-serif";

/** How every axis looks in the present theme. */
export const axisFrame = (): uPlot.Axis => ({
  stroke: ink("muted"),
  font: FONT,
  ticks: { show: false },
  grid: { stroke: ink("grid"), width: 1 },
});

/** A colour with some of its opacity taken. */
const faint = (color: string, alpha: number): string =>
  color.replace(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+).*$/, `rgba($1, $2, $3, ${alpha})`);

export function build(
  target: HTMLElement,
  panel: Panel,
  axis: Axis,
  log: boolean,
  state: PlotState,
  events: PlotEvents,
  height: number,
  /** Times count from zero. */
  relative: boolean,
): uPlot {
  const colors = [0, 1, 2, 3, 4, 5].map((i) => ink(`series-${i}`));
  const frame = axisFrame();
  const flags = { policy: ink("mark"), person: ink("mark-person"), bad: ink("bad"), resize: ink("accent"), text: ink("text"), muted: ink("muted"), ground: ink("surface"), series: colors };
  return new uPlot(
    {
      width: target.clientWidth,
      height,
      padding: [18, 10, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: axis === "time" && !relative },
        y: log ? { distr: 3, log: 10 } : {},
      },
      series: [
        {},
        ...bandSeries(panel),
        ...panel.lines.flatMap((line) => lineSeries(line, colors[line.color]!, state)),
      ],
      bands: bands(panel, colors),
      axes: [
        {
          ...frame,
          size: 26,
          values: (_, ticks, __, ___, step) => ticks.map(axis !== "time" ? compact : relative ? seconds : (t) => moment(t, step)),
        },
        {
          ...frame,
          size: AXIS_WIDTH,
          ...(log ? { grid: { ...frame.grid, filter: decades } } : {}),
          values: (_, ticks) =>
            ticks.map((t) => (t === null ? "" : panel.unit === "s" ? quantity(t, "s") : compact(t))),
        },
      ],
      cursor: {
        // Every chart shows the same stretch, so a position is the same x everywhere: by place, as a chart that waits for
        // its frame has yet the stretch of before. Dragging stays the own affair of each.
        sync: {
          key: "run",
          scales: [null, null],
          filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
        },
        drag: { x: true, y: false, setScale: false },
        points: { size: (u, i) => (isEdge(u.series[i]!) ? 0 : 6) },
        bind: {
          dblclick: () => () => {
            events.zoom(null);
            return null;
          },
        },
      },
      hooks: {
        setSelect: [
          (u) => {
            const { left, width } = u.select;
            if (width < 4) return;
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            events.zoom({ from: u.posToVal(left, "x"), to: u.posToVal(left + width, "x") });
          },
        ],
        setCursor: [events.cursor],
        draw: [(u) => drawMarks(u, state, panel.params, flags)],
      },
    },
    [[]],
    target,
  );
}

/** On a logarithmic axis only the powers of ten, unless the axis spans hardly more than one. */
function decades(_: uPlot, ticks: number[]): (number | null)[] {
  if (ticks[ticks.length - 1]! < 20 * ticks[0]!) return ticks;
  return ticks.map((tick) => (Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-6 ? tick : null));
}

/** The lowest and highest in a bucket, and the ends of an interval: drawn, but not pointed at. */
const EDGE = "edge";
const isEdge = (series: uPlot.Series): boolean => series.class === EDGE;

const bandSeries = (panel: Panel): uPlot.Series[] =>
  // `auto: false`: an interval without an upper end must not stretch the axis.
  panel.band
    ? Array.from({ length: BAND_COLUMNS }, () => ({
        class: EDGE,
        auto: false,
        stroke: "transparent",
        spanGaps: true, // intervals are published seldom, between steps that have none
        width: 0,
        points: { show: false },
      }))
    : [];

/** What would be, beside what is. */
export const DASH = [6, 4];

function lineSeries(line: Line, color: string, state: PlotState): uPlot.Series[] {
  const edge: uPlot.Series = {
    class: EDGE,
    stroke: faint(color, 0.35),
    width: 1,
    spanGaps: true,
    points: { show: false },
  };
  const dots = line.shape === "dots";
  const shadow = line.shape === "shadow";
  return [
    edge,
    edge,
    {
      stroke: () => (state.smoothed && line.shape === "line" ? faint(color, 0.28) : color),
      width: 1.5,
      spanGaps: !isWouldBe(line.key),
      points: { show: dots, size: 5, fill: color },
      ...(shadow ? { dash: DASH } : {}),
      ...(shadow || line.shape === "steps" ? { paths: uPlot.paths.stepped!({ align: 1 }) } : {}),
    },
    { stroke: () => (state.smoothed ? color : "transparent"), width: 2, spanGaps: true, points: { show: false } },
  ];
}

function bands(panel: Panel, colors: readonly string[]): uPlot.Band[] {
  const offset = 1 + (panel.band ? BAND_COLUMNS : 0);
  const spreads = panel.lines.map((line, k): uPlot.Band => {
    const low = offset + k * LINE_COLUMNS;
    return { series: [low + 1, low], fill: faint(colors[line.color]!, 0.2) };
  });
  return panel.band ? [{ series: [2, 1], fill: faint(colors[panel.band.color]!, 0.2) }, ...spreads] : spreads;
}

export function update(plot: uPlot, { x, y }: Columns, window: Window): void {
  plot.batch(() => {
    plot.setData([x, ...y] as uPlot.AlignedData, false);
    plot.setScale("x", { min: window.from, max: window.to });
  });
}
