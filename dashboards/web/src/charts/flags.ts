import type uPlot from "uplot";
import { EVENTS, type Mark, type RunEvent } from "../marks";
import type { PlotState } from "./plot";

export interface FlagColors {
  policy: string;
  person: string;
  /** Lost workers, and going back. */
  bad: string;
  resize: string;
  /** Numbers on flags that the chart is about, on others, and what they stand on. */
  text: string;
  muted: string;
  ground: string;
  /** Of the runs, where several are shown. */
  series: readonly string[];
}

/** Flags nearer than this are one flag with a number [CSS px]. */
const CLUSTER_PX = 14;

/** A vertical line where a version took effect, a flag above it; what the chart is about stands out. */
export function drawMarks(u: uPlot, { marks, picked }: PlotState, params: readonly string[], colors: FlagColors): void {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio;
  const { min, max } = u.scales.x!;
  const shown = marks.filter((mark) => mark.x >= (min ?? 0) && mark.x <= (max ?? 0));
  ctx.save();
  for (const cluster of clusters(shown, (mark) => u.valToPos(mark.x, "x"))) {
    const isPicked = cluster.some((mark) => mark.change.version === picked);
    const event = EVENTS.find((one) => cluster.some((mark) => mark.event === one)) ?? null;
    // An event stands at its own place, whatever else its cluster begins with.
    const told = event === null ? cluster.slice(0, 1) : cluster.filter((mark) => mark.event === event);
    const [x = 0, ...more] = told.map((mark) => Math.round(u.valToPos(mark.x, "x", true)) + 0.5);
    const own = event !== null || cluster.some((mark) => mark.params.some((param) => params.includes(param)));
    const isVoid = cluster.every((mark) => mark.isVoid);
    const color = colorOf(event, cluster, colors);
    const strong = isPicked || event === "rollback" || event === "loss";
    ctx.globalAlpha = strong || (own && !isVoid) ? 1 : isVoid ? 0.2 : 0.45;
    ctx.strokeStyle = color;
    ctx.fillStyle = color;
    ctx.lineWidth = (strong ? 2 : 1) * ratio;
    ctx.setLineDash(strong || event === "resize" ? [] : [3 * ratio, 3 * ratio]);
    ctx.beginPath();
    for (const one of [x, ...more]) {
      ctx.moveTo(one, bbox.top);
      ctx.lineTo(one, bbox.top + bbox.height);
    }
    ctx.stroke();
    if (event !== null) GLYPHS[event](ctx, x, bbox.top, ratio);
    else if (cluster.length === 1) flag(ctx, x, bbox.top, ratio);
    else numbered(ctx, x, bbox.top, ratio, cluster.length, own && !isVoid ? colors.text : colors.muted, colors.ground);
  }
  ctx.restore();
}

function colorOf(event: RunEvent | null, cluster: readonly Mark[], colors: FlagColors): string {
  const runs = new Set(cluster.map((mark) => mark.of?.color));
  const [run] = runs;
  if (run !== undefined) return runs.size === 1 ? colors.series[run]! : colors.policy;
  if (event === "rollback" || event === "loss") return colors.bad;
  if (event === "resize") return colors.resize;
  return cluster.some((mark) => mark.byPerson) ? colors.person : colors.policy;
}

function flag(ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number): void {
  ctx.beginPath();
  ctx.moveTo(x - ratio / 2, top - 12 * ratio);
  ctx.lineTo(x + 8 * ratio, top - 8 * ratio);
  ctx.lineTo(x - ratio / 2, top - 4 * ratio);
  ctx.fill();
  ctx.fillRect(x - ratio / 2, top - 12 * ratio, ratio, 12 * ratio);
}

/** Several flags as one: its frame may be pale, its number may not. */
function numbered(
  ctx: CanvasRenderingContext2D,
  x: number,
  top: number,
  ratio: number,
  size: number,
  text: string,
  ground: string,
): void {
  const width = (size > 9 ? 17 : 13) * ratio;
  const pale = ctx.globalAlpha;
  ctx.beginPath();
  ctx.roundRect(x - width / 2, top - 14 * ratio, width, 13 * ratio, 3 * ratio);
  ctx.globalAlpha = 1;
  ctx.fillStyle = ground;
  ctx.fill();
  ctx.globalAlpha = pale;
  ctx.setLineDash([]);
  ctx.stroke();
  ctx.globalAlpha = 1;
  ctx.fillStyle = text;
  ctx.font = `${9.5 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.fillText(String(size), x, top - 7 * ratio);
}

/** A roll back: an arrow to where it came from. */
function arrow(ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number): void {
  ctx.beginPath();
  ctx.moveTo(x - 9 * ratio, top - 8 * ratio);
  ctx.lineTo(x - 1 * ratio, top - 13 * ratio);
  ctx.lineTo(x - 1 * ratio, top - 3 * ratio);
  ctx.fill();
  ctx.fillRect(x - 1 * ratio, top - 9 * ratio, 9 * ratio, 2 * ratio);
}

/** Lost workers: a cross. */
function cross(ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number): void {
  const reach = 4 * ratio;
  const y = top - 8 * ratio;
  ctx.lineWidth = 2 * ratio;
  ctx.setLineDash([]);
  ctx.beginPath();
  ctx.moveTo(x - reach, y - reach);
  ctx.lineTo(x + reach, y + reach);
  ctx.moveTo(x + reach, y - reach);
  ctx.lineTo(x - reach, y + reach);
  ctx.stroke();
}

/** Another number of workers: bars side by side. */
function bars(ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number): void {
  for (const [i, height] of [4, 7, 10].entries())
    ctx.fillRect(x + (i * 4 - 5.5) * ratio, top - (3 + height) * ratio, 3 * ratio, height * ratio);
}

/** Replicas kept together another way: a diamond. */
function diamond(ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number): void {
  const reach = 5 * ratio;
  const y = top - 8 * ratio;
  ctx.beginPath();
  ctx.moveTo(x, y - reach);
  ctx.lineTo(x + reach, y);
  ctx.lineTo(x, y + reach);
  ctx.lineTo(x - reach, y);
  ctx.fill();
}

type Glyph = (ctx: CanvasRenderingContext2D, x: number, top: number, ratio: number) => void;
const GLYPHS: Readonly<Record<RunEvent, Glyph>> = { rollback: arrow, loss: cross, resize: bars, sync: diamond };

/** Neighbours along the axis whose flags would overlap. */
export function clusters(marks: readonly Mark[], place: (mark: Mark) => number): Mark[][] {
  const out: Mark[][] = [];
  let start = -Infinity;
  for (const mark of marks) {
    const x = place(mark);
    if (x - start < CLUSTER_PX) {
      out[out.length - 1]!.push(mark);
    } else {
      out.push([mark]);
      start = x;
    }
  }
  return out;
}
