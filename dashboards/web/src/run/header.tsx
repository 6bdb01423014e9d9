import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import * as api from "../api";
import { clock, count, number, seconds } from "../format";
import { lastRate } from "../rate";
import { mayAct } from "../session";
import { Confirm } from "../ui/confirm";
import { Icon, IconButton, type IconName } from "../ui/icons";
import { lazy } from "../ui/lazy";
import { Link } from "../ui/link";
import { Progress } from "../ui/progress";
import { Prose } from "../ui/prose";
import { StateChip } from "../ui/state-chip";
import { VersionTrail, type Asked } from "../ui/version-trail";
import { go } from "../url";
import type { RollBackProps } from "./roll-back";
import type { RunStore } from "./store";

const RollBack = lazy<RollBackProps>(() => import("./roll-back").then((module) => module.RollBack));

export function Header({ store, run }: { store: RunStore; run: api.Run }): JSX.Element {
  return (
    <header class="run-header">
      <div class="run-title">
        <h1 title={run.name}>{run.name}</h1>
        <StateChip state={run.state} reason={run.state_reason} />
        <code class="id" title={run.id}>
          {run.id}
        </code>
        {run.host && (
          <span class="tag" title="Who owns the training loop" data-testid="host">
            {run.host}
          </span>
        )}
        {run.job && (
          <Link to={{ page: "job", job: run.job }} class="tag" title={run.job} testid="run-job">
            job {run.job}
          </Link>
        )}
        <IconButton name="compare" label="Compare with other runs" testid="compare-with" onClick={() => go({ runs: [run.id] })} />
      </div>
      <Progress {...run} />
      <Commands store={store} run={run} />
      <Figures store={store} run={run} />
      {api.ended(run) && (
        <p class="state-reason" data-testid="ended">
          This run has ended; nothing can be changed.
        </p>
      )}
      {/* Of a run that goes on it is old: the marks, the changes and the recoveries tell it with its step. */}
      {run.state_reason && run.state !== "running" && (
        <p class="state-reason">
          <Prose text={run.state_reason} />
        </p>
      )}
      {store.error.value && (
        <p class="alert error" role="alert" data-testid="stale">
          <Prose text={store.error.value.message} /> What is shown may be old.
        </p>
      )}
      {store.alerts.value.length > 0 && (
        <ul class="alerts" role="log" aria-label="Alerts" data-testid="alerts">
          {store.alerts.value.map((alert) => (
            <li key={alert.time + alert.message} class={`alert ${alert.level}`}>
              <time>{clock(alert.time)}</time> <Prose text={alert.message} />
            </li>
          ))}
        </ul>
      )}
    </header>
  );
}

function Figures({ store, run }: { store: RunStore; run: api.Run }): JSX.Element {
  const hparams = new Map(store.hparams.value?.hyperparameters.map((h) => [h.name, h.value]));
  const { plan, noise, horizon } = run;
  const seen = store.rate.value;
  const rate = Number.isNaN(seen) ? lastRate(run) : seen;
  const moving = run.state === "running" && Number.isFinite(rate) && rate > 0;
  const left = moving && horizon?.unit === "samples" ? (horizon.amount - run.progress.samples) / rate : NaN;
  const figures: [string, string, string?][] = [
    ["step", count(run.progress.steps)],
    ["loss", number(run.loss), "last step"],
    ["lr", number(hparams.get("lr") as number | undefined, 3)],
    ["workers", count(run.world_size), workersNote(run)],
    ["sync", run.sync],
    ["batch", number(plan?.batch_size), plan ? `= ${run.world_size} × ${plan.accumulation} × ${plan.micro_batch}` : ""],
    [
      "noise scale",
      number(noise?.value, 3),
      noise ? `${number(noise.low, 3)} … ${number(noise.high ?? Infinity, 3)}` : "",
    ],
    ["samples/s", moving ? number(rate, 3) : "–", left > 0 ? `${seconds(left)} left` : ""],
  ];
  return (
    <dl class="figures">
      {figures.map(([name, figure, note]) => (
        <div key={name} data-figure={name}>
          <dt>{name}</dt>
          <dd class="num">
            {figure} {note && <small>{note}</small>}
          </dd>
        </div>
      ))}
    </dl>
  );
}

/** What is wanted where it is not there yet, else how the workers share their devices; and how often they met anew. */
export function workersNote({ world_size, wanted, formation }: Pick<api.Run, "world_size" | "wanted" | "formation">): string {
  const missing = wanted !== null && wanted.world_size !== world_size;
  const shape = wanted !== null && wanted.learners > 1 ? `${wanted.workers} × ${wanted.learners} learners` : "";
  const size = missing ? `${shape || count(wanted.world_size)} wanted` : shape;
  return [size, formation > 1 ? `formation\u00a0${count(formation)}` : ""].filter(Boolean).join(", ");
}

/** Is there a schedule that decays when it is told to? */
const waitsForDecay = ({ policies }: api.Run): boolean =>
  policies.some((p) => p.kind === "schedule" && p.mode === "active" && p.params.shape === "wsd");

function Commands({ store, run }: { store: RunStore; run: api.Run }): JSX.Element {
  const asked = useSignal<Asked | null>(null);
  const problem = useSignal<api.Problem | null>(null);
  const asking = useSignal<"stop" | "decay" | "rollback" | null>(null);
  const close = (): void => void (asking.value = null);
  const over = api.ended(run) || run.state === "stopping" || !mayAct.value;

  const ask = async (request: () => Promise<{ version: number }>): Promise<void> => {
    problem.value = null;
    asked.value = { version: null };
    try {
      asked.value = await request();
    } catch (error) {
      asked.value = null;
      problem.value = api.Problem.of(error);
    }
  };
  const send = (verb: api.Command, reason = ""): Promise<void> => ask(() => api.command(store.id, verb, reason));
  const button = (verb: api.Command, icon: IconName, onClick: () => void = () => void send(verb)): JSX.Element => (
    <button
      type="button"
      disabled={over}
      onClick={onClick}
      data-testid={`command-${verb}`}
      class={verb === "stop" ? "danger" : undefined}
    >
      <Icon name={icon} />
      {verb}
    </button>
  );

  return (
    <div class="commands">
      {run.state === "paused" ? button("resume", "play") : button("pause", "pause")}
      {button("checkpoint", "save")}
      <button
        type="button"
        disabled={over || run.checkpoints.length === 0}
        title={run.checkpoints.length === 0 ? "No checkpoint is kept yet" : undefined}
        data-testid="command-rollback"
        onClick={() => (asking.value = "rollback")}
      >
        <Icon name="reset" />
        roll back
      </button>
      {waitsForDecay(run) && button("decay", "decay", () => (asking.value = "decay"))}
      {button("stop", "stop", () => (asking.value = "stop"))}
      {asked.value && <VersionTrail store={store} asked={asked.value} />}
      {problem.value && (
        <p class="field-error" role="alert">
          <Prose text={problem.value.message} />
        </p>
      )}
      {asking.value === "stop" && (
        <Confirm
          title={`Stop ${run.name}?`}
          action="Stop the run"
          name="stop"
          asksReason
          onClose={close}
          onConfirm={(reason) => void send("stop", reason)}
        >
          The run ends after its present step. Its journal, metrics and checkpoints stay.
        </Confirm>
      )}
      {asking.value === "decay" && (
        <Confirm
          title="Begin the decay now?"
          action="Begin the decay"
          name="decay"
          asksReason
          onClose={close}
          onConfirm={(reason) => void send("decay", reason)}
        >
          Schedules of shape wsd leave their plateau and come down from here. The first wish counts.
        </Confirm>
      )}
      {asking.value === "rollback" && (
        <RollBack run={run} onClose={close} onConfirm={(wish) => void ask(() => api.rollback(store.id, wish))} />
      )}
    </div>
  );
}
