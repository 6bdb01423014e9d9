"""The command `submit`: a script as a job of a Ray cluster, once however often it is repeated, followed to its end."""

import json
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from trimtab.api.cli import given
from trimtab.api.cli.connection import CommandError, connection
from trimtab.api.cli.output import Json, print_json, print_line
from trimtab.api.errors import ApiError

if TYPE_CHECKING:
    from trimtab.controller.jobs import JobDetails
    from trimtab.controller.jobs.ray_server import RayJobServer

PATIENCE_S = 60.0
RETRY_S = 0.5
TELL_S = 5.0  # that a job may wait without a word
WORDS = 120  # letters of why it has ended


def submit(
    context: typer.Context,
    entrypoint: Annotated[list[str], typer.Argument(metavar="ENTRYPOINT", help="The command to run, after `--`.")],
    address: Annotated[
        str | None,
        typer.Option(help="Submit straight to this Ray cluster's job server, not through Trimtab's API."),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="The same again is the same job. Default: a new one.", show_default=False)
    ] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="A YAML file.", exists=True, dir_okay=False)] = None,
    runtime_env_json: Annotated[str | None, typer.Option(help="The same as JSON.")] = None,
    working_dir: Annotated[
        str | None, typer.Option(help="A folder here, which is uploaded, or the URI of a zip file.")
    ] = None,
    metadata_json: Annotated[str | None, typer.Option(help="Kept with the job.")] = None,
    entrypoint_num_cpus: Annotated[float | None, typer.Option(min=0, help="For the command itself.")] = None,
    entrypoint_num_gpus: Annotated[float | None, typer.Option(min=0, help="For the command itself.")] = None,
    entrypoint_memory: Annotated[int | None, typer.Option(min=0, help="For the command itself [bytes].")] = None,
    entrypoint_resources: Annotated[str | None, typer.Option(help="For the command itself, as JSON.")] = None,
    entrypoint_label_selector: Annotated[str | None, typer.Option(help="Where the command may run, as JSON.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
    verify: Annotated[str, typer.Option(help="With --address: check certificates (true, false, or a file).")] = "true",
    headers: Annotated[
        str | None, typer.Option(envvar="RAY_JOB_HEADERS", help="With --address: HTTP headers, as JSON.")
    ] = None,
    hp: given.HyperParameters = None,
    policy: given.Policies = None,
    shadow: given.Shadows = None,
    as_json: Json = False,
) -> None:
    """Submit a script to a Ray cluster and follow it; exit code 0 where it succeeds, else 1.

    --hp and --policy reach the script's `launch` or `attach` and stand in place of what it says itself.
    """
    environment = _environment(runtime_env, runtime_env_json, working_dir)
    if hp or policy or shadow:
        environment["env_vars"] = {**(environment.get("env_vars") or {}), **_overrides(hp, policy, shadow)}
    request: dict[str, Any] = {
        "entrypoint": shlex.join(entrypoint),
        "submission_id": submission_id or _new_id(entrypoint),
        "metadata": _object("--metadata-json", metadata_json),
        "entrypoint_num_cpus": entrypoint_num_cpus,
        "entrypoint_num_gpus": entrypoint_num_gpus,
        "entrypoint_memory": entrypoint_memory,
        "entrypoint_resources": _object("--entrypoint-resources", entrypoint_resources),
        "entrypoint_label_selector": _object("--entrypoint-label-selector", entrypoint_label_selector),
    }
    _show_token()
    way = _way(context, address, _object("--headers", headers) if headers else None, verify)
    request["runtime_env"] = way.uploaded(environment) if _is_local(environment) else environment
    job, known = way.submit(request)
    name = job.submission_id
    there = f"{name} was submitted before" if known else f"{name} is submitted"
    if no_wait:
        print_json(job) if as_json else print_line(f"{there}; follow it with `trimtab job logs -f {name}`")
        return
    if not as_json:
        followed = ", and is followed" if known else ""
        print_line(f"{there}{followed}; Ctrl-C leaves it alone, `trimtab job stop {name}` ends it")
    _await_start(way, name)
    for text in way.follow(name):
        if not as_json:
            typer.echo(text, nl=False)
    job = way.job(name)
    print_json(job) if as_json else print_line(f"{name}: {job.status}{_why(job)}")
    if job.status != "SUCCEEDED":
        raise typer.Exit(1)


def _why(job: "JobDetails") -> str:
    """What has become of it in a few words: of one that fails Ray's message repeats the log, which has been printed."""
    last = (job.message or "").strip().rpartition("\n")[2]
    short = last if len(last) <= WORDS else f"{last[: WORDS - 1]}…"
    code = f"exit code {job.driver_exit_code}" if job.driver_exit_code else ""
    told = ": ".join(filter(None, (code, short)))
    return f" ({told})" if told else ""


class _Way(Protocol):
    """How a job comes to Ray."""

    def uploaded(self, environment: dict[str, Any]) -> dict[str, Any]:
        """The environment, with what is local in it brought to the cluster."""

    def submit(self, request: Mapping[str, Any]) -> "tuple[JobDetails, bool]":
        """The job, and whether it had been submitted before."""

    def follow(self, submission_id: str) -> Iterator[str]: ...

    def job(self, submission_id: str) -> "JobDetails": ...


def _way(context: typer.Context, address: str | None, headers: dict[str, Any] | None, verify: str) -> _Way:
    if address is None:
        return _ThroughApi(context)
    return _Straight(address, headers, {"true": True, "false": False}.get(verify.lower(), verify))


class _ThroughApi:
    """Journaled, and on record who submitted it."""

    def __init__(self, context: typer.Context) -> None:
        self._api = connection(context)

    def uploaded(self, environment: dict[str, Any]) -> dict[str, Any]:
        from trimtab.controller.jobs.ray_server import RayJobServer

        return _upload(RayJobServer(self._api.job_server()), environment)

    def submit(self, request: Mapping[str, Any]) -> "tuple[JobDetails, bool]":
        job = self._api.submit_job(**request)
        return job, job.known

    def follow(self, submission_id: str) -> Iterator[str]:
        return self._api.follow_job(submission_id)

    def job(self, submission_id: str) -> "JobDetails":
        return self._api.job(submission_id)


class _Straight:
    """To a job server that is named, as `ray job submit` does; nobody's journal knows of it."""

    def __init__(self, address: str, headers: dict[str, Any] | None, verify: bool | str) -> None:
        from trimtab.controller.jobs.ray_server import RayJobServer

        self._server = RayJobServer(address, headers, verify)

    def uploaded(self, environment: dict[str, Any]) -> dict[str, Any]:
        return _upload(self._server, environment)

    def submit(self, request: Mapping[str, Any]) -> "tuple[JobDetails, bool]":
        from trimtab.controller.jobs import JobRequest, JobServerUnreachable

        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                known = self._ask(self._server.job(request["submission_id"])) is not None
                self._ask(self._server.submit(JobRequest(**request)))
            except JobServerUnreachable as error:
                if time.monotonic() > until:
                    raise CommandError(str(error)) from None
            else:
                return self.job(request["submission_id"]), known
            time.sleep(RETRY_S)

    def follow(self, submission_id: str) -> Iterator[str]:
        import asyncio

        from trimtab.controller.jobs.server import ENDED

        with asyncio.Runner() as runner:
            printed = self._server.tail(submission_id)
            while (text := runner.run(_next(printed))) is not None:
                yield text
        while self.job(submission_id).status not in ENDED:
            time.sleep(RETRY_S)

    def job(self, submission_id: str) -> "JobDetails":
        found: JobDetails | None = self._ask(self._server.job(submission_id))
        if found is None:
            raise CommandError(f"Ray knows no job {submission_id} any more")
        return found

    @staticmethod
    def _ask(question: Any) -> Any:
        import asyncio

        from trimtab.controller.errors import Refused

        try:
            return asyncio.run(question)
        except Refused as refused:
            raise CommandError(str(refused)) from None


async def _next(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)


def _upload(server: "RayJobServer", environment: dict[str, Any]) -> dict[str, Any]:
    from trimtab.controller.jobs import JobServerUnreachable

    try:
        return server.upload(environment)
    except JobServerUnreachable as error:
        raise CommandError(f"nothing can be uploaded: {error}; give the server's --address") from None
    except (ValueError, TypeError) as error:
        raise CommandError(f"the runtime environment is not taken: {error}") from None


def _await_start(way: _Way, submission_id: str) -> None:
    """Return when the job no longer waits; tell what for, where that takes long."""
    told, since = None, time.monotonic()
    with suppress(ApiError):  # who follows the job is patient with an API that is away
        while (job := way.job(submission_id)).status == "PENDING":
            if job.message != told and time.monotonic() - since > TELL_S:
                told = job.message
                typer.echo(f"{submission_id} waits: {told}", err=True)
            time.sleep(RETRY_S)


def _environment(file: Path | None, text: str | None, working_dir: str | None) -> dict[str, Any]:
    if file is not None and text is not None:
        raise typer.BadParameter("give it once, as a file or as JSON", param_hint="--runtime-env")
    environment = _object("--runtime-env-json", text)
    if file is not None:
        import yaml  # type: ignore[import-untyped]  # Ray has it

        environment = yaml.safe_load(file.read_text()) or {}
        if not isinstance(environment, dict):
            raise typer.BadParameter(f"{file} holds no mapping", param_hint="--runtime-env")
    if working_dir is not None:
        environment["working_dir"] = working_dir
    return environment


def _is_local(environment: Mapping[str, Any]) -> bool:
    """Is something in it that only this machine can read?"""
    places = [environment.get("working_dir") or "", *(environment.get("py_modules") or ())]
    files = [environment.get(field) for field in ("pip", "uv", "conda")]
    return any(place and "://" not in str(place) for place in places) or any(isinstance(one, str) for one in files)


def _overrides(hp: list[str] | None, policy: list[str] | None, shadow: list[str] | None) -> dict[str, str]:
    from trimtab.controller.overrides import VARIABLE, Overrides

    told = Overrides(given.hyper_parameters(hp or []), tuple(given.policies(policy or [], shadow or [])))
    try:
        return {VARIABLE: told.encode()}
    except ValueError as error:
        raise CommandError(str(error)) from None


def _object(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint=option) from None
    if not isinstance(found, dict):
        raise typer.BadParameter("must be a JSON object", param_hint=option)
    return found


def _new_id(entrypoint: list[str]) -> str:
    """An id that begins with the script's name."""
    script = next((Path(word).stem for word in entrypoint if word.endswith(".py")), "job")
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in script).strip("-")
    return f"{name[:40] or 'job'}-{secrets.token_hex(5)}"


def _show_token() -> None:
    """Let Ray's client show the cluster's token where there is one and nothing else is said, as `ray.init` does."""
    at_hand = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if at_hand or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
