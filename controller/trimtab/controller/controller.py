"""The controller: owns runs, policies, versions and the journal. A plain class; `actor` wraps it for Ray.

Every change goes the same way, `_commit`: the engine makes events, the journal makes them durable, they are folded
into the run, and only then are workers woken and readers told.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from trimtab.controller import engine, listing, probe, sync, views
from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Applied,
    Created,
    Event,
    Linked,
    Mode,
    Observed,
    RunSpec,
    Stated,
    Told,
    Versioned,
    decode,
    encode,
)
from trimtab.controller.feed import Feed
from trimtab.controller.health import ControllerHealth
from trimtab.controller.history import Record
from trimtab.controller.hyperparameters import HyperParameter, Version
from trimtab.controller.jobs import Asked, JobRequest, JobServer, NoJobServer, Outbox, Outgoing
from trimtab.controller.journal import Journal, JournalUnavailable
from trimtab.controller.listing import ChangesWanted, RunsWanted
from trimtab.controller.live import Live, Question
from trimtab.controller.meter import Meter
from trimtab.controller.metrics.store import file_of
from trimtab.controller.observation import Command, Observation
from trimtab.controller.policies import kinds, sandbox, strangers
from trimtab.controller.policies.code import Code
from trimtab.controller.records import Branch, Records, Regrouped
from trimtab.controller.run import Run, begin, fold
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import LrRule, Progress, Scalar

log = logging.getLogger(__name__)

TICK_S = 0.25  # shortest time between two control ticks of a run
GRACE_S = 0.02  # how long a tick waits for third-party policies before it lets others have their turn
IDLE_TICK_S = 2.0  # the same where no policy is active: only progress is noted
SHOW_S = 1.0  # shortest time between two publications of values that trajectories move
LOST_S = 30.0  # without a sign of life from the driver
ALL_RUNS = RunsWanted()
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """A policy as asked for when a run is created."""

    name: str  # "": its kind
    kind: str  # "": that of `code`
    params: Mapping[str, Any]
    mode: Mode = "active"
    code: Code | None = None  # comes with the job: a kind that only this run knows


@dataclass(frozen=True, slots=True)
class Formation:
    """What every rank of a new worker group starts from."""

    number: int
    version: Version


class Controller:
    """Runs and what steers them. All methods are called from one event loop."""

    def __init__(
        self,
        journal: Journal,
        metrics: Path,
        clock: Callable[[], float] = time.time,
        job_server: JobServer | None = None,
        witness: Callable[[str, Record], None] = lambda _run, _record: None,
    ) -> None:
        """`witness` is told of every line of a run's audit, when it is new and when it has changed."""
        self._witness = witness
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._meter = Meter(clock())
        self._outbox = Outbox(job_server or NoJobServer(), self._write)
        self.term = journal.take_over()
        self.feed = Feed(self.term)
        self._recover()

    # ---- the one way in -------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Fold what was recorded; nothing is decided again."""
        for entry in self._journal.read():
            if Outbox.owns(entry.run):
                self._outbox.follow(entry.run, entry.event, entry.time)
                continue
            event = decode(entry.event)
            if isinstance(event, Created):
                self._live[entry.run] = self._new(entry.run, event, entry.time)
            else:
                self._live[entry.run].follow(event, entry.time)
        for live in self._live.values():
            live.recover()
        log.info("term %d: %d runs recovered", self.term, len(self._live))

    def _write(self, key: str, text: str) -> float:
        now = self._clock()
        self._journal.append(self.term, now, key, [text])
        return now

    def _new(self, run_id: str, created: Created, time: float) -> Live:
        return Live(begin(run_id, created, time), file_of(self._metrics, run_id), self._clock())

    def _commit(self, live: Live, events: Sequence[Event]) -> None:
        if not events:
            return
        now = self._clock()
        texts = [encode(event) for event in events]
        self._journal.append(self.term, now, live.run.id, texts)
        for text in texts:  # as a recovery would read it, so that the state is the fold of the journal to the bit
            event, waiting = decode(text), live.history.waits()
            for record in live.follow(event, now):
                if isinstance(event, Applied) and record.status == "applied" and record.version in waiting:
                    self._meter.applied.note(now - record.time)
                self._witness(live.run.id, record)
                self.feed.publish("changes", live.run.id, {"run": live.run.id, "change": views.record(record)})
                if record.kind == "notice":
                    (told,) = record.changes
                    self._alert(live, "warning", f"{told.by}: {told.reason}")
        if not all(isinstance(event, Observed) and not event.shadows for event in events):
            self._show(live)
        asked = () if live.run.state.ended else [name for name, entry in live.run.policies.items() if entry.asked]
        sandbox.retain(live.run.id, asked)

    def _show(self, live: Live) -> None:
        live.shown = self._clock()
        run = live.run
        shown = views.hyperparameters(run, live.progress)
        self.feed.publish("hparams", run.id, {"run": run.id} | shown.model_dump(mode="json"))
        self.feed.publish("runs", run.id, self._summary(live))

    def _alert(self, live: Live, level: str, message: str) -> None:
        severity = logging.getLevelNamesMapping()[level.upper()]
        known = {"run": live.run.id, "version": live.run.version.number}
        log.log(severity, "run %s: %s", live.run.id, message, extra=known)
        payload = {"run": live.run.id, "level": level, "message": message, "time": views.moment(self._clock())}
        self.feed.publish("alerts", live.run.id, payload)

    def _alarm(self, live: Live, place: str, trouble: str) -> None:
        """Tell of a trouble that may last: once when it comes, not for as long as it stays. "" says that it is over."""
        if trouble and place not in live.alarms:
            self._alert(live, "error", trouble)
            live.alarms.add(place)
        elif not trouble and place in live.alarms:
            self._alert(live, "info", f"{place} works again")
            live.alarms.remove(place)

    def _get(self, run_id: str) -> Live:
        if run_id not in self._live:
            raise Refused("run-not-found", f"there is no run {run_id!r}")
        return self._live[run_id]

    def _going(self, run_id: str) -> Live:
        live = self._get(run_id)
        if live.run.state.ended:
            raise Refused(
                "run-ended",
                f"run {run_id} is {live.run.state}; "
                f"`trimtab run SCRIPT --resume {run_id}` goes on from its last checkpoint",
            )
        return live

    # ---- for the run driver ---------------------------------------------------------------------------------------

    def create_run(self, run_id: str, spec: RunSpec, policies: Sequence[PolicySpec] = ()) -> Version:
        """Create a run with its policies, all or nothing; the same call again answers the same."""
        if run_id in self._live:
            if self._live[run_id].run.spec != spec:
                raise Refused("run-exists", f"there is another run {run_id!r}; resume it or choose another id")
            return self._live[run_id].run.version
        if not RUN_ID.fullmatch(run_id):  # it names files
            raise Refused("invalid-parameters", f"a run's id must match {RUN_ID.pattern}, got {run_id!r}")
        now = self._clock()
        created = engine.create(spec, self.term)
        run = begin(run_id, created, now)
        events: list[Event] = [created]
        for policy in policies:
            kind = policy.kind
            if policy.code is not None:
                events += (given := engine.give(run, policy.code, "start"))
                run = reduce(lambda run, event: fold(run, event, now), given, run)
                kind = next(one.kind for one in run.given.values() if one.code == policy.code)
            name = policy.name or kind
            if name in run.policies:
                message = f"policy {name} is given twice; name them apart"
                raise Refused("invalid-parameters", message, {"policies": name})
            put = engine.put_policy(run, self.term, name, kind, policy.params, policy.mode, "start", "")
            run = reduce(lambda run, event: fold(run, event, now), put, run)
            events += put
        texts = [encode(event) for event in events]
        self._journal.append(self.term, now, run_id, texts)
        live = self._live[run_id] = self._new(run_id, created, now)
        for text in texts[1:]:
            live.follow(decode(text), now)
        self._show(live)
        return live.run.version

    def link_job(self, run_id: str, job: str) -> None:
        """The run is trained by a job of Ray's from now on."""
        live = self._get(run_id)
        if live.run.job != job:
            self._commit(live, [Linked(job)])

    def start_formation(self, run_id: str, world_size: int, progress: Progress, rolled_back: int = 0) -> Formation:
        """A worker group begins at `progress`, from a checkpoint or from nothing.

        `rolled_back` is the number of the newest roll back that the checkpoint knows of.
        """
        live = self._get(run_id)
        events = engine.form(live.run, self.term, world_size, progress, rolled_back)
        formed = reduce(lambda run, event: fold(run, event, run.updated), events, live.run)
        state = RunState.STARTING if formed.formation == 1 else RunState.RECOVERING
        if formed.version.stopped:
            state = RunState.STOPPING
        self._commit(live, [*events, Stated(state, f"{sync.counted(world_size)} from step {progress.steps:,}")])
        self._rewind(live)
        live.heartbeat = self._clock()
        sandbox.warm(entry.policy for entry in live.run.policies.values() if entry.asked)
        return Formation(live.run.formation, live.run.version)

    def _rewind(self, live: Live) -> None:
        """A formation has begun: what was measured beyond its first step is void."""
        live.rewind()
        self._told_rewind(live)

    def _told_rewind(self, live: Live) -> None:
        if live.run.progress.steps or live.run.formation > 1:
            self.feed.publish("metrics", live.run.id, {"run": live.run.id, "rewind": live.run.progress.steps})

    def resize(self, run_id: str, group: int, world_size: int, reason: str) -> int:
        """The workers of `group` are ready; the version under which all ranks form it."""
        live = self._going(run_id)
        self._commit(live, engine.resize(self._now(live), self.term, group, world_size, reason))
        return live.run.version.number

    def wanted(self, run_id: str) -> tuple[int, int] | None:
        """The workers, and the learners on each, that are asked for now; None where that cannot be changed."""
        live = self._get(run_id)
        return sync.wanted(live.run.version, live.progress)

    def tell(self, run_id: str, message: str) -> None:
        """What the driver has to say of the workers to whoever watches."""
        live = self._get(run_id)
        if not live.run.state.ended:
            self._commit(live, [Told(message, live.progress)])

    def spec(self, run_id: str) -> RunSpec:
        return self._get(run_id).run.spec

    def plan_probe(
        self, run_id: str, step: int | None, factors: Sequence[int], samples: int | None, workers: int | None
    ) -> probe.Probe:
        """The branches of a run that measure its critical batch; see `probe.plan`."""
        return probe.plan(self._get(run_id).run, step, factors, samples, workers)

    def set_state(self, run_id: str, state: RunState, reason: str = "") -> None:
        live = self._get(run_id)
        ends = state.ended and not live.run.state.ended
        events: list[Event] = [self._last_sight(live)] if ends else []
        if (live.run.state, live.run.state_reason) != (state, reason):
            events.append(Stated(state, reason))
        self._commit(live, events)
        if state is RunState.FAILED:
            self._alert(live, "error", reason)
        if state.ended:
            live.close()

    def _last_sight(self, live: Live) -> Observed:
        for payload in live.take(None, final=True):
            self.feed.publish("metrics", live.run.id, payload)
        return Observed(live.observation(live.run, ()), (), {}, {}, live.estimator.state())

    def heartbeat(self, run_id: str) -> RunState:
        """A sign of life from the driver; one that was thought lost goes on."""
        live = self._get(run_id)
        live.heartbeat = self._clock()
        if live.run.state is RunState.LOST:
            self._commit(live, [Stated(RunState.RUNNING, "its driver is back")])
        return live.run.state

    def deliver(self) -> None:
        """Ask Ray for the jobs that it has not taken yet; called about once a second.

        Raises Fenced once another controller is in charge, who may have taken them back.
        """
        self._journal.check(self.term)
        self._outbox.deliver()

    def expire(self, late_s: float = 0.0) -> None:
        """Mark the runs whose driver has gone silent; called about once a second, `late_s` later than it was due. Also
        writes metrics out."""
        self._meter.lag.note(late_s)
        now = self._clock()
        for live in self._live.values():
            if live.run.state.ended:
                continue
            live.look(now)
            live.flush()
            self._alarm(live, "the metrics' file", live.storage)
            if live.question is not None:
                self._proceed(live)
            if now - live.heartbeat > LOST_S:
                self._lose(live)

    def _lose(self, live: Live) -> None:
        try:
            self.set_state(live.run.id, RunState.LOST, "its driver stopped calling; resume it from its checkpoint")
        except JournalUnavailable as error:
            self._alarm(live, "the journal", f"the run's state cannot be stored: {error}")
        else:
            self._alert(live, "error", f"no sign of life from the driver for {LOST_S:.0f} s")

    # ---- for the workers ------------------------------------------------------------------------------------------

    def register(
        self,
        run_id: str,
        formation: int,
        parameters: Sequence[HyperParameter],
        lr_rule: LrRule,
        dataset_size: int | None,
    ) -> Version:
        """Take in what the train function declares, let policies speak once before the first step, and answer the
        version that every rank starts with."""
        live = self._get(run_id)
        if formation != live.run.formation:
            raise Refused("stale-formation", f"formation {formation} is over; {live.run.formation} is the present one")
        live.question = None
        state, blocks = live.estimator.state(), live.blocks

        def look(run: Run) -> Observation:
            observation = live.observation(run, run.reads)
            _ask(run, observation)
            return observation

        declared = (live.run, self.term, parameters, lr_rule, dataset_size)
        self._decided(live, engine.register(*declared, look, state), blocks)
        return live.run.version

    def register_knob(self, run_id: str, knob: HyperParameter) -> None:
        """A knob that the script declares while it trains."""
        live = self._get(run_id)
        if live.run.lr_rule is not None:  # before that it comes with all that the train function declares
            self._commit(live, engine.declare(live.run, self.term, [knob]))

    async def next_versions(self, run_id: str, after: int, timeout_s: float) -> tuple[Version, ...]:
        """All versions above `after`, in order, as soon as there is one; none when the time is up.

        All of them, because ranks agree on the lowest that each has: one that a rank had jumped could be it.
        """
        live = self._get(run_id)
        if live.run.version.number <= after:
            try:
                await asyncio.wait_for(live.changed.wait(), timeout_s)
            except TimeoutError:
                return ()
        return tuple(live.versions[number] for number in range(after + 1, live.run.version.number + 1))

    def ingest(self, records: Records) -> None:
        """Take in a rank's records; a control tick follows when it is due."""
        live = self._get(records.run)
        if live.run.state.ended:
            return
        if records.branch is not None and records.formation > live.run.formation:
            self._begin(live, records.formation, records.branch)
        if records.formation != live.run.formation:
            return
        if records.reports:
            self._commit(live, records.reports)
        start = time.perf_counter()
        for payload in live.take(records):
            self.feed.publish("metrics", records.run, payload)
        live.applied += [(records.rank, version, step) for version, step in records.applied]
        live.tally.ingest_s += time.perf_counter() - start
        self._proceed(live)

    def _proceed(self, live: Live) -> None:
        try:
            self._advance(live)
        except JournalUnavailable as error:  # the records are taken in; what the journal misses is tried again
            self._alarm(live, "the journal", f"no decision was made: {error}")
        else:
            self._alarm(live, "the journal", "")

    def _begin(self, live: Live, formation: int, branch: Branch | Regrouped) -> None:
        """The ranks are a formation anew, in place: records of the one before count no longer."""
        if isinstance(branch, Branch):
            self._commit(live, engine.branch(live.run, formation, branch))
            return self._rewind(live)
        for payload in live.take(None, final=True):
            self.feed.publish("metrics", live.run.id, payload)
        if live.applied:
            self._applied(live)
        self._commit(live, engine.regroup(live.run, self.term, formation, branch))
        live.regroup()
        self._told_rewind(live)
        if branch.cause == "loss":
            lost = f"{branch.lost} worker{'s were' if branch.lost != 1 else ' was'} lost"
            self._alert(live, "warning", f"{lost}; {branch.world_size} went on after {branch.pause_s:.2f} s")
        return None

    def _advance(self, live: Live) -> None:
        """Journal what the newest records tell, and decide if it is time to."""
        forming = live.run.state in (RunState.STARTING, RunState.RECOVERING)
        if forming and live.progress.steps > live.run.progress.steps:
            self._commit(live, [Stated(RunState.RUNNING)])
        if live.applied:
            self._applied(live)
        if live.question is not None and not live.question.stands(live.run):
            live.question = None
        if live.run.rolling_back is not None:
            return  # what is seen now is of the branch that is being left
        if live.question is not None:
            self._tick(live, live.question)
        elif live.progress.steps > live.run.progress.steps and self._clock() - live.ticked >= self._pace(live):
            self._tick(live, self._observe(live), GRACE_S)

    def _pace(self, live: Live) -> float:
        return TICK_S if any(entry.asked for entry in live.run.policies.values()) else IDLE_TICK_S

    def _applied(self, live: Live) -> None:
        """Note which rank runs with which version, and hold or go on with the newest of them."""
        events: list[Event] = [Applied(tuple(live.applied))]
        newest = max(version for _, version, _ in live.applied)
        ruling = live.versions.get(newest, live.run.version)
        state = live.run.state
        if ruling.paused and state in (RunState.STARTING, RunState.RECOVERING, RunState.RUNNING):
            events.append(Stated(RunState.PAUSED))
        elif not ruling.paused and state is RunState.PAUSED:
            events.append(Stated(RunState.RUNNING))
        self._commit(live, events)
        live.applied = []

    def _observe(self, live: Live) -> Question:
        """Begin a control tick: policies in processes of their own are asked first, all at once."""
        observation, state = live.observation(live.run, live.run.reads), live.estimator.state()
        return Question(live.run, observation, state, live.blocks, _ask(live.run, observation))

    def _tick(self, live: Live, question: Question, wait_s: float = 0.0) -> None:
        """One control tick: decide, journal, publish; or leave it for later, as long as somebody ponders."""
        start = time.perf_counter()
        live.question = None if sandbox.done(question.asked, wait_s) else question
        if live.question is None:
            events = engine.observe(live.run, self.term, question.observation, question.estimator)
            self._decided(live, events, question.blocks)
            live.tally.ticks += 1
            self._meter.tick.note(time.perf_counter() - start)
        live.tally.decide_s += time.perf_counter() - start

    def _decided(self, live: Live, events: Sequence[Event], blocks: tuple[int, ...]) -> None:
        live.ticked = self._clock()
        self._commit(live, [*events, *self._stopping(live, events)])
        live.observed(blocks)
        for event in events:
            if isinstance(event, Observed):
                self._meter.policy_faults += len(event.faults)
                live.tally.refused += sum(
                    outcome.refused is not None and outcome.policy not in event.shadows for outcome in event.outcomes
                )
                for policy, message in event.faults.items():
                    self._alert(live, "warning", f"policy {policy} failed: {message}")
                    if why := live.run.policies[policy].disabled:
                        self._alert(live, "error", f"policy {policy} is disabled: {why}")
        if self._clock() - live.shown >= SHOW_S:
            self._show(live)
        for payload in live.note_shadows(self._clock(), SHOW_S):
            self.feed.publish("metrics", live.run.id, payload)

    def _stopping(self, live: Live, events: Sequence[Event]) -> list[Event]:
        stops = any(isinstance(e, Versioned) and e.version.stopped for e in events)
        if not stops or live.run.state is RunState.STOPPING:
            return []
        reason = next(
            (c.reason for e in events if isinstance(e, Versioned) for c in e.changes if c.param == "stopped"), ""
        )
        return [Stated(RunState.STOPPING, reason)]

    # ---- for persons (REST, CLI, page) ----------------------------------------------------------------------------

    def runs(self, wanted: RunsWanted = ALL_RUNS) -> tuple[list[views.RunSummary], str | None]:
        """A page of runs, and the place after it if there are more."""
        runs, place = listing.page((live.run for live in self._live.values()), wanted)
        return [self._summary(self._live[run.id]) for run in runs], place

    def audit(self, wanted: ChangesWanted) -> tuple[list[views.AuditView], str | None]:
        """A page of what was changed in all runs, newest first, and the place after it if there is more."""
        if wanted.run:
            self._get(wanted.run)
        lines, place = listing.audit({run: live.history for run, live in self._live.items()}, wanted)
        return [views.audited(*line) for line in lines], place

    def _summary(self, live: Live) -> views.RunSummary:
        return views.summary(live.run, live.progress, list(live.losses))

    def run(self, run_id: str) -> views.RunView:
        live = self._get(run_id)
        overhead = views.Overhead(
            controller_cpu_s=time.process_time(),
            ingest_s=live.tally.ingest_s,
            decide_s=live.tally.decide_s,
            ticks=live.tally.ticks,
            points=live.tally.points,
        )
        return views.detail(live.run, live.progress, list(live.losses), live.noise, live.ranks, overhead)

    def health(self) -> ControllerHealth:
        return self._meter.view(self._clock(), self.term, self.feed.published, list(self._live.values()))

    def hyperparameters(self, run_id: str) -> views.HyperParametersView:
        live = self._get(run_id)
        return views.hyperparameters(live.run, live.progress)

    def changes(self, run_id: str, after: int = 0, limit: int = 500) -> list[views.RecordView]:
        return [views.record(record) for record in self._get(run_id).history.after(after, limit)]

    def policies(self, run_id: str) -> list[views.PolicyView]:
        live = self._get(run_id)
        return [views.policy(live.run, name, live.progress) for name in live.run.policies]

    def policy(self, run_id: str, name: str) -> views.PolicyView:
        live = self._get(run_id)
        if name not in live.run.policies:
            raise Refused("policy-not-found", f"run {run_id} has no policy {name!r}")
        return views.policy(live.run, name, live.progress)

    def policy_kinds(self, run_id: str | None = None) -> list[views.PolicyKindView]:
        """Trimtab's own kinds, those of other packages, and those that came with the run."""
        own = [views.policy_kind(kind, cls) for kind, cls in kinds().items()]
        given = self._get(run_id).run.given.values() if run_id is not None else ()
        return [
            *own,
            *(self._stranger(kind, entry) for kind, entry in strangers().items()),
            *(views.foreign_kind(one.description, one.code.file) for one in given),
        ]

    def _stranger(self, kind: str, entry: EntryPoint) -> views.PolicyKindView:
        origin = entry.dist.name if entry.dist else ""
        try:
            return views.foreign_kind(sandbox.described(Code(entry.value), {}), origin)
        except sandbox.Fault as fault:
            return views.broken_kind(kind, str(fault), origin)

    async def prepare_policies(self, run_id: str, given: Sequence[PolicySpec]) -> None:
        """Let third-party policies be looked at in processes of their own.

        Whoever puts them next finds the answer here and need not wait for it, which would hold up everybody.
        """
        codes = [(policy.code or self._code(run_id, policy.kind), policy.params) for policy in given]
        await _described([*codes, *((policy.code, {}) for policy in given)])

    async def prepare_kinds(self) -> None:
        """The same for the kinds of other packages."""
        await _described([(Code(entry.value), {}) for entry in strangers().values()])

    def _code(self, run_id: str, kind: str) -> Code | None:
        if kind in kinds():
            return None
        if run_id in self._live:
            return self._live[run_id].run.code(kind)
        return Code(strangers()[kind].value) if kind in strangers() else None

    def put_policy(
        self,
        run_id: str,
        name: str,
        kind: str,
        params: Mapping[str, Any],
        mode: Mode,
        by: str,
        reason: str,
        revision: int | None,
    ) -> tuple[views.PolicyView, bool]:
        """Install or edit a policy; `revision` is the one that the caller saw (0: none was there, None: whatever it
        is). True if new."""
        live = self._going(run_id)
        old = live.run.policies.get(name)
        if revision == 0 and old is not None:
            message = f"run {run_id} has a policy {name!r} already"
            present = self.policy(run_id, name).model_dump(mode="json")
            raise Refused("policy-exists", message, {"name": message}, present)
        if revision:
            if old is None:
                raise Refused("stale-revision", f"run {run_id} has no policy {name!r}", current={})
            self._check_revision(revision, old.revision, self.policy(run_id, name))
        self._commit(live, engine.put_policy(self._now(live), self.term, name, kind, params, mode, by, reason))
        if live.run.policies[name].asked:
            sandbox.warm([live.run.policies[name].policy])
        return self.policy(run_id, name), old is None

    def check_policy(self, run_id: str, name: str, kind: str, params: Mapping[str, Any], mode: Mode) -> None:
        """Refuse what `put_policy` would."""
        engine.put_policy(self._now(self._get(run_id)), self.term, name, kind, params, mode, "", "")

    def delete_policy(self, run_id: str, name: str, by: str, reason: str, revision: int | None) -> None:
        live = self._going(run_id)
        present = self.policy(run_id, name)
        self._check_revision(revision, present.revision, present)
        self._commit(live, engine.delete_policy(self._now(live), self.term, name, by, reason))

    def pin(
        self, run_id: str, param: str, value: Scalar | None, by: str, reason: str, revision: int | None
    ) -> views.Pinned:
        """Pin at `value` (None: at the present one)."""
        live = self._going(run_id)
        self._check_sizable(live, param)
        self._check_revision(revision, live.run.pins_revision, self.hyperparameters(run_id))
        self._commit(live, engine.pin(self._now(live), self.term, param, value, by, reason))
        return views.pinned(live.run, param, live.progress)

    def unpin(self, run_id: str, param: str, by: str, reason: str, revision: int | None) -> views.Pinned:
        live = self._going(run_id)
        self._check_revision(revision, live.run.pins_revision, self.hyperparameters(run_id))
        self._commit(live, engine.unpin(self._now(live), self.term, param, by, reason))
        return views.pinned(live.run, param, live.progress)

    def command(self, run_id: str, wish: Command, by: str) -> int:
        """Pause, resume, stop, checkpoint, decay or roll back at one step on all ranks; the version that carries it."""
        live = self._going(run_id)
        events = engine.command(self._now(live), self.term, wish, by)
        self._commit(live, [*events, *self._stopping(live, events)])
        return live.run.version.number

    async def submit_job(self, request: JobRequest, by: str) -> tuple[Outgoing, bool]:
        """See `Outbox.submit`."""
        return await self._outbox.submit(request, by)

    async def withdraw_job(self, submission_id: str, by: str) -> bool:
        """See `Outbox.withdraw`."""
        return await self._outbox.withdraw(submission_id, by)

    def forget_job(self, submission_id: str, by: str) -> bool:
        """See `Outbox.forget`."""
        return self._outbox.forget(submission_id, by)

    def asked_jobs(self) -> Asked:
        """What only the controller knows of jobs."""
        runs: dict[str, list[str]] = {}
        for live in self._live.values():
            if live.run.job:
                runs.setdefault(live.run.job, []).append(live.run.id)
        return self._outbox.asked(runs)

    def asked_job(self, submission_id: str) -> Outgoing | None:
        """A job as it was asked for here, if it was."""
        return self._outbox.find(submission_id)

    def _now(self, live: Live) -> Run:
        """The run with its progress as last heard, for values at the time of a person's change."""
        return live.run.at(live.progress)

    @staticmethod
    def _check_sizable(live: Live, param: str) -> None:
        """Say what to do where workers are asked for and the run has no say over them."""
        if param in (sync.WORKERS, sync.LEARNERS) and param not in live.run.version.parameters:
            told = (
                f"the size of run {live.run.id} cannot be changed: its workers are not Trimtab's own; start it with "
                "`trimtab run` or `launch(...)`, which declare `workers` and `learners`"
            )
            raise Refused("fixed-size", told, {"param": told})

    @staticmethod
    def _check_revision(seen: int | None, present: int, current: Any) -> None:
        if seen is not None and seen != present:
            message = f"you saw revision {seen}, the present one is {present}; load it and try again"
            raise Refused("stale-revision", message, current=current.model_dump(mode="json"))

    def close(self) -> None:
        for live in self._live.values():
            live.close()
            sandbox.retain(live.run.id, ())
        self._journal.close()


async def _described(classes: Sequence[tuple[Code | None, Mapping[str, Any]]]) -> None:
    asked = [sandbox.describe(code, params) for code, params in classes if code is not None]
    await asyncio.gather(*map(asyncio.wrap_future, asked), return_exceptions=True)


def _ask(run: Run, observation: Observation) -> Sequence[Future[Any]]:
    """Put the question to the policies in processes of their own."""
    asked = ((name, entry) for name, entry in run.policies.items() if entry.asked)
    return sandbox.ask((entry.policy, entry.state, engine.shown(run, name, observation)) for name, entry in asked)
