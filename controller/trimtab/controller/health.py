"""How the controller fares: its one account of itself, which REST, the page and Prometheus read."""

from datetime import datetime

from pydantic import Field

from trimtab.controller.feed import Topic
from trimtab.controller.state import RunState
from trimtab.controller.views import View

MAX_LIVE = 50  # runs told of one by one


class Bucket(View):
    le: float = Field(description="Seconds.")
    count: int = Field(description="Durations of at most `le`.")


class TimingsView(View):
    """Durations since the controller was started, and the spread of the last 256."""

    count: int
    sum_s: float
    buckets: list[Bucket]
    median_s: float | None
    p95_s: float | None
    max_s: float | None


class RecordsHealth(View):
    """Records are steps and logged values of ranks, counted since the controller was started."""

    produced: int
    stored: int
    dropped: int = Field(description="What is neither stored nor dropped is on its way.")


class RunHealth(View):
    """A run that has not ended."""

    id: str
    name: str
    state: RunState
    step: int
    samples: int
    steps_per_s: float = Field(description="Over the last ten seconds.")
    loss: float | None
    batch_size: int
    lr: float | None
    world_size: int
    noise_scale: float | None = Field(description="In samples.")
    overhead: float | None = Field(description="Share of step time that ranks spend in Trimtab's own work.")
    dropped: int = Field(description="Records.")
    refused: int = Field(description="Proposals of its policies, since the controller was started.")
    disabled: int = Field(description="Policies that are not asked again, because they have failed too often.")
    applied_version: int
    version: int


class ControllerHealth(View):
    term: int
    started: datetime
    uptime_s: float
    cpu_s: float
    lag: TimingsView = Field(description="How late the controller's loop ran, looked at once a second.")
    decision_to_applied: TimingsView = Field(
        description="From accepted to applied on all ranks, as the controller heard of it: ranks tell every 0.25 s."
    )
    tick: TimingsView = Field(description="Time of a control tick: policies, guard rails, journal.")
    ticks: int
    ingest_s: float
    records: RecordsHealth
    points: int
    overhead: float | None = Field(description="Share of step time that ranks spend in Trimtab's own work.")
    training_s: float = Field(description="Step time added up over ranks.")
    control_s: float
    events: dict[Topic, int] = Field(description="Published to the event stream in this term, by topic.")
    runs: dict[RunState, int]
    versions: int = Field(description="Of all runs since the journal began.")
    policy_faults: int
    live: list[RunHealth] = Field(description=f"Runs that have not ended, {MAX_LIVE} at most, newest first.")
    live_omitted: int


class HomeHealth(View):
    """Where the controller lives."""

    host: str
    node: str = Field(description="Ray's id of it.")
    pid: int
    memory_peak_bytes: int
    path: str
    journal_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
