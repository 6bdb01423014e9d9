import { expect, test } from "vitest";
import { ended } from "../src/api";
import { noMetrics, versionNote } from "../src/run/over";
import { causeOf, costOf } from "../src/run/ranks";

test("a run that has ended says why it has no metrics", () => {
  const none = { steps: 0, samples: 0 };
  expect(noMetrics({ progress: none, state_reason: "" })).toBe("It ended before its first step.");
  expect(noMetrics({ progress: none, state_reason: "no module named data" })).toBe(
    "It ended before its first step: no module named data",
  );
  expect(noMetrics({ progress: { steps: 5, samples: 80 }, state_reason: "x" })).not.toContain("before");
  expect((["stopping", "stopped", "lost", "paused"] as const).map((state) => ended({ state }))).toEqual([false, true, true, false]);
});

test("nothing is on its way to a run that has ended", () => {
  expect(versionNote(2, 2, true)).toBe("v2 applied");
  expect(versionNote(2, 1, false)).toBe("v2 on its way, v1 applied");
  expect(versionNote(2, 1, true)).toBe("v2 never applied, v1 was");
  expect(versionNote(1, 0, true)).toBe("v1 never applied");
});

test("only a loss has lost workers", () => {
  expect(causeOf({ cause: "loss", lost: 2 })).toBe("2 lost");
  expect(causeOf({ cause: "resize", lost: 1 })).toBe("resize");
  expect(causeOf({ cause: "rollback", lost: 1 })).toBe("roll back");
});

test("what recoveries cost is told as far as it was measured", () => {
  const still = { pause_s: 0.42, redone: 0 };
  const back = { pause_s: null, redone: 93 };
  expect(costOf([still, still])).toBe("stood still for 840 ms in all");
  expect(costOf([still, back, back])).toBe("stood still for 420 ms in 1 of 3 (the others were not measured), 186 steps again");
  expect(costOf([back])).toBe("93 steps again");
  expect(costOf([{ pause_s: null, redone: 0 }])).toBe("");
});
