"""What `query.py` runs in the peers' own environment: `query_peers.py NAME STEPS METRICS FOLDER`, one line of JSON."""

import json
import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

BATCH = 1000  # metrics that MLflow takes at once at most


def values(steps: int, metrics: int) -> Any:
    """(step, {metric: value}) of every step."""
    for step in range(steps):
        yield step, {f"metric_{i:02}": math.sin(step * 0.01 + i) for i in range(metrics)}


def mlflow(steps: int, metrics: int, folder: Path) -> tuple[float, Callable[[str], int]]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.create_run(client.create_experiment("bench")).info.run_id
    batch: list[Metric] = []
    start = time.perf_counter()
    for step, row in values(steps, metrics):
        batch += [Metric(key, value, 1_700_000_000_000 + step * 10, step) for key, value in row.items()]
        if len(batch) + metrics > BATCH:
            client.log_batch(run, metrics=batch, synchronous=True)
            batch = []
    client.log_batch(run, metrics=batch, synchronous=True)
    return time.perf_counter() - start, lambda key: len(client.get_metric_history(run, key))


def trackio(steps: int, metrics: int, folder: Path) -> tuple[float, Callable[[str], int]]:  # noqa: ARG001
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="bench", name="run")
    start = time.perf_counter()
    for step, row in values(steps, metrics):
        run.log(row, step=step)
    run.finish()
    wall_s = time.perf_counter() - start

    def history(key: str) -> int:
        return len([row[key] for row in SQLiteStorage.get_logs("bench", "run") if key in row])

    return wall_s, history


def main() -> None:
    name, steps, metrics, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    wall_s, history = {"mlflow": mlflow, "trackio": trackio}[name](steps, metrics, folder)
    took = []
    for i in range(5):
        start = time.perf_counter()
        found = history(f"metric_{i % metrics:02}")
        took.append((time.perf_counter() - start) * 1e3)
        if found != steps:
            raise SystemExit(f"{name} has {found} of {steps} points")
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"wall_s": wall_s, "bytes": stored, "took_ms": took, "version": version(name)}))


if __name__ == "__main__":
    main()
