"""What the outside sees of a run: the answers of REST and the payloads of the event stream."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.controller.batching import Plan
from trimtab.controller.events import Cause, Mode
from trimtab.controller.history import Kind as RecordKind
from trimtab.controller.history import Record
from trimtab.controller.history import Status as RecordStatus
from trimtab.controller.hyperparameters import Kind, Parameter, Pin, factor_at
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Horizon
from trimtab.controller.policies.code import Description
from trimtab.controller.policies.policy import Policy
from trimtab.controller.run import PolicyEntry, Recovery, Run
from trimtab.controller.state import RunState
from trimtab.controller.sync import LEARNERS, WORKERS, counted, strategy, wanted
from trimtab.controller.trajectory import Coupling, Curve, LrRule, Progress, Scalar


class View(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", populate_by_name=True, serialize_by_alias=True)


class FactorView(View):
    """One factor of a value, as it is worth now."""

    by: str
    value: float
    text: str


class HyperParameterView(View):
    """A value with its provenance."""

    name: str
    kind: Kind
    value: Scalar
    base: Scalar
    factors: list[FactorView]
    owner: str | None
    pin: Pin | None
    min: float | None
    max: float | None
    choices: list[str]
    unit: str
    text: str
    version: int
    applied_version: int


class HyperParametersView(View):
    revision: int  # of the pins
    progress: Progress
    hyperparameters: list[HyperParameterView]


class Pinned(View):
    """What a pin, or its end, has led to."""

    revision: int = Field(description="Of the pins.")
    version: int
    value: Scalar = Field(description="In force with that version; a batch is what the ranks can make of the wish.")


class PolicyView(View):
    name: str
    kind: str
    params: dict[str, Any]
    mode: Mode
    revision: int
    faults: int
    disabled: str | None  # why it is no longer asked, if it has failed too often
    last_reason: str | None
    waits: str | None = Field(description="What it holds back for; null: for nothing, or nobody knows.")
    reads: list[str]
    writes: list[str]
    would_be: dict[str, Scalar]  # in shadow: the values that it would have made


class PolicyKindView(View):
    kind: str
    title: str
    doc: str
    rule: int
    source: str
    reads: list[str]
    writes: list[str]
    origin: str = ""  # the package or the file that it comes from; "": Trimtab itself
    schema_: dict[str, Any] = Field(alias="schema")


class ChangeView(View):
    param: str
    from_: Scalar | bool | None = Field(alias="from")
    to: Scalar | bool | None
    by: str
    reason: str


class RecordView(View):
    """One line of the audit."""

    id: int
    kind: RecordKind
    version: int | None
    status: RecordStatus
    changes: list[ChangeView]
    accepted_at: datetime
    accepted_at_step: int
    applied: dict[int, int]


class AuditView(RecordView):
    """One line of the audit over all runs."""

    run: str


class RankView(View):
    """One rank as it last reported."""

    rank: int
    step: int
    version: int  # the highest that it holds
    step_time: float  # [s]
    produced: int
    dropped: int
    training_s: float = Field(description="Step time added up since the formation began.")
    control_s: float = Field(description="Of these, spent in Trimtab's own work: agreeing, measuring, noting.")


class CheckpointView(View):
    """A checkpoint that a roll back can go to."""

    step: int
    samples: int
    version: int  # whose values it brings back


class WantedView(View):
    """The size that is asked for; workers join, or leave, until it is there."""

    workers: int  # places, one device each
    learners: int  # on each of them
    world_size: int


class RecoveryView(View):
    """A formation after the first: why it was made, and what it cost."""

    formation: int
    cause: Cause = Field(description="start: in new processes, from a checkpoint.")
    step: int = Field(description="From which training goes on.")
    world_size: int
    lost: int = Field(description="Ranks.")
    pause_s: float | None = Field(description="How long training stood still; null where nobody could measure it.")
    redone: int = Field(description="Steps that are trained again, back to a checkpoint.")
    time: datetime


class Overhead(View):
    """What Trimtab itself costs."""

    controller_cpu_s: float
    ingest_s: float  # spent taking in records
    decide_s: float  # spent in ticks: policies, guard rails, journal
    ticks: int
    points: int


class _RunBase(View):
    id: str
    name: str
    owner: str = Field(description="Whoever started it; empty where nobody said.")
    state: RunState
    state_reason: str
    host: str = Field(description="Who owns its loop; empty: Trimtab's own workers.")
    job: str | None = Field(description="The submission id of the job that trains it; null: it was not submitted.")
    created: datetime
    updated: datetime
    world_size: int = Field(description="Ranks that train together now.")
    wanted: WantedView | None = Field(description="The size asked for; null where the run's size cannot be changed.")
    sync: str = Field(description="How replicas are kept together: the strategy in force.")
    formation: int = Field(description="Counts the groups of workers that the run has had.")
    progress: Progress
    horizon: Horizon | None
    fraction: float | None
    loss: float | None
    loss_trace: list[float]
    version: int


class RunSummary(_RunBase):
    """A run as one line of a list."""

    policies: list[str]


class RunView(_RunBase):
    """A run in full."""

    script: str
    seed: int
    lr_rule: LrRule | None
    dataset_size: int | None
    plan: dict[str, int]
    noise: Noise | None
    ranks: list[RankView]
    checkpoints: list[CheckpointView]  # oldest first
    recoveries: list[RecoveryView] = Field(description="Newest last, 100 at most.")
    overhead: Overhead
    dropped_points: int
    policies: list[PolicyView]


def moment(unix: float) -> datetime:
    return datetime.fromtimestamp(unix, UTC)


def hyperparameters(run: Run, progress: Progress) -> HyperParametersView:
    settings = run.version.at(progress)
    views = [
        _hyperparameter(run, parameter, settings.values[name], progress, settings.plan.batch_size)
        for name, parameter in run.version.parameters.items()
    ]
    return HyperParametersView(revision=run.pins_revision, progress=progress, hyperparameters=views)


def _hyperparameter(
    run: Run, parameter: Parameter, value: Scalar, progress: Progress, batch_size: int
) -> HyperParameterView:
    spec = parameter.spec
    factors = [
        FactorView(by=name, value=factor_at(factor, progress, batch_size), text=str(factor))
        for name, factor in parameter.factors.items()
        if not (isinstance(factor, Coupling) and factor.rule == "none")
    ]
    base = parameter.base.at(progress)
    return HyperParameterView(
        name=spec.name,
        kind=spec.kind,
        value=value,
        base=base,
        factors=factors,
        owner=run.owner(spec.name),
        pin=parameter.pin,
        min=spec.min,
        max=spec.max,
        choices=list(spec.choices),
        unit=spec.unit,
        text=_provenance(spec.name, value, parameter, base, factors) + _not_there(run, spec.name, progress),
        version=run.version.number,
        applied_version=run.applied_version,
    )


def _provenance(name: str, value: Scalar, parameter: Parameter, base: Scalar, factors: list[FactorView]) -> str:
    if parameter.pin is not None:
        return f"{name} {_number(value)}, pinned by {parameter.pin.by}"
    product = " × ".join([_number(base), *(f"{f.by} {_number(f.value)}" for f in factors)])
    shape = f" ({parameter.base})" if isinstance(parameter.base, Curve) else ""
    return f"{name} {_number(value)} = {product}{shape}"


def _not_there(run: Run, name: str, progress: Progress) -> str:
    """A size is a wish, until the workers are there."""
    if name not in (WORKERS, LEARNERS):
        return ""
    size, now = wanted(run.version, progress), run.version.batching.world_size
    if size is None or size[0] * size[1] == now:
        return ""
    return f"; wanted, {counted(now)} now"


def _number(value: Scalar) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def pinned(run: Run, param: str, progress: Progress) -> Pinned:
    value = run.version.at(progress).values[param]
    return Pinned(revision=run.pins_revision, version=run.version.number, value=value)


def policy(run: Run, name: str, progress: Progress) -> PolicyView:
    entry = run.policies[name]
    return PolicyView(
        name=name,
        kind=entry.kind,
        params=dict(entry.params),
        mode=entry.mode if entry.asked else "off",
        revision=entry.revision,
        faults=entry.faults,
        disabled=entry.disabled,
        last_reason=entry.last_reason,
        waits=_waits(run, entry),
        reads=sorted(entry.policy.reads()),
        writes=sorted(entry.policy.writes()),
        would_be=dict(run.would_be(name, progress)),
    )


def _waits(run: Run, entry: PolicyEntry) -> str | None:
    if run.observation is None or run.state.ended or not entry.asked:
        return None
    return entry.policy.waits(entry.state, run.observation)


def policy_kind(kind: str, cls: type[Policy]) -> PolicyKindView:
    default = _default(cls)
    return PolicyKindView(
        kind=kind,
        title=cls.__name__,
        doc=cls.__doc__ or "",
        rule=cls.rule,
        source=cls.source,
        reads=sorted(default.reads()) if default else [],
        writes=sorted(default.writes()) if default else [],
        schema_=cls.model_json_schema(),
    )


def foreign_kind(known: Description, origin: str) -> PolicyKindView:
    """A kind that is not Trimtab's own, as its process has described it."""
    about, facts = known.about, known.facts
    return PolicyKindView(
        kind=about.kind,
        title=about.title,
        doc=about.doc,
        rule=about.rule,
        source=about.source,
        reads=list(facts.reads) if facts else [],
        writes=sorted(facts.writes) if facts else [],
        origin=origin,
        schema_=dict(about.schema),
    )


def broken_kind(kind: str, why: str, origin: str) -> PolicyKindView:
    """A kind that is installed and cannot be used."""
    doc = f"It cannot be used: {why}"
    return PolicyKindView(
        kind=kind, title=kind, doc=doc, rule=1, source="", reads=[], writes=[], origin=origin, schema_={}
    )


def _default(cls: type[Policy]) -> Policy | None:
    """A policy of that kind as it comes; None if a parameter has no default."""
    try:
        return cls()
    except ValidationError:
        return None


def record(of: Record) -> RecordView:
    return RecordView(**_record(of))


def audited(run: str, of: Record) -> AuditView:
    return AuditView(run=run, **_record(of))


def _record(of: Record) -> dict[str, Any]:
    return {
        "id": of.id,
        "kind": of.kind,
        "version": of.version,
        "status": of.status,
        "changes": [
            ChangeView(param=c.param, from_=c.before, to=c.after, by=c.by, reason=c.reason) for c in of.changes
        ],
        "accepted_at": moment(of.time),
        "accepted_at_step": of.step,
        "applied": of.applied,
    }


def plan(of: Plan) -> dict[str, int]:
    return {
        "batch_size": of.batch_size,
        "micro_batch": of.micro_batch,
        "accumulation": of.accumulation,
        "world_size": of.world_size,
    }


def summary(run: Run, progress: Progress, losses: list[float]) -> RunSummary:
    return RunSummary(**_common(run, progress, losses), policies=list(run.policies))


def detail(
    run: Run,
    progress: Progress,
    losses: list[float],
    noise: Noise | None,
    ranks: Mapping[int, RankView],
    overhead: Overhead,
) -> RunView:
    return RunView(
        **_common(run, progress, losses),
        script=run.spec.script,
        seed=run.spec.seed,
        lr_rule=run.lr_rule,
        dataset_size=run.dataset_size,
        plan=plan(run.version.at(progress).plan),
        noise=noise,
        ranks=[ranks[rank] for rank in sorted(ranks)],
        checkpoints=[
            CheckpointView(step=one.step, samples=one.samples, version=one.version.number) for one in run.checkpoints
        ],
        recoveries=[_recovery(one) for one in run.recoveries],
        overhead=overhead,
        dropped_points=sum(rank.dropped for rank in ranks.values()),
        policies=[policy(run, name, progress) for name in run.policies],
    )


def _recovery(of: Recovery) -> RecoveryView:
    return RecoveryView(
        formation=of.formation,
        cause=of.cause,
        step=of.step,
        world_size=of.world_size,
        lost=of.lost,
        pause_s=of.pause_s,
        redone=of.redone,
        time=moment(of.time),
    )


def _wanted(run: Run, progress: Progress) -> WantedView | None:
    size = wanted(run.version, progress)
    return None if size is None else WantedView(workers=size[0], learners=size[1], world_size=size[0] * size[1])


def _common(run: Run, progress: Progress, losses: list[float]) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.spec.name,
        "owner": run.spec.owner,
        "state": run.state,
        "state_reason": run.state_reason,
        "host": run.spec.host,
        "job": run.job or None,
        "created": moment(run.created),
        "updated": moment(run.updated),
        "world_size": run.version.batching.world_size,
        "wanted": _wanted(run, progress),
        "sync": strategy(run.version, progress),
        "formation": run.formation,
        "progress": progress,
        "horizon": run.horizon,
        "fraction": run.horizon.fraction(progress) if run.horizon else None,
        "loss": losses[-1] if losses else None,
        "loss_trace": losses,
        "version": run.version.number,
    }
