import type { JSX } from "preact";
import { useMemo, useRef } from "preact/hooks";
import type { Axis } from "../api";
import { moment, number, seconds } from "../format";
import type { Source } from "./source";
import { IconButton } from "../ui/icons";
import { useShortcuts, type Shortcut } from "../ui/shortcuts";
import { show, view } from "../url";

/** What the key gives. */
const SMOOTH = 0.6;
const AXES: readonly Axis[] = ["step", "samples", "time"];

/** What holds for all charts at once: axis, smoothing, zoom. */
export function ChartBar({ store, many }: { store: Source; many: boolean }): JSX.Element {
  const { x, smooth, zoom, filter } = view.value;
  const say = (at: number): string => (x === "time" ? (store.relative ? seconds(at) : moment(at, 1)) : number(at));
  const axis = (next: Axis): void => {
    // A stretch of steps is none of seconds.
    show({ x: next, zoom: null });
    void store.reloadSeries();
  };
  const showAll = (): void => {
    show({ zoom: null });
    store.refine();
  };
  const search = useRef<HTMLInputElement>(null);
  useShortcuts(
    useMemo(
      (): Shortcut[] => [
        { keys: "a", what: "the next axis", run: () => axis(AXES[(AXES.indexOf(view.value.x) + 1) % AXES.length]!) },
        { keys: "s", what: "smoothing on or off", run: () => show({ smooth: view.value.smooth ? 0 : SMOOTH }) },
        { keys: "0", what: "show everything", run: showAll },
        { keys: "/", what: "filter the metrics", run: () => search.current?.focus() },
      ],
      [store],
    ),
  );
  return (
    <div class="chart-bar" role="group" aria-label="Chart settings">
      <div class="segmented" role="radiogroup" aria-label="Horizontal axis">
        {AXES.map((name) => (
          <label key={name} data-testid={`axis-${name}`}>
            <input type="radio" name="axis" checked={x === name} onChange={() => axis(name)} />
            <span>{name}</span>
          </label>
        ))}
      </div>
      <label class="slider">
        <span>smoothing</span>
        <input
          type="range"
          min="0"
          max="0.99"
          step="0.01"
          value={smooth}
          data-testid="smoothing"
          onInput={(event) => show({ smooth: Number(event.currentTarget.value) })}
        />
        <output class="num">{smooth.toFixed(2)}</output>
      </label>
      {many && (
        <input
          ref={search}
          type="search"
          placeholder="filter metrics"
          aria-label="Filter metrics"
          value={filter}
          data-testid="metric-filter"
          onInput={(event) => show({ filter: event.currentTarget.value })}
        />
      )}
      {zoom ? (
        <span class="zoomed" data-testid="zoom">
          <span class="num">
            {say(zoom.from)} – {say(zoom.to)}
          </span>
          <IconButton name="reset" label="Show everything" testid="zoom-reset" onClick={showAll} />
        </span>
      ) : (
        <span class="hint">drag to zoom, double-click to reset</span>
      )}
    </div>
  );
}
