import "../styles/views.css";
import type { ComponentChildren, JSX } from "preact";
import * as api from "../api";
import { bytes, count, number, percent, seconds } from "../format";
import { Link } from "../ui/link";
import { Failure } from "../ui/notice";
import { Prose } from "../ui/prose";
import { polled, usePolled } from "../ui/polled";
import { StateChip } from "../ui/state-chip";
import { runPlace } from "../url";

const POLL_MS = 2000;

const health = polled(api.health);

/** Nodes and devices, and how Trimtab itself fares. */
export function ClusterPage(): JSX.Element {
  usePolled(health, POLL_MS, "Cluster");
  const { problem, load } = health;
  const now = health.last.value;
  return (
    <main id="main" class="cluster" data-testid="cluster">
      <header class="list-header">
        <h1>Cluster</h1>
        {now && <span class="quiet num">{now.nodes ? `${count(now.nodes.length)} ${now.nodes.length === 1 ? "node" : "nodes"}` : ""}</span>}
      </header>
      {problem.value && <Failure problem={problem.value} onRetry={() => void load()} />}
      {now === null && !problem.value && (
        <p class="quiet" aria-busy="true">
          Loading …
        </p>
      )}
      {now?.problems.map((text) => (
        <p key={text} class="alert error" role="alert">
          <Prose text={text} />
        </p>
      ))}
      {now?.nodes && <Nodes nodes={now.nodes} />}
      {now && <Trimtab now={now} />}
      {now?.controller && now.controller.live.length > 0 && <Going controller={now.controller} />}
    </main>
  );
}

/** Resources that people know; a card tells of the others too. */
const WORDS: Readonly<Record<string, string>> = { CPU: "CPUs", GPU: "GPUs", memory: "memory", object_store_memory: "object store" };
const known = (name: string): boolean => name in WORDS;

function Nodes({ nodes }: { nodes: readonly api.NodeHealth[] }): JSX.Element {
  return (
    <section aria-label="Nodes">
      <h2>Nodes</h2>
      <ul class="cards">
        {nodes.map((node) => (
          <li key={node.id} class="card" data-testid="node">
            <header>
              <h3>{node.host}</h3>
              <code class="id">{node.address}</code>
              <span class="spring" />
              {node.head && <span class="chip tone-calm">head</span>}
              {node.draining && <span class="chip tone-warn">draining</span>}
            </header>
            <p class="quiet" title="What Ray has set aside for tasks and actors, whatever they use of it">
              reserved in Ray
            </p>
            <dl class="gauges">
              {Object.entries(node.resources)
                .sort(([a], [b]) => Number(known(b)) - Number(known(a)) || (a < b ? -1 : 1))
                .map(([name, { total, free }]) => (
                  <Gauge key={name} name={name} used={total - free} total={total} of="reserved" />
                ))}
            </dl>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Gauge({ name, used, total, of }: { name: string; used: number; total: number; of: string }): JSX.Element {
  const say = /memory|disk/.test(name) ? bytes : number;
  return (
    <div>
      <dt>{WORDS[name] ?? name}</dt>
      <dd>
        <meter min={0} max={total || 1} value={used} aria-label={`${WORDS[name] ?? name} ${of}`} />
        <span class="num">
          {say(used)} of {say(total)}
        </span>
      </dd>
    </div>
  );
}

type Fact = readonly [name: string, value: string, note?: string];

const Facts = ({ title, facts, children }: { title: string; facts: readonly Fact[]; children?: ComponentChildren }): JSX.Element => (
  <li class="card" data-testid="facts" data-title={title}>
    <h3>{title}</h3>
    {children}
    <dl class="plain-facts">
      {facts.map(([name, value, note]) => (
        <div key={name} title={note}>
          <dt>{name}</dt>
          <dd class="num">{value}</dd>
        </div>
      ))}
    </dl>
  </li>
);

const spread = ({ count: all, median_s, p95_s, max_s }: api.Timings): readonly Fact[] =>
  all === 0
    ? [["measured", "not yet"]]
    : [
        ["median", seconds(median_s)],
        ["95 %", seconds(p95_s)],
        ["slowest", seconds(max_s)],
        ["measured", count(all)],
      ];

function Trimtab({ now }: { now: api.Health }): JSX.Element {
  const { controller, home, software } = now;
  return (
    <section aria-label="Trimtab">
      <h2>Trimtab</h2>
      <ul class="cards">
        {controller && (
          <>
            <Facts
              title="Controller"
              facts={[
                ["term", count(controller.term), "Counts the starts of the controller"],
                ["up for", seconds(controller.uptime_s)],
                ["processor time", seconds(controller.cpu_s)],
                ["ticks", count(controller.ticks)],
                ["versions", count(controller.versions)],
                ["faults of policies", count(controller.policy_faults)],
              ]}
            />
            <Facts
              title="Decision to applied"
              facts={spread(controller.decision_to_applied)}
            />
            <Facts title="Lag of its loop" facts={spread(controller.lag)} />
            <Facts title="A control tick" facts={spread(controller.tick)} />
            <Facts
              title="Records"
              facts={[
                ["produced", count(controller.records.produced)],
                ["stored", count(controller.records.stored)],
                ["dropped", count(controller.records.dropped)],
                ["points kept", count(controller.points)],
                ["share of step time", controller.overhead === null ? "–" : percent(controller.overhead), "What ranks spend in Trimtab's own work"],
              ]}
            />
            <Facts
              title="Events published"
              facts={Object.entries(controller.events).map(([topic, n]) => [topic, count(n)] as const)}
            />
          </>
        )}
        <Facts
          title="API"
          facts={[
            ["host", now.api.host],
            ["up for", seconds(now.api.uptime_s)],
            ["open event streams", count(now.api.stream_clients)],
            ...Object.entries(software),
          ]}
        />
        {home && (
          <Facts
            title="Home"
            facts={[
              ["host", home.host],
              ["path", home.path],
              ["journal", bytes(home.journal_bytes)],
              ["memory, at most", bytes(home.memory_peak_bytes)],
            ]}
          >
            <dl class="gauges">
              <Gauge name="disk" of="in use" used={home.disk_total_bytes - home.disk_free_bytes} total={home.disk_total_bytes} />
            </dl>
          </Facts>
        )}
      </ul>
    </section>
  );
}

const FIGURES = ["workers", "step", "steps/s", "loss", "version", "dropped", "Trimtab's share"] as const;

const figures = (run: api.RunHealth): readonly string[] => [
  count(run.world_size),
  count(run.step),
  number(run.steps_per_s, 3),
  number(run.loss),
  run.applied_version < run.version ? `v${run.applied_version} → v${run.version}` : `v${run.version}`,
  count(run.dropped),
  run.overhead === null ? "–" : percent(run.overhead),
];

function Going({ controller }: { controller: NonNullable<api.Health["controller"]> }): JSX.Element {
  return (
    <section aria-label="Runs that go on">
      <h2>Runs that go on</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of the runs that go on">
        <table class="wide-table stacked">
          <thead>
            <tr>
              {["run", "state", ...FIGURES].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {controller.live.map((run) => (
              <tr key={run.id} data-testid="live-run">
                <th scope="row">
                  <Link to={runPlace(run.id)}>{run.name}</Link>
                </th>
                <td>
                  <StateChip state={run.state} />
                </td>
                {figures(run).map((figure, i) => (
                  <td key={i} class="num" data-label={FIGURES[i]}>
                    {figure}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {controller.live_omitted > 0 && <p class="quiet">and {count(controller.live_omitted)} more</p>}
    </section>
  );
}
