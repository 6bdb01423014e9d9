"""A run in MLflow, at a tracking URI: one of MLflow's runs, found again by its tag."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from trimtab.api.export.book import Book, CannotExport, Place, Row
from trimtab.controller.state import RunState
from trimtab.controller.views import HyperParameterView, RecordView, RunView

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MISSING = "MLflow is not installed: pip install 'trimtab[export]' (for sqlite:/// too: pip install mlflow)"
RUN, REACHED, STATE = "trimtab.run", "trimtab.exported", "trimtab.state"  # tags
MAX_METRICS = 1000  # in a batch, by MLflow's own limit
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
STATUS = {RunState.FAILED: "FAILED", RunState.LOST: "FAILED", RunState.STOPPED: "KILLED", RunState.FINISHED: "FINISHED"}


class MLflow(Book):
    """Metrics by step, the first values as parameters, decisions and the end as JSON artifacts and tags.

    A step of a branch that was rolled back keeps its old value beside the new one: MLflow deletes none.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._client: MlflowClient
        self._id = ""
        self._params_missing = False
        self._decisions = b""

    def open(self, run: RunView) -> Place:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise CannotExport(MISSING) from None
        with self._told():
            self._client = MlflowClient(tracking_uri=self._uri)
            found = self._found(run)
            self._id = found.info.run_id
            self._params_missing = not any(name.startswith("hp.") for name in found.data.params)
            if not run.state.ended:
                self._client.update_run(self._id, status="RUNNING")
        kept = found.data.tags.get(REACHED)
        return Place.parse(kept) if kept else Place(0, run.formation)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What MLflow refuses, and what its store needs and lacks, in the words of CannotExport."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, ImportError, OSError) as error:
            raise CannotExport(f"MLflow at {self._uri} cannot be used: {error}") from error

    def _found(self, run: RunView) -> Any:
        experiment = self._client.get_experiment_by_name(run.name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.name)
        known = self._client.search_runs([number], f"tags.`{RUN}` = '{run.id}'")
        if known:
            return known[0]
        created = round(run.created.timestamp() * 1e3)
        made = self._client.create_run(number, created, {RUN: run.id}, run_name=run.id)
        for name, value in {"seed": run.seed, "script": run.script, "world_size": run.world_size}.items():
            self._client.log_param(made.info.run_id, name, value)
        return made

    def rows(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric, Param

        if self._params_missing:  # as they were at the first step: later ones are metrics
            first = {key: value for key, value in rows[0].values.items() if key.startswith("hp/")}
            params = [Param(_name(f"hp.{key.removeprefix('hp/')}"), str(value)) for key, value in first.items()]
            with self._told():
                self._client.log_batch(self._id, params=params)
            self._params_missing = False
        metrics = [
            Metric(_name(key), value, round(row.time * 1e3), row.step)
            for row in rows
            for key, value in row.values.items()
        ]
        with self._told():
            for start in range(0, len(metrics), MAX_METRICS):
                self._client.log_batch(self._id, metrics=metrics[start : start + MAX_METRICS])

    def reached(self, place: Place) -> None:
        with self._told():
            self._client.set_tag(self._id, REACHED, str(place))

    def rewind(self, step: int) -> None:
        """The new branch's values come beside those that are void."""

    def decisions(self, records: Sequence[RecordView]) -> None:
        text = to_json(records, indent=1, inf_nan_mode="strings", by_alias=True)
        if text != self._decisions:
            with self._told():
                self._client.log_text(self._id, text.decode(), "trimtab/changes.json")
                self._client.set_tag(self._id, "trimtab.decisions", len(records))
            self._decisions = text

    def close(self, run: RunView, values: Sequence[HyperParameterView]) -> None:
        whole = {"run": run, "hyperparameters": values}
        text = to_json(whole, indent=1, inf_nan_mode="strings", by_alias=True)
        with self._told():
            self._client.log_text(self._id, text.decode(), "trimtab/run.json")
            self._client.set_tag(self._id, STATE, f"{run.state} {run.state_reason}".strip())
            if run.state.ended:
                self._client.set_terminated(self._id, STATUS[run.state], round(run.updated.timestamp() * 1e3))


def _name(key: str) -> str:
    """As MLflow allows it: `loss (min)`, the lowest of the ranks', is `loss.min`."""
    return NOT_IN_NAMES.sub("_", re.sub(r" \((min|max)\)$", r".\1", key))
