"""Jobs of the Ray cluster: asked for once, made once."""

from trimtab.controller.jobs.outbox import Asked, Outbox, Outgoing
from trimtab.controller.jobs.request import JobRequest
from trimtab.controller.jobs.server import JobDetails, JobServer, JobServerUnreachable, NoJobServer

__all__ = [
    "Asked",
    "JobDetails",
    "JobRequest",
    "JobServer",
    "JobServerUnreachable",
    "NoJobServer",
    "Outbox",
    "Outgoing",
]
