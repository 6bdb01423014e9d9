import { expect, test } from "vitest";
import type { Job, PolicyKind } from "../src/api";
import { givenText, jobWish, notAgain, typedAgain, type Typed } from "../src/jobs/wish";

const KIND = {
  kind: "plateau",
  schema: { properties: { patience: { type: "integer", minimum: 0, default: 10 } } },
} as unknown as PolicyKind;
const typed = (over: Partial<Typed>): Typed => ({
  entrypoint: "python train.py",
  hp: "",
  environment: "",
  id: "",
  cpus: "",
  chosen: [],
  ...over,
});

test("policies and values travel in the environment, beside what is there", () => {
  const { wish, wrong } = jobWish(
    typed({
      hp: "lr=0.1 sync=sma",
      environment: '{"env_vars": {"A": "1"}}',
      chosen: [{ name: "cuts", kind: KIND, mode: "shadow", texts: { patience: "3" } }],
    }),
  );
  expect(wrong).toEqual({});
  const { A, TRIMTAB_OVERRIDES } = wish.runtime_env.env_vars as Record<string, string>;
  expect(A).toBe("1");
  expect(JSON.parse(TRIMTAB_OVERRIDES!)).toEqual({
    hp: { lr: 0.1, sync: "sma" },
    policies: [{ name: "cuts", kind: "plateau", params: { patience: 3 }, mode: "shadow" }],
  });
});

test("a plain command is sent as it is", () => {
  expect(jobWish(typed({})).wish).toEqual({ entrypoint: "python train.py", metadata: {}, runtime_env: {} });
});

test.each([
  [{ entrypoint: " " }, "entrypoint"],
  [{ hp: "lr" }, "hp"],
  [{ hp: "lr=abc" }, "hp"],
  [{ hp: "lr=0.1:0" }, "hp"],
  [{ hp: "lr=0.1:low:1" }, "hp"],
  [{ environment: '{"env_vars": {"KEY": "<hidden>"}}' }, "runtime_env"],
  [{ environment: "{" }, "runtime_env"],
  [{ environment: "[]" }, "runtime_env"],
  [{ id: "my job" }, "submission_id"],
  [{ cpus: "some" }, "entrypoint_num_cpus"],
  [{ chosen: [{ name: "plateau", kind: KIND, mode: "active" as const, texts: { patience: "-1" } }] }, "plateau.patience"],
])("what is wrong is told by its field: %o", (over, field) => {
  expect(Object.keys(jobWish(typed(over)).wrong)).toEqual([field]);
});

test("what is wrong with a value is told in its words", () => {
  expect(jobWish(typed({ hp: "sync=sma lr=abc" })).wrong.hp).toBe("lr is a number; got abc.");
});

const job = {
  entrypoint: "python train.py",
  runtime_env: { working_dir: "gcs://code.zip" },
  given: {
    hp: { lr: { default: 0.2, min: 0, max: null }, sync: "sma" },
    policies: [
      { name: "plateau", kind: "plateau", params: { patience: 3 }, mode: "active", code: "" },
      { name: "", kind: "", params: {}, mode: "shadow", code: "mine.py:Mine" },
    ],
  },
} as unknown as Job;

test("a job that is submitted again asks for the same", () => {
  const { wish, wrong } = jobWish(typedAgain(job, [KIND]));
  expect(wrong).toEqual({});
  expect(wish.entrypoint).toBe("python train.py");
  expect(wish.submission_id).toBeUndefined();
  expect(wish.runtime_env.working_dir).toBe("gcs://code.zip");
  const { TRIMTAB_OVERRIDES } = wish.runtime_env.env_vars as Record<string, string>;
  expect(JSON.parse(TRIMTAB_OVERRIDES!)).toEqual({
    hp: { lr: { name: "lr", default: 0.2, min: 0, max: null }, sync: "sma" },
    policies: [{ name: "plateau", kind: "plateau", params: { patience: 3 }, mode: "active" }],
  });
  expect(notAgain(job.given, [KIND])).toEqual(["mine.py:Mine"]);
});

test("what was given reads as one line", () => {
  expect(givenText(job.given)).toBe("lr 0.2, sync sma, policies plateau, mine.py:Mine (shadow)");
  expect(givenText({ hp: {}, policies: [] })).toBe("");
});
