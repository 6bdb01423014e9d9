"""Several raylets on one machine: a node that dies takes its worker along, one that is drained is left in time.

As a script this file is the driver, on a cluster of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster


def until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def drain(node_id: str) -> None:
    """Tell the cluster that the node is about to be taken away, as an autoscaler or a cloud's notice does."""
    from ray import _raylet  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    client = _raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    preempted = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 600) * 1000)
    accepted, why = client.drain_node(node_id, preempted, "the test says so", deadline_ms)
    assert accepted, why


def main(answer: Path) -> None:
    import test_launch as base

    from trimtab.controller import actor
    from trimtab.controller.actor import call
    from trimtab.controller.observation import Command

    home = Path(tempfile.mkdtemp())
    os.environ["TRIMTAB_HOME"] = str(home)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes: list[Any] = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, namespace="trimtab", log_to_driver=False)
    actor.start(home)
    run, thread, ended = base.background(train=base.make_train(0.02), workers=3, hp=base.HP, steps=20_000, name="nodes")

    def size() -> int:
        return int(call("run", run).world_size)

    def trains_on() -> None:
        step = base.step_of(run)
        until(lambda: base.step_of(run) > step + 5)

    def where() -> dict[str, int]:
        table = ray.util.placement_group_table().values()
        homes = [group["bundles_to_node_id"][0] for group in table if group["state"] == "CREATED"]
        return {node: homes.count(node) for node in homes}

    trains_on()
    told: dict[str, Any] = {"begun": [size(), sorted(where().values())]}
    cluster.remove_node(nodes[0], allow_graceful=False)
    until(lambda: size() == 2)
    trains_on()
    told["node_lost"] = size()
    cluster.add_node(num_cpus=1)
    until(lambda: size() == 3)
    trains_on()
    told["another_came"] = size()
    drained = nodes[1].node_id
    drain(drained)
    until(lambda: size() == 2)
    trains_on()
    told["left_in_time"] = [size(), where().get(drained, 0)]
    call("pin", run, "workers", 1, "tester", "", None)
    until(lambda: size() == 1)
    trains_on()
    [last] = where()
    reached = base.step_of(run)
    drain(last)
    until(lambda: last not in where())
    trains_on()
    told["handed_over"] = [size(), base.step_of(run) > reached]
    call("command", run, Command("stop", "enough"), "tester")
    thread.join(60)
    told["state"] = ended[0]["state"] if isinstance(ended[0], dict) else str(ended[0])
    told["sizes"] = [(a, b, reason) for a, b, reason in base.sizes(run)]
    told["formation"] = call("run", run).formation
    answer.write_text(json.dumps(told))  # standard output is Ray's as well
    ray.shutdown()
    cluster.shutdown()


def test_nodes_that_die_and_nodes_that_are_drained(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ""}
    answer = tmp_path / "told.json"
    made = subprocess.run(
        [sys.executable, __file__, str(answer)], capture_output=True, text=True, timeout=175, env=environment
    )
    assert made.returncode == 0, made.stderr[-3000:]
    told = json.loads(answer.read_text())
    assert told["begun"] == [3, [1, 1, 1]]
    assert told["node_lost"] == 2
    assert told["another_came"] == 3
    assert told["left_in_time"] == [2, 0]
    assert told["state"] == "stopped"
    assert told["handed_over"] == [1, True]
    *before, shrunk, both, alone = told["sizes"]
    assert before == [[3, 2, "1 of 3 workers lost"], [2, 3, "2 → 3 workers"], [3, 2, "3 → 2 workers"]]
    assert (shrunk, both, alone) == ([2, 1, "2 → 1 worker"], [1, 2, "1 → 2 workers"], [2, 1, "2 → 1 worker"])
    assert told["formation"] == 7


if __name__ == "__main__":
    main(Path(sys.argv[1]))
