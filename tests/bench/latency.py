"""From a person's change to the first step that runs with it.

Two ranks train the small CNN on a local Ray with a real controller and API, `noise_scale` active. The client pins the
learning rate at a new value over REST, `--pins` times at random moments. `p50_ms` and `p99_ms` go from just before
the PUT is sent to when the slower rank has the step's batch in hand and reads the new value, by the machine's clock,
which all processes share. `end_ms` goes to the end of that step. `p50_steps` counts steps from the one under way when
the PUT was sent (0 would be that very step). `rest_ms` is the PUT's own answer, after the journal's commit.

`mixed` counts values that the ranks first saw at different steps, `unseen` those that a later one overtook.
`aa_ratio` is the median of every second pin over that of the others. The target: a median of two steps + 20 ms.

    python tests/bench/latency.py [--pins 150] [--seed 0]
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from cluster import RANKS, Background, Cluster, cluster, data, net
from stats import report, say, spread
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from trimtab.controller import actor
from trimtab.controller.observation import Command
from trimtab.workers import Session

SLACK_MS = 20


def main() -> None:
    options = parse()
    say(f"latency: seed {options.seed}, {options.pins} pins")
    with cluster() as place:
        run = place.launch(make_train(place.home), options.micro_batch)
        run.until_step(100)
        pins = pin(place, run, options)
        actor.call("command", run.run, Command("stop", "measured"), "bench")
        run.join()
        ranks = [np.load(place.home / f"rank{rank}.npy") for rank in range(RANKS)]  # (steps, 2): begin, lr
    seen = [[int(np.argmax(rank[:, 1] == value)) for rank in ranks] for value, _, _ in pins]
    kept = [(p, at) for p, at in zip(pins, seen, strict=True) if all(at)]
    begins = [(max(rank[i, 0] for rank, i in zip(ranks, at, strict=True)) - p[1]) * 1e3 for p, at in kept]
    ends = [(max(rank[i + 1, 0] for rank, i in zip(ranks, at, strict=True)) - p[1]) * 1e3 for p, at in kept]
    steps = [at[0] - int(np.searchsorted(ranks[0][:, 0], p[1])) + 1 for p, at in kept]
    step_ms = float(np.median(np.diff(ranks[0][:, 0]))) * 1e3
    allowed = 2 * step_ms + SLACK_MS
    say(f"a step takes {step_ms:.1f} ms, so the median may take {allowed:.1f} ms; it took {np.median(begins):.1f} ms")
    report(
        "latency",
        **spread("p50_ms", begins, options.seed),
        p99_ms=float(np.percentile(begins, 99)),
        p50_steps=float(np.median(steps)),
        p99_steps=float(np.percentile(steps, 99)),
        end_ms=float(np.median(ends)),
        rest_ms=float(np.median([answer * 1e3 for _, _, answer in pins])),
        step_ms=step_ms,
        allowed_ms=allowed,
        target_met=bool(np.median(begins) <= allowed),
        aa_ratio=float(np.median(begins[1::2]) / np.median(begins[::2])),
        pins=len(kept),
        unseen=len(pins) - len(kept),
        mixed=sum(len(set(at)) > 1 for _, at in kept),
        seed=options.seed,
    )


def pin(place: Cluster, run: Background, options: argparse.Namespace) -> list[tuple[float, float, float]]:
    """Value, time of the PUT and how long it took to be answered, of each pin."""
    chance = random.Random(options.seed)
    headers = {"Authorization": f"Bearer {place.access.token}", "If-Match": "*"}
    path = f"/api/v1/runs/{run.run}/pins/lr"
    pins = []
    with httpx.Client(base_url=place.access.url, headers=headers) as client:
        for i in range(options.pins):
            time.sleep(chance.uniform(0.2, 0.6))
            value = 0.01 + (i + 1) * 1e-6
            sent, start = time.time(), time.perf_counter()
            client.put(path, json={"value": value, "reason": f"pin {i}"}).raise_for_status()
            pins.append((value, sent, time.perf_counter() - start))
            if i % 25 == 24:
                say(f"{i + 1} pins")
    time.sleep(1)
    return pins


def make_train(home: Path) -> Callable[[Session], None]:
    def train(session: Session) -> None:
        module = net()
        model, _ = session.prepare(module, SGD(module.parameters(), lr=0.01, momentum=0.9))
        steps: list[tuple[float, float]] = []
        for inputs, labels in session.batches(data()):
            steps.append((time.time(), session.hp.lr))
            session.step(cross_entropy(model(inputs), labels))
        np.save(home / f"rank{session.rank}.npy", np.array(steps))

    return train


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=int, default=150)
    parser.add_argument("--micro-batch", type=int, default=64, help="samples a rank")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
