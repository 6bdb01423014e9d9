import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import type { HyperParameter } from "../api";
import { number, value } from "../format";
import { Icon } from "../ui/icons";
import { lazy } from "../ui/lazy";
import { VersionTrail, type Asked } from "../ui/version-trail";
import { bounds } from "./bounds";
import { versionNote } from "./over";
import type { PinProps } from "./pin";
import { steps } from "./waterfall";
import type { RunStore } from "./store";

const PinForm = lazy<PinProps>(() => import("./pin").then((module) => module.PinForm));

/** Every hyper-parameter: what it is, and why. */
export function Values({ store, over }: { store: RunStore; over: boolean }): JSX.Element {
  const hparams = store.hparams.value;
  if (hparams === null) return <p class="quiet">Loading values …</p>;
  if (hparams.hyperparameters.length === 0)
    return (
      <p class="quiet" data-testid="no-values">
        This run {over ? "declared no hyper-parameters" : "has declared no hyper-parameters yet"}.
      </p>
    );
  return (
    <ul class="values" data-testid="values" data-revision={hparams.revision}>
      {hparams.hyperparameters.map((param) => (
        <ValueCard key={param.name} store={store} param={param} revision={hparams.revision} over={over} />
      ))}
    </ul>
  );
}

function ValueCard({
  store,
  param,
  revision,
  over,
}: {
  store: RunStore;
  param: HyperParameter;
  revision: number;
  over: boolean;
}): JSX.Element {
  const open = useSignal(false);
  const asked = useSignal<Asked | null>(null);
  const opener = useRef<HTMLButtonElement>(null);
  const pending = !over && param.version > param.applied_version;
  return (
    <li class={`value ${param.pin ? "pinned" : ""}`} data-testid="value" data-param={param.name}>
      <header>
        <h3>{param.name}</h3>
        <output class="num" title={param.text} data-testid="value-now">
          {value(param.value)}
          {param.unit && <small> {param.unit}</small>}
        </output>
        <button
          ref={opener}
          type="button"
          class="icon-button"
          disabled={!store.changeable.value}
          aria-expanded={open.value}
          aria-pressed={param.pin !== null}
          data-testid="pin-button"
          aria-label={param.pin ? `${param.name}: pinned, change or unpin` : `Pin ${param.name}`}
          title={param.pin ? "Change or unpin" : "Pin"}
          onClick={() => {
            open.value = !open.value;
            asked.value = null;
          }}
        >
          <Icon name="pin" />
        </button>
      </header>
      <Provenance param={param} />
      {param.pin && (
        <p class="pin-note">
          <Icon name="pin" /> pinned at <b class="num">{value(param.pin.value)}</b> by {param.pin.by}
          {param.pin.reason && <span class="reason">: {param.pin.reason}</span>}
          {param.pin.value !== param.value && <>; {value(param.pin.value)} cannot be shared out evenly</>}
        </p>
      )}
      <p class="facts">
        <span>
          {param.owner ? (
            <>
              base owned by <b>{param.owner}</b>
            </>
          ) : (
            "base owned by no policy"
          )}
        </span>
        {bounds(param) && (
          <span class="num" title="bounds">
            {bounds(param)}
          </span>
        )}
        <span
          class={`num ${pending ? "pending" : ""}`}
          title="version that set it / version applied by the ranks"
          data-testid="value-version"
        >
          {versionNote(param.version, param.applied_version, over)}
        </span>
      </p>
      {open.value && store.changeable.value && (
        <PinForm
          store={store}
          param={param}
          revision={revision}
          asked={asked}
          onDone={() => {
            open.value = false;
            opener.current!.focus();
          }}
        />
      )}
      {asked.value && <VersionTrail store={store} asked={asked.value} />}
    </li>
  );
}

/** value = base × factors, each with its author, as steps on a logarithmic scale; a pin overrules them all. */
function Provenance({ param }: { param: HyperParameter }): JSX.Element {
  const { parts, clamped } = steps(param);
  if (parts.length === 1)
    return (
      <p class={`provenance num ${param.pin ? "overruled" : ""}`} data-testid="provenance">
        <span class="part base">
          <small>base</small>
          {value(param.base)}
        </span>
      </p>
    );
  return (
    <dl class={`waterfall num ${param.pin ? "overruled" : ""}`} data-testid="provenance">
      {parts.map((part) => (
        <div key={part.by} class={part.tone} title={part.text || undefined}>
          <dt>
            {part.tone !== "base" && <i>× </i>}
            {part.by}
          </dt>
          <dd>
            <b>{number(part.value, 4)}</b>
            <span class="bar" aria-hidden="true">
              <i style={{ left: `${part.from}%`, width: `${part.to - part.from}%` }} />
            </span>
          </dd>
        </div>
      ))}
      <div class="sum">
        <dt>{clamped ? "= clamped to" : "="}</dt>
        <dd>
          <b>{value(param.pin ? parts.reduce((product, part) => product * part.value, 1) : param.value)}</b>
        </dd>
      </div>
    </dl>
  );
}
