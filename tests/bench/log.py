"""What `session.log` costs the training thread of a live session, while the thread that ships does its work.

Two ranks train the small CNN on a local Ray with a real controller. After every step each rank logs `--metrics`
metrics and times every call on its own, in random order among three kinds: a number, a tensor of one element (which
is copied), and a function that does nothing (the control: what the clock and the call itself cost). Times include
whatever keeps the thread from running: the lock, the interpreter's, other processes.

`p50_us` and `p99_us` are of numbers, over the calls of both ranks, the clock's own cost included; `aa_ratio` is the
median of the second half of the run over that of the first. Targets: 10 and 50 µs.

    python tests/bench/log.py [--steps 1200] [--metrics 50] [--seed 0]
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cluster import RANKS, cluster, data, net
from stats import report, say
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from trimtab.controller import actor
from trimtab.workers import Session

KINDS = ("number", "tensor", "control")
WARM_UP = 100  # steps that are not counted
TARGETS_US = {50: 10, 99: 50}


def main() -> None:
    options = parse()
    say(f"log: seed {options.seed}, {options.steps} steps of {options.metrics} metrics a rank")
    with cluster() as place:
        run = place.launch(make_train(options, place.home), options.micro_batch)
        run.join()
        stored = actor.call("run", run.run).overhead.points
        ranks = [np.load(place.home / f"rank{rank}.npy") for rank in range(RANKS)]
    calls = np.concatenate(ranks)  # (calls, 2): kind, ns
    us = {kind: calls[calls[:, 0] == i, 1] / 1e3 for i, kind in enumerate(KINDS)}
    number, early, late = us["number"], *(_numbers(ranks, half) for half in (0, 1))
    figures = {f"p{p}_us": float(np.percentile(number, p)) for p in TARGETS_US}
    for kind in ("tensor", "control"):
        figures |= {f"{kind}_p{p}_us": float(np.percentile(us[kind], p)) for p in TARGETS_US}
    report(
        "log",
        **figures,
        p999_us=float(np.percentile(number, 99.9)),
        aa_ratio=float(np.median(late) / np.median(early)),
        target_met=all(figures[f"p{p}_us"] <= us for p, us in TARGETS_US.items()),
        calls=len(number),
        stored_points=stored,
        seed=options.seed,
    )


def _numbers(ranks: list[np.ndarray], half: int) -> np.ndarray:
    calls: np.ndarray = np.concatenate([np.array_split(rank, 2)[half] for rank in ranks])
    return np.asarray(calls[calls[:, 0] == 0, 1] / 1e3)


def make_train(options: argparse.Namespace, home: Path) -> Callable[[Session], None]:
    def train(session: Session) -> None:
        module = net()
        model, _ = session.prepare(module, SGD(module.parameters(), lr=0.01, momentum=0.9))
        names = [f"metric_{i}" for i in range(options.metrics)]
        order = random.Random(options.seed * RANKS + session.rank)
        number, tensor, clock = 0.5, torch.tensor(0.5), time.perf_counter_ns
        calls: dict[int, tuple[Callable[..., None], float | torch.Tensor]] = {
            0: (session.log, number),
            1: (session.log, tensor),
            2: (nothing, number),
        }
        taken: list[tuple[int, int]] = []
        for inputs, labels in session.batches(data()):
            session.step(cross_entropy(model(inputs), labels))
            for name in names:
                kind = order.randrange(len(KINDS))
                call, value = calls[kind]
                metric = {name: value}
                start = clock()
                call(**metric)
                taken.append((kind, clock() - start))
            if session.progress.steps == options.steps + WARM_UP:
                break
        np.save(home / f"rank{session.rank}.npy", np.array(taken[WARM_UP * options.metrics :], np.int64))

    return train


def nothing(**_: float | torch.Tensor) -> None:
    pass


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--metrics", type=int, default=50, help="calls a step and rank")
    parser.add_argument("--micro-batch", type=int, default=64, help="samples a rank")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
