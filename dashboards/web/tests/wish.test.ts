import { expect, test } from "vitest";
import type { PolicyKind } from "../src/api";
import { jobWish, type Typed } from "../src/jobs/wish";

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
  kinds: [KIND],
  ...over,
});

test("policies and values travel in the environment, beside what is there", () => {
  const { wish, wrong } = jobWish(
    typed({
      hp: "lr=0.1 sync=sma",
      environment: '{"env_vars": {"A": "1"}}',
      chosen: [{ kind: KIND, mode: "shadow", texts: { patience: "3" } }],
    }),
  );
  expect(wrong).toEqual({});
  const { A, TRIMTAB_OVERRIDES } = wish.runtime_env.env_vars as Record<string, string>;
  expect(A).toBe("1");
  expect(JSON.parse(TRIMTAB_OVERRIDES!)).toEqual({
    hp: { lr: 0.1, sync: "sma" },
    policies: [{ name: "plateau", kind: "plateau", params: { patience: 3 }, mode: "shadow" }],
  });
});

test("a plain command is sent as it is", () => {
  expect(jobWish(typed({})).wish).toEqual({ entrypoint: "python train.py", metadata: {}, runtime_env: {} });
});

test.each([
  [{ entrypoint: " " }, "entrypoint"],
  [{ hp: "lr" }, "hp"],
  [{ environment: "{" }, "runtime_env"],
  [{ environment: "[]" }, "runtime_env"],
  [{ cpus: "some" }, "entrypoint_num_cpus"],
  [{ chosen: [{ kind: KIND, mode: "active" as const, texts: { patience: "-1" } }] }, "plateau.patience"],
])("what is wrong is told by its field: %o", (over, field) => {
  expect(Object.keys(jobWish(typed(over)).wrong)).toEqual([field]);
});
