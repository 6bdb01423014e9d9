"""Step time of a Trimtab loop over that of a plain DDP loop.

Two ranks (gloo, one torch thread each) train the same small CNN on the same batches, about 20 ms a step, in three arms:
plain DDP (a), plain DDP again (b, the control) and Trimtab with everything on: gradient statistics and version
agreement every step, records shipped to a real controller on a local Ray, `noise_scale` active. All three live in the
same two processes and advance in blocks of `--block` steps, each round in a new random order that both ranks draw from
the same seed. Every block begins behind a barrier and lasts as long as its slower rank, so nothing of one arm is left
to the next. The plain loop reads the batches by indices that were computed beforehand, which favours it. At the end the
three models must be equal bit for bit (`identical`).

`ratio` is the median of Trimtab's block time over a plain block's of the same round (a's and b's), `aa_ratio` that of b
over a; `cpu_ratio` and `aa_cpu_ratio` compare the CPU time of the rank processes, all threads, and so hardly feel other
loads of the machine. Intervals are bootstrap 95 %, rounds resampled whole.

What the interleaved mode cannot see: Trimtab's threads ship and listen while the plain arms run, too, so their cost is
spread over all three. `--solo` gives each arm long phases instead (`--block` of 100 steps), in random order, with a
pause before each in which the records of the last one are shipped: there a plain phase carries a session that has
nothing to ship.

The CPU shares of controller and API (one without clients) are taken from a last stretch that Trimtab has to itself.
Linux only: CPU times are read from /proc.

    python tests/bench/overhead.py [--wide] [--views] [--solo] [--rounds 120] [--block 10] [--seed 0]
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from cluster import RANKS, SAMPLES, cluster, data, net
from stats import report, say, spread
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from trimtab.workers import Session
from trimtab.workers.stream import SampleStream, shard

ARMS = ("a", "b", "trimtab")
STEP_S = 0.018  # with all-reduce and optimizer about 20 ms
WARM_UP = 3  # rounds that are not counted
Step = Callable[[], None]


def main() -> None:
    options = parse()
    say(f"overhead: seed {options.seed}, {options.rounds} rounds of {options.block} steps an arm, solo={options.solo}")
    options.micro_batch = options.micro_batch or calibrated(options.wide)
    with cluster() as place:
        run = place.launch(make_train(options, place.home, place.pids()), options.micro_batch)
        run.join()
        ranks = [json.loads((place.home / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    wall, cpu = (
        {arm: np.array([rank[kind][arm][WARM_UP:] for rank in ranks]) for arm in ARMS} for kind in ("wall", "cpu")
    )
    slowest = {arm: times.max(axis=0) for arm, times in wall.items()}
    busy = {arm: times.sum(axis=0) for arm, times in cpu.items()}
    ratio = spread("ratio", paired(slowest), options.seed)
    report(
        "overhead",
        mode="solo" if options.solo else "interleaved",
        views=options.views,
        ratio_median=ratio["ratio"],
        ratio_low=ratio["ratio_low"],
        ratio_high=ratio["ratio_high"],
        **spread("aa_ratio", slowest["b"] / slowest["a"], options.seed),
        **spread("cpu_ratio", paired(busy), options.seed),
        **spread("aa_cpu_ratio", busy["b"] / busy["a"], options.seed),
        net="wide" if options.wide else "small_cnn",
        step_ms=float(np.median(slowest["a"]) / options.block * 1e3),
        trimtab_step_ms=float(np.median(slowest["trimtab"]) / options.block * 1e3),
        controller_cpu_share=ranks[0]["shares"]["controller"],
        api_cpu_share=ranks[0]["shares"]["api"],
        steps=options.rounds * options.block,
        micro_batch=options.micro_batch,
        params=sum(p.numel() for p in net(options.wide).parameters()),
        identical=all(rank["identical"] for rank in ranks),
        seed=options.seed,
    )


def calibrated(wide: bool) -> int:
    """Samples a rank with which forward and backward pass take about `STEP_S` on one core of this machine."""
    torch.set_num_threads(1)
    model, (x, y) = net(wide), data()

    def seconds(samples: int) -> float:
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            cross_entropy(model(x[:samples]), y[:samples]).backward()
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    few, many = seconds(16), seconds(64)
    return max(8, 8 * round((16 + (STEP_S - few) / max(many - few, 1e-6) * 48) / 8))


def paired(times: Mapping[str, np.ndarray]) -> np.ndarray:
    """Trimtab over each plain arm of its round, (rounds, 2)."""
    return np.stack([times["trimtab"] / times["a"], times["trimtab"] / times["b"]], axis=1)


def make_train(options: argparse.Namespace, home: Path, pids: Mapping[str, int]) -> Callable[[Session], None]:
    def train(session: Session) -> None:
        models, steps = zip(*(plain(session, options) for _ in "ab"), strict=True)
        model, step = steered(session, options)
        arms: dict[str, Step] = dict(zip(ARMS, (*steps, step), strict=True))
        wall: dict[str, list[float]] = {arm: [] for arm in ARMS}
        cpu: dict[str, list[float]] = {arm: [] for arm in ARMS}
        order = random.Random(options.seed)
        for _ in range(options.rounds + WARM_UP):
            for arm in order.sample(ARMS, len(ARMS)):
                time.sleep(options.pause)
                dist.barrier()
                begin, used = time.perf_counter(), time.process_time()
                for _ in range(options.block):
                    arms[arm]()
                wall[arm].append(time.perf_counter() - begin)
                cpu[arm].append(time.process_time() - used)
        identical = all(equal(model, other) for other in models)
        before, start = {name: cpu_s(pid) for name, pid in pids.items()}, time.perf_counter()
        for _ in range(options.alone):
            step()
        lasted = time.perf_counter() - start
        shares = {name: (cpu_s(pid) - before[name]) / lasted for name, pid in pids.items()}
        result = {"wall": wall, "cpu": cpu, "identical": identical, "shares": shares}
        (home / f"rank{session.rank}.json").write_text(json.dumps(result))

    return train


def plain(session: Session, options: argparse.Namespace) -> tuple[nn.Module, Step]:
    """The loop that a user would write with DDP alone."""
    x, y = data()
    module = net(options.wide)
    model = DistributedDataParallel(module, gradient_as_bucket_view=options.views)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    count = (options.rounds + WARM_UP) * options.block
    positions = shard(0, session.rank, RANKS, count * options.micro_batch)
    rows = iter(torch.from_numpy(SampleStream(SAMPLES, 0).indices(positions)).split(options.micro_batch))

    def step() -> None:
        at = next(rows)
        inputs, labels = x.index_select(0, at), y.index_select(0, at)
        loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return module, step


def steered(session: Session, options: argparse.Namespace) -> tuple[nn.Module, Step]:
    module = net(options.wide)
    model, _ = session.prepare(module, SGD(module.parameters(), lr=0.01, momentum=0.9))
    batches: Iterator[Any] = session.batches(data())

    def step() -> None:
        inputs, labels = next(batches)
        session.step(cross_entropy(model(inputs), labels))

    return module, step


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def cpu_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of one block an arm [120; solo 12]")
    parser.add_argument("--block", type=int, help="steps [10; solo 100]")
    parser.add_argument("--solo", action="store_true", help="long phases with a pause before each")
    parser.add_argument("--views", action="store_true", help="plain DDP with gradient_as_bucket_view")
    parser.add_argument("--alone", type=int, default=600, help="steps of the stretch that CPU shares are taken from")
    parser.add_argument("--wide", action="store_true", help="a net with five times the parameters for the same work")
    parser.add_argument("--micro-batch", type=int, help="samples a rank [what makes a step of about 20 ms]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.rounds = options.rounds or (12 if options.solo else 120)
    options.block = options.block or (100 if options.solo else 10)
    options.pause = 1.0 if options.solo else 0.0
    return options


if __name__ == "__main__":
    main()
