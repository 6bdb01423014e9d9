"""From the SIGKILL of one of three workers to the next completed step of those who train on; what elasticity costs.

Three workers train the small CNN of the overhead benchmark, about 20 ms a step alone on a core, on a local Ray cluster
with a real controller, `noise_scale` active. `--kills` times, at moments drawn from `--seed`, a worker drawn by chance
is killed; before the next kill the group is back at three and its spare is ready again. All times are wall clock, which
the processes of one machine share: that of the kill is taken just before the signal is sent, that of a step by each
worker when it has completed it (see tracks.py).

`median_s`, `p95_s`      from the kill to the first step that a group without the dead worker has completed, on the
                         slowest of its ranks; a warm spare (`--spares`) joins that very group
`formed_s`               to when all ranks of that group had a batch in hand, median
`full_s`                 to the first step of a group of three
`cold_...`               the same without a spare, `--cold-kills` times: two go on at once, a newcomer starts and joins
`lost`, `doubled`        positions of the sample stream that no step, or more than one, has trained on, of both runs
`unequal`                steps after which two ranks differed in parameters (CRC-32), size or place in the stream
`ray_train_median_s`     the same kill under Ray Train's TorchTrainer (FailureConfig(max_failures=-1), a checkpoint with
                         `ray.train.report` every `--report-every` steps), to the next step that a worker completed on
                         the slowest rank; `ray_train_caught_up_s`: to the first step that had not been made before
`steady_ratio`           what being elastic costs a step. Two processes, three sessions in each, made by hand from one
                         assignment with a controller that answers nothing, in interleaved blocks and in an order drawn
                         anew each round (as overhead.py does): one with its reunion in a group that looks for ranks
                         that have left; two without a reunion, in groups that wait without looking, where a lost rank
                         would be an error. `aa_ratio` is the one of those over the other. What it cannot see: the
                         driver, which pings the workers and looks at the door about once a second for all arms alike;
                         `driver_cpu_share` is the CPU time of its whole process meanwhile.

On two cores three ranks share them with Ray, controller and driver, and a starting spare takes one for seconds.

    python tests/bench/recovery.py [--kills 30] [--cold-kills 10] [--peer-kills 3] [--rounds 120] [--seed 0]
"""

import argparse
import json
import logging
import math
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from cluster import RANKS, SAMPLES, Background, Cluster, cluster, data, net
from overhead import calibrated
from stats import report, say, spread
from torch._C._distributed_c10d import PrefixStore
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from tracks import Count, Done, Track, Watch, count, make_train

from trimtab.controller import actor
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.observation import Command
from trimtab.workers import Session
from trimtab.workers.group import Group
from trimtab.workers.peers import Peers

WORKERS = 3
SETTLED = 5  # steps that a full group has made before the next kill
ARMS = ("a", "b", "elastic")
WARM_UP = 3  # rounds that are not counted
AIMS = (1.0, 3.0)  # [s] median and p95


def main() -> None:
    options = parse()
    logging.getLogger("trimtab").setLevel(logging.ERROR)  # of each loss the driver says a page
    say(f"recovery: seed {options.seed}, {options.kills} kills, {options.spares} spare(s), {options.cold_kills} cold")
    micro = options.micro_batch or calibrated(False)
    figures: dict[str, Any] = {}
    with cluster(WORKERS + max(options.spares, 1)) as place:
        warm = killing(place, "warm", micro, options.kills, options.spares, options.seed)
        cold = killing(place, "cold", micro, options.cold_kills, 0, options.seed + 1)
        peer = ray_train(place, micro, options)
        figures |= steady(place, micro, options)
    times = [fall.stepped_s for fall in warm.falls]
    median = spread("median_s", times or [math.nan], options.seed)
    p95 = percentile(times)
    report(
        "recovery",
        **median,
        p95_s=p95,
        max_s=max(times, default=math.nan),
        lost=warm.count.lost + cold.count.lost,
        doubled=warm.count.doubled + cold.count.doubled,
        unequal=warm.count.unequal + cold.count.unequal,
        **peer,
        **figures,
        **{name: middle([getattr(fall, name) for fall in warm.falls]) for name in ("formed_s", "full_s")},
        cold_median_s=middle([fall.stepped_s for fall in cold.falls]),
        cold_p95_s=percentile([fall.stepped_s for fall in cold.falls]),
        cold_full_s=middle([fall.full_s for fall in cold.falls]),
        target_met=bool(median["median_s"] <= AIMS[0] and p95 <= AIMS[1]),
        kills=len(warm.falls),
        cold_kills=len(cold.falls),
        spares=options.spares,
        step_ms=warm.step_ms,
        micro_batch=micro,
        counts=asdict(warm.count),
        cold_counts=asdict(cold.count),
        seed=options.seed,
        versions={"ray": ray.__version__, "torch": torch.__version__},
    )


def middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def percentile(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95)) if values else math.nan


# ---- Trimtab ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fall:
    """What a kill led to [s after it]."""

    formed_s: float
    stepped_s: float
    full_s: float


@dataclass(frozen=True, slots=True)
class Killed:
    """A run whose workers were killed."""

    falls: list[Fall]
    count: Count
    step_ms: float


def killing(place: Cluster, name: str, micro: int, kills: int, spares: int, seed: int) -> Killed:
    """Train with three workers and kill one of them, again and again."""
    if not kills:
        return Killed([], Count(0, 0, 0, 0, 0, 0), math.nan)
    folder = place.home / name
    batch = WORKERS * micro
    run = Background(
        train=make_train(folder),
        workers=WORKERS,
        spares=spares,
        hp={"batch_size": HyperParameter(name="batch_size", kind="integer", default=batch, min=batch, max=batch)}
        | {"lr": 0.01},
        policies=["noise_scale"],
        name=name,
        checkpoints=place.home / "checkpoints",
        checkpoint_steps=None,
    )
    watch, chance = Watch(folder), random.Random(seed)
    killed: list[tuple[int, float]] = []
    for number in range(kills):
        watch.until(partial(full, watch, spares), run.going)
        time.sleep(chance.uniform(0.3, 1.3))
        watch.look()
        victim = chance.choice(sorted(watch.newest()[1]))
        killed.append((victim, time.time()))
        os.kill(victim, signal.SIGKILL)
        before = watch.newest()[0]
        watch.until(partial(passed, watch, before), run.going)
        if number % 5 == 4:
            say(f"{name}: {number + 1} kills")
    watch.until(partial(full, watch, 0), run.going)
    actor.call("command", run.run, Command("stop", "measured"), "bench")
    run.join()
    watch.look()
    offers = first_offers(folder)
    falls = [fall(watch.done, offers, victim, at) for victim, at in killed]
    for (victim, _), one in zip(killed, falls, strict=True):
        say(f"{name}: {victim} killed: formed {one.formed_s:.3f}, stepped {one.stepped_s:.3f}, full {one.full_s:.3f} s")
    return Killed(falls, count(folder, watch.done, {victim for victim, _ in killed}), step_ms(watch.done))


def full(watch: Watch, spares: int) -> bool:
    """Three train together, have done so for some steps, and the spares are ready."""
    group, last = watch.newest()
    sizes = {done.size for done in last.values()}
    settled = sum(done.group == group for done in watch.done) >= SETTLED * WORKERS
    return sizes == {WORKERS} and len(last) == WORKERS and settled and len(watch.spares()) >= spares


def passed(watch: Watch, group: int) -> bool:
    """A later group has completed a step."""
    return watch.newest()[0] > group


def fall(done: Sequence[Done], offers: dict[tuple[int, int], float], victim: int, at: float) -> Fall:
    """What a kill led to; `offers` tells when the last rank of a group had its first batch of a step."""
    old = max(one.group for one in done if one.pid == victim)
    later = [one for one in done if one.group > old]
    group, step = min((one.group, one.step) for one in later)
    full = min((one.group, one.step) for one in later if one.size == WORKERS)
    stepped_s, full_s = (
        max(one.t for one in later if (one.group, one.step) == first) - at for first in ((group, step), full)
    )
    return Fall(offers[group, step] - at, stepped_s, full_s)


def first_offers(folder: Path) -> dict[tuple[int, int], float]:
    """By group and step: when the last of its ranks had its first micro-batch."""
    first: dict[tuple[int, int, int], float] = {}
    for path in folder.glob("*-offers.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            key = (line["group"], line["step"], line["rank"])
            first[key] = min(line["t"], first.get(key, line["t"]))
    latest: dict[tuple[int, int], float] = {}
    for (group, step, _), t in first.items():
        latest[group, step] = max(t, latest.get((group, step), t))
    return latest


def step_ms(done: Sequence[Done]) -> float:
    """Median time of a step while three train."""
    by_worker: dict[tuple[int, int], list[float]] = {}
    for one in done:
        if one.size == WORKERS:
            by_worker.setdefault((one.pid, one.group), []).append(one.t)
    return float(np.median(np.concatenate([np.diff(times) for times in by_worker.values()]))) * 1e3


# ---- Ray Train ----------------------------------------------------------------------------------------------------


def ray_train(place: Cluster, micro: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same net, batch and kills under Ray Train."""
    if not options.peer_kills:
        return {"ray_train_median_s": math.nan, "ray_train_kills": 0}
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = place.home / "peer"
    falls: list[tuple[float, float]] = []
    trainer = TorchTrainer(
        make_peer_train(folder, micro, options.report_every),
        scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="peer",
            storage_path=str(place.home / "ray-train"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": PEER_ENVIRONMENT},
        ),
    )
    killer = threading.Thread(target=peer_kills, args=(folder, options, falls), daemon=True)
    killer.start()
    trainer.fit()
    killer.join()
    return {
        "ray_train_median_s": middle([stepped for stepped, _ in falls]),
        "ray_train_caught_up_s": middle([caught_up for _, caught_up in falls]),
        "ray_train_kills": len(falls),
        "ray_train_checkpoint_steps": options.report_every,
    }


PEER_ENVIRONMENT = {  # what Trimtab gives its own workers
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}


def make_peer_train(folder: Path, micro: int, every: int) -> Callable[[], None]:
    """As a user of Ray Train writes it: a checkpoint from rank 0 now and then, and the newest one at the start."""

    def train() -> None:
        import ray.train.torch as ray_torch
        from ray.train import Checkpoint, get_checkpoint, get_context
        from ray.train import report as ray_report

        torch.set_num_threads(1)
        context = get_context()
        rank, size = context.get_world_rank(), context.get_world_size()
        module = net()
        optimizer = SGD(module.parameters(), lr=0.01, momentum=0.9)
        step = 0
        if (checkpoint := get_checkpoint()) is not None:
            with checkpoint.as_directory() as directory:
                state = torch.load(Path(directory) / "state.pt")
            step = state["step"]
            module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        model = ray_torch.prepare_model(module)
        x, y = data()
        track = Track(folder)
        track.ready()
        while not (folder / "stop").exists():
            rows = (step * size * micro + rank + size * torch.arange(micro)) % SAMPLES
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
            track.completed(step, 0, rank, size, step * size * micro, module)
            if step % every == 0:
                with tempfile.TemporaryDirectory() as directory:
                    if rank == 0:
                        state = {"step": step, "model": module.state_dict(), "optimizer": optimizer.state_dict()}
                        torch.save(state, Path(directory) / "state.pt")
                    kept = Checkpoint.from_directory(directory) if rank == 0 else None
                    ray_report({"step": step}, checkpoint=kept)

    return train


def peer_kills(folder: Path, options: argparse.Namespace, falls: list[tuple[float, float]]) -> None:
    """Kill one of the workers, `--peer-kills` times; (to the next step, to the first new step) in `falls`."""
    watch, chance = Watch(folder), random.Random(options.seed)
    gone: set[int] = set()  # workers of groups that have been
    going = partial(bool, True)
    try:
        for _ in range(options.peer_kills):
            watch.until(partial(grown, watch, gone, options.report_every), going)
            time.sleep(chance.uniform(0.3, 1.3))
            watch.look()
            present = {done.pid for done in watch.done} - gone
            furthest = max(done.step for done in watch.done)
            at = time.time()
            os.kill(chance.choice(sorted(present)), signal.SIGKILL)
            gone |= present
            watch.until(partial(beyond, watch, gone, furthest), going)
            after = [done for done in watch.done if done.pid not in gone]
            furthest = max(done.step for done in watch.done if done.pid in gone)
            first = min(done.step for done in after)
            stepped, caught_up = (
                max(done.t for done in after if done.step == step) - at for step in (first, furthest + 1)
            )
            falls.append((stepped, caught_up))
            say(f"Ray Train: next step after {stepped:.2f} s, first new one after {caught_up:.2f} s")
    finally:
        (folder / "stop").touch()


def grown(watch: Watch, gone: set[int], every: int) -> bool:
    """A new group of three has reached a checkpoint, and gone on for a few steps."""
    steps: dict[int, set[int]] = {}
    for done in watch.done:
        if done.pid not in gone:
            steps.setdefault(done.pid, set()).add(done.step)
    return len(steps) == WORKERS and all(
        any(step % every == 0 for step in own) and max(own) % every >= SETTLED for own in steps.values()
    )


def beyond(watch: Watch, gone: set[int], furthest: int) -> bool:
    """All ranks of the new group have passed what the old one had reached."""
    last = {done.pid: done.step for done in watch.done if done.pid not in gone}
    return len(last) == WORKERS and min(last.values()) > furthest + 1


# ---- what being elastic costs a step ------------------------------------------------------------------------------


def steady(place: Cluster, micro: int, options: argparse.Namespace) -> dict[str, Any]:
    """Blocks of steps of elastic and fixed sessions, in turn."""
    if not options.rounds:
        return {"steady_ratio": math.nan}
    begin, used = time.perf_counter(), time.process_time()
    run = place.launch(make_steady(options, place.home), micro)
    run.join()
    share = (time.process_time() - used) / (time.perf_counter() - begin)
    ranks = [json.loads((place.home / f"steady{rank}.json").read_text()) for rank in range(RANKS)]
    slowest = {arm: np.array([rank["wall"][arm][WARM_UP:] for rank in ranks]).max(axis=0) for arm in ARMS}
    ratios = np.stack([slowest["elastic"] / slowest["a"], slowest["elastic"] / slowest["b"]], axis=1)
    return {
        **spread("steady_ratio", ratios, options.seed),
        **spread("aa_ratio", slowest["b"] / slowest["a"], options.seed),
        "steady_step_ms": float(np.median(slowest["a"]) / options.block * 1e3),
        "steady_steps": options.rounds * options.block,
        "identical": all(rank["identical"] for rank in ranks),
        "driver_cpu_share": share,
    }


def make_steady(options: argparse.Namespace, home: Path) -> Callable[[Session], None]:
    def train(session: Session) -> None:
        arms = {arm: by_hand(session, arm) for arm in ARMS}
        wall: dict[str, list[float]] = {arm: [] for arm in ARMS}
        order = random.Random(options.seed)
        for _ in range(options.rounds + WARM_UP):
            for arm in order.sample(ARMS, len(ARMS)):
                step = arms[arm][1]
                dist.barrier()
                begin = time.perf_counter()
                for _ in range(options.block):
                    step()
                wall[arm].append(time.perf_counter() - begin)
        models = [module for module, _ in arms.values()]
        pairs = zip(models[0].parameters(), models[2].parameters(), strict=True)
        result = {"wall": wall, "identical": all(torch.equal(p, q) for p, q in pairs)}
        (home / f"steady{session.rank}.json").write_text(json.dumps(result))

    return train


def by_hand(outer: Session, arm: str) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A session of the arm's own in this process; all share one process group, each has its own lines to its peers."""
    assert outer._group is not None
    assert outer._reunion is not None
    assert outer._group.peers is not None
    elastic = arm == "elastic"
    store = PrefixStore(f"steady/{arm}", outer._reunion._rendezvous.store)
    host = outer._group.host
    peers = Peers(store, outer.rank, outer.world_size, host)
    group = Group(outer._group.number, outer.rank, outer.world_size, peers, host, looks=elastic)
    place = replace(outer._assignment, rank=outer.rank, checkpoint_steps=None)
    session = Session(place, partial(answer, place.version), group, outer._reunion if elastic else None)
    module = net()
    model, _ = session.prepare(module, SGD(module.parameters(), lr=0.01, momentum=0.9))
    batches = session.batches(data())

    def step() -> None:
        inputs, labels = next(batches)
        session.step(cross_entropy(model(inputs), labels))

    return module, step


def answer(version: Any, method: str, *args: Any, **_: Any) -> Any:
    """What a controller says that never decides anything."""
    if method == "register":
        return version
    if method == "next_versions":
        time.sleep(float(args[2]))
        return ()
    return None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--spares", type=int, default=1, help="that are kept ready")
    parser.add_argument("--cold-kills", type=int, default=10, help="in a run without spares")
    parser.add_argument("--peer-kills", type=int, default=3, help="under Ray Train")
    parser.add_argument("--report-every", type=int, default=100, help="steps between Ray Train's checkpoints")
    parser.add_argument("--rounds", type=int, default=120, help="of one block an arm, for steady_ratio")
    parser.add_argument("--block", type=int, default=10, help="steps")
    parser.add_argument("--micro-batch", type=int, help="samples a rank [what takes about 18 ms]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
