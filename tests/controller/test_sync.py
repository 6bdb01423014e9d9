"""The size of a run and its strategy as hyper-parameters: what a resize holds, what comes with a strategy."""

from dataclasses import replace
from typing import Any

import pytest

from trimtab.controller import engine
from trimtab.controller.errors import Refused
from trimtab.controller.events import Event, Formed, RunSpec, Versioned
from trimtab.controller.hyperparameters import HyperParameter, Pin
from trimtab.controller.records import Regrouped
from trimtab.controller.run import Run, begin, fold
from trimtab.controller.sync import (
    LEARNERS,
    STRATEGIES,
    SYNC,
    SYNC_PARAMETER,
    WORKERS,
    averages,
    measures_noise,
    regrouped,
    wanted,
)
from trimtab.controller.trajectory import Coupling, Progress

AT = Progress(10, 640)


def spec(**changes: Any) -> RunSpec:
    sync = changes.pop("sync", "allreduce")
    parameters = (
        HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=4096),
        HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
        HyperParameter(name=WORKERS, kind="integer", default=2, min=1, max=8),
        HyperParameter(name=LEARNERS, kind="integer", default=1, min=1, max=4),
        replace(SYNC_PARAMETER, default=sync),
    )
    given: dict[str, Any] = {"name": "t", "world_size": 2, "parameters": parameters, "micro_batch": 32}
    return RunSpec(**({"max_micro_batch": 64} | given | changes))


def run(**changes: Any) -> Run:
    of = begin("r", engine.create(spec(**changes), 1), 0.0)
    lr = of.version.parameters["lr"]
    coupled = replace(lr, factors={"batch": Coupling("linear", 64)})
    return replace(of, version=of.version.with_parameter(coupled))


def after(of: Run, events: tuple[Event, ...]) -> Run:
    for event in events:
        of = fold(of, event, 0.0)
    return of


def values(of: Run) -> dict[str, Any]:
    return dict(of.version.at(AT).values)


def test_the_global_batch_is_held_and_the_rate_with_it() -> None:
    version = regrouped(run().version, 4, False, AT)
    settings = version.at(AT)
    assert (settings.plan.batch_size, settings.plan.world_size, settings.plan.micro_batch) == (64, 4, 16)
    assert settings.values["lr"] == pytest.approx(0.1)


def test_a_rank_alone_cuts_its_batch_in_two() -> None:
    assert regrouped(run().version, 1, False, AT).at(AT).plan.accumulation >= 2


def test_each_rank_keeps_its_share_and_the_rate_follows_where_gradients_are_averaged() -> None:
    settings = regrouped(run().version, 4, True, AT).at(AT)
    assert settings.values["batch_size"] == 128
    assert settings.values["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("sync", ["sma", "local", "pair"])
def test_the_rate_of_replicas_that_train_apart_stays(sync: str) -> None:
    version = regrouped(run(sync=sync).version, 6, True, AT)
    assert version.at(AT).values["batch_size"] == 192
    assert version.at(AT).values["lr"] == pytest.approx(0.1)
    back = regrouped(version, 2, True, AT)
    assert back.at(AT).values["batch_size"] == 64
    assert back.at(AT).values["lr"] == pytest.approx(0.1)


def test_a_pinned_batch_is_held_in_any_case() -> None:
    of = run()
    batch = of.version.parameters["batch_size"]
    pinned = of.version.with_parameter(replace(batch, pin=Pin(64, "ann")))
    assert regrouped(pinned, 4, True, AT).at(AT).values["batch_size"] == 64


def test_a_strategy_brings_its_options_in_the_same_version() -> None:
    of = run()
    (event,) = engine.pin(of, 1, SYNC, "local", "ann", "try")
    assert isinstance(event, Versioned)
    names = [option.name for option in STRATEGIES["local"]]
    assert [change.param for change in event.changes] == [*names, SYNC]
    of = after(of, (event,))
    assert values(of)["local_steps"] == 8
    kept = after(of, engine.pin(of, 1, "local_steps", 16, "ann", ""))
    away = after(kept, engine.pin(kept, 1, SYNC, "allreduce", "ann", ""))
    back = after(away, engine.pin(away, 1, SYNC, "local", "ann", ""))
    assert values(back)["local_steps"] == 16


def test_a_run_that_begins_with_a_strategy_has_its_options() -> None:
    assert values(run(sync="sma"))["sma_momentum"] == 0.9
    assert "sma_momentum" not in values(run())


def test_a_policy_that_reads_the_noise_scale_is_refused_where_there_is_none() -> None:
    of = run(sync="sma")
    assert averages(of.version, AT)
    assert not measures_noise(of.version, AT)
    with pytest.raises(Refused, match="set noise_every") as refusal:
        engine.put_policy(of, 1, "noise_scale", "noise_scale", {}, "active", "ann", "")
    assert refusal.value.code == "no-noise-scale"
    of = after(of, engine.pin(of, 1, "noise_every", 10, "ann", ""))
    assert engine.put_policy(of, 1, "noise_scale", "noise_scale", {}, "active", "ann", "")


def test_what_is_wanted_is_the_value_of_workers_and_learners() -> None:
    of = run()
    assert wanted(of.version, AT) == (2, 1)
    of = after(of, engine.pin(of, 1, WORKERS, 5, "ann", ""))
    assert wanted(of.version, AT) == (5, 1)
    with pytest.raises(Refused, match=r"workers must lie in \[1, 8\]"):
        engine.pin(of, 1, WORKERS, 9, "ann", "")
    fixed = replace(spec(), parameters=spec().parameters[:2])
    assert wanted(engine.create(fixed, 1).version, AT) is None


def test_a_resize_is_one_version_that_names_the_group() -> None:
    of = run()
    (event,) = engine.resize(of.at(AT), 1, 2, 3, "2 → 3 workers")
    assert isinstance(event, Versioned)
    assert (event.version.group, event.version.batching.world_size) == (2, 3)
    change = event.changes[-1]
    assert (change.param, change.before, change.after, change.by) == ("world_size", 2, 3, "workers")


def test_a_loss_is_told_with_its_cost() -> None:
    of = run()
    formed, versioned = engine.regroup(of, 1, 2, Regrouped("loss", 1, AT, 0.42, 1))
    assert isinstance(formed, Formed)
    assert (formed.formation, formed.world_size, formed.cause, formed.pause_s, formed.lost) == (2, 1, "loss", 0.42, 1)
    assert isinstance(versioned, Versioned)
    [change] = [one for one in versioned.changes if one.param == "world_size"]
    assert (change.before, change.after) == (2, 1)
    assert change.reason == "1 of 2 workers lost; training stood still for 0.42 s"
    of = after(of, (formed, versioned))
    assert (of.formation, of.version.batching.world_size, of.progress) == (2, 1, AT)


def test_spares_that_come_in_leave_the_version_as_it_is() -> None:
    assert [type(e) for e in engine.regroup(run(), 1, 2, Regrouped("loss", 2, AT, 0.4, 1))] == [Formed]
