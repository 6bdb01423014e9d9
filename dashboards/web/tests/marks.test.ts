import { expect, test } from "vitest";
import type { Change } from "../src/api";
import { clusters } from "../src/charts/flags";
import {
  appliedStep,
  eventOf,
  groupOf,
  marksOf,
  near,
  sampleClock,
  sentence,
  statusText,
  title,
  told,
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
  const policy = { version: null, kind: "policy", status: "applied", accepted_at_step: 40 } as const;
  expect(statusText(change(1, "a", {}, policy))).toBe("applied at step 40");
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
  expect(marks.map((m) => [m.change.id, m.isVoid, m.event])).toEqual([
    [1, false, null],
    [5, false, "rollback"],
    [2, true, null],
    [3, false, null],
    [6, false, null],
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
  const kinds: Change["kind"][] = ["version", "refused", "policy", "notice", "shadow", "formation"];
  expect(kinds.map((kind) => groupOf(change(1, "a", {}, { kind })))).toEqual([
    "changes",
    "changes",
    "changes",
    "notices",
    "shadow",
    "changes",
  ]);
});

const size = (from: number, to: number, reason: string): Change["changes"] => [
  { param: "world_size", from, to, by: "workers", reason },
];
const GREW = size(2, 3, "2 → 3 workers; training stood still for 0.31 s");
const SHRANK = size(3, 2, "1 of 3 workers lost; training stood still for 0.45 s");
const REPLACED = size(2, 2, "1 of 2 workers lost, others came in; training stood still for 0.40 s");

test("a resize, a loss and another strategy are events of the whole run", () => {
  const ranks = { "0": 20, "1": 20 };
  const sync = (from: string | null): Change["changes"] => [{ param: "sync", from, to: "sma", by: "ada", reason: "" }];
  const audit = [
    change(1, "", { "0": 5 }, { changes: sync(null) }),
    change(2, "", ranks, { changes: GREW }),
    change(3, "", { "0": 30 }, { changes: SHRANK }),
    change(4, "", {}, { version: null, kind: "formation", status: "applied", accepted_at_step: 40, changes: REPLACED }),
    change(5, "", { "0": 50 }, { changes: sync("allreduce") }),
    change(6, "ada", { "0": 60 }),
  ];
  const marks = marksOf(audit, "step", identity, []);
  expect(marks.map((m) => [m.x, m.event, m.byPerson])).toEqual([
    [5, null, true],
    [20, "resize", false],
    [30, "loss", false],
    [40, "loss", false],
    [50, "sync", true],
    [60, null, true],
  ]);
  expect(marksOf(audit, "samples", identity, []).map((m) => m.x)).toContain(400);
});

test("lost workers that were replaced at once are told without a version", () => {
  const replaced = change(4, "", {}, { version: null, kind: "formation", status: "applied", accepted_at_step: 1234, changes: REPLACED });
  expect(eventOf(replaced)).toBe("loss");
  expect([title(replaced), statusText(replaced), sentence(REPLACED[0]!)]).toEqual(["loss", "at step 1,234", "world_size still 2"]);
  expect(sentence(GREW[0]!)).toBe("world_size 2 → 3");
});

test("a switch is told before its options, which are one sentence", () => {
  const option = (param: string, to: number): Change["changes"][0] => ({ param, from: null, to, by: "ada", reason: "an option" });
  const sync = { param: "sync", from: "allreduce", to: "sma", by: "ada", reason: "small batches" };
  const switched = change(7, "", { "0": 9 }, { changes: [option("sma_every", 1), option("noise_every", 0), sync] });
  expect(told(switched)).toEqual([
    { what: "sync allreduce → sma", by: "ada", reason: "small batches" },
    { what: "sma_every → 1, noise_every → 0", by: "ada", reason: "an option" },
  ]);
});

test("what has moved behind a pin only is told as such, and is no change of the value", () => {
  const behind = { param: "lr", from: 0.03, to: 0.03, by: "batch", reason: "linear for batch 32 → 64, behind the pin" };
  const grown = { param: "batch_size", from: 32, to: 64, by: "noise_scale", reason: "above" };
  expect(sentence(behind)).toBe("lr still 0.03");
  const [mark] = marksOf([change(1, "", { "0": 9 }, { changes: [grown, behind] })], "step", identity, ["noise_scale"]);
  expect(mark!.params).toEqual(["batch_size"]);
});
