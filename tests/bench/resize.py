"""A run that grows and shrinks while it trains: 1 → 2 → 4 → 2 → 1 workers, with warm spares and without any.

The small CNN of the overhead benchmark trains on a local Ray cluster with a real controller; the global batch is held.
`workers` is pinned as a person would, and each worker notes every step that it completes (see tracks.py). Before each
pin the group has trained at its size for `--hold` seconds; with spares, two more workers wait with torch imported and
their train function at its batches. All times are wall clock, which the processes of one machine share. Of each
transition, medians over the `--rounds`:

`call_s`             from just before the call that pins the new size to when the slowest rank has completed the first
                     step at it; where workers must start, that is most of it, and training goes on meanwhile
`pause_s`            from the last completed step at the old size to the first one at the new size, so one step is in it
`before`, `after`    throughput [samples/s] in the `--hold` seconds before this pin, and before the next one

`up_s`, `down_s` and `up_pause_s`, `down_pause_s` are medians over all transitions that grow or shrink, with spares;
`cold_...` without. `lost`, `doubled` and `unequal` are counted as in recovery.py, over both runs.

Four workers on two cores train no faster than two: throughput says what the machine gives, not what resizing is worth.
KungFu's authors report 20.4 s to grow and 40 ms to shrink (`kungfu_up_s`, `kungfu_down_s`: Mai et al. 2020, OSDI; their
figures, on other hardware, with processes that start anew).

    python tests/bench/resize.py [--rounds 3] [--hold 2] [--seed 0]
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch
from cluster import Background, Cluster, cluster
from stats import report, say
from tracks import Count, Done, Watch, count, make_train

from trimtab.controller import actor
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.observation import Command

SIZES = (1, 2, 4, 2, 1)
SPARES = 2
SETTLED = 3  # steps that all ranks have made before a size is held
KUNGFU = {"kungfu_up_s": 20.4, "kungfu_down_s": 0.04}


@dataclass(frozen=True, slots=True)
class Resize:
    """One transition."""

    old: int
    new: int
    call_s: float
    pause_s: float
    before: float  # [samples/s]
    after: float

    @property
    def grows(self) -> bool:
        return self.new > self.old


def main() -> None:
    logging.getLogger("trimtab").setLevel(logging.ERROR)
    options = parse()
    say(f"resize: {options.rounds} rounds of {' → '.join(map(str, SIZES))}, each size held for {options.hold} s")
    with cluster(max(SIZES) + SPARES) as place:
        warm, counted = resized(place, "warm", SPARES, options)
        cold, counted_cold = resized(place, "cold", 0, options)
    report(
        "resize",
        **summary(warm, ""),
        **summary(cold, "cold_"),
        **KUNGFU,
        lost=counted.lost + counted_cold.lost,
        doubled=counted.doubled + counted_cold.doubled,
        unequal=counted.unequal + counted_cold.unequal,
        warm=by_transition(warm),
        cold=by_transition(cold),
        rounds=options.rounds,
        batch_size=max(SIZES) * options.micro_batch,
        counts=asdict(counted),
        versions={"ray": ray.__version__, "torch": torch.__version__},
    )


def summary(resizes: Sequence[Resize], prefix: str) -> dict[str, float]:
    figures = {}
    for name, grows in (("up", True), ("down", False)):
        some = [one for one in resizes if one.grows is grows]
        figures[f"{prefix}{name}_s"] = middle([one.call_s for one in some])
        figures[f"{prefix}{name}_pause_s"] = middle([one.pause_s for one in some])
    return figures


def by_transition(resizes: Sequence[Resize]) -> dict[str, dict[str, float]]:
    names = ("call_s", "pause_s", "before", "after")
    found = {}
    for pair in pairwise(SIZES):
        some = [one for one in resizes if (one.old, one.new) == pair]
        found["{}to{}".format(*pair)] = {name: middle([getattr(one, name) for one in some]) for name in names}
    return found


def middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def resized(place: Cluster, name: str, spares: int, options: argparse.Namespace) -> tuple[list[Resize], Count]:
    """One run through all sizes, `--rounds` times."""
    folder = place.home / name
    batch = max(SIZES) * options.micro_batch
    held = HyperParameter(name="batch_size", kind="integer", default=batch, min=batch, max=batch)
    run = Background(
        train=make_train(folder),
        workers=SIZES[0],
        max_workers=max(SIZES),
        spares=spares,
        hp={"batch_size": held, "lr": 0.01},
        policies=["noise_scale"],
        name=name,
        checkpoints=place.home / "checkpoints",
        checkpoint_steps=None,
        micro_batch=options.micro_batch,
        seed=options.seed,
    )
    watch = Watch(folder)
    pins = [time.time()]
    held_until = []
    for number in range(options.rounds):
        for size in SIZES if number == 0 else SIZES[1:]:
            if held_until:
                pins.append(time.time())
                actor.call("pin", run.run, "workers", size, "bench", "", None)
            watch.until(partial(settled, watch, size, spares, pins[-1]), run.going)
            time.sleep(options.hold)
            held_until.append(time.time())
        say(f"{name}: round {number + 1}")
    actor.call("command", run.run, Command("stop", "measured"), "bench")
    run.join()
    watch.look()
    sizes = [SIZES[0], *(SIZES[1:] * options.rounds)]
    rates = [rate(watch.done, end - options.hold, end) for end in held_until]
    found = []
    for index, (old, new) in enumerate(pairwise(sizes)):
        call_s, pause_s = times(watch.done, pins[index + 1], new)
        found.append(Resize(old, new, call_s, pause_s, rates[index], rates[index + 1]))
        say(f"{name}: {old} → {new}: {call_s:.3f} s from the call, pause {pause_s:.3f} s")
    return found, count(folder, watch.done, ())


def settled(watch: Watch, size: int, spares: int, since: float) -> bool:
    """All ranks of the newest group, which has the size, have made some steps; the spares are ready."""
    group, last = watch.newest()
    own = [done for done in watch.done if done.group == group and done.t > since]
    there = {done.size for done in own} == {size} and len(last) == size
    return there and len(own) >= SETTLED * size and len(watch.spares()) >= spares


def times(done: Sequence[Done], pinned: float, size: int) -> tuple[float, float]:
    """From the call, and from the last step of the group before, to the first step at the new size."""
    group = min(one.group for one in done if one.t > pinned and one.size == size)
    step = min(one.step for one in done if one.group == group)
    first = max(one.t for one in done if (one.group, one.step) == (group, step))
    last = max(one.t for one in done if one.group < group)
    return first - pinned, first - last


def rate(done: Sequence[Done], begin: float, end: float) -> float:
    """Samples a second that the run consumed in between."""
    inside = sorted((one.t, one.consumed) for one in done if begin <= one.t <= end and one.rank == 0)
    if len(inside) < 2:
        return math.nan
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hold", type=float, default=2.0, help="[s] at each size")
    parser.add_argument("--micro-batch", type=int, default=32, help="samples a rank while four train")
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args()
    return options


if __name__ == "__main__":
    main()
