import { expect, test } from "vitest";
import type { Change } from "../src/api";
import { clusters } from "../src/charts/flags";
import {
  appliedStep,
  groupOf,
  marksOf,
  near,
  sampleClock,
  sentence,
  statusText,
  voided,
  wentBackTo,
} from "../src/marks";

const change = (id: number, by: string, applied: Record<string, number>, over: Partial<Change> = {}): Change => ({
  id,
  version: id,
  kind: "version",
  status: Object.keys(applied).length ? "applied" : "accepted",
  changes: [{ param: "lr", from: 0.1, to: 0.2, by, reason: "" }],
  accepted_at: "2026-01-01T00:00:10Z",
  accepted_at_step: 1,
  applied,
  ...over,
});
const identity = (step: number): number => step * 10;

test("only what took effect is marked, in order", () => {
  const changes = [
    change(2, "plateau", { "0": 50, "1": 50 }),
    change(1, "plateau", { "0": 20 }),
    change(3, "plateau", {}),
  ];
  expect(marksOf(changes, "step", identity, ["plateau"]).map((m) => m.x)).toEqual([20, 50]);
  expect(marksOf(changes, "samples", identity, ["plateau"]).map((m) => m.x)).toEqual([200, 500]);
  expect(marksOf(changes, "time", identity, ["plateau"])[0]!.x).toBe(Date.parse("2026-01-01T00:00:10Z") / 1000);
});

test("a refusal has no mark", () => {
  expect(marksOf([change(1, "plateau", { "0": 1 }, { kind: "refused" })], "step", identity, [])).toEqual([]);
});

test("a person is told from policies, also from those since deleted", () => {
  const deleted = change(
    9,
    "ada",
    {},
    { kind: "policy", changes: [{ param: "policy cosine", from: null, to: "deleted", by: "ada", reason: "" }] },
  );
  const by = (name: string): boolean =>
    marksOf([change(1, name, { "0": 1 }), deleted], "step", identity, ["plateau"])[0]!.byPerson;
  expect(["ada", "plateau", "cosine", "batch", "script"].map(by)).toEqual([true, false, false, false, false]);
});

test("samples are summed from the batch in force", () => {
  const x = [10, 20, 30];
  const at = sampleClock({ x, last: [32, 64, 64], min: x, max: x, mean: [32, 64, 64] }, { steps: 30, samples: 1600 });
  expect([0, 5, 10, 15, 30].map(at)).toEqual([0, 160, 320, 640, 1600]);
});

test("without the batch the samples are spread evenly", () => {
  expect(sampleClock(null, { steps: 10, samples: 640 })(5)).toBe(320);
});

test("the nearest mark comes first", () => {
  const marks = marksOf([change(1, "a", { "0": 10 }), change(2, "a", { "0": 14 })], "step", identity, []);
  expect(near(marks, 13, 3).map((m) => m.step)).toEqual([14, 10]);
  expect(near(marks, 20, 3)).toEqual([]);
});

test("flags that would overlap are one", () => {
  const marks = marksOf(
    [1, 5, 40].map((step, i) => change(i + 1, "a", { "0": step })),
    "step",
    identity,
    [],
  );
  expect(clusters(marks, (m) => m.x).map((c) => c.length)).toEqual([2, 1]);
});

test("a change in words", () => {
  expect(statusText(change(1, "a", { "0": 1234 }))).toBe("applied at step 1,234");
  expect(statusText(change(1, "a", {}))).toBe("accepted");
  expect(appliedStep(change(1, "a", {}))).toBeNull();
  expect(sentence({ param: "lr", from: 0.1, to: 0.05 })).toBe("lr 0.1 → 0.05");
  expect(sentence({ param: "sync", from: null, to: "sma" })).toBe("sync → sma");
});

/** A roll back from step 100 to 60, as the server tells of it; taken up at `step`. */
const back = (id: number, step: number | null): Change =>
  change(id, "ada", step === null ? {} : { "0": step, "1": step }, {
    accepted_at_step: 99,
    changes: [{ param: "rollback", from: 100, to: 60, by: "ada", reason: "" }],
  });

test("what policies set after the checkpoint that was gone back to is void, what came before or later is not", () => {
  const audit = [
    change(1, "a", { "0": 61 }),
    change(2, "a", { "0": 62 }),
    change(3, "ada", { "0": 70 }),
    change(4, "a", {}, { kind: "notice", accepted_at_step: 98 }),
    back(5, 61),
    change(6, "a", { "0": 80 }),
  ];
  const marks = marksOf(audit, "step", identity, ["a"]);
  expect(marks.map((m) => [m.change.id, m.isVoid, m.isRollback])).toEqual([
    [1, false, false],
    [5, false, true],
    [2, true, false],
    [3, false, false],
    [6, false, false],
  ]);
});

test("a second roll back leaves what the first had voided", () => {
  const audit = [change(1, "a", { "0": 80 }), back(2, 61), change(3, "a", { "0": 70 }), back(4, 61)];
  expect([...voided(audit, new Set("a"))]).toEqual([1, 3]);
});

test("a roll back that was not made undoes nothing", () => {
  expect([back(2, 61), back(2, null), back(2, 101), change(3, "a", { "0": 61 })].map(wentBackTo)).toEqual([
    60,
    null,
    null,
    null,
  ]);
  expect(voided([change(1, "a", { "0": 80 }), back(2, null)], new Set("a")).size).toBe(0);
  expect(voided([change(1, "a", { "0": 80 }), back(2, 101)], new Set("a")).size).toBe(0);
});

test("what people were told, and what would have been, are groups of their own", () => {
  const kinds: Change["kind"][] = ["version", "refused", "policy", "notice", "shadow"];
  expect(kinds.map((kind) => groupOf(change(1, "a", {}, { kind })))).toEqual([
    "changes",
    "changes",
    "changes",
    "notices",
    "shadow",
  ]);
});
