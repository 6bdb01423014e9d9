"""What `run` shows while a run goes on: progress, live values, and each decision as it falls."""

import threading
import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trimtab.api.cli.output import cell, console
from trimtab.controller import views
from trimtab.controller.actor import call
from trimtab.controller.events import WORLD_SIZE
from trimtab.controller.observation import Command

LOOK_S = 0.5
REPORT_S = 10.0  # between two lines of progress where there is no terminal
SHOWN = ("lr", "batch_size")
LOSSES = ("loss", "val_loss")


class Follower:
    """Follows one run from a thread of its own. The run does not depend on it."""

    def __init__(self, page: str, quiet: bool = False) -> None:
        self.run: str | None = None
        self._page = page
        self._quiet = quiet
        self._console = console()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trimtab-follow", daemon=True)
        self._told = 0  # changes shown
        self._formation = 1  # the newest that has been told of
        self._since = time.monotonic()
        self._reported = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("starting workers", total=None)

    def start(self, run: str) -> None:
        self.run = run
        if not self._quiet:
            self._say(f"[bold]{escape(run)}[/] · live page: {escape(self._page)}")
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def ask_to_stop(self) -> None:
        self._say("stopping at one step, with a checkpoint; Ctrl-C again ends at once")
        call("command", self.run, Command("stop", "Ctrl-C"), "terminal")

    def conclude(self, summary: dict[str, Any]) -> None:
        """The closing lines: what became of the run."""
        applied = [v for v in summary["versions"] if v["status"] == "applied"]
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("run", f"{summary['run']} {summary['state']}")
        table.add_row("work", f"{summary['steps']:,} steps, {summary['samples']:,} samples, {self._elapsed():.0f} s")
        for key in LOSSES:
            if key in summary["metrics"]:
                table.add_row(key, f"{summary['first_metrics'][key]:.4g} → {summary['metrics'][key]:.4g}")
        for name in SHOWN:
            if f"hp/{name}" in summary["metrics"]:
                first, last = (summary[key][f"hp/{name}"] for key in ("first_metrics", "metrics"))
                table.add_row(name, f"{first:.4g} → {last:.4g}")
        table.add_row("versions", f"{len(summary['versions'])} made, {len(applied)} applied on all ranks at one step")
        table.add_row("dropped", f"{summary['dropped_points']} records")
        self._console.print(table)
        self._say(f"look at it again: trimtab up, then trimtab changes {escape(summary['run'])}")

    def _elapsed(self) -> float:
        return time.monotonic() - self._since

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _follow(self) -> None:
        if not self._console.is_terminal:
            self._loop(None)
            return
        with Live(self._bar, console=self._console, refresh_per_second=4, transient=True) as live:
            self._loop(live)

    def _loop(self, live: Live | None) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(LOOK_S)
            try:
                self._look(live)
            except Exception as error:  # the controller may be away; training goes on
                self._bar.update(self._task, description=f"waiting for the controller ({type(error).__name__})")

    def _look(self, live: Live | None) -> None:
        view: views.RunView = call("run", self.run, patience_s=2.0)
        for record in call("changes", self.run, self._told, 500, patience_s=2.0):
            self._told = record.id
            self._tell(record)
        for recovery in view.recoveries:
            self._recovered(recovery)
        values = call("hyperparameters", self.run, patience_s=2.0).hyperparameters
        total = view.horizon.amount if view.horizon else None
        done = view.progress.in_unit(view.horizon.unit) if view.horizon else None
        self._bar.update(
            self._task, description=f"{view.state} step {view.progress.steps:,}", total=total, completed=done
        )
        if live is not None:
            live.update(Group(self._bar, Text(_line(view, values))))
        elif self._elapsed() - self._reported >= REPORT_S and view.progress.steps:
            self._reported = self._elapsed()
            share = f"{view.fraction:4.0%} " if view.fraction is not None else ""
            self._say(escape(f"{share}step {view.progress.steps:,}  {_line(view, values)}"))

    def _tell(self, record: views.RecordView) -> None:
        mark = {"refused": "[yellow]refused[/]", "policy": "[cyan]policy[/]", "notice": "[yellow]notice[/]"}.get(
            record.kind, f"[green]v{record.version}[/]"
        )
        for change in record.changes:
            if change.by == "script" or change.param == WORLD_SIZE:  # the formation itself is told with its cost
                continue
            moved = f" {cell(change.from_)} → {cell(change.to)}" if record.kind == "version" else f" {cell(change.to)}"
            moved = "" if record.kind == "notice" else moved
            self._say(
                f"{mark} step {record.accepted_at_step:,} [bold]{escape(change.param)}[/]{escape(moved)} "
                f"by {escape(change.by)}: {escape(change.reason)}"
            )

    def _recovered(self, one: views.RecoveryView) -> None:
        """Another group of workers, once."""
        if one.formation <= self._formation:
            return
        self._formation = one.formation
        cost = "" if one.pause_s is None else f", training stood still for {one.pause_s:.2f} s"
        again = f", {one.redone:,} steps again" if one.redone else ""
        lost = f"{one.lost} lost, " if one.lost else ""
        colour = "green" if one.cause == "resize" else "yellow"
        self._say(f"[{colour}]{one.cause}[/] step {one.step:,} {lost}{one.world_size:,} workers go on{cost}{again}")


def _line(view: views.RunView, values: list[views.HyperParameterView]) -> str:
    parts = [f"{v.name} {cell(v.value)}" for v in values if v.name in SHOWN]
    parts.append(f"workers {view.world_size:,}")
    if view.loss is not None:
        parts.insert(0, f"loss {view.loss:.4g}")
    if view.noise is not None and view.noise.value is not None:
        parts.append(f"noise scale {view.noise.value:,.0f}")
    return "  ".join(parts)
