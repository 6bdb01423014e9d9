import type { JSX } from "preact";
import type { Axis } from "../api";
import { moment, number } from "../format";
import type { RunStore } from "../run/store";
import { IconButton } from "../ui/icons";
import { show, view } from "../url";

const AXES: readonly Axis[] = ["step", "samples", "time"];

/** What holds for all charts at once: axis, smoothing, zoom. */
export function ChartBar({ store, many }: { store: RunStore; many: boolean }): JSX.Element {
  const { x, smooth, zoom, filter } = view.value;
  const say = (at: number): string => (x === "time" ? moment(at, 1) : number(at));
  const axis = (next: Axis): void => {
    // A stretch of steps is none of seconds.
    show({ x: next, zoom: null });
    void store.reloadSeries();
  };
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
          <IconButton name="reset" label="Show everything" testid="zoom-reset" onClick={() => show({ zoom: null })} />
        </span>
      ) : (
        <span class="hint">drag to zoom, double-click to reset</span>
      )}
    </div>
  );
}
