import type { JSX } from "preact";
import type { Rank, Recovery, Run } from "../api";
import { clock, count, number, percent, seconds } from "../format";

/** The workers one by one, the noise estimate, and what Trimtab itself costs. */
export function Ranks({ run }: { run: Run }): JSX.Element {
  const slowest = Math.max(...run.ranks.map((rank) => rank.step_time ?? 0), 1e-9);
  const newest = Math.max(...run.ranks.map((rank) => rank.version));
  const slow = stragglers(run.ranks);
  return (
    <div class="ranks" data-testid="ranks">
      <h3>
        Ranks <small>formation {run.formation}</small>
      </h3>
      {run.ranks.length === 0 ? (
        <p class="quiet">No rank has reported yet.</p>
      ) : (
        <>
        <div class="strip" aria-hidden="true" title="Step time of each rank; darker edges hold an older version">
          {run.ranks.map((rank) => (
            <i
              key={rank.rank}
              class={`${slow.has(rank.rank) ? "slow" : ""} ${rank.version < newest ? "behind" : ""}`}
              style={{ height: `${Math.max(6, (100 * (rank.step_time ?? 0)) / slowest)}%` }}
            />
          ))}
        </div>
        <div class="scroll tall" tabIndex={0} role="region" aria-label="Ranks">
          <table>
            <thead>
              <tr>
                <th>rank</th>
                <th>step</th>
                <th>holds</th>
                <th>step time</th>
                <th>dropped</th>
              </tr>
            </thead>
            <tbody>
              {run.ranks.map((rank) => (
                <tr key={rank.rank} data-testid="rank" data-rank={rank.rank}>
                  <th class="num">{rank.rank}</th>
                  <td class="num">{count(rank.step)}</td>
                  <td class={`num ${rank.version < newest ? "behind" : ""}`}>v{rank.version}</td>
                  <td class={`num bar ${slow.has(rank.rank) ? "slow" : ""}`}>
                    <meter min={0} max={slowest} value={rank.step_time ?? 0} aria-hidden="true" />
                    <span>{seconds(rank.step_time)}</span>
                    {slow.has(rank.rank) && <span class="visually-hidden"> slower than the others</span>}
                  </td>
                  <td class="num">{count(rank.dropped)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        </>
      )}
      {run.recoveries.length > 0 && <Recoveries recoveries={run.recoveries} />}
      <h3>Gradient noise scale</h3>
      <Facts
        facts={
          run.noise === null
            ? [["estimate", "none yet"]]
            : [
                ["estimate", run.noise.value === null ? "undefined: far above the batch" : number(run.noise.value)],
                ["interval", `${number(run.noise.low)} … ${number(run.noise.high ?? Infinity)}`],
                ["estimates", count(run.noise.estimates)],
                ["skipped", count(run.noise.skipped)],
              ]
        }
      />
      <h3>Overhead of Trimtab</h3>
      <Facts facts={Object.entries(run.overhead).map(([name, of]) => [words(name), measure(name, of)])} />
      <h3>Run</h3>
      <Facts
        facts={[
          ...(run.script ? ([["script", run.script]] as const) : []),
          ["owner", run.owner || "–"],
          ["loop", run.host || "Trimtab's own workers"],
          ["learning-rate rule", run.lr_rule ?? "–"],
          ["seed", String(run.seed)],
          ["data set", run.dataset_size === null ? "–" : `${count(run.dataset_size)} samples`],
          ["dropped points", count(run.dropped_points)],
        ]}
      />
    </div>
  );
}

/** How much slower than the median rank one must be to be told of. */
const SLOWER = 1.5;

/** Ranks that the others wait for. */
function stragglers(ranks: readonly Rank[]): ReadonlySet<number> {
  const times = ranks.map((rank) => rank.step_time ?? 0).sort((a, b) => a - b);
  const median = times[Math.floor((times.length - 1) / 2)] ?? 0;
  return new Set(ranks.filter((rank) => (rank.step_time ?? 0) > SLOWER * median).map((rank) => rank.rank));
}

/** How often the workers formed another group, why, and what it cost: newest first. */
const Recoveries = ({ recoveries }: { recoveries: readonly Recovery[] }): JSX.Element => (
  <>
    <h3>
      Recoveries and resizes <small>{costOf(recoveries)}</small>
    </h3>
    <div class="scroll tall" tabIndex={0} role="region" aria-label="Recoveries and resizes" data-testid="recoveries">
      <table>
        <thead>
          <tr>
            <th>cause</th>
            <th>from step</th>
            <th>workers</th>
            <th>stood still</th>
          </tr>
        </thead>
        <tbody>
          {[...recoveries].reverse().map((one) => (
            <tr key={one.formation} data-testid="recovery" data-cause={one.cause} title={`formation ${one.formation}`}>
              <th>
                <span class={one.cause === "resize" ? undefined : "cost"}>{causeOf(one)}</span>
                <small class="num">{clock(one.time)}</small>
              </th>
              <td class="num">
                {count(one.step)}
                {one.redone > 0 && <small>{count(one.redone)} steps again</small>}
              </td>
              <td class="num">{count(one.world_size)}</td>
              <td class="num">{seconds(one.pause_s)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  </>
);

const CAUSES: Readonly<Record<Recovery["cause"], string>> = {
  loss: "lost",
  resize: "resize",
  rollback: "roll back",
  start: "restart",
};
/** A resize leaves workers behind too: they were let go, and none was lost. */
export const causeOf = ({ cause, lost }: Pick<Recovery, "cause" | "lost">): string =>
  cause === "loss" && lost > 0 ? `${lost} ${CAUSES[cause]}` : CAUSES[cause];

/** What they cost together, as far as anybody could measure it. */
export function costOf(recoveries: readonly Pick<Recovery, "pause_s" | "redone">[]): string {
  const pauses = recoveries.flatMap((one) => one.pause_s ?? []);
  const still = `stood still for ${seconds(pauses.reduce((sum, one) => sum + one, 0))}`;
  const over =
    pauses.length === recoveries.length ? "in all" : `in ${pauses.length} of ${recoveries.length} (the others were not measured)`;
  const redone = recoveries.reduce((sum, one) => sum + one.redone, 0);
  return [pauses.length > 0 && `${still} ${over}`, redone > 0 && `${count(redone)} steps again`].filter(Boolean).join(", ");
}

const Facts = ({ facts }: { facts: readonly (readonly [string, string])[] }): JSX.Element => (
  <dl class="facts-list">
    {facts.map(([name, of]) => (
      <div key={name}>
        <dt>{name}</dt>
        <dd class="num">{of}</dd>
      </div>
    ))}
  </dl>
);

/** The controller is one process: its time is that of all runs together. */
const words = (name: string): string =>
  name === "controller_cpu_s" ? "controller cpu, all runs" : name.replace(/_(s|fraction)$/, "").replaceAll("_", " ");

/** Overhead figures carry their unit in their name. */
function measure(name: string, of: unknown): string {
  if (typeof of !== "number") return of === null ? "–" : String(of);
  if (name.endsWith("_s")) return seconds(of);
  if (name.endsWith("_us")) return seconds(of / 1e6);
  if (name.endsWith("_ms")) return seconds(of / 1e3);
  return name.endsWith("fraction") ? percent(of) : number(of);
}
