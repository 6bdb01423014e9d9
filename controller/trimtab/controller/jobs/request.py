"""What Ray is asked to run, and the journal's events of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

DIGEST = "trimtab_request"  # metadata that tells a submission that is repeated from another of the same id


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A submission to Ray's job API; the fields are Ray's own, the submission id is known before Ray is asked."""

    submission_id: str
    entrypoint: str  # a shell command
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None  # [bytes]
    entrypoint_resources: Mapping[str, float] = field(default_factory=dict)
    entrypoint_label_selector: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Two requests are the same where this is."""
        text = json.dumps(_ADAPTER.dump_python(self, mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


_ADAPTER: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)


@dataclass(frozen=True, slots=True)
class Submitted:
    """Somebody wants the job; it is Ray's turn."""

    request: JobRequest
    by: str
    event: Literal["job-submitted"] = "job-submitted"


@dataclass(frozen=True, slots=True)
class Taken:
    """Ray has the job."""

    event: Literal["job-taken"] = "job-taken"


@dataclass(frozen=True, slots=True)
class Dropped:
    """Ray never had the job and will not be asked for it again."""

    code: str  # of the refusal
    reason: str
    event: Literal["job-dropped"] = "job-dropped"


JobEvent = Submitted | Taken | Dropped
_EVENTS: TypeAdapter[JobEvent] = TypeAdapter(Annotated[JobEvent, Field(discriminator="event")])


def encode(event: JobEvent) -> str:
    return _EVENTS.dump_json(event).decode()


def decode(text: str) -> JobEvent:
    return _EVENTS.validate_json(text)
