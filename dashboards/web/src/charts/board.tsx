import type { ReadonlySignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Source } from "./source";
import { count } from "../format";
import { view } from "../url";
import { Chart } from "./chart";
import { ChartBar } from "./bar";
import { constantText, type Panel } from "./panels";

/** Beyond this many charts a filter is offered. */
const MANY = 8;

const NONE_YET = "No metrics yet. The first appear a moment after the first step.";

interface BoardProps {
  store: Source;
  all: ReadonlySignal<readonly Panel[]>;
  /** What is said where there are no metrics. */
  none?: string | undefined;
}

/** All charts of a run; each is alive only while it is near the window. */
export function Board({ store, all, none = NONE_YET }: BoardProps): JSX.Element {
  const filter = view.value.filter.toLowerCase();
  const shown = useMemo(
    () =>
      all.value.filter((panel) =>
        `${panel.title} ${panel.lines.map((l) => l.key).join(" ")}`.toLowerCase().includes(filter),
      ),
    [all.value, filter],
  );
  const constants = store.constants.value;
  const still = shown.filter((panel) => panel.lines.every((line) => constants.has(line.key)));
  return (
    <section class="board" aria-label="Charts">
      <h2 class="visually-hidden">Charts</h2>
      <ChartBar store={store} many={all.value.length > MANY} />
      {all.value.length === 0 && (
        <p class="quiet" data-testid="no-metrics">
          {none}
        </p>
      )}
      {all.value.length > 0 && shown.length === 0 && <p class="quiet">No metric matches “{view.value.filter}”.</p>}
      <Slots store={store} panels={shown.filter((panel) => !still.includes(panel))} />
      {still.length > 0 && (
        <details class="constants" data-testid="constants">
          <summary>
            {count(still.length)} constant:{" "}
            <span class="num">{still.map((panel) => constantText(panel, constants)).join(", ")}</span>
          </summary>
          <Slots store={store} panels={still} />
        </details>
      )}
    </section>
  );
}

const Slots = ({ store, panels }: { store: Source; panels: readonly Panel[] }): JSX.Element => (
  <div class="charts">
    {panels.map((panel) => (
      <Slot key={panel.key} store={store} panel={panel} />
    ))}
  </div>
);

const MARGIN = "400px";

/** One observer for all slots: a run may have thousands of metrics. */
const told = new WeakMap<Element, (seen: boolean) => void>();
const observer = new IntersectionObserver(
  (entries) => entries.forEach((entry) => told.get(entry.target)?.(entry.isIntersecting)),
  { rootMargin: MARGIN },
);

/** Keeps a chart's place, and the chart itself only while it can be seen. */
function Slot({ store, panel }: { store: Source; panel: Panel }): JSX.Element {
  const place = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const element = place.current!;
    told.set(element, setSeen);
    observer.observe(element);
    return () => observer.unobserve(element);
  }, []);
  return (
    <div class="slot" ref={place}>
      {seen && <Chart store={store} panel={panel} />}
    </div>
  );
}
