import { expect, test } from "vitest";
import { NOTHING, read, write, type View } from "../src/url";

const back = (view: View): View => {
  const [path = "", search = ""] = write(view).split("?");
  return read(path, search);
};

test("an address brings back the whole view", () => {
  const view: View = {
    page: "run",
    run: "bytes lm/1",
    job: null,
    runs: ["a", "b"],
    sort: { by: "loss", down: false },
    x: "samples",
    zoom: { from: 12.5, to: 6000 },
    smooth: 0.6,
    flipped: ["loss", "hp/lr"],
    tab: "changes",
    mark: 7,
    groups: ["changes", "shadow"],
    filter: "act & loss",
  };
  expect(back(view)).toEqual(view);
});

test("what is as always is not in the address", () => {
  expect(write(NOTHING)).toBe("/");
  expect(write({ ...NOTHING, page: "run", run: "a" })).toBe("/runs/a");
});

test("times survive to the second", () => {
  const zoom = { from: 1_795_430_941.68, to: 1_795_430_999.01 };
  expect(back({ ...NOTHING, page: "run", run: "a", x: "time", zoom }).zoom).toEqual(zoom);
});

test.each(["?zoom=5..1", "?zoom=x..2", "?zoom=..", "?x=miles", "?smooth=7", "?mark=-1", "?tab=none"])(
  "nonsense %s is ignored",
  (search) => {
    expect(read("/", search)).toEqual(NOTHING);
  },
);

test.each(["/", "/runs/a", "/jobs", "/jobs/b", "/cluster", "/compare"])("%s is a place of its own", (path) => {
  expect(write(read(path, ""))).toBe(path);
});
