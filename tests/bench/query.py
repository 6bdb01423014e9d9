"""How long a chart of a very long run takes, and what a point costs to keep, beside MLflow and trackio.

A run of `--steps` steps × `--metrics` metrics over `--ranks` ranks is written with the store that the controller
writes with: blocks as they come four times a second at `--steps-per-s`, flushed once a second; every metric differs
over ranks, so that mean, min and max are kept, and the ranks' own values of the newest steps (of the last 10,000 only:
older ones would be gone). Then `--queries` charts are asked of the `Reader` that the API asks, each up to its answer's
JSON: one metric in 1,000 buckets along steps, samples or time; half of the whole run, half of a window of it, from a
hundredth of a percent to half. `p95_ms` is over all of them; `first_ms` is the first one, which reads where everything
lies in the file, and is not among them. `compare_ms` is one metric of four such runs on a shared grid of 500 cells.

A point is one number of one step, reduced over ranks; `bytes_per_point` is all files over the points,
`one_rank_bytes_per_point` the same of one rank, a tenth as long. `write_points_per_s` counts CPU time.

Peers get the same numbers, fewer (`--peer-points`), each in the way that its documentation advises: MLflow's
`log_batch` with 1,000 metrics at a time to SQLite; trackio's `log` with all metrics of a step. They are installed into
an environment of their own in `--peers`, made if it is not there. `chart_ms` is what it takes to get all points of one
metric (MLflow's `get_metric_history`, trackio's storage); `trimtab` among the peers is ours with as many points, asked
for 1,000 buckets.

    python tests/bench/query.py [--steps 1000000] [--metrics 50] [--ranks 64] [--queries 400] [--peers FOLDER]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stats import report, say

from trimtab.api.responses import StrictJSON
from trimtab.controller.metrics import Axis, Block, MetricStore
from trimtab.controller.metrics.block import part
from trimtab.controller.metrics.grid import Grid
from trimtab.controller.reading import Reader

MESSAGES_PER_S = 4
BUCKETS = 1000
WINDOW = 10_000  # steps of which each rank's own values are written
AXES: tuple[Axis, ...] = ("step", "samples", "time")
TARGET_MS = 100.0
TARGET_BYTES = 1.5e9
PACKAGES = ("mlflow", "trackio")


def main() -> None:
    options = parse()
    say(f"query: seed {options.seed}, {options.steps:,} steps × {options.metrics} metrics × {options.ranks} ranks")
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
        home = Path(directory)
        (home / "metrics").mkdir()
        points = options.steps * options.metrics
        cpu_s = write(home, "run", options, options.ranks)
        stored = size(home)
        say(f"written: {points / cpu_s:,.0f} points/s of CPU time, {stored / points:.2f} bytes a point")
        figures = ask(home, options)
        for i in range(3):
            os.link(home / "metrics" / "run.metrics", home / "metrics" / f"run{i}.metrics")
        compared = compare(home, options)
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
        (Path(directory) / "metrics").mkdir()
        few = argparse.Namespace(**vars(options) | {"steps": options.steps // 10})
        write(Path(directory), "run", few, 1)
        alone = size(Path(directory)) / (few.steps * few.metrics)
    say(f"charts: {figures}; one rank: {alone:.2f} bytes a point")
    report(
        "query",
        **figures,
        compare_ms=compared,
        bytes_per_point=stored / points,
        one_rank_bytes_per_point=alone,
        stored_gb=stored / 1e9,
        write_points_per_s=points / cpu_s,
        points=points,
        ranks=options.ranks,
        target_met=bool(figures["p95_ms"] <= TARGET_MS and stored <= TARGET_BYTES),
        peers=peers(options) if options.peer_points else {},
        seed=options.seed,
    )


def write(home: Path, run: str, options: argparse.Namespace, ranks: int) -> float:
    """The CPU time that the store takes [s]."""
    chance = np.random.default_rng(options.seed)
    rows = max(1, options.steps_per_s // MESSAGES_PER_S)
    noise = chance.standard_normal((options.metrics, 3, 1 << 12)).astype(np.float32)
    noise[:, 1:] = np.sort(noise[:, 1:], axis=1) + np.array([-3, 3], np.float32)[:, None]
    keys = [f"metric_{i:02}" for i in range(options.metrics)]
    store, used = MetricStore(home / "metrics" / f"{run}.metrics"), 0.0
    for number, first in enumerate(range(1, options.steps + 1, rows)):
        steps = np.arange(first, min(first + rows, options.steps + 1))
        at = (steps + number * 7) % (1 << 12)
        columns = {key: noise[i, 0, at] for i, key in enumerate(keys)}
        spread = {key: (noise[i, 1, at], noise[i, 2, at]) for i, key in enumerate(keys)} if ranks > 1 else {}
        times = 1.7e9 + steps / options.steps_per_s
        block = Block(steps, steps * 128, times, columns, spread)
        own = None
        if ranks > 1 and first > options.steps - WINDOW:
            by_rank = {part(key, rank): noise[i, rank % 3, at] for i, key in enumerate(keys) for rank in range(ranks)}
            own = Block(steps, steps * 128, times, by_rank)
        start = time.process_time()
        store.append(block)
        if own is not None:
            store.append_ranks(own)
        if number % MESSAGES_PER_S == MESSAGES_PER_S - 1:
            store.flush()
        used += time.process_time() - start
    start = time.process_time()
    store.close()
    return used + time.process_time() - start


def ask(home: Path, options: argparse.Namespace) -> dict[str, float]:
    chance, reader = random.Random(options.seed), Reader(home)
    span = {"step": (1, options.steps), "samples": (128, 128 * options.steps)}
    span["time"] = (1.7e9, 1.7e9 + options.steps / options.steps_per_s)
    took = []
    for i in range(options.queries + 1):
        key, axis = f"metric_{chance.randrange(options.metrics):02}", chance.choice(AXES)
        start = end = None
        if i % 2:
            low, high = span[axis]
            wide = 10 ** chance.uniform(-4, np.log10(0.5)) * (high - low)
            start = chance.uniform(low, high - wide)
            end = start + wide
        began = time.perf_counter()
        found = reader.query("run", [key], axis, start, end, BUCKETS)
        StrictJSON({name: getattr(found[key], name).tolist() for name in ("x", "last", "min", "max", "mean")})
        took.append((time.perf_counter() - began) * 1e3)
    later = np.array(took[1:])
    whole, windows = np.percentile(later[1::2], 95), np.percentile(later[::2], 95)
    return {
        "p95_ms": float(np.percentile(later, 95)),
        "p50_ms": float(np.median(later)),
        "max_ms": float(later.max()),
        "whole_p95_ms": float(whole),
        "window_p95_ms": float(windows),
        "first_ms": took[0],
    }


def compare(home: Path, options: argparse.Namespace) -> float:
    """Median of an answer about four runs [ms]; their files are known already."""
    reader, took = Reader(home), []
    runs = ["run", "run0", "run1", "run2"]
    for i in range(12):
        start = time.perf_counter()
        reader.compare(runs, [f"metric_{i % options.metrics:02}"], Grid(points=500))
        took.append((time.perf_counter() - start) * 1e3)
    return float(np.median(took[1:]))


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Each one's figures for the same points."""
    steps = options.peer_points // options.peer_metrics
    ours = argparse.Namespace(**vars(options) | {"steps": steps, "metrics": options.peer_metrics})
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
        home = Path(directory)
        (home / "metrics").mkdir()
        start = time.perf_counter()
        write(home, "run", ours, 1)
        wall_s = time.perf_counter() - start
        took = []
        for i in range(20):
            reader, start = Reader(home), time.perf_counter()
            reader.query("run", [f"metric_{i % ours.metrics:02}"], "step", None, None, BUCKETS)
            took.append((time.perf_counter() - start) * 1e3)
        found = {"trimtab": figures_of(options.peer_points, wall_s, size(home), took)}
    with environment(options.peers) as python:
        for name in PACKAGES:
            with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
                found[name] = peer(python, name, steps, options.peer_metrics, Path(directory))
            say(f"{name}: {found[name]}")
    return found


def figures_of(points: int, wall_s: float, stored: int, took: list[float]) -> dict[str, float]:
    return {
        "points": points,
        "write_points_per_s": points / wall_s,
        "bytes_per_point": stored / points,
        "chart_ms": float(np.median(took)),
    }


def peer(python: Path, name: str, steps: int, metrics: int, folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("query_peers.py")
    asked = [str(python), str(script), name, str(steps), str(metrics), str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=folder, env=_plain(folder), check=False)
    if done.returncode:
        say(done.stderr[-2000:])
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"wall_s"')))
    return {"version": told["version"]} | figures_of(steps * metrics, told["wall_s"], told["bytes"], told["took_ms"])


def _plain(folder: Path) -> dict[str, str]:
    """Without what this environment tells Python, and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio")}


@contextmanager
def environment(folder: Path | None) -> Iterator[Path]:
    """The Python that has the peers; thrown away again unless a folder is given."""
    with tempfile.TemporaryDirectory(prefix="trimtab-peers-") as thrown_away:
        place = folder or Path(thrown_away)
        python = place / "bin" / "python"
        if not python.exists():
            say(f"installing {', '.join(PACKAGES)} into {place}")
            venv.create(place, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
        yield python


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--steps-per-s", type=int, default=100)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--peer-points", type=int, default=200_000, help="0: without peers")
    parser.add_argument("--peer-metrics", type=int, default=10)
    parser.add_argument("--peers", type=Path, help="where the peers' environment is [a temporary one]")
    parser.add_argument("--directory", type=Path, help="where the files lie [the system's temporary folder]")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
