import type uPlot from "uplot";
import type { Window } from "../api";
import type { RunStore } from "../run/store";
import { show, view } from "../url";

const ZOOM = 0.6;
const NUDGE_PX = 8;

function zoomTo(store: RunStore, zoom: Window | null): void {
  show({ zoom });
  store.refine();
}

/** A chart without a mouse: arrows move the cursor, with Shift the window; + and − zoom; 0 and Escape show all. */
export function onChartKey(event: KeyboardEvent, plot: uPlot, store: RunStore): void {
  const { from, to } = view.value.zoom ?? store.extent;
  const span = to - from;
  const left = plot.cursor.left ?? -1;
  const at = left >= 0 ? plot.posToVal(left, "x") : (from + to) / 2;
  const direction = event.key === "ArrowLeft" ? -1 : 1;
  switch (event.key) {
    case "+": case "=":
      zoomTo(store, { from: at - (at - from) * ZOOM, to: at + (to - at) * ZOOM });
      break;
    case "-": {
      const wide = { from: Math.max(store.extent.from, at - (at - from) / ZOOM), to: Math.min(store.extent.to, at + (to - at) / ZOOM) };
      zoomTo(store, wide.from <= store.extent.from && wide.to >= store.extent.to ? null : wide);
      break;
    }
    case "0": case "Escape":
      zoomTo(store, null);
      break;
    case "ArrowLeft": case "ArrowRight":
      if (event.shiftKey) zoomTo(store, { from: from + (direction * span) / 10, to: to + (direction * span) / 10 });
      else plot.setCursor({ left: Math.max(0, (left < 0 ? plot.over.clientWidth / 2 : left) + direction * NUDGE_PX), top: 10 });
      break;
    default:
      return;
  }
  event.preventDefault();
}
