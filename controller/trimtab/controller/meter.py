"""What the controller notes of itself as it goes."""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from time import process_time
from typing import get_args

import numpy as np

from trimtab.controller.feed import Topic
from trimtab.controller.health import MAX_LIVE, Bucket, ControllerHealth, RecordsHealth, RunHealth, TimingsView
from trimtab.controller.live import Live
from trimtab.controller.state import RunState
from trimtab.controller.tally import Tally
from trimtab.controller.views import moment

SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # [s] work in memory
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # [s]
LONG = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # [s] what ranks take part in
RECENT = 256  # durations kept for their quantiles


class Timings:
    """Durations [s], counted in buckets for whoever scrapes and kept for a while for their quantiles."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds
        self._recent.append(seconds)

    def view(self) -> TimingsView:
        below = accumulate(self._counts)
        spread = np.quantile(self._recent, (0.5, 0.95, 1.0)).tolist() if self._recent else (None, None, None)
        return TimingsView(
            count=sum(self._counts),
            sum_s=self._sum,
            buckets=[Bucket(le=le, count=count) for le, count in zip(self._bounds, below, strict=False)],
            median_s=spread[0],
            p95_s=spread[1],
            max_s=spread[2],
        )


class Meter:
    """Of one controller, since it was started."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.lag = Timings(LAG)
        self.applied = Timings(LONG)
        self.tick = Timings(SHORT)
        self.policy_faults = 0

    def view(self, now: float, term: int, published: Mapping[Topic, int], lives: Sequence[Live]) -> ControllerHealth:
        total = Tally()
        for live in lives:
            total.add(live.tally)
        states = Counter(live.run.state for live in lives)
        going = sorted((live for live in lives if not live.run.state.ended), key=lambda one: -one.run.created)
        return ControllerHealth(
            term=term,
            started=moment(self.started),
            uptime_s=now - self.started,
            cpu_s=process_time(),
            lag=self.lag.view(),
            decision_to_applied=self.applied.view(),
            tick=self.tick.view(),
            ticks=total.ticks,
            ingest_s=total.ingest_s,
            records=RecordsHealth(produced=total.produced, stored=total.stored, dropped=total.dropped),
            points=total.points,
            overhead=total.overhead,
            training_s=total.training_s,
            control_s=total.control_s,
            events={topic: published.get(topic, 0) for topic in get_args(Topic)},
            runs={state: states[state] for state in RunState},
            versions=sum(live.run.version.number for live in lives),
            policy_faults=self.policy_faults,
            live=[_run(live) for live in going[:MAX_LIVE]],
            live_omitted=max(0, len(going) - MAX_LIVE),
        )


def _run(live: Live) -> RunHealth:
    run = live.run
    settings = run.version.at(live.progress)
    lr, noise = settings.values.get("lr"), live.noise
    return RunHealth(
        id=run.id,
        name=run.spec.name,
        state=run.state,
        step=live.progress.steps,
        samples=live.progress.samples,
        steps_per_s=live.steps_per_s,
        loss=live.losses[-1] if live.losses else None,
        batch_size=settings.plan.batch_size,
        lr=lr if isinstance(lr, int | float) else None,
        world_size=run.version.batching.world_size,
        noise_scale=noise.value if noise else None,
        overhead=live.tally.overhead,
        dropped=live.tally.dropped,
        refused=live.tally.refused,
        disabled=sum(entry.disabled is not None for entry in run.policies.values()),
        applied_version=run.applied_version,
        version=run.version.number,
    )
