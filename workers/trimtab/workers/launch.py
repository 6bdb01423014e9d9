"""`launch`: train a function on the workers of a Ray cluster, steered by the controller."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray

from trimtab.controller import actor, hosted, logs, views
from trimtab.controller.actor import call
from trimtab.controller.connect import connect
from trimtab.controller.controller import PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.home import home as default_home
from trimtab.controller.home import owner
from trimtab.controller.hyperparameters import BATCH, LR, HyperParameter
from trimtab.controller.observation import Horizon
from trimtab.controller.overrides import job, overrides
from trimtab.controller.policies import Policy
from trimtab.controller.policies.code import Code
from trimtab.controller.state import RunState
from trimtab.controller.sync import LEARNERS, OPTIONS, SYNC, SYNC_PARAMETER, WORKERS, counted
from trimtab.controller.trajectory import LrRule, Scalar
from trimtab.workers import apply
from trimtab.workers.checkpoints import placed
from trimtab.workers.crew import Resources
from trimtab.workers.driver import Driver, first_size, new_run_id
from trimtab.workers.groups import Plan
from trimtab.workers.trainable import Trainable, pickle_modules_by_name
from trimtab.workers.worker import Train

log = logging.getLogger(__name__)

Given = Scalar | HyperParameter
BATCH_SPAN = 64  # a batch may grow to this multiple of the first, unless `hp` says otherwise
LR_RATIO = 100.0  # so that a warm-up from a hundredth may be added mid-run
MAX_WORKERS = 256  # that a run may grow to, unless it is said otherwise
MICRO_CAP = 64  # [samples] that a rank's micro-batch may grow to, unless the first is larger


def launch(
    train: Trainable | Train,
    *,
    workers: int = 2,
    hp: Mapping[str, Given] | None = None,
    policies: Sequence[str | Policy | PolicySpec] = (),
    samples: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    min_workers: int = 1,
    max_workers: int | None = None,
    learners: int = 1,
    max_learners: int | None = None,
    spares: int = 0,
    sync: str | None = None,
    on_resize: Literal["hold", "scale"] = "hold",
    name: str | None = None,
    seed: int = 0,
    lr_rule: LrRule | None = None,
    lr_exponent: float = 1.0,
    micro_batch: int | None = None,
    max_micro_batch: int | None = None,
    resources: Resources | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_steps: int | None = 500,
    max_failures: int = 3,
    resume: str | None = None,
    arguments: Sequence[str] = (),
    script: str = "",
    home: Path | None = None,
    on_start: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train to the end and return the summary that `trimtab run --summary` writes.

    Joins the Ray cluster that this process is connected to, or that runs here, or starts one. `workers` places are
    taken, one device each, with `learners` on each; both may change while the run goes on, within their bounds, as does
    `sync`, the strategy that keeps them together. `on_resize` says what stays then: the global batch ("hold") or each
    worker's share of it ("scale"). `spares` workers are kept ready beside them, to come in at once where one is lost.
    With fewer than `min_workers` the run waits for more. `hp` gives first values,
    or whole declarations with bounds; `policies` are kinds, configured policies, named ones or classes of your own in
    a file, as "my_policy.py:Cruise". What the command line of a job gives (`trimtab submit --hp … --policy …`) stands
    in place of both. With `resume` a run goes on from its last checkpoint with what it was started with. `on_start` is
    called with the run's id, and whoever gives it follows the run; else the process logs where it stands.

    Raises Refused, ValueError or CheckpointError before anything has started, TrainingError when the run fails.
    """
    connect(prints=True, home=home)
    if not actor.running():
        actor.start(home or default_home())
    told = overrides()
    specs = told.over_policies([asked(policy) for policy in policies])
    trainable = train if isinstance(train, Trainable) else Trainable(function=train)
    if resume is None:
        size = _size(workers, min_workers, max_workers, learners, max_learners)
        given_hp = {**trainable.hp, **size, **({SYNC: sync} if sync is not None else {}), **told.over_hp(hp or {})}
        parameters = declared(given_hp, workers * learners)
        micro = micro_batch or _micro_batch(parameters, workers * learners)
        if (samples, steps, epochs) == (None, None, None):
            samples, steps, epochs = trainable.samples, trainable.steps, trainable.epochs
        horizon, epochs = until(samples, steps, epochs)
        name = name or Path(sys.argv[0]).stem or "run"
        run = new_run_id(name)
        spec = RunSpec(
            name=name,
            world_size=workers * learners,
            parameters=parameters,
            micro_batch=micro,
            max_micro_batch=max_micro_batch or max(micro, MICRO_CAP),
            horizon=horizon,
            epochs=epochs,
            seed=seed,
            lr_rule=lr_rule,
            lr_exponent=lr_exponent,
            on_resize=on_resize,
            script=script,
            owner=owner(),
            arguments=tuple(arguments),
            checkpoints=placed(checkpoints or default_home() / "checkpoints", run),
        )
    else:
        run, spec = resume, call("spec", resume)
        if call("run", run).state is RunState.FINISHED:
            raise Refused("run-ended", f"run {run} has finished: there is nothing to go on with")
        if spec.host:
            message = f"run {run} has no train function of Trimtab's: go on with attach(model, optimizer, run={run!r})"
            raise Refused(hosted.NOT_WITH_ATTACH, message)
    resources = resources or Resources()
    resources.bundle(first_size(spec).workers)
    plan = Plan(
        run=run,
        spec=spec,
        train=trainable.function,
        resources=resources,
        checkpoints=spec.checkpoints,
        checkpoint_steps=checkpoint_steps,
        max_failures=max_failures,
        spares=spares,
        arguments=tuple(arguments),
    )
    pickle_modules_by_name()
    driver = Driver(plan)
    if resume is None:
        call("prepare_policies", run, specs)
        call("create_run", run, spec, specs)
    if on_start is None:
        logs.show()
    else:
        on_start(run)
    begun(run)
    driver.run()
    made = summary(run)
    log.info("run %s: %s after %s steps, %s samples", run, made["state"], f"{made['steps']:,}", f"{made['samples']:,}")
    return made


def begun(run: str) -> None:
    """Tell how to follow the run; and the controller, if it was submitted as a job, which one trains it."""
    log.info("run %s: follow it with `trimtab watch %s`, or on the page of `trimtab up`", run, run)
    if name := job():
        call("link_job", run, name)


def declared(hp: Mapping[str, Given], workers: int) -> tuple[HyperParameter, ...]:
    """Declarations of the values that a run of so many ranks was given. Raises ValueError."""
    if BATCH not in hp:
        raise ValueError("say how large the first batch is: hp={'batch_size': 64}, or --hp batch_size=64")
    return tuple(_declared(name, given, workers) for name, given in hp.items())


def _size(workers: int, least: int, most: int | None, learners: int, most_learners: int | None) -> dict[str, Given]:
    """The hyper-parameters of the run's size. Raises ValueError."""
    most = max(workers, MAX_WORKERS) if most is None else most
    most_learners = max(learners, 1) if most_learners is None else most_learners
    return {
        WORKERS: HyperParameter(name=WORKERS, kind="integer", default=workers, min=least, max=most, unit="places"),
        LEARNERS: HyperParameter(
            name=LEARNERS, kind="integer", default=learners, min=1, max=most_learners, unit="a place"
        ),
    }


def _declared(name: str, given: Given, workers: int) -> HyperParameter:
    if isinstance(given, HyperParameter):
        spec = given
    elif name == SYNC:
        spec = replace(SYNC_PARAMETER, default=SYNC_PARAMETER.check(given))
    elif (option := OPTIONS.get(name)) is not None:
        spec = replace(option, default=option.check(given))
    elif name == BATCH:
        spec = HyperParameter(name=name, kind="integer", default=given, max=_number(name, given) * BATCH_SPAN)
    elif name == LR:
        spec = HyperParameter(name=name, default=given, min=0.0, max=_number(name, given) * 100, max_ratio=LR_RATIO)
    elif name in apply.NAMES:
        spec = apply.declared(name, _number(name, given))
    elif isinstance(given, str):
        spec = HyperParameter(name=name, kind="choice", default=given, choices=(given,))
    else:
        spec = HyperParameter(name=name, default=given)
    if name == BATCH:
        smallest = max(workers, 2)
        if _number(name, spec.default) < smallest:
            raise ValueError(f"batch_size must be at least {smallest} with {counted(workers)}, got {spec.default}")
        spec = replace(spec, kind="integer", min=max(spec.min or 0, smallest), max_ratio=4.0, unit="samples")
    return spec


def _number(name: str, value: Scalar) -> float:
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def _micro_batch(parameters: Sequence[HyperParameter], workers: int) -> int:
    """A rank's share of the first batch; a rank alone cuts it in two, to measure the gradient noise."""
    first = next(_number(BATCH, p.default) for p in parameters if p.name == BATCH)
    return max(1, int(first) // max(workers, 2))


def until(samples: int | None, steps: int | None, epochs: int | None) -> tuple[Horizon | None, int | None]:
    """Where a run ends, as a horizon or in epochs. Raises ValueError."""
    given = [x for x in (samples, steps, epochs) if x is not None]
    if len(given) > 1:
        raise ValueError("give the horizon once: samples, steps or epochs")
    if given and given[0] < 1:
        raise ValueError(f"the horizon must be at least 1, got {given[0]}")
    if samples is not None:
        return Horizon(samples, "samples"), None
    return (Horizon(steps, "steps") if steps is not None else None), epochs


def asked(given: str | Policy | PolicySpec) -> PolicySpec:
    """A policy in any of the ways that it may be named."""
    if isinstance(given, PolicySpec):
        return given
    if isinstance(given, str):
        file, found, cls = given.partition(".py:")
        if found:
            return PolicySpec(name="", kind="", params={}, code=Code.read(f"{file}.py", cls))
        return PolicySpec(name=given, kind=given, params={})
    return PolicySpec(name=given.kind, kind=given.kind, params=given.model_dump(mode="json"))


def summary(run: str) -> dict[str, Any]:
    """What became of a run, as JSON."""
    view: views.RunView = call("run", run)
    reader = ray.get_actor(actor.READER, namespace=actor.NAMESPACE)
    keys: list[str] = ray.get(reader.keys.remote(run))
    series = ray.get(reader.query.remote(run, keys, "step", None, None, 1000))
    records: list[views.RecordView] = call("changes", run, 0, 1_000_000)
    return {
        "run": run,
        "state": str(view.state),
        "steps": view.progress.steps,
        "samples": view.progress.samples,
        "first_metrics": {key: float(s.last[0]) for key, s in series.items() if len(s)},
        "metrics": {key: float(s.last[-1]) for key, s in series.items() if len(s)},
        "versions": [
            record.model_dump(mode="json", include={"version", "changes", "status", "accepted_at_step", "applied"})
            for record in records
            if record.kind == "version"
        ],
        "dropped_points": view.dropped_points,
        "controller_overhead": view.overhead.model_dump(),
    }
