"""What `run` and `watch` show while a run goes on: progress, live values, and each decision as it falls."""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trimtab.api.cli.output import cell, change, console
from trimtab.controller import views
from trimtab.controller.actor import call
from trimtab.controller.events import WORLD_SIZE, Cause
from trimtab.controller.observation import Command
from trimtab.controller.sync import counted

LOOK_S = 0.5
EARLIER = 10  # lines of what fell before anybody looked
REPORT_S = 10.0  # between two lines of progress where there is no terminal
SHOWN = ("lr", "batch_size")
LOSSES = ("loss", "val_loss")
MARKS = {  # the others are versions
    "refused": "[yellow]refused[/]",
    "policy": "[cyan]policy[/]",
    "notice": "[yellow]notice[/]",
    "shadow": "[magenta]shadow[/]",
}
GROUPS: dict[Cause, str] = {  # "loss" alone would be taken for the metric
    "start": "[yellow]restart[/]",
    "rollback": "[yellow]rollback[/]",
    "resize": "[green]resize[/]",
    "loss": "[yellow]recovery[/]",
}


class Screen:
    """One run as lines of text, with a bar at the bottom where there is a terminal."""

    def __init__(self) -> None:
        self.console = console()
        self._formation = 1  # the newest that has been told of
        self._since = time.monotonic()
        self._reported = 0.0
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("starting workers", total=None)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._since

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def wait(self, why: str) -> None:
        """Nobody can be asked just now; training goes on."""
        self._bar.update(self._task, description=f"waiting for the controller ({why})")

    def tell(self, view: views.RunView, news: Iterable[views.RecordView]) -> None:
        """Tell of `news`, and of recoveries, once, in the order in which they fell."""
        for line in self._lines(view, news):
            self.say(line)

    def so_far(self, view: views.RunView, before: Iterable[views.RecordView]) -> None:
        """Tell the end of what fell before anybody looked here, set apart from what is told later."""
        if lines := self._lines(view, before):
            self.say(f"so far (all of it: trimtab changes {escape(view.id)}):")
            for line in lines[-EARLIER:]:
                self.say(f"  {line}")
            if not view.state.ended:
                self.say("from now on:")

    def _lines(self, view: views.RunView, news: Iterable[views.RecordView]) -> list[str]:
        recoveries = [one for one in view.recoveries if one.formation > self._formation]
        self._formation = max((one.formation for one in recoveries), default=self._formation)
        told = [(record.accepted_at, _decided(record)) for record in news]
        told += [(one.time, [_recovered(one)]) for one in recoveries]
        return [line for _, lines in sorted(told, key=lambda one: one[0]) for line in lines]

    def stand(self, view: views.RunView, values: Sequence[views.HyperParameterView]) -> None:
        """Tell where the run stands."""
        total = view.horizon.amount if view.horizon else None
        done = view.progress.in_unit(view.horizon.unit) if view.horizon else None
        self._bar.update(
            self._task, description=f"{view.state} step {view.progress.steps:,}", total=total, completed=done
        )
        if self._live is not None:
            self._live.update(Group(self._bar, Text(_line(view, values))))
        elif self.elapsed_s - self._reported >= REPORT_S and view.progress.steps:
            self._reported = self.elapsed_s
            share = f"{view.fraction:4.0%} " if view.fraction is not None else ""
            self.say(escape(f"{share}step {view.progress.steps:,}  {_line(view, values)}"))


class Follower:
    """Follows the run that this process has started, from a thread of its own. The run does not depend on it."""

    def __init__(self, page: str, quiet: bool = False) -> None:
        self.run: str | None = None
        self._page = page
        self._quiet = quiet
        self._screen = Screen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trimtab-follow", daemon=True)
        self._told = 0  # changes shown
        self._from = 0  # the step of the checkpoint that the run goes on from

    def start(self, run: str) -> None:
        self.run = run
        view: views.RunView = call("run", run)
        self._from = view.checkpoints[-1].step if view.checkpoints else 0
        if not self._quiet:
            self._screen.say(f"[bold]{escape(run)}[/] · live page: {escape(self._page)}")
            if view.progress.steps:  # it goes on
                before: list[views.RecordView] = call("changes", run, 0, 1_000_000)
                self._screen.so_far(view, before)
                self._told = before[-1].id if before else 0
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def ask_to_stop(self) -> None:
        self._screen.say("stopping at one step, with a checkpoint; Ctrl-C again ends at once")
        call("command", self.run, Command("stop", "Ctrl-C"), "terminal")

    def conclude(self, summary: dict[str, Any], stays: bool) -> None:
        """The closing lines: what became of the run. `stays`: the API goes on after this process."""
        applied = [v for v in summary["versions"] if v["status"] == "applied"]
        work = f"{summary['steps']:,} steps, {summary['samples']:,} samples"
        here = f", those from step {self._from:,} on" if self._from else ""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("run", f"{summary['run']} {summary['state']}")
        table.add_row("work", f"{work}{here} in {self._screen.elapsed_s:.0f} s")
        for key in LOSSES:
            if key in summary["metrics"]:
                table.add_row(key, f"{summary['first_metrics'][key]:.4g} → {summary['metrics'][key]:.4g}")
        for name in SHOWN:
            if f"hp/{name}" in summary["metrics"]:
                first, last = (summary[key][f"hp/{name}"] for key in ("first_metrics", "metrics"))
                table.add_row(name, f"{first:.4g} → {last:.4g}")
        table.add_row("versions", f"{len(summary['versions'])} made, {len(applied)} applied on all ranks at one step")
        table.add_row("dropped", f"{summary['dropped_points']} records")
        self._screen.console.print(table)
        first = "" if stays else "trimtab up, then "
        self._screen.say(f"look at it again: {first}trimtab changes {escape(summary['run'])}")

    def _follow(self) -> None:
        ended = False
        with self._screen:
            while not ended:
                ended = self._ended.wait(LOOK_S)
                try:
                    self._look()
                except Exception as error:  # the controller may be away; training goes on
                    self._screen.wait(type(error).__name__)

    def _look(self) -> None:
        view: views.RunView = call("run", self.run, patience_s=2.0)
        news: list[views.RecordView] = call("changes", self.run, self._told, 500, patience_s=2.0)
        values = call("hyperparameters", self.run, patience_s=2.0).hyperparameters
        self._told = news[-1].id if news else self._told
        self._screen.tell(view, news)
        self._screen.stand(view, values)


def _decided(record: views.RecordView) -> list[str]:
    mark = MARKS.get(record.kind, f"[green]v{record.version}[/]")
    lines = []
    for one in record.changes:
        if one.by == "script" or one.param == WORLD_SIZE:  # the formation itself is told with its cost
            continue
        moved = f" {change(one.from_, one.to) if record.kind == 'version' else cell(one.to)}"
        moved = "" if record.kind == "notice" else moved
        lines.append(
            f"{mark} step {record.accepted_at_step:,} [bold]{escape(one.param)}[/]{escape(moved)} "
            f"by {escape(one.by)}{': ' if one.reason else ''}{escape(one.reason)}"
        )
    return lines


def _recovered(one: views.RecoveryView) -> str:
    """Another group of workers."""
    lost = f"{counted(one.lost)} lost, " if one.lost and one.cause == "loss" else ""
    cost = "" if one.pause_s is None else f", it stood still for {one.pause_s:.2f} s"
    again = f", {one.redone:,} steps are trained again" if one.redone else ""
    size = f"training goes on with {counted(one.world_size)}"
    return f"{GROUPS[one.cause]} step {one.step:,} {lost}{size}{cost}{again}"


def _line(view: views.RunView, values: Sequence[views.HyperParameterView]) -> str:
    parts = [f"{v.name} {cell(v.value)}" for v in values if v.name in SHOWN]
    parts.append(f"workers {view.world_size:,}")
    if view.loss is not None:
        parts.insert(0, f"loss {view.loss:.4g}")
    if view.noise is not None and view.noise.value is not None:
        parts.append(f"noise scale {view.noise.value:,.0f}")
    return "  ".join(parts)
