"""What clients send: bodies, queries and conditions, checked before a route sees them. Unknown fields are refused."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from fastapi import Depends, Header, Path
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from trimtab.api.problems import IF_MATCH
from trimtab.api.runtime_env import check
from trimtab.controller.events import Mode
from trimtab.controller.feed import Topic
from trimtab.controller.listing import Sort
from trimtab.controller.metrics import Axis
from trimtab.controller.state import RunState

_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
RunId = Annotated[str, Path(max_length=128, pattern=_ID)]
Reason = Annotated[str, Field(max_length=1000, description="Kept in the journal beside the change.")]
TOKEN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"  # no dot: a session's cookie is cut there
TOPICS: tuple[Topic, ...] = get_args(Topic)


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _fits(value: int | float) -> int | float:
    if abs(value) > 1e300:
        raise ValueError("too large")
    return value


Number = Annotated[StrictInt | StrictFloat, AfterValidator(_fits)]


class SessionForm(Form):
    token: str = Field(max_length=200, repr=False)


class TokenForm(Form):
    name: str = Field(pattern=TOKEN_NAME, description="Stands in the journal beside what its bearer changes.")
    role: Literal["viewer", "operator", "admin"] = "viewer"
    expires: AwareDatetime | None = Field(None, description="RFC 3339; null: never.")


class CommandForm(Form):
    reason: Reason = ""


class RollbackForm(Form):
    step: Annotated[StrictInt, Field(ge=0, le=2**53)] | None = Field(
        None, description="The step of a checkpoint that is kept; without it the newest."
    )
    skip_data: StrictBool = Field(
        False, description="Go on with the samples after the point of the roll back, not after the checkpoint."
    )
    reason: Reason = ""


class PinForm(Form):
    value: Number | Annotated[StrictStr, Field(max_length=200)] | None = Field(
        description="The value to hold; null is the present one."
    )
    reason: Reason = ""


class PolicyForm(Form):
    kind: str = Field(max_length=100)
    params: dict[str, JsonValue] = Field(default={}, description="By the kind's schema; the rest takes its defaults.")
    mode: Mode = "active"
    reason: Reason = ""


class DryRunQuery(Form):
    dry_run: bool = Field(False, description="Change nothing; answer what it would have decided on the recorded run.")


class CandidateForm(Form):
    name: str = Field(max_length=100)
    kind: str = Field(max_length=100)
    params: dict[str, JsonValue] = Field(default={}, description="By the kind's schema; the rest takes its defaults.")
    mode: Mode = "active"


class ReplayForm(Form):
    policies: list[CandidateForm] | None = Field(
        None, max_length=64, description="In place of the recorded ones, from the run's start; null: as recorded."
    )


class PageQuery(Form):
    limit: int = Field(100, ge=1, le=1000)
    page_token: str | None = Field(None, max_length=200, description="`next_page_token` of the page before.")


class RunsQuery(PageQuery):
    state: list[RunState] = Field(default=[], max_length=20, description="Repeat for several.")
    name: str = Field("", max_length=128, description="Part of the id or of the name, in any case.")
    owner: str = Field("", max_length=128)
    sort: Sort = Field("-created", description="`-`: the greatest, or latest, first.")


class AuditQuery(PageQuery):
    run: str = Field("", max_length=128, description="Of this run only.")
    by: str = Field("", max_length=128, description="By this person's token, or policy, only.")


class ChangesQuery(Form):
    after: int = Field(0, ge=0, le=2**53, description="The `id` of the last change that is known.")
    limit: int = Field(500, ge=1, le=5000)


class MetricsQuery(Form):
    key: list[str] = Field(default=[], max_length=200, description="Repeat for several; without it the names answer.")
    x: Axis = "step"
    from_: float | None = Field(None, alias="from", allow_inf_nan=False)
    to: float | None = Field(None, allow_inf_nan=False)
    max_points: int = Field(1000, ge=1, le=20_000)
    rank: int | None = Field(None, ge=0, le=2**31, description="Of this rank alone, where its values are still kept.")


Place = Annotated[StrictInt | StrictFloat, Field(ge=-1e300, le=1e300)]  # not NaN


class GridForm(Form):
    x: Axis = Field("step", description="A time is in seconds since the run's first point.")
    from_: Place | None = Field(None, alias="from", description="Where the grid begins; null: with the first point.")
    to: Place | None = Field(None, description="Where the grid ends, later than it begins; null: with the last point.")
    points: Annotated[StrictInt, Field(ge=1, le=5000)] = Field(500, description="Cells of the same width.")

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.from_ is not None and self.to is not None and not self.from_ < self.to:
            raise ValueError(f"`from` must lie before `to`, got {self.from_} and {self.to}")
        return self


class CompareForm(Form):
    runs: list[Annotated[str, Field(max_length=128, pattern=_ID)]] = Field(min_length=1, max_length=50)
    keys: list[Annotated[str, Field(max_length=500)]] = Field(min_length=1, max_length=50)
    grid: GridForm = GridForm()


class KindsQuery(Form):
    run: str | None = Field(None, max_length=128, description="Add the kinds that came with this run's job.")


def _small(texts: Mapping[str, str]) -> Mapping[str, str]:
    if len(texts) > 100 or any(len(name) > 200 or len(text) > 10_000 for name, text in texts.items()):
        raise ValueError("at most 100 entries are taken, names of 200 and texts of 10,000 characters")
    return texts


SubmissionId = Annotated[str, Path(max_length=128, pattern=_ID)]
Amount = Annotated[StrictInt | StrictFloat, Field(ge=0, le=1e15)]
Texts = Annotated[dict[str, StrictStr], AfterValidator(_small)]


class JobForm(Form):
    """The payload of Ray's own job API."""

    entrypoint: str = Field(min_length=1, max_length=10_000, description="The shell command to run.")
    submission_id: Annotated[str, Field(max_length=128, pattern=_ID)] | None = Field(
        None, description="The same again is the same job; without it one is made, from `Idempotency-Key` if given."
    )
    runtime_env: Annotated[dict[str, JsonValue], AfterValidator(check)] = {}
    metadata: Texts = {}
    entrypoint_num_cpus: Amount | None = None
    entrypoint_num_gpus: Amount | None = None
    entrypoint_memory: Annotated[StrictInt, Field(ge=0, le=2**53)] | None = None
    entrypoint_resources: Annotated[dict[str, Amount], Field(max_length=100)] = {}
    entrypoint_label_selector: Texts = {}


class LogsQuery(Form):
    follow: bool = Field(False, description="Answer plain text, as it is printed, until the job ends.")
    skip: int = Field(0, ge=0, le=2**53, description="Characters that are known already.")


class ReasonQuery(Form):
    reason: Reason = ""


def _topics(text: str) -> str:
    unknown = set(filter(None, text.split(","))) - set(TOPICS)
    if unknown:
        raise ValueError(f"must be some of {', '.join(TOPICS)}; got {', '.join(sorted(unknown))}")
    return text


Topics = Annotated[str, AfterValidator(_topics)]


class EventsQuery(Form):
    run: list[Annotated[str, Field(max_length=128)]] = Field(
        default=[], max_length=200, description="Events of this run only; repeat for several, leave out for all."
    )
    topic: Topics = Field(",".join(TOPICS), description="Joined by commas.")
    everywhere: Topics = Field("", description="Topics to hear of all runs, whatever `run` says.")
    last_event_id: str = Field("", max_length=100, description="Go on after this event; so does `Last-Event-ID`.")


Match = Annotated[str, Field(pattern=r'^(\*|"[0-9]{1,15}"|[0-9]{1,15})$')]
SEEN = 'The revision that was seen, as in its ETag (`"7"`); `*` for any.'


def revision(if_match: Annotated[Match, Header(alias=IF_MATCH, description=f"{SEEN} Without it: 428.")]) -> int | None:
    """The revision that a change was made on; None for any."""
    return None if if_match == "*" else int(if_match.strip('"'))


Revision = Annotated[int | None, Depends(revision)]


def revision_or_none(
    if_match: Annotated[
        Match | None, Header(alias=IF_MATCH, description=f"{SEEN} Without it, and without `If-None-Match`: 428.")
    ] = None,
    if_none_match: Annotated[
        Literal["*"] | None, Header(alias="If-None-Match", description="`*`: only where there is none yet; else 412.")
    ] = None,
) -> int | None:
    """The revision that a change was made on; 0 where nothing was there, None for any."""
    if if_none_match is not None:
        return 0
    if if_match is None:
        raise RequestValidationError([{"type": "missing", "loc": ("header", IF_MATCH), "msg": "Field required"}])
    return revision(if_match)


RevisionOrNone = Annotated[int | None, Depends(revision_or_none)]
