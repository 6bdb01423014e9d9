"""A run as TensorBoard's event files: DESTINATION/RUN, one file, written anew by each export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.api.export.book import Book, CannotExport, Place, Row, told
from trimtab.controller.views import HyperParameterView, RecordView, RunView

SUFFIX = ".trimtab"  # of our files, which a later export replaces; others in the folder stay
MISSING = "TensorBoard's event files need tensorboardX: pip install 'trimtab[export]'"


class TensorBoard(Book):
    """Scalars by metric, decisions as text at their step, the summary as text at the last one."""

    def __init__(self, destination: str) -> None:
        self._destination = Path(destination)
        self._writer: Any = None
        self._told: dict[int, str] = {}  # by the record's id

    def open(self, run: RunView) -> Place:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise CannotExport(MISSING) from None
        folder = self._destination / run.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                old.unlink()
            self._writer = SummaryWriter(str(folder), filename_suffix=SUFFIX, flush_secs=2)
        except OSError as error:
            raise CannotExport(f"{folder} cannot be written: {error}") from error
        return Place(0, run.formation)

    def rows(self, rows: Sequence[Row]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in row.values.items()]
            self._writer.file_writer.add_summary(Summary(value=values), row.step, row.time)

    def reached(self, place: Place) -> None:
        """Each export writes all of it."""

    def rewind(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)  # TensorBoard lets go of what it knows of this step and later ones
        self._writer.file_writer.add_event(Event(step=step + 1, session_log=start), step=step + 1)

    def decisions(self, records: Sequence[RecordView]) -> None:
        new = [record for record in records if self._told.get(record.id) != told(record)]
        for record in new:
            self._told[record.id] = told(record)
        for step in sorted({record.accepted_at_step for record in new}):  # one text a step: all that was decided there
            together = [record for record in records if record.accepted_at_step == step]
            self._text("decisions", "\n\n".join(map(told, together)), step, together[0].accepted_at.timestamp())

    def close(self, run: RunView, values: Sequence[HyperParameterView]) -> None:
        lines = {
            "state": f"{run.state} {run.state_reason}".strip(),
            "steps": f"{run.progress.steps:,}",
            "samples": f"{run.progress.samples:,}",
            "loss": "–" if run.loss is None else f"{run.loss:.6g}",
            "version": str(run.version),
            **{one.name: one.text for one in values},
        }
        text = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])
        self._text("summary", text, run.progress.steps, run.updated.timestamp())
        self._writer.close()

    def _text(self, tag: str, text: str, step: int, time: float) -> None:
        self._writer.add_text(tag, text, step, walltime=time)
