import type uPlot from "uplot";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Change } from "../src/api";
import { drawMarks, type FlagColors } from "../src/charts/flags";
import type { PlotState } from "../src/charts/plot";
import type { Mark, RunEvent } from "../src/marks";

beforeEach(() => void vi.stubGlobal("devicePixelRatio", 1));
afterEach(() => void vi.unstubAllGlobals());

const COLORS: FlagColors = { policy: "policy", person: "person", bad: "bad", resize: "resize", text: "text", muted: "muted", ground: "ground", series: [] };

interface Drawn {
  /** From the top to the bottom of the plot. */
  lines: { x: number; color: string }[];
  words: { text: string; color: string; alpha: number }[];
  boxes: { color: string; alpha: number }[];
}

/** What is drawn of these marks where a pixel is a step. */
function drawn(marks: readonly Mark[], params: readonly string[] = []): Drawn {
  const out: Drawn = { lines: [], words: [], boxes: [] };
  let at = [0, 0];
  let box = false;
  const ctx = {
    globalAlpha: 1,
    fillStyle: "",
    strokeStyle: "",
    beginPath: () => void (box = false),
    roundRect: () => void (box = true),
    moveTo: (x: number, y: number) => void (at = [x, y]),
    lineTo(x: number, y: number) {
      if (at[1] === 20 && y === 120) out.lines.push({ x, color: this.strokeStyle });
    },
    fill() {
      if (box) out.boxes.push({ color: this.fillStyle, alpha: this.globalAlpha });
    },
    fillText(text: string) {
      out.words.push({ text, color: this.fillStyle, alpha: this.globalAlpha });
    },
    ...Object.fromEntries(["save", "restore", "stroke", "setLineDash", "fillRect"].map((name) => [name, () => undefined])),
  };
  const u = {
    ctx,
    bbox: { left: 0, top: 20, width: 1000, height: 100 },
    scales: { x: { min: 0, max: 1000 } },
    valToPos: (x: number) => x,
  };
  drawMarks(u as unknown as uPlot, { marks, picked: null } as unknown as PlotState, params, COLORS);
  return out;
}

const mark = (x: number, event: RunEvent | null = null): Mark => ({
  change: { version: x } as Change,
  step: x,
  x,
  params: ["lr"],
  byPerson: false,
  event,
  isVoid: false,
});

test("the line of a roll back stands where the ranks went back, whatever stands beside it", () => {
  expect(drawn([mark(100), mark(109, "rollback"), mark(111)]).lines).toEqual([{ x: 109.5, color: "bad" }]);
  expect(drawn([mark(100, "rollback"), mark(104), mark(110, "rollback")]).lines.map((line) => line.x)).toEqual([100.5, 110.5]);
  expect(drawn([mark(100), mark(109)]).lines).toEqual([{ x: 100.5, color: "policy" }]);
});

test("a number on a flag can be read, also on a chart that it is not about", () => {
  const read = (params: string[]): Drawn => drawn([mark(100), mark(109)], params);
  expect(read(["lr"]).words).toEqual([{ text: "2", color: "text", alpha: 1 }]);
  expect(read(["batch_size"]).words).toEqual([{ text: "2", color: "muted", alpha: 1 }]);
  expect(read(["batch_size"]).boxes).toEqual([{ color: "ground", alpha: 1 }]);
});
