import { expect, test } from "vitest";
import type { RunSummary } from "../src/api";
import { matches, ordered } from "../src/runs/order";

const run = (id: string, over: Partial<RunSummary> = {}): RunSummary => ({
  id,
  name: id,
  state: "running",
  state_reason: "",
  owner: "",
  host: "",
  job: null,
  created: `2026-01-01T00:00:0${id.length}Z`,
  updated: "2026-01-01T00:00:00Z",
  world_size: 1,
  wanted: null,
  sync: "allreduce",
  formation: 1,
  progress: { steps: 1, samples: 1 },
  horizon: null,
  fraction: null,
  loss: null,
  loss_trace: [],
  version: 1,
  policies: [],
  ...over,
});

test("runs are sorted either way, and those without a value come last", () => {
  const runs = [run("a", { loss: 2 }), run("bb"), run("ccc", { loss: 1 }), run("dddd", { loss: NaN })];
  const ids = (down: boolean): string[] => ordered(runs, { by: "loss", down }).map((one) => one.id);
  expect(ids(false)).toEqual(["ccc", "a", "dddd", "bb"]);
  expect(ids(true)).toEqual(["a", "ccc", "dddd", "bb"]);
});

test("every word must be found, a named one in its column", () => {
  const one = run("bytes-1", { policies: ["warmup"], host: "torchrun" });
  expect(matches(one, "bytes warm")).toBe(true);
  expect(matches(one, "bytes cool")).toBe(false);
  expect(matches(one, "state:running")).toBe(true);
  expect(matches(one, "state:warmup")).toBe(false);
  expect(matches(one, "policy:warm loop:torch")).toBe(true);
  expect(matches(one, "host:torch")).toBe(true);
});
