import type { HyperParameter } from "../api";
import { range } from "../schema";

export function bounds(param: HyperParameter): string {
  if (param.kind === "choice") return param.choices.join(" | ");
  return range({ min: param.min, max: param.max, above: false, below: false });
}
