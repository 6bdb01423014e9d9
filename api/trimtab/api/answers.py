"""What routes answer, besides the controller's own views."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from trimtab.controller.events import Mode
from trimtab.controller.health import ControllerHealth, HomeHealth
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.jobs import JobDetails
from trimtab.controller.metrics import Axis
from trimtab.controller.trajectory import Scalar
from trimtab.controller.views import AuditView, PolicyKindView, PolicyView, RecordView, RunSummary


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class About(BaseModel):
    version: str
    name: str  # of the token
    role: str


class Runs(BaseModel):
    runs: list[RunSummary]
    next_page_token: str | None  # null: this is the last page


class GivenPolicy(BaseModel):
    """A policy that was given when a job was submitted."""

    name: str = Field(description="Empty: its kind.")
    kind: str = Field(description="Empty: that of the class in `code`.")
    params: dict[str, Any]
    mode: Mode
    code: str = Field(description="FILE.py:CLASS that came with the job; empty: an installed kind.")


class Given(BaseModel):
    """Values and policies that were given when a job was submitted; they stand in place of the script's own."""

    hp: dict[str, Scalar | HyperParameter] = {}
    policies: list[GivenPolicy] = []


class JobView(JobDetails):
    """A job in Ray's own words, with who submitted it and what it trains."""

    by: str | None = Field(description="Who submitted it here; null: it came to Ray by another way.")
    runs: list[str] = Field(description="The runs that it trains.")
    given: Given = Given()


class Jobs(BaseModel):
    server: str  # Ray's job server, as the cluster knows it; files of a job are uploaded there
    jobs: list[JobView]
    next_page_token: str | None  # null: this is the last page


class Stopped(BaseModel):
    stopped: bool  # false: it was not running


class Deleted(BaseModel):
    deleted: Literal[True] = True


class Logs(BaseModel):
    logs: str


class Accepted(BaseModel):
    version: int  # the one that carries the command


class Policies(BaseModel):
    policies: list[PolicyView]


class PolicyKinds(BaseModel):
    kinds: list[PolicyKindView]


class Changes(BaseModel):
    changes: list[RecordView]
    next_after: int | None  # null: there are no more yet


class TokenView(BaseModel):
    name: str
    role: str
    created: datetime | None  # null: before that was noted
    expires: datetime | None


class Tokens(BaseModel):
    tokens: list[TokenView]


class NewToken(TokenView):
    token: str = Field(repr=False, description="Seen this once.")


class Audit(BaseModel):
    changes: list[AuditView]
    next_page_token: str | None  # null: this is the last page


class MetricKeys(BaseModel):
    keys: list[str]


class Buckets(BaseModel):
    """Columns with one entry a bucket."""

    x: list[float]  # of the bucket's last point: step, samples, or unix seconds
    last: list[float]
    min: list[float]
    max: list[float]
    mean: list[float]


class Cells(BaseModel):
    """Columns with one entry a cell of the grid; null where the run has no point in it."""

    last: list[float | None]
    min: list[float | None]
    max: list[float | None]
    mean: list[float | None]


class Compared(BaseModel):
    x: Axis
    grid: list[float]  # each cell's right end, which belongs to it
    runs: dict[str, dict[str, Cells]]  # by run and key


class Metrics(BaseModel):
    x: Axis
    series: dict[str, Buckets]


class ResourceHealth(BaseModel):
    total: float
    free: float


class NodeHealth(BaseModel):
    """A node of the cluster that is alive."""

    id: str
    host: str
    address: str
    head: bool
    draining: bool = Field(description="About to be taken away; runs leave it.")
    resources: dict[str, ResourceHealth] = Field(description="As Ray counts them; memory in bytes.")


class ApiHealth(BaseModel):
    host: str
    pid: int
    uptime_s: float
    stream_clients: int = Field(description="Open event streams.")


class Software(BaseModel):
    trimtab: str
    ray: str
    torch: str
    python: str


class SystemHealth(BaseModel):
    """What is null did not answer; `problems` says why."""

    time: datetime
    controller: ControllerHealth | None
    home: HomeHealth | None
    api: ApiHealth
    nodes: list[NodeHealth] | None
    software: Software
    problems: list[str]
