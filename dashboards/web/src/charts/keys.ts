import type uPlot from "uplot";
import type { Window } from "../api";
import type { Source } from "./source";
import { show, view } from "../url";

const ZOOM = 0.6;
const NUDGE_PX = 8;

function zoomTo(store: Source, zoom: Window | null): void {
  show({ zoom });
  store.refine();
}

/** uPlot tells the other charts only when a third argument asks for it, which its types leave out. */
function moveCursor(plot: uPlot, left: number): void {
  const setCursor = plot.setCursor as (at: { left: number; top: number }, fire: boolean, publish: boolean) => void;
  setCursor({ left: Math.min(Math.max(0, left), plot.over.clientWidth), top: 10 }, true, true);
}

/** A chart without a mouse: arrows move the cursor, with Shift the window; + and − zoom; 0 and Escape show all. */
export function onChartKey(event: KeyboardEvent, plot: uPlot, store: Source): void {
  const { from, to } = view.value.zoom ?? store.extent;
  const span = to - from;
  const left = plot.cursor.left ?? -1;
  const at = left >= 0 ? plot.posToVal(left, "x") : (from + to) / 2;
  const direction = event.key === "ArrowLeft" ? -1 : 1;
  switch (event.key) {
    case "+":
    case "=":
      zoomTo(store, { from: at - (at - from) * ZOOM, to: at + (to - at) * ZOOM });
      break;
    case "-": {
      const wide = {
        from: Math.max(store.extent.from, at - (at - from) / ZOOM),
        to: Math.min(store.extent.to, at + (to - at) / ZOOM),
      };
      zoomTo(store, wide.from <= store.extent.from && wide.to >= store.extent.to ? null : wide);
      break;
    }
    case "0":
    case "Escape":
      zoomTo(store, null);
      break;
    case "ArrowLeft":
    case "ArrowRight":
      if (event.shiftKey) zoomTo(store, { from: from + (direction * span) / 10, to: to + (direction * span) / 10 });
      else moveCursor(plot, (left < 0 ? plot.over.clientWidth / 2 : left) + direction * NUDGE_PX);
      break;
    default:
      return;
  }
  event.preventDefault();
}
