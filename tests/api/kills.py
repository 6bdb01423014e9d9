"""Submits whose API and controller are killed between: `python kills.py KILLS [BROKEN]` prints what came of them.

A client wants jobs and asks for each until it is answered; every other client never asks again once it was not. Each
request is served by a process of its own, API and controller together over one journal, which dies at a named point or
at any moment. What stands for Ray takes an id once, as Ray does.
"""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from plain import LocalGateway, PlainJobServer

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.routes import jobs as route
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller
from trimtab.controller.jobs import JobDetails, JobRequest
from trimtab.controller.jobs.outbox import exists
from trimtab.controller.jobs.request import DIGEST
from trimtab.controller.journal import MemoryJournal, SqliteJournal, read_only

POINTS = ("before the intent", "after the intent", "before Ray", "after Ray", "before the note", "after the note", "")
DELIVERED_S = 0.05


class Disk(PlainJobServer):
    """Ray's job server as far as this goes: what it has taken outlives everybody, and each id is taken once."""

    def __init__(self, folder: Path, point: str) -> None:
        super().__init__()
        self._folder = folder
        self._point = point

    async def submit(self, request: JobRequest) -> None:
        die_at("before Ray", self._point)
        draft = self._folder / f".{os.getpid()}.{request.submission_id}"
        draft.write_text(json.dumps([request.entrypoint, request.digest]))
        try:
            os.link(draft, self._folder / request.submission_id)
        except FileExistsError:
            if self._read(request.submission_id)[1] != request.digest:
                raise exists(request.submission_id) from None
        draft.unlink()
        die_at("after Ray", self._point)

    def _read(self, submission_id: str) -> Any:
        return json.loads((self._folder / submission_id).read_text())

    async def job(self, submission_id: str) -> JobDetails | None:
        entrypoint, digest = self._read(submission_id)
        details = {"status": "RUNNING", "entrypoint": entrypoint, "metadata": {DIGEST: digest}}
        return JobDetails(submission_id=submission_id, **details)


class Dying(SqliteJournal):
    """A journal whose process dies before or after it has written."""

    point = ""

    def append(self, term: int, time: float, run: str, events: Any) -> int:
        what = "the intent" if "job-submitted" in events[0] else "the note"
        die_at(f"before {what}", self.point)
        seq = super().append(term, time, run, events)
        die_at(f"after {what}", self.point)
        return seq


def die_at(point: str, chosen: str) -> None:
    if point == chosen:
        os.kill(os.getpid(), signal.SIGKILL)


class Service:
    """Starts a process for each request."""

    def __init__(self, home: Path, broken: str) -> None:
        self.home = home
        self.jobs = home / "ray"
        self.jobs.mkdir()
        self._broken = broken
        self._tokens = Tokens(home / "tokens.json")
        self._token = self._tokens.new("alice", Role.ADMIN)
        self._gateway = LocalGateway(Controller(MemoryJournal(), home, job_server=PlainJobServer()), home)
        self._app = create_app(self._gateway, self._tokens, Hub(self._gateway), home, Hosts("127.0.0.1"))
        self._app.openapi()  # made once here, not in each process anew

    def ask(self, wish: int | None, point: str = "", alarm_s: float = 0.0) -> str | None:
        """The submission id that is answered; None if the process died first. Without a wish it only starts."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                os.close(ours)
                signal.setitimer(signal.ITIMER_REAL, alarm_s)  # nobody handles it: the process is gone
                os.write(theirs, asyncio.run(self._serve(wish, point)).encode())
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as answer:
            told = answer.read().decode()
        os.waitpid(pid, 0)
        return told or None

    async def _serve(self, wish: int | None, point: str) -> str:
        journal = Dying(self.home / "journal.sqlite")
        server = Disk(self.jobs, point)
        controller = Controller(journal, self.home, job_server=server)
        if self._broken == "forgets":
            controller.deliver = lambda: None  # type: ignore[method-assign]
        if self._broken == "new ids":
            route._id = lambda *_: os.urandom(8).hex()
        controller.deliver()
        await asyncio.sleep(DELIVERED_S if wish is None else 0)
        if wish is None:
            return "started"
        journal.point = point
        self._gateway.controller, self._gateway.jobs = controller, server
        transport = httpx.ASGITransport(app=self._app)
        headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": f"wish {wish}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            answer = await client.post("/api/v1/jobs", json={"entrypoint": f"python {wish}.py"})
        return str(answer.json()["submission_id"])


def run(kills: int, broken: str = "") -> dict[str, Any]:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), broken)
        made, wish, answered, left = 0, 0, {}, set()
        while made < kills:
            gives_up = wish % 2 == 1
            while (answer := answered.get(wish)) is None:
                point = POINTS[made % len(POINTS)]
                dies = chance.random() < 0.8
                alarm_s = 0.0 if point or not dies else chance.uniform(0.001, 0.1)
                answer = service.ask(wish, point if dies else "", alarm_s)
                made += answer is None
                if answer is not None:
                    answered[wish] = answer
                elif gives_up:
                    left.add(wish)
                    break
            wish += 1
        service.ask(None)  # the last start: whatever was left is submitted now
        entrypoints = [json.loads(path.read_text())[0] for path in service.jobs.iterdir() if path.name[0] != "."]
        reader = read_only(service.home / "journal.sqlite")
        intents = {json.loads(e.event)["request"]["entrypoint"] for e in reader.read() if "job-submitted" in e.event}
        reader.close()
    jobs = {number: entrypoints.count(f"python {number}.py") for number in range(wish)}
    promised = {number for number in jobs if number in answered or f"python {number}.py" in intents}
    return {
        "seed": seed,
        "kills": made,
        "answered": len(answered),
        "given_up": len(left),
        "given_up_after_the_intent": len(left & promised),
        "missing": [number for number in sorted(promised) if jobs[number] == 0],
        "doubled": [number for number, count in jobs.items() if count > 1],
        "unasked": [number for number, count in jobs.items() if count and number not in promised],
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), *sys.argv[2:])))
