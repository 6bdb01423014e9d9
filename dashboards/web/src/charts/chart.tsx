import { effect, useComputed, useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type uPlot from "uplot";
import type { Axis, Window } from "../api";
import { count, moment, number, quantity, seconds } from "../format";
import { near, statusText, title, told, type Mark } from "../marks";
import { lowerBound } from "../series";
import type { Source } from "./source";
import { paint } from "../theme";
import { Prose } from "../ui/prose";
import { show, view } from "../url";
import { columns, meanOver, rawColumn, summary, worth, type Columns } from "./columns";
import { ChartTools } from "./tools";
import { onChartKey } from "./keys";
import { forget, soon } from "./pace";
import { keysOf, type Panel } from "./panels";
import { build, update, type PlotState } from "./plot";

const HEIGHT = 216;
const MARK_REACH_PX = 8;
/** Rows of the table that says the same as the chart. */
const ROWS = 12;
/** Words for screen readers change less often than the drawing. */
const WORDS_MS = 4000;

interface Hover {
  marks: readonly Mark[];
  left: number;
  flip: boolean;
}

const isLog = (panel: Panel): boolean => panel.log !== view.value.flipped.includes(panel.key);

/** The shared stretch of x: what is zoomed into, or everything there is. */
const windowOf = (store: Source): { from: number; to: number } => view.peek().zoom ?? store.extent;

export function Chart({ store, panel }: { store: Source; panel: Panel }): JSX.Element {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const legend = useSignal<readonly (number | null)[]>([]);
  const span = useSignal(0);
  const words = useSignal<readonly string[]>([]);
  const rows = useSignal<readonly Row[]>([]);
  const hover = useSignal<Hover | null>(null);
  const log = useComputed(() => isLog(panel));
  const axis = useComputed(() => view.value.x);

  useEffect(() => {
    const element = host.current!;
    let drawn: Columns = { x: new Float64Array(), y: [] };
    const state: PlotState = { marks: [], picked: null, smoothed: false };
    store.enter(keysOf(panel));

    /** The legend under the cursor, or at the end of each line. */
    const read = (under: number | null | undefined): void => {
      const i = under ?? drawn.x.length - 1;
      span.value = Math.max(...panel.lines.map((_, k) => meanOver(drawn, panel, k, i)));
      legend.value = panel.lines.map(({ key }, k) =>
        worth(drawn, panel, k, i, under == null ? Infinity : store.endOf(key)),
      );
    };
    const onCursor = (u: uPlot): void => {
      const { idx, left = -1 } = u.cursor;
      read(idx);
      const here = left >= 0 && (u.over.matches(":hover") || document.activeElement === element);
      const reach = u.posToVal(MARK_REACH_PX, "x") - u.posToVal(0, "x");
      const marks = here ? near(state.marks, u.posToVal(left, "x"), reach) : [];
      hover.value = marks.length
        ? { marks, left: left + u.over.offsetLeft, flip: left > u.over.clientWidth / 2 }
        : null;
    };
    const zoom = (window: { from: number; to: number } | null): void => {
      show({ zoom: window });
      store.refine();
    };

    let stale = true;
    const rebuild = (): void => {
      plot.current?.destroy();
      const built = build(element, panel, axis.peek(), log.peek(), state, { zoom, cursor: onCursor }, HEIGHT, store.relative);
      built.over.addEventListener("click", () => {
        const version = hover.peek()?.marks[0]?.change.version;
        if (version) show({ mark: version, tab: "changes" });
      });
      plot.current = built;
      stale = false;
    };

    let spoken = -WORDS_MS;
    const draw = (): void => {
      if (!keysOf(panel).some((key) => store.series.has(key))) return; // nothing has been answered yet
      if (stale) rebuild();
      const { smooth, mark } = view.peek();
      const window = windowOf(store);
      drawn = columns(panel, store.series, window, smooth, log.peek(), store.held.peek());
      Object.assign(state, { marks: store.marks.peek(), picked: mark, smoothed: smooth > 0 });
      update(plot.current!, drawn, window);
      if (plot.current!.cursor.idx == null) read(null);
      if (drawn.x.length > 0 && performance.now() - spoken > WORDS_MS) {
        spoken = performance.now();
        rows.value = sampled(panel, drawn, window, axis.peek(), store);
        words.value = panel.lines.map((line, k) => {
          const facts = summary(drawn.x, drawn.y[rawColumn(panel, k)]!, window.from, window.to);
          const say = (v: number): string => quantity(v, panel.unit);
          return facts
            ? `${line.label}: now ${say(facts.last)}, lowest ${say(facts.min)}, highest ${say(facts.max)}`
            : `${line.label}: no data`;
        });
      }
    };
    const unstale = effect(() => {
      void [paint.value, axis.value, log.value];
      stale = true;
    });
    const undraw = effect(() => {
      void [store.frame.value, paint.value, view.value, log.value, store.held.value, store.marks.value];
      soon(draw);
    });

    const resize = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    resize.observe(element);
    return () => {
      resize.disconnect();
      store.leave(keysOf(panel));
      undraw();
      unstale();
      forget(draw);
      plot.current?.destroy();
    };
  }, [store, panel]);

  const marks = store.marks.value;
  // One step is no mean, though ranks may differ in it.
  const mean = span.value > (axis.value === "step" ? 1.5 : 0) ? `mean over ${stretch(span.value, axis.value)}` : undefined;
  return (
    <figure class="chart" data-testid="chart" data-chart={panel.key} data-marks={marks.length} data-events={marks.flatMap((mark) => mark.event ?? []).join(" ")}>
      <figcaption class={panel.lines.some((line) => line.shape === "shadow") ? "long" : undefined}>
        <h3 title={panel.title}>{panel.title}</h3>
        <ul class="legend" aria-hidden="true" title={mean}>
          {panel.lines.map((line, k) => (
            <li key={line.key} class={`series-${line.color} shape-${line.shape}`}>
              {panel.lines.length > 1 && <span>{line.label}</span>}
              <b class="num">{quantity(legend.value[k], panel.unit === "samples" ? "" : panel.unit)}</b>
            </li>
          ))}
          {mean && <li class="mean">{mean}</li>}
        </ul>
        <ChartTools store={store} panel={panel} log={log.value} plot={plot} />
      </figcaption>
      <div
        class="plot"
        ref={host}
        tabIndex={0}
        role="img"
        data-testid="plot"
        aria-label={`${panel.title} over ${axis.value}. ${words.value.join(". ")}. Plus and minus zoom, arrows move, 0 shows everything.`}
        onKeyDown={(event) => plot.current && onChartKey(event, plot.current, store)}
      />
      {hover.value && <MarkTip {...hover.value} />}
      <ChartTable panel={panel} axis={axis.value} rows={rows.value} marks={marks.length} />
    </figure>
  );
}

const stretch = (wide: number, axis: Axis): string =>
  axis === "time" ? seconds(wide) : `${count(wide)} ${axis === "step" ? "steps" : "samples"}`;

interface Row {
  x: string;
  values: readonly string[];
}

/** What the lines are worth at some places, evenly over the stretch that is shown. */
function sampled(panel: Panel, drawn: Columns, { from, to }: Window, axis: Axis, store: Source): Row[] {
  const { x } = drawn;
  const ends = panel.lines.map((line) => store.endOf(line.key));
  const say = (at: number): string => (axis !== "time" ? number(at, 7) : store.relative ? seconds(at) : moment(at, 1));
  const first = lowerBound(x, from);
  const last = Math.min(lowerBound(x, to), x.length - 1);
  const places = Array.from({ length: ROWS }, (_, k) => Math.round(first + ((last - first) * k) / (ROWS - 1)));
  return [...new Set(places)].map((i) => ({
    x: say(x[i]!),
    values: panel.lines.map((_, k) => {
      const held = worth(drawn, panel, k, i, ends[k]!);
      return held === null ? "" : quantity(held, panel.unit);
    }),
  }));
}

interface TableProps {
  panel: Panel;
  axis: Axis;
  rows: readonly Row[];
  marks: number;
}

/** The chart for those who cannot see it. */
const ChartTable = ({ panel, axis, rows, marks }: TableProps): JSX.Element => (
  <div class="visually-hidden">
    <table data-testid="chart-table">
      <caption>
        {panel.title}, as shown; {marks} changes are marked, listed under changes
      </caption>
      <thead>
        <tr>
          <th scope="col">{axis}</th>
          {panel.lines.map((line) => (
            <th key={line.key} scope="col">
              {line.label}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.x}>
            <th scope="row">{row.x}</th>
            {row.values.map((value, k) => (
              <td key={k}>{value}</td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  </div>
);

/** Who changed what here, and why. */
const MarkTip = ({ marks, left, flip }: Hover): JSX.Element => (
  <div class={`mark-tip ${flip ? "flip" : ""}`} style={{ left: `${left}px` }} role="tooltip" data-testid="mark-tip">
    {marks.slice(0, 3).map(({ change, isVoid, of }) => (
      <section key={`${of?.label}${change.id}`} class={isVoid ? "void" : undefined}>
        <header>
          {of && <span class={`swatch series-${of.color}`}>{of.label} </span>}
          <b>{title(change)}</b> {statusText(change)}
          {isVoid && ", void since the roll back"}
        </header>
        {told(change).map((c) => (
          <p key={c.what}>
            <b class="num">{c.what}</b> <span class="by">{c.by}</span>
            <br />
            <span class="reason">
              <Prose text={c.reason} />
            </span>
          </p>
        ))}
      </section>
    ))}
    {marks.length > 3 && <footer>and {number(marks.length - 3)} more here</footer>}
  </div>
);
