"""Runs in TensorBoard and MLflow, read back with their own readers."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import RUN, Door, Trimtab, answer, records

from trimtab.api import Client
from trimtab.api.export import copying
from trimtab.api.export.book import Place
from trimtab.api.export.copying import copy, table
from trimtab.api.export.mlflow import MLflow
from trimtab.api.export.tensorboard import TensorBoard
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress

Points = dict[str, dict[int, float]]  # metric -> step -> value


def step(door: Door, steps: range, lr: float = 0.1, formation: int = 1) -> None:
    """A rank trains, with the learning rate as a column, and logs at every tenth step."""
    made = records(steps, loss=2.0 + formation)
    columns = {**made.columns, "hp/lr": np.full(len(steps), lr, np.float32)}
    marks = made.steps[made.steps % 10 == 0]
    logged = {"val_loss": (marks, (marks / 7).astype(np.float32))}
    door.gateway.controller.ingest(replace(made, columns=columns, logged=logged, formation=formation))
    door.gateway.controller.expire()


@pytest.fixture
def trained(door: Door, served: str) -> Iterator[Client]:
    """A client of a run of 1,200 steps, with three decisions, that has ended."""
    controller = door.gateway.controller
    step(door, range(1, 601))
    controller.pin(RUN, "lr", 0.01, "ann", "it | diverged", None)
    step(door, range(601, 1201), lr=0.01)
    controller.unpin(RUN, "lr", "ann", "calm", None)
    controller.set_state(RUN, RunState.FINISHED, "done")
    with Client(served, door.token) as api:
        yield api


def stored(api: Client) -> Points:
    found: Points = {}
    with api.csv(RUN) as text:
        for row in table(text):
            for key, value in row.values.items():
                found.setdefault(key, {})[row.step] = value
    return found


def test_a_table_may_begin_at_a_step(trained: Client) -> None:
    with trained.csv(RUN, ["loss"], from_=1100) as text:
        assert [row.step for row in table(text)] == list(range(1100, 1201))


def decimal(value: float) -> float:
    """A number that was kept as a float32, as the CSV has it."""
    return float(str(np.float32(value)))


def in_tensorboard(folder: Path) -> tuple[Points, Counter[int], dict[int, str]]:
    """Scalars, how often each step of the loss comes, and the texts of decisions."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / RUN), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = {key: {one.step: decimal(one.value) for one in events.Scalars(key)} for key in events.Tags()["scalars"]}
    texts = {one.step: one.tensor_proto.string_val[0].decode() for one in events.Tensors("decisions/text_summary")}
    return scalars, Counter(one.step for one in events.Scalars("loss")), texts


def test_tensorboard_holds_what_is_stored_and_each_export_replaces_the_last(trained: Client, tmp_path: Path) -> None:
    for _ in range(2):
        copied = copy(trained, RUN, TensorBoard(str(tmp_path)))
        scalars, losses, texts = in_tensorboard(tmp_path)
        assert scalars == stored(trained)
        assert set(losses.values()) == {1}
        assert (copied.steps, copied.decisions) == (1200, 2)
        assert sum(map(len, scalars.values())) == copied.points
        assert "**lr**: 0.1 → 0.01 by ann. it | diverged" in texts[600]
    assert {"hp/lr", "val_loss", "loss"} <= set(scalars)
    (tmp_path / RUN / "events.out.tfevents.1.other").write_bytes(b"")
    copy(trained, RUN, TensorBoard(str(tmp_path)))
    assert len(list((tmp_path / RUN).iterdir())) == 2  # ours, once, and what somebody else has put there


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without runs: its tables take seconds to make."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts
    shutil.copy(empty, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def in_mlflow(uri: str) -> tuple[Any, Points, int]:
    """MLflow's run, its metrics, and how many points they are."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("bytes_lm")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    points = {key: {one.step: one.value for one in ones} for key, ones in history.items()}
    return run, points, sum(map(len, history.values()))


def artifact(run: Any, name: str) -> Any:
    return json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "trimtab" / name).read_text())


class Torn(Exception):
    """The export's process is killed."""


class TornMLflow(MLflow):
    """Killed after some batches, the last of which is written without a note of it."""

    batches = 2

    def reached(self, place: Place) -> None:
        self.batches -= 1
        if self.batches == 0:
            raise Torn
        super().reached(place)


def test_mlflow_holds_what_is_stored_once_although_the_export_was_torn(
    trained: Client, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "AGAIN", 100)
    with pytest.raises(Torn):
        copy(trained, RUN, TornMLflow(tracking))
    run, points, _ = in_mlflow(tracking)
    assert (run.info.status, max(points["loss"]), run.data.tags["trimtab.exported"]) == ("RUNNING", 1000, "400@1")
    copied = copy(trained, RUN, MLflow(tracking))
    run, points, count = in_mlflow(tracking)
    assert points == stored(trained)
    assert count == sum(map(len, points.values()))
    assert copied.points < count
    assert copy(trained, RUN, MLflow(tracking)).points == 0
    assert in_mlflow(tracking)[2] == count
    assert (run.info.status, run.data.params["hp.lr"], run.data.params["seed"]) == ("FINISHED", "0.1", "0")
    assert run.data.tags["trimtab.state"] == "finished done"
    assert [one["changes"][0]["by"] for one in artifact(run, "changes.json")] == ["ann", "ann"]
    assert artifact(run, "run.json")["run"]["state"] == "finished"


@pytest.mark.parametrize("form", ["tensorboard", "mlflow"])
def test_a_run_is_followed_through_a_roll_back_to_its_end(
    form: str, door: Door, trimtab: Trimtab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    controller = door.gateway.controller
    step(door, range(1, 101))

    def restart() -> None:
        controller.start_formation(RUN, 1, Progress(150, 4800))
        step(door, range(151, 301), formation=2)

    life = [
        lambda: step(door, range(101, 201)),
        lambda: controller.pin(RUN, "lr", 0.01, "ann", "", None),
        restart,
        lambda: controller.set_state(RUN, RunState.FAILED, "the end"),
    ]
    monkeypatch.setattr(copying.time, "sleep", lambda _: life.pop(0)())
    to = str(tmp_path / "board") if form == "tensorboard" else request.getfixturevalue("tracking")
    told = answer(trimtab, "export", RUN, to, "--format", form, "--follow")
    assert (told["steps"], told["decisions"], life) == (300, 1, [])
    with Client(door_url(tmp_path), door.token) as api:
        truth = stored(api)
    if form == "tensorboard":
        scalars, losses, texts = in_tensorboard(tmp_path / "board")
        assert scalars == truth
        assert set(losses.values()) == {1}
        assert list(texts) == [200]
    else:
        run, points, _ = in_mlflow(to)
        assert points == truth  # of a step that came twice the later value is the last
        assert run.info.status == "FAILED"


def door_url(home: Path) -> str:
    return str(json.loads((home / "client.json").read_text())["url"])


@pytest.mark.parametrize(("form", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow.tracking")])
def test_what_is_missing_is_said_with_what_to_install(
    form: str, package: str, trimtab: Trimtab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = trimtab("export", RUN, str(tmp_path / "x"), "--format", form)
    assert (code, "pip install 'trimtab[export]'" in err) == (1, True)


def test_a_destination_that_cannot_be_used_is_told(trimtab: Trimtab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = trimtab("export", RUN, str(tmp_path / "file"), "--format", "tensorboard")
    assert (code, "cannot be written" in err) == (1, True)
    code, _, err = trimtab("export", RUN, "nonsense://x", "--format", "mlflow")
    assert (code, "cannot be used" in err) == (1, True)
    assert trimtab("export", RUN, "x.csv", "--follow")[0] == 2
