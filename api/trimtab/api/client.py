"""A typed client of the REST API, for programs and for the command line.

    with Client() as api:
        api.pin("bytes-lm-3f9a", "lr", 0.001, reason="by hand")

Each operation of the API's description has a method here, with the same parameters; `tests/api/test_client.py` holds
the two together. Answers are the models that the API itself answers with.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from trimtab.api.answers import (
    About,
    Accepted,
    Audit,
    Changes,
    Compared,
    Deleted,
    Health,
    Jobs,
    JobView,
    Logs,
    MetricKeys,
    Metrics,
    NewToken,
    Policies,
    PolicyKinds,
    Runs,
    Stopped,
    SystemHealth,
    Tokens,
    TokenView,
)
from trimtab.api.errors import ApiError
from trimtab.api.home import read_access
from trimtab.controller.events import Mode
from trimtab.controller.feed import Topic
from trimtab.controller.jobs.server import ENDED
from trimtab.controller.listing import Sort
from trimtab.controller.metrics import Axis
from trimtab.controller.replayed import Candidate, Replayed
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Scalar
from trimtab.controller.views import (
    AuditView,
    HyperParametersView,
    Pinned,
    PolicyKindView,
    PolicyView,
    RecordView,
    RunSummary,
    RunView,
)

ROOT = "/api/v1"
HOME = "~/.trimtab"
TIMEOUT_S = 30.0
REPLAY_S = 130.0  # a little longer than the server takes at most
EVENTS_S = 30.0  # a stream that is silent for longer than its keep-alives is dead
SILENCE_S = 300.0  # that a job which prints nothing is believed to be there
RETRY_S = 0.5  # between two attempts to come back
AWAY = frozenset({"unreachable", "controller-unreachable", "job-server-unreachable"})  # and will be back
PAGE = 1000  # items asked for at once

Model = TypeVar("Model")
Item = TypeVar("Item")


class SubmittedJob(JobView):
    """A job as it was submitted. `known`: it had been before (or by a try of this call whose answer was lost)."""

    known: bool = Field(exclude=True)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the live stream. `topic` is `reset` where some may be missing: load the state anew."""

    id: str
    topic: str
    data: Any


class Client:
    """Speaks to the API at `url`. Every method raises ApiError, whose `code` is stable.

    What is not given is taken from TRIMTAB_URL, TRIMTAB_TOKEN and TRIMTAB_HOME, and else from what `trimtab up` wrote
    down in the home.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        home: Path | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        home = home or Path(os.environ.get("TRIMTAB_HOME", HOME)).expanduser()
        access = read_access(home)
        url = url or os.environ.get("TRIMTAB_URL") or (access.url if access else None)
        token = token or os.environ.get("TRIMTAB_TOKEN") or (access.token if access else None)
        if url is None or token is None:
            missing = "url" if url is None else "token"
            raise ApiError(
                0,
                "no-access",
                f"nothing is known of an API in {home}; start it with `trimtab up`, or give its {missing}",
            )
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url + ROOT,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout_s,
                verify=httpx.create_ssl_context(),  # with the authorities of SSL_CERT_FILE or SSL_CERT_DIR
                trust_env=False,  # no proxies
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeError, OSError) as error:
            raise ApiError(0, "no-access", f"{self.url!r} with this token cannot be asked: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- the service ----------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Whether the API is up."""
        return self._ask(Health, "GET", f"{self.url}/healthz")

    def ready(self) -> Health:
        """Whether the controller answers; ApiError "controller-unreachable" if not."""
        return self._ask(Health, "GET", f"{self.url}/readyz")

    def system_health(self) -> SystemHealth:
        """How the controller, the API, the cluster and the runs that go on fare."""
        return self._ask(SystemHealth, "GET", "/health")

    def version(self) -> About:
        """The API's version, and the role of this client's token."""
        return self._ask(About, "GET", "/version")

    # ---- runs -----------------------------------------------------------------------------------------------------

    def runs(
        self, state: Sequence[RunState | str] = (), name: str = "", owner: str = "", sort: Sort = "-created"
    ) -> Iterator[RunSummary]:
        """The runs in one of these states (none: all), with `name` in their id or name, of `owner`, newest first."""
        query = {"state": list(state), "name": name or None, "owner": owner or None, "sort": sort, "limit": PAGE}

        def page(place: str | None) -> tuple[list[RunSummary], str | None]:
            found = self._ask(Runs, "GET", "/runs", query=query | {"page_token": place})
            return found.runs, found.next_page_token

        return self._pages(page)

    def run(self, run: str) -> RunView:
        return self._ask(RunView, "GET", _path("runs", run))

    def changes(self, run: str, after: int = 0) -> Iterator[RecordView]:
        """The audit of a run, oldest first, from after the record `after`."""

        def page(place: int | None) -> tuple[list[RecordView], int | None]:
            query = {"after": after if place is None else place, "limit": PAGE}
            found = self._ask(Changes, "GET", _path("runs", run, "changes"), query=query)
            return found.changes, found.next_after

        return self._pages(page)

    def audit(self, run: str = "", by: str = "") -> Iterator[AuditView]:
        """What was changed in all runs, newest first; of `run` only, or `by` one person or policy only."""
        query = {"run": run or None, "by": by or None, "limit": PAGE}

        def page(place: str | None) -> tuple[list[AuditView], str | None]:
            found = self._ask(Audit, "GET", "/changes", query=query | {"page_token": place})
            return found.changes, found.next_page_token

        return self._pages(page)

    def pause(self, run: str, reason: str = "") -> Accepted:
        return self._command(run, "pause", reason)

    def resume(self, run: str, reason: str = "") -> Accepted:
        return self._command(run, "resume", reason)

    def stop(self, run: str, reason: str = "") -> Accepted:
        return self._command(run, "stop", reason)

    def checkpoint(self, run: str, reason: str = "") -> Accepted:
        return self._command(run, "checkpoint", reason)

    def decay(self, run: str, reason: str = "") -> Accepted:
        return self._command(run, "decay", reason)

    def _command(self, run: str, name: str, reason: str) -> Accepted:
        return self._ask(Accepted, "POST", _path("runs", run, name), body={"reason": reason})

    def rollback(self, run: str, step: int | None = None, skip_data: bool = False, reason: str = "") -> Accepted:
        """Go back in place to the checkpoint of `step`, or to the newest."""
        body = {"step": step, "skip_data": skip_data, "reason": reason}
        return self._ask(Accepted, "POST", _path("runs", run, "rollback"), body=body)

    # ---- jobs -----------------------------------------------------------------------------------------------------

    def submit_job(
        self,
        entrypoint: str,
        submission_id: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        entrypoint_num_cpus: float | None = None,
        entrypoint_num_gpus: float | None = None,
        entrypoint_memory: int | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
        entrypoint_label_selector: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        patience_s: float = 60.0,
    ) -> SubmittedJob:
        """Submit a job to Ray: the shell command `entrypoint`, with Ray's own parameters.

        The same again is the same job, whatever died meanwhile; so it is asked for until somebody answers, for at most
        `patience_s`. Without `submission_id` and `idempotency_key` that holds for this call only.
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": runtime_env or {},
            "metadata": metadata or {},
            "entrypoint_num_cpus": entrypoint_num_cpus,
            "entrypoint_num_gpus": entrypoint_num_gpus,
            "entrypoint_memory": entrypoint_memory,
            "entrypoint_resources": entrypoint_resources or {},
            "entrypoint_label_selector": entrypoint_label_selector or {},
        }
        headers = {} if submission_id else {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        until = time.monotonic() + patience_s
        while True:
            try:
                answer = self._send("POST", "/jobs", body=body, headers=headers)
                known = answer.status_code == httpx.codes.OK  # else it is created, or accepted
                return SubmittedJob(**self._read(JobView, answer).model_dump(), known=known)
            except ApiError as error:
                if error.code not in AWAY or time.monotonic() > until:
                    raise
            time.sleep(RETRY_S)

    def jobs(self) -> Iterator[JobView]:
        """All submitted jobs, newest first."""
        return self._pages(lambda place: self._jobs(page_token=place))

    def _jobs(self, **query: Any) -> tuple[list[JobView], str | None]:
        page = self._ask(Jobs, "GET", "/jobs", query=query | {"limit": PAGE})
        return page.jobs, page.next_page_token

    def job_server(self) -> str:
        """The address of Ray's own job server, as the cluster knows it."""
        return self._ask(Jobs, "GET", "/jobs", query={"limit": 1}).server

    def job(self, submission_id: str) -> JobView:
        return self._ask(JobView, "GET", _path("jobs", submission_id))

    def stop_job(self, submission_id: str) -> Stopped:
        """End a job at once; `stop` ends a run at one step, with a checkpoint."""
        return self._ask(Stopped, "POST", _path("jobs", submission_id, "stop"))

    def delete_job(self, submission_id: str) -> Deleted:
        """Let Ray forget a job that has ended."""
        return self._ask(Deleted, "DELETE", _path("jobs", submission_id))

    def job_logs(self, submission_id: str, skip: int = 0) -> str:
        """What the job has printed, after the first `skip` characters."""
        return self._ask(Logs, "GET", _path("jobs", submission_id, "logs"), query={"skip": skip}).logs

    def follow_job(self, submission_id: str, skip: int = 0, patience_s: float = 60.0) -> Iterator[str]:
        """What the job prints, after the first `skip` characters, until it has ended.

        A stream that breaks off is taken up again where it was. Raises ApiError once nobody has answered for
        `patience_s`, or when the API refuses.
        """
        heard = time.monotonic()
        while True:
            reached = False
            query = {"follow": True, "skip": skip}
            try:
                with (
                    self._told(),
                    self._http.stream(
                        "GET", _path("jobs", submission_id, "logs"), params=query, timeout=SILENCE_S
                    ) as answer,
                ):
                    _check(answer)
                    reached = True
                    for text in answer.iter_text():
                        skip += len(text)
                        yield text
                if self.job(submission_id).status in ENDED:
                    return
            except ApiError as error:
                if error.code not in AWAY or (not reached and time.monotonic() - heard > patience_s):
                    raise
            if reached:
                heard = time.monotonic()
            time.sleep(RETRY_S)

    # ---- values ---------------------------------------------------------------------------------------------------

    def hyperparameters(self, run: str) -> HyperParametersView:
        """Every value with what makes it; `revision` is that of the pins."""
        return self._ask(HyperParametersView, "GET", _path("runs", run, "hyperparameters"))

    def pin(
        self, run: str, param: str, value: Scalar | None = None, reason: str = "", revision: int | None = None
    ) -> Pinned:
        """Hold a value (None: the present one), of `revision` of the pins if given, else whatever is there."""
        body = {"value": value, "reason": reason}
        return self._ask(Pinned, "PUT", _path("runs", run, "pins", param), body=body, match=revision)

    def unpin(self, run: str, param: str, reason: str = "", revision: int | None = None) -> Pinned:
        path = _path("runs", run, "pins", param)
        return self._ask(Pinned, "DELETE", path, query={"reason": reason or None}, match=revision)

    # ---- policies -------------------------------------------------------------------------------------------------

    def policy_kinds(self, run: str | None = None) -> list[PolicyKindView]:
        """Every installed kind with its schema, and those that came with `run`."""
        return self._ask(PolicyKinds, "GET", "/policy-kinds", query={"run": run}).kinds

    def policies(self, run: str) -> list[PolicyView]:
        return self._ask(Policies, "GET", _path("runs", run, "policies")).policies

    def policy(self, run: str, name: str) -> PolicyView:
        return self._ask(PolicyView, "GET", _path("runs", run, "policies", name))

    def put_policy(
        self,
        run: str,
        name: str,
        kind: str,
        params: Mapping[str, Any] | None = None,
        mode: Mode = "active",
        reason: str = "",
        revision: int | None = None,
    ) -> PolicyView:
        """Install a policy, or edit it; what it remembers is kept. With `revision` 0 only where there is none."""
        body = {"kind": kind, "params": params or {}, "mode": mode, "reason": reason}
        return self._ask(PolicyView, "PUT", _path("runs", run, "policies", name), body=body, match=revision)

    def dry_run(
        self, run: str, name: str, kind: str, params: Mapping[str, Any] | None = None, mode: Mode = "active"
    ) -> Replayed:
        """What would have been decided so far, had this policy been there from the run's start; nothing is changed."""
        body, query = {"kind": kind, "params": params or {}, "mode": mode}, {"dry_run": True}
        path = _path("runs", run, "policies", name)
        return self._ask(Replayed, "PUT", path, body=body, query=query, match=None, timeout_s=REPLAY_S)

    def delete_policy(self, run: str, name: str, reason: str = "", revision: int | None = None) -> None:
        """Remove a policy; its factors are folded into the bases."""
        self._send("DELETE", _path("runs", run, "policies", name), query={"reason": reason or None}, match=revision)

    def replay(self, run: str, policies: Sequence[Candidate] | None = None) -> Replayed:
        """What the recorded policies, or these, decide on the recorded run; nothing is changed."""
        path = _path("runs", run, "replay")
        return self._ask(Replayed, "POST", path, body={"policies": policies}, timeout_s=REPLAY_S)

    # ---- metrics --------------------------------------------------------------------------------------------------

    def metric_keys(self, run: str) -> list[str]:
        return self._ask(MetricKeys, "GET", _path("runs", run, "metrics")).keys

    def metrics(
        self,
        run: str,
        key: Sequence[str],
        x: Axis = "step",
        from_: float | None = None,
        to: float | None = None,
        max_points: int = 1000,
        rank: int | None = None,
    ) -> Metrics:
        """The metrics `key` in at most `max_points` buckets, between `from_` and `to` on the axis `x`; with `rank` that
        rank's own, which are kept for the newest steps."""
        query = {"key": list(key), "x": x, "from": from_, "to": to, "max_points": max_points, "rank": rank}
        return self._ask(Metrics, "GET", _path("runs", run, "metrics"), query=query)

    def compare(self, runs: Sequence[str], keys: Sequence[str], grid: Mapping[str, Any] | None = None) -> Compared:
        """The metrics `keys` of several runs on one grid: `x`, `from`, `to` and `points` of it."""
        body = {"runs": runs, "keys": keys, "grid": grid or {}}
        return self._ask(Compared, "POST", "/metrics:query", body=body)

    @contextmanager
    def csv(
        self, run: str, key: Sequence[str] = (), rank: int | None = None, from_: float | None = None
    ) -> Iterator[Iterator[str]]:
        """All points of the metrics `key`, or of every metric, from step `from_` on, as a stream of text; with `rank`
        that rank's own."""
        query, headers = _given({"key": list(key), "rank": rank, "from": from_}), {"Accept": "text/csv"}
        with (
            self._told(),
            self._http.stream("GET", _path("runs", run, "metrics"), params=query, headers=headers) as answer,
        ):
            _check(answer)
            yield answer.iter_text()

    # ---- events ---------------------------------------------------------------------------------------------------

    def events(
        self,
        run: str | Sequence[str] | None = None,
        topic: Sequence[Topic] = (),
        last_event_id: str = "",
        patience_s: float = 60.0,
        everywhere: Sequence[Topic] = (),
    ) -> Iterator[Event]:
        """Events as they happen, of `run` (one or several) or of all, of these topics or of all; those of topics in
        `everywhere` of all runs, whatever `run` says. From after `last_event_id` or now on.

        A stream that breaks off is taken up again where it was. Raises ApiError once nobody has answered for
        `patience_s`, or when the API refuses.
        """
        query = _given({"run": run, "topic": ",".join(topic) or None, "everywhere": ",".join(everywhere) or None})
        place, heard = last_event_id, time.monotonic()
        while True:
            try:
                headers = {"Last-Event-ID": place} if place else {}
                with (
                    self._told(),
                    self._http.stream("GET", "/events", params=query, headers=headers, timeout=EVENTS_S) as answer,
                ):
                    _check(answer)
                    for event in _events(answer.iter_bytes()):
                        place, heard = event.id or place, time.monotonic()
                        if event.topic not in ("", "closed"):
                            yield event
            except ApiError as error:
                if error.code not in AWAY or time.monotonic() - heard > patience_s:
                    raise
            time.sleep(RETRY_S)

    # ---- tokens ---------------------------------------------------------------------------------------------------

    def tokens(self) -> list[TokenView]:
        return self._ask(Tokens, "GET", "/tokens").tokens

    def new_token(
        self, name: str, role: Literal["viewer", "operator", "admin"] = "viewer", expires: datetime | None = None
    ) -> NewToken:
        """Make a token, which is shown this once. `expires` has a time zone."""
        return self._ask(NewToken, "POST", "/tokens", body={"name": name, "role": role, "expires": expires})

    def delete_token(self, token: str) -> None:
        """End the token of that name, with its sessions and event streams, at once."""
        self._send("DELETE", _path("tokens", token))

    # ---- how ------------------------------------------------------------------------------------------------------

    def _ask(self, kind: type[Model], method: str, path: str, **rest: Any) -> Model:
        return self._read(kind, self._send(method, path, **rest))

    @staticmethod
    def _read(kind: type[Model], answer: httpx.Response) -> Model:
        try:
            return _adapter(kind).validate_json(answer.content)
        except ValidationError as error:
            told = (
                f"{answer.url} answered what is no {kind.__name__}; is it Trimtab, and as new as this client? ({error})"
            )
            raise ApiError(answer.status_code, "not-understood", told) from None

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        match: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """`match` is the revision that a change is made on; None: whatever is there now, 0: nothing may be there."""
        headers = dict(headers or {})
        if match == 0:
            headers["If-None-Match"] = "*"
        elif method in ("PUT", "DELETE"):
            headers["If-Match"] = "*" if match is None else f'"{match}"'
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self._told():
            answer = self._http.request(
                method,
                path,
                params=_given(query or {}),
                content=None if body is None else to_json(body, inf_nan_mode="strings"),
                headers=headers,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        _check(answer)
        return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures on the way, in the words of ApiError."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = f"no answer from {self.url} ({error}); is it running? `trimtab up` starts it"
            raise ApiError(0, "unreachable", told) from None

    @staticmethod
    def _pages(page: Callable[[Any], tuple[list[Item], Any]]) -> Iterator[Item]:
        """All items of a list that comes in pages: `page` answers those at a place, and the next place if any."""
        place = None
        while True:
            items, place = page(place)
            yield from items
            if place is None:
                return


def _path(*segments: str) -> str:
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _adapter(kind: type[Model]) -> TypeAdapter[Model]:
    return TypeAdapter(kind)


def _check(answer: httpx.Response) -> None:
    """Raise what the API has answered, if it is a problem."""
    if not answer.is_error:
        return
    answer.read()
    if answer.headers.get("content-type") != "application/problem+json":
        told = f"{answer.url} answered {answer.status_code} {answer.reason_phrase}; is this Trimtab?"
        raise ApiError(answer.status_code, "not-understood", told)
    problem = answer.json()
    wait = answer.headers.get("retry-after")
    raise ApiError(
        answer.status_code,
        problem["code"],
        problem["detail"],
        {one["field"]: one["message"] for one in problem["errors"]},
        problem.get("current"),
        float(wait) if wait else None,
    )


def _events(pieces: Iterator[bytes]) -> Iterator[Event]:
    """The events of a stream; one without a topic only moves the place.

    Split by hand, for a line of JSON may hold what Python takes for an end of line.
    """
    rest = b""
    for piece in pieces:
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            lines = (line.partition(": ") for line in block.decode().split("\n") if not line.startswith(":"))
            fields = {name: value for name, _, value in lines}
            data = json.loads(fields["data"]) if "data" in fields else None
            yield Event(fields.get("id", ""), fields.get("event", ""), data)
