import { signal, type ReadonlySignal } from "@preact/signals";
import type { Axis, Window } from "./api";
import { GROUPS, type Group } from "./marks";

export const TABS = ["charts", "values", "policies", "changes", "ranks", "logs"] as const;
export type Tab = (typeof TABS)[number];

/** Views, each with an address of its own. */
export const PAGES = ["runs", "run", "compare", "jobs", "job", "cluster"] as const;
export type PageName = (typeof PAGES)[number];

export const SORTS = ["name", "state", "progress", "loss", "size", "owner", "host", "updated", "created"] as const;
export type SortColumn = (typeof SORTS)[number];

/** A column and its direction. */
export interface Sort {
  by: SortColumn;
  down: boolean;
}

/** All that the address holds: what is looked at, and how. */
export interface View {
  page: PageName;
  run: string | null;
  job: string | null;
  /** Runs that are compared, or picked in the list to be. */
  runs: readonly string[];
  sort: Sort;
  x: Axis;
  zoom: Window | null;
  smooth: number;
  /** Charts whose logarithmic axis is switched from what it is by default. */
  flipped: readonly string[];
  tab: Tab;
  /** The version that is picked out on the charts. */
  mark: number | null;
  /** Groups of the audit that are listed. */
  groups: readonly Group[];
  /** The filter of the list in view: runs or metrics. */
  filter: string;
}

export const NOTHING: View = {
  page: "runs",
  run: null,
  job: null,
  runs: [],
  sort: { by: "created", down: true },
  x: "step",
  zoom: null,
  smooth: 0,
  flipped: [],
  tab: "charts",
  mark: null,
  groups: ["changes"],
  filter: "",
};

const oneOf = <T extends string>(words: readonly T[], word: string | null, otherwise: T): T =>
  words.includes(word as T) ? (word as T) : otherwise;

function readZoom(text: string | null): Window | null {
  const [from = NaN, to = NaN] = (text ?? "").split("..").map((part) => (part ? Number(part) : NaN));
  return from < to ? { from, to } : null;
}

/** What stands between the slashes: `/runs/ID`, `/jobs/ID`, `/compare`, `/jobs`, `/cluster`; all else is the list. */
function readPlace(path: string): Pick<View, "page" | "run" | "job"> {
  const [first = "", second] = path.split("/").filter(Boolean).map(decodeURIComponent);
  if (first === "runs" && second) return { page: "run", run: second, job: null };
  if (first === "jobs") return { page: second ? "job" : "jobs", run: null, job: second ?? null };
  return { page: first === "compare" || first === "cluster" ? first : "runs", run: null, job: null };
}

function writePlace({ page, run, job }: View): string {
  if (page === "run") return `/runs/${encodeURIComponent(run ?? "")}`;
  if (page === "job") return `/jobs/${encodeURIComponent(job ?? "")}`;
  return page === "runs" ? "/" : `/${page}`;
}

function readSort(text: string | null): Sort {
  const by = (text ?? "").replace(/^-/, "") as SortColumn;
  return SORTS.includes(by) ? { by, down: text!.startsWith("-") } : NOTHING.sort;
}

export function read(path: string, search: string): View {
  const query = new URLSearchParams(search);
  const smooth = Number(query.get("smooth"));
  const mark = Number(query.get("mark"));
  return {
    ...readPlace(path),
    runs: query.get("runs")?.split(",").filter(Boolean) ?? [],
    sort: readSort(query.get("sort")),
    x: oneOf(["step", "samples", "time"], query.get("x"), NOTHING.x),
    zoom: readZoom(query.get("zoom")),
    smooth: smooth > 0 && smooth < 1 ? smooth : 0,
    flipped: query.get("log")?.split(",").filter(Boolean) ?? [],
    tab: oneOf(TABS, query.get("tab"), NOTHING.tab),
    mark: Number.isInteger(mark) && mark > 0 ? mark : null,
    groups: query.has("list") ? GROUPS.filter((g) => query.get("list")!.split(",").includes(g)) : NOTHING.groups,
    filter: query.get("q") ?? "",
  };
}

/** As many digits as a pixel needs, and a link that one can read; times to the millisecond. */
const tidy = (at: number): number => Number(at.toPrecision(at > 1e9 ? 13 : 6));

export function write(view: View): string {
  const query = new URLSearchParams();
  if (view.runs.length) query.set("runs", view.runs.join(","));
  if (view.sort.by !== NOTHING.sort.by || !view.sort.down)
    query.set("sort", `${view.sort.down ? "-" : ""}${view.sort.by}`);
  if (view.filter) query.set("q", view.filter);
  if (view.x !== NOTHING.x) query.set("x", view.x);
  if (view.zoom) query.set("zoom", `${tidy(view.zoom.from)}..${tidy(view.zoom.to)}`);
  if (view.smooth) query.set("smooth", String(view.smooth));
  if (view.flipped.length) query.set("log", view.flipped.join(","));
  if (view.tab !== NOTHING.tab) query.set("tab", view.tab);
  if (view.mark) query.set("mark", String(view.mark));
  if (view.groups.join() !== NOTHING.groups.join()) query.set("list", view.groups.join(","));
  const search = query.toString().replaceAll("%2C", ",");
  return `${writePlace(view)}${search ? `?${search}` : ""}`;
}

const current = signal(typeof location === "undefined" ? NOTHING : read(location.pathname, location.search));

export const view: ReadonlySignal<View> = current;

/** Change how things are shown: the address follows, the history does not grow. */
export function show(change: Partial<View>): void {
  current.value = { ...current.peek(), ...change };
  const wait = written + WRITE_MS - performance.now();
  if (wait <= 0) writeAddress();
  else timer ||= window.setTimeout(writeAddress, wait);
}

/** Browsers refuse more than about three address changes a second; a slider makes sixty. */
const WRITE_MS = 350;
let written = -WRITE_MS;
let timer = 0;

function writeAddress(): void {
  clearTimeout(timer);
  timer = 0;
  written = performance.now();
  history.replaceState(null, "", write(current.peek()));
}

/** Another view. Reading habits (axis, smoothing) come along. */
export const elsewhere = (place: Partial<View>): View => {
  const { x, smooth } = current.value;
  return { ...NOTHING, x, smooth, ...place };
};

export const runPlace = (run: string): Partial<View> => ({ page: "run", run });

/** Go there: a new entry in the history. */
export function go(place: Partial<View>): void {
  if (timer) writeAddress();
  current.value = elsewhere(place);
  history.pushState(null, "", write(current.peek()));
  scrollTo(0, 0);
}

export function followHistory(): void {
  addEventListener("popstate", () => (current.value = read(location.pathname, location.search)));
}
