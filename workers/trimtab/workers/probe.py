"""`probe`: train branches of a run at larger batches beside it, and judge how large its batch may be."""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from trimtab.controller import actor
from trimtab.controller.actor import call
from trimtab.controller.connect import connect
from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.metrics import Series
from trimtab.controller.observation import Command
from trimtab.controller.probe import FACTORS, TOLERANCE, Losses, Probe, Trial, Verdict, judge
from trimtab.controller.sync import counted
from trimtab.workers.checkpoints import beside, open_checkpoints
from trimtab.workers.crew import NotEnoughResources, Resources
from trimtab.workers.driver import new_run_id
from trimtab.workers.groups import TrainingError
from trimtab.workers.launch import launch
from trimtab.workers.session import NonFiniteError
from trimtab.workers.trainable import Trainable
from trimtab.workers.worker import Train

ROOM_S = 10.0  # for Ray to notice that what ended has left its place
NO_LOSS = Losses(np.empty(0, np.int64), np.empty(0, np.float32))


def probe(
    train: Trainable | Train,
    run: str,
    *,
    step: int | None = None,
    factors: Sequence[int] = FACTORS,
    samples: int | None = None,
    tolerance: float = TOLERANCE,
    workers: int | None = None,
    resources: Resources | None = None,
    script: str | None = None,
    arguments: Sequence[str] | None = None,
    on_start: Callable[[Trial, str], None] | None = None,
) -> Verdict:
    """Train branches from the run's checkpoint of `step` (None: the newest) at `factors` times its batch, and judge.

    Each branch is a run of its own that begins with a copy of the checkpoint and keeps no other; as many train at once
    as find room beside what runs. `workers`, and the script and its `arguments`, are those of the run unless given; see
    `controller.probe`. `on_start` is called with each trial and its run's id, from threads.

    Raises Refused, CheckpointError or NotEnoughResources before anything has started, TrainingError when a branch fails
    for another reason than its loss.
    """
    connect()
    planned: Probe = call("plan_probe", run, step, tuple(factors), samples, workers)
    resources = resources or Resources()
    room = _room(resources, planned.trials[0].spec.world_size)
    branches = {new_run_id(trial.spec.name): trial.spec for trial in planned.trials}
    specs = {branch: _placed(spec, branch, planned, script, arguments) for branch, spec in branches.items()}

    def losses(trial: Trial, branch: str) -> Losses:
        call("create_run", branch, specs[branch], ())
        if on_start is not None:
            on_start(trial, branch)
        return _trained(train, branch, planned, resources=resources, arguments=specs[branch].arguments)

    try:
        for spec in specs.values():  # all at once: the run may remove the checkpoint while the first ones train
            open_checkpoints(spec.checkpoints).adopt(planned.checkpoints, planned.begin.steps)
        with ThreadPoolExecutor(min(room, len(specs))) as pool:
            endings = [pool.submit(losses, *one) for one in zip(planned.trials, specs, strict=True)]
            _await(endings, specs)
    finally:
        for spec in specs.values():
            open_checkpoints(spec.checkpoints).clear()
    return judge(planned, [ending.result() for ending in endings], tolerance)


def _placed(spec: RunSpec, branch: str, of: Probe, script: str | None, arguments: Sequence[str] | None) -> RunSpec:
    """The branch's spec: it finds its checkpoint beside the run's own folder, in what all workers share."""
    return replace(
        spec,
        checkpoints=beside(of.checkpoints, branch),
        script=spec.script if script is None else script,
        arguments=spec.arguments if arguments is None else tuple(arguments),
    )


def _room(resources: Resources, workers: int) -> int:
    """How many branches of so many workers find room beside what runs now, at least one."""
    bundle = {kind: amount for kind, amount in resources.bundle(workers).items() if amount}
    until = time.monotonic() + ROOM_S
    while True:
        free = ray.available_resources()
        room = min((int(free.get(kind, 0) / (amount * workers) + 1e-9) for kind, amount in bundle.items()), default=1)
        if room or time.monotonic() > until:
            break
        time.sleep(0.2)
    if not room:
        wanted = " and ".join(f"{amount * workers:g} {kind}" for kind, amount in bundle.items())
        there = " and ".join(f"{free.get(kind, 0):g}" for kind in bundle)
        raise NotEnoughResources(
            f"a branch of {counted(workers)} needs {wanted}, of which {there} are free: give it fewer workers, or less "
            "for each, or wait until what runs has ended"
        )
    return room


def _trained(train: Trainable | Train, branch: str, planned: Probe, **options: Any) -> Losses:
    """Train a branch to its end; its losses, or those up to where they were no longer finite."""
    try:
        summary = launch(train, resume=branch, checkpoint_steps=None, **options)
    except TrainingError as error:
        if not isinstance(getattr(error.__cause__, "cause", None), NonFiniteError):
            raise TrainingError(f"{branch}: {error}") from error
    else:
        if summary["samples"] < planned.begin.samples + planned.samples:
            raise TrainingError(f"{branch} was stopped before its end: there is no verdict without it")
    reader: Any = ray.get_actor(actor.READER, namespace=actor.NAMESPACE)
    series: dict[str, Series] = ray.get(reader.query.remote(branch, ["loss"], "samples", None, None, 1_000_000_000))
    return Losses(series["loss"].x, series["loss"].last) if series else NO_LOSS


def _await(endings: Sequence[Future[Losses]], runs: Collection[str]) -> None:
    """Wait for all; should one fail, or somebody interrupt, the others are stopped, and waited for."""
    try:
        done, _ = wait(endings, return_when=FIRST_EXCEPTION)
        for ending in done:
            ending.result()
    except BaseException:
        for ending in endings:
            ending.cancel()
        for run in runs:
            with suppress(Refused):  # it has ended, or was not begun
                call("command", run, Command("stop", "the probe has ended"), "probe")
        raise
