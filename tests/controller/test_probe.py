"""The critical-batch probe: what branches begin with, and what is made of their losses."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from trimtab.controller import engine
from trimtab.controller.errors import Refused
from trimtab.controller.events import Checkpointed, Event, Formed, Observed, RunSpec, Stated, Versioned
from trimtab.controller.hyperparameters import HyperParameter, initial_parameter
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Horizon, Observation
from trimtab.controller.probe import Losses, Probe, Trial, Verdict, judge, plan
from trimtab.controller.run import Run, begin, fold
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import LrRule, Progress, Ramp

PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=32, min=2, max=256),
    HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
    HyperParameter(name="precision", kind="choice", default="fp32", choices=("fp32", "bf16")),
)
SPEC = RunSpec(
    name="r",
    world_size=2,
    parameters=PARAMETERS,
    micro_batch=16,
    max_micro_batch=64,
    epochs=3,
    seed=7,
    script="/there/r.py",
    checkpoints="/there/r-1",
)


def estimated(noise_scale: float, batch: int = 32, estimates: int = 64) -> NoiseEstimator:
    """An estimator that has seen gradients with |G|^2 = 1 and that trace, without any noise of its own."""
    estimator = NoiseEstimator()
    small, big = np.full(estimates, batch / 2), np.full(estimates, float(batch))
    estimator.update(1 + noise_scale / small, small, 1 + noise_scale / big, big)
    return estimator


def after(run: Run, events: Sequence[Event]) -> Run:
    for event in events:
        run = fold(run, event, 0.0)
    return run


def trained(rule: LrRule = "sqrt", dataset_size: int | None = 1000, noise_scale: float | None = 96.0) -> Run:
    """A run with checkpoints of steps 100 and 200; after them its learning rate was pinned elsewhere."""
    run = begin("r-1", engine.create(SPEC, 1), 0.0)
    run = after(run, engine.form(run, 1, 2, Progress()))
    state = estimated(noise_scale).state() if noise_scale is not None else None

    def look(run: Run) -> Observation:
        settings = run.version.at(run.progress)
        return Observation(progress=run.progress, values=settings.values, plan=settings.plan)

    run = after(run, engine.register(run, 1, [], rule, dataset_size, look, None))
    for step in (100, 200):
        seen = replace(look(run), progress=Progress(step, step * 32))
        kept = tuple(range(100, step + 1, 100))
        observed = Observed(seen, (), {}, {}, state)
        run = after(run, [observed, Checkpointed(step, step * 32, run.version.number, kept)])
    return after(run, engine.pin(run, 1, "lr", 0.5, "somebody", ""))


def values(trial: Trial) -> dict[str, object]:
    return {one.name: one.default for one in trial.spec.parameters}


def test_branches_begin_at_the_newest_checkpoint_with_its_values_and_a_larger_batch() -> None:
    probe = plan(trained(), None, (8, 2, 4), None, None)
    assert (probe.run, probe.checkpoints, probe.begin) == ("r-1", "/there/r-1", Progress(200, 6400))
    assert [trial.factor for trial in probe.trials] == [1, 2, 4, 8]
    assert [trial.batch_size for trial in probe.trials] == [32, 64, 128, 256]
    assert [trial.lr for trial in probe.trials] == pytest.approx([0.1, 0.1 * 2**0.5, 0.2, 0.1 * 8**0.5])
    assert probe.samples == 200 * 256
    for trial in probe.trials:
        spec = trial.spec
        given = values(trial)
        assert given == {"batch_size": trial.batch_size, "lr": trial.lr, "precision": "fp32"}
        assert (spec.horizon, spec.epochs) == (Horizon(6400 + 200 * 256), None)
        assert (spec.seed, spec.script, spec.lr_rule, spec.checkpoints) == (7, "/there/r.py", "sqrt", "")
        assert spec.name == f"r-1-probe-x{trial.factor}"
        assert engine.create(spec, 1).version.at(Progress(200, 6400)).values == given


def test_the_checkpoint_may_be_chosen() -> None:
    assert plan(trained(), 100, (1,), None, None).begin == Progress(100, 3200)


@pytest.mark.parametrize(
    ("rule", "lr"),
    [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2), ("adascale", 0.1 * (96 / 32 + 1) / (96 / 128 + 1))],
)
def test_the_learning_rate_follows_by_the_rule_of_the_run(rule: LrRule, lr: float) -> None:
    assert plan(trained(rule), None, (4,), None, None).trials[1].lr == pytest.approx(lr)


def test_adascale_without_an_estimate_is_sqrt_as_in_the_run() -> None:
    probe = plan(trained("adascale", noise_scale=None), None, (4,), None, None)
    assert probe.trials[1].lr == pytest.approx(0.2)
    assert probe.noise is None


def test_the_noise_scale_is_that_of_the_checkpoint() -> None:
    run = trained()
    assert run.observation is not None
    run = after(run, [Observed(run.observation, (), {}, {}, estimated(5000).state())])
    noise = plan(run, None, (1,), None, None).noise
    assert noise is not None
    assert noise.value == pytest.approx(96)


def test_what_a_ramp_moves_is_held_where_it_was() -> None:
    run = trained()
    lr = replace(initial_parameter(PARAMETERS[1]), base=Ramp(0.0, 1.0, 0, 12_800))
    version = replace(run.checkpoints[-1].version.with_parameter(lr), number=9)
    run = after(run, [Versioned(version, (), run.progress), Checkpointed(300, 9600, 9, (300,))])
    assert plan(run, None, (1,), None, None).trials[0].lr == pytest.approx(0.75)


def test_a_pinned_learning_rate_follows_no_batch() -> None:
    run = after(trained(), [Checkpointed(300, 9600, 9, (300,))])  # with the pin of the present
    assert [trial.lr for trial in plan(run, None, (1, 8), None, None).trials] == [0.5, 0.5]


def test_a_branch_may_have_fewer_workers() -> None:
    probe = plan(trained(), None, (1, 8), None, 1)
    assert [trial.batch_size for trial in probe.trials] == [32, 256]
    assert {trial.spec.world_size for trial in probe.trials} == {1}
    assert [trial.lr for trial in probe.trials] == pytest.approx([0.1, 0.1 * 8**0.5])


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.STOPPED, RunState.FINISHED])
def test_a_run_may_go_on_or_have_ended(state: RunState) -> None:
    run = after(trained(), [Stated(state)])
    assert plan(run, None, (1, 2), None, None) == plan(trained(), None, (1, 2), None, None)


def test_samples_become_whole_steps_of_the_largest_batch() -> None:
    assert plan(trained(), None, (1, 8), 2049, None).samples == 9 * 256


@pytest.mark.parametrize(
    ("step", "factors", "samples", "match"),
    [
        (150, (1,), None, "no checkpoint of step 150 is kept; there are those of 100, 200"),
        (None, (0, 1), None, r"whole numbers from 1 up, got \[0, 1\]"),
        (None, (), None, "whole numbers from 1 up"),
        (None, (1, 16), None, r"×16: batch_size must lie in \[2, 256\], got 512: give smaller factors"),
        (None, (1, 8), 1792, "at least 8 updates of the largest batch 256 are needed: 2,048 samples, not 1,792"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    step: int | None, factors: tuple[int, ...], samples: int | None, match: str
) -> None:
    with pytest.raises(Refused, match=match):
        plan(trained(), step, factors, samples, None)


def test_a_batch_larger_than_the_data_set_is_refused() -> None:
    with pytest.raises(Refused, match=r"batch 256 \(×8\) is more than the 200 samples of the data set"):
        plan(trained(dataset_size=200), None, (1, 8), None, None)


def test_a_run_without_a_checkpoint_is_refused() -> None:
    run = begin("r-1", engine.create(SPEC, 1), 0.0)
    with pytest.raises(Refused, match="no checkpoint yet"):
        plan(after(run, [Formed(1, 2, Progress())]), None, (1,), None, None)


# ---- the verdict ----------------------------------------------------------------------------------------------------

NOISE = Noise(190.0, 150.0, 240.0, 1.0, 190.0, 500, 0)
BEGIN, SAMPLES = 1000, 128  # 8 windows of 16 samples, of which the last two count


def probed(*factors: int, noise: Noise | None = NOISE) -> Probe:
    trials = tuple(Trial(factor=k, batch_size=4 * k, lr=0.1 * k, spec=SPEC) for k in factors)
    return Probe(
        run="r-1", checkpoints="/there", begin=Progress(50, BEGIN), samples=SAMPLES, trials=trials, noise=noise
    )


def losses(factor: int, *tail: float, before: float = 9.0) -> Losses:
    """A branch's: `before`, then `tail` over the last 32 samples, in parts of equal length."""
    batch = 4 * factor
    steps = SAMPLES // batch
    loss = np.full(steps, before, np.float32)
    loss[-32 // batch :] = np.repeat(np.asarray(tail, np.float32), 32 // batch // len(tail))
    return Losses(BEGIN + batch * np.arange(1, steps + 1), loss)


def test_losses_are_compared_over_the_same_samples_of_the_last_quarter() -> None:
    # windows of the reference: (2.0 + 2.2) / 2 = 2.1 and (1.8 + 1.6) / 2 = 1.7; of x4: 2.3 and 1.8
    verdict = judge(probed(1, 4), [losses(1, 2.0, 2.2, 1.8, 1.6), losses(4, 2.3, 1.8)], 0.1)
    one, four = verdict.endings
    assert (one.loss, one.difference, one.std_error) == (pytest.approx(1.9), 0.0, 0.0)
    assert four.loss == pytest.approx(2.05)
    assert four.difference == pytest.approx((0.2 + 0.1) / 2)
    assert four.std_error == pytest.approx(0.05)  # of 0.2 and 0.1: deviation 0.0707, by the root of two
    assert (four.batch_size, four.lr, four.recovered, four.sure, four.diverged) == (16, 0.4, False, False, False)


def test_what_is_before_and_beyond_the_samples_counts_for_nothing() -> None:
    one, four = losses(1, 2.0), losses(4, 2.0)
    early = Losses(np.concatenate([[900, 1000], four.samples]), np.concatenate([[np.nan, 50], four.loss]))
    late = Losses(np.concatenate([one.samples, [1132]]), np.concatenate([one.loss, [77.0]]))
    assert judge(probed(1, 4), [late, early]).endings == judge(probed(1, 4), [one, four]).endings


def verdict_of(ends: Sequence[float], tolerance: float = 0.01) -> Verdict:
    return judge(probed(1, 2, 4), [losses(k, end) for k, end in zip((1, 2, 4), ends, strict=True)], tolerance)


@pytest.mark.parametrize(
    ("ends", "critical", "words"),
    [
        ((2.0, 2.005, 1.9), 16, "Batch 16 (×4) still recovers, the largest that was tried."),
        ((2.0, 2.005, 2.25), 8, "Batch 8 (×2) still recovers; ×4 does not (loss +0.25 ± 0)."),
        ((2.0, 2.25, 2.0), 4, "Batch 4 (×1) still recovers; ×2 does not (loss +0.25 ± 0)."),
        ((2.0, 2.005, np.inf), 8, "Batch 8 (×2) still recovers; ×4 diverges."),
        ((2.0, np.nan, 2.0), 4, "Batch 4 (×1) still recovers; ×2 diverges."),
        ((np.nan, 2.0, 2.0), None, "Not even batch 4, as it was, keeps a finite loss."),
    ],
)
def test_the_critical_batch_is_the_last_before_one_that_is_lost(
    ends: tuple[float, ...], critical: int | None, words: str
) -> None:
    verdict = verdict_of(ends)
    assert (verdict.critical.batch_size if verdict.critical else None) == critical
    assert str(verdict) == f"{words} The noise scale said 190 (95 % 150-240, 500 estimates)."


def test_the_tolerance_decides_and_a_close_call_is_told() -> None:
    losses_ = [losses(1, 2.0), losses(4, 2.125, 2.0)]  # differences 0.125 and 0: 0.0625 with an error of 0.0625
    assert judge(probed(1, 4), losses_, 0.0625).endings[1].recovered
    assert not judge(probed(1, 4), losses_, 0.0620).endings[1].recovered
    told = str(judge(probed(1, 4, noise=None), losses_, 0.06))
    assert "×4 came too close to the tolerance 0.06 to be sure: take more samples." in told
    assert told.endswith("The noise scale was not known.")
    assert judge(probed(1, 4), losses_, 0.2).endings[1].sure
    assert "too close" not in str(judge(probed(1, 4), losses_, 0.2))


def test_a_branch_that_ended_early_has_diverged() -> None:
    four = losses(4, 2.0)
    cut = Losses(four.samples[:6], four.loss[:6])
    empty = Losses(four.samples[:0], four.loss[:0])
    assert [judge(probed(1, 4), [losses(1, 2.0), one]).endings[1].diverged for one in (four, cut, empty)] == [
        False,
        True,
        True,
    ]
