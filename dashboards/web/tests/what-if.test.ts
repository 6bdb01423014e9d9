import { expect, test } from "vitest";
import type { Decision, Replay } from "../src/api";
import { drawn, headline, overlay, pairs, shadows, unread } from "../src/what-if";

const decision = (step: number, param: string, over: Partial<Decision> = {}): Decision => ({
  step,
  samples: step * 32,
  policy: "plateau",
  param,
  before: 0.1,
  after: 0.05,
  reason: "",
  refused: null,
  shadow: false,
  ...over,
});

const replay = (over: Partial<Replay>): Replay => ({
  observations: 10,
  decisions: [],
  recorded: [],
  values: {},
  unread: {},
  equal: false,
  ...over,
});

test("decisions about the same parameter at the same step share a line, the rest stand by step", () => {
  const rows = pairs({
    decisions: [decision(20, "lr"), decision(40, "lr"), decision(40, "batch_size")],
    recorded: [decision(10, "lr"), decision(40, "lr", { after: 0.01 })],
  });
  expect(rows.map((r) => [r.step, r.param, r.would?.after ?? null, r.was?.after ?? null])).toEqual([
    [10, "lr", null, 0.05],
    [20, "lr", 0.05, null],
    [40, "lr", 0.05, 0.01],
    [40, "batch_size", 0.05, null],
  ]);
});

test("two decisions at one step are two lines", () => {
  const twice = [decision(5, "lr", { refused: "too soon" }), decision(5, "lr")];
  const rows = pairs({ decisions: twice, recorded: [decision(5, "lr")] });
  expect(rows.map((r) => [r.would?.refused ?? null, r.was !== null])).toEqual([
    ["too soon", true],
    [null, false],
  ]);
});

test("only numbers that a decision touched are drawn", () => {
  const values = {
    lr: { step: [0], value: [0.1] },
    momentum: { step: [0], value: [0.9] },
    sync: { step: [0], value: ["sma"] },
  };
  expect(drawn(replay({ values, decisions: [decision(1, "lr"), decision(1, "sync")] }))).toEqual(["lr"]);
  expect(drawn(replay({ values, recorded: [decision(1, "momentum")] }))).toEqual(["momentum"]);
});

test("both values lie on one axis and hold to its end", () => {
  const { x, lines } = overlay([
    { label: "was", x: [0, 10, 20], y: [1, 1, 1] },
    { label: "would", x: [0, 5], y: [1, 0.5] },
  ]);
  expect([...x]).toEqual([0, 5, 10, 20]);
  expect(lines.map((one) => one.y)).toEqual([
    [1, null, 1, 1],
    [1, 0.5, null, 0.5],
  ]);
  expect(overlay([{ label: "was", x: [], y: [] }]).lines[0]!.y).toEqual([]);
  expect(overlay([{ label: "twice", x: [3, 3], y: [1, 2] }]).lines[0]!.y).toEqual([2]);
});

test("what a policy in shadow would have set is a line of its own", () => {
  const decisions = [
    decision(10, "lr", { shadow: true, after: 0.05 }),
    decision(20, "lr", { shadow: true, refused: "too soon" }),
    decision(30, "lr", { shadow: true, after: 0.02, policy: "cosine" }),
    decision(30, "lr"),
    decision(40, "batch_size", { shadow: true, after: 64 }),
  ];
  expect(shadows(replay({ decisions }), "lr")).toEqual([
    { label: "plateau (shadow)", x: [10], y: [0.05] },
    { label: "cosine (shadow)", x: [30], y: [0.02] },
  ]);
});

test("a metric that was not recorded is named once", () => {
  expect(unread(replay({ unread: { a: ["grad_norm", "acc"], b: ["acc"] } }))).toEqual(["acc", "grad_norm"]);
});

test("the headline is a sentence, whether much would have been decided or nothing", () => {
  const had = "Had plateau been there with these parameters from the run's start, it would have";
  expect(headline(replay({ equal: true }), "plateau")).toBe(
    `${had} decided nothing over 10 observations. Nor did any other policy decide anything.`,
  );
  const other = decision(5, "batch_size", { policy: "noise_scale" });
  expect(headline(replay({ decisions: [other], recorded: [other], equal: true }), "plateau")).toBe(
    `${had} decided nothing over 10 observations. All policies together would have made 1 decision, the very same as recorded.`,
  );
  const decisions = [other, decision(10, "lr"), decision(20, "lr", { refused: "pinned" }), decision(30, "lr")];
  expect(headline(replay({ observations: 1290, decisions, recorded: [other] }), "plateau")).toBe(
    `${had} made 3 decisions (1 refused) over 1,290 observations. ` +
      "All policies together would have made 4 decisions, unlike the 1 recorded.",
  );
  expect(headline(replay({ recorded: [other] }), "plateau")).toBe(
    `${had} decided nothing over 10 observations. All policies together would have made no decisions, unlike the 1 recorded.`,
  );
});
