"""The outbox: what is wanted is on record before Ray is asked, and asked for until Ray has it."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from trimtab.controller.controller import Controller
from trimtab.controller.errors import Refused
from trimtab.controller.jobs import JobRequest, JobServerUnreachable, NoJobServer, Outgoing, outbox
from trimtab.controller.journal import Fenced, JournalUnavailable, MemoryJournal, MemoryStore

JOB = JobRequest(submission_id="train-1", entrypoint="python train.py", metadata={"team": "a"})


class Ray(NoJobServer):
    """A job server that fails as long as `error` is set, and answers when `open` is."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.owners: list[str] = []
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    def address(self) -> str:
        return "http://ray"

    async def submit(self, request: JobRequest) -> None:
        self.asked.append(request.submission_id)
        self.owners.append(request.runtime_env["env_vars"]["TRIMTAB_OWNER"])
        await self.open.wait()
        if self.error is not None:
            raise self.error


class World:
    """Controllers over one journal, one after the other."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryStore()
        self.ray = Ray()
        self.path = path
        self.journal = MemoryJournal(self.store)
        self.controller = self.another()

    def another(self) -> Controller:
        self.controller = Controller(self.journal, self.path, lambda: 5.0, self.ray)
        return self.controller

    def events(self) -> list[str]:
        return [entry.event.partition('"event":"')[2].rstrip('"}') for entry in self.store.entries]


def in_a_world(body: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def wrapped(tmp_path: Path) -> None:
        async def run() -> None:
            await body(World(tmp_path))

        anyio.run(run)

    wrapped.__name__ = body.__name__
    return wrapped


@in_a_world
async def test_the_intent_is_on_record_before_ray_is_asked(world: World) -> None:
    world.ray.open.clear()
    submitting = asyncio.create_task(world.controller.submit_job(JOB, "alice"))
    while not world.ray.asked:
        await asyncio.sleep(0)
    assert world.events() == ["job-submitted"]
    world.ray.open.set()
    assert await submitting == (Outgoing(JOB, "alice", 5.0, "taken"), True)
    assert world.events() == ["job-submitted", "job-taken"]
    assert world.ray.owners == ["alice"]


@in_a_world
async def test_two_at_once_are_one_call_to_ray(world: World) -> None:
    world.ray.open.clear()
    both = asyncio.gather(*(world.controller.submit_job(JOB, "alice") for _ in range(2)))
    await asyncio.sleep(0.01)
    world.ray.open.set()
    assert [new for _, new in await both] == [True, False]
    assert world.ray.asked == ["train-1"]


@in_a_world
async def test_a_new_controller_submits_what_was_left(world: World) -> None:
    world.ray.error = JobServerUnreachable("away")
    job, _ = await world.controller.submit_job(JOB, "alice")
    assert (job.state, job.reason) == ("waiting", "away")
    world.ray.error = None
    after = world.another()
    assert [one.request for one in after.asked_jobs().absent] == [JOB]
    after.deliver()
    await asyncio.sleep(0.01)
    found = after.asked_job("train-1")
    assert found is not None
    assert (found.state, found.by, found.request.metadata) == ("taken", "alice", {"team": "a"})
    assert after.asked_jobs().absent == []
    after.deliver()
    await asyncio.sleep(0.01)
    assert len(world.ray.asked) == 2


@in_a_world
async def test_a_controller_that_was_replaced_asks_for_no_job(world: World) -> None:
    world.ray.error = JobServerUnreachable("away")
    replaced = world.controller
    await replaced.submit_job(JOB, "alice")
    assert await world.another().withdraw_job("train-1", "alice")
    world.ray.error = None
    with pytest.raises(Fenced):
        replaced.deliver()
    await asyncio.sleep(0.01)
    assert len(world.ray.asked) == 1


@in_a_world
async def test_what_waits_is_not_asked_for_in_every_round(world: World) -> None:
    world.ray.error = JobServerUnreachable("away")
    await world.controller.submit_job(JOB, "alice")
    for _ in range(5):
        world.controller.deliver()
        await asyncio.sleep(0)
    assert len(world.ray.asked) == 2


@in_a_world
async def test_ray_that_does_not_answer_holds_up_nobody_for_long(world: World) -> None:
    outbox.PATIENCE_S, patience = 0.02, outbox.PATIENCE_S
    try:
        world.ray.open.clear()
        job, new = await world.controller.submit_job(JOB, "alice")
    finally:
        outbox.PATIENCE_S = patience
    assert (job.state, new) == ("waiting", True)
    withdrawing = asyncio.create_task(world.controller.withdraw_job("train-1", "bob"))
    await asyncio.sleep(0.01)
    assert not withdrawing.done()  # Ray may have it at any moment
    world.ray.open.set()
    assert await withdrawing is False
    assert await world.controller.submit_job(JOB, "alice") == (Outgoing(JOB, "alice", 5.0, "taken"), False)


@in_a_world
async def test_what_is_taken_back_or_refused_may_be_asked_for_again(world: World) -> None:
    world.ray.error = Refused("job-exists", "somebody else has the id")
    with pytest.raises(Refused, match="somebody else") as refused:
        await world.controller.submit_job(JOB, "alice")
    assert refused.value.code == "job-exists"
    world.ray.error = JobServerUnreachable("away")
    assert (await world.another().submit_job(JOB, "alice"))[1]
    assert await world.controller.withdraw_job("train-1", "bob")
    assert not await world.controller.withdraw_job("train-1", "bob")
    assert not await world.controller.withdraw_job("nobody", "bob")
    found = world.another().asked_job("train-1")
    assert found is not None
    assert (found.state, found.reason) == ("dropped", "bob took it back before Ray had it")
    world.ray.error = None
    assert (await world.controller.submit_job(JOB, "carol"))[0].by == "carol"
    assert not world.controller.forget_job("train-1", "bob")  # Ray has it now


@in_a_world
async def test_what_never_came_to_ray_is_listed_until_it_is_deleted(world: World) -> None:
    world.ray.error = JobServerUnreachable("away")
    await world.controller.submit_job(JOB, "alice")
    assert not world.controller.forget_job("train-1", "bob")  # it still waits
    await world.controller.withdraw_job("train-1", "bob")
    assert [one.state for one in world.another().asked_jobs().absent] == ["dropped"]
    assert world.controller.forget_job("train-1", "bob")
    assert not world.controller.forget_job("train-1", "bob")
    assert not world.controller.forget_job("nobody", "bob")
    assert world.another().asked_jobs().absent == []
    world.ray.error = None
    assert (await world.controller.submit_job(JOB, "carol"))[1]  # the id is free


@in_a_world
async def test_a_record_that_cannot_be_made_asks_ray_for_nothing(world: World) -> None:
    append = world.journal.append

    def full(*_: Any) -> int:
        raise JournalUnavailable("disk full")

    world.journal.append = full  # type: ignore[method-assign]
    with pytest.raises(JournalUnavailable):
        await world.controller.submit_job(JOB, "alice")
    assert world.ray.asked == []
    assert world.controller.asked_job("train-1") is None
    world.journal.append = append  # type: ignore[method-assign]
    assert (await world.controller.submit_job(JOB, "alice"))[0].state == "taken"


@in_a_world
async def test_a_cluster_without_a_job_server_is_told_at_once(world: World) -> None:
    controller = Controller(world.journal, world.path)
    with pytest.raises(Refused, match="start it with its dashboard") as refused:
        await controller.submit_job(JOB, "alice")
    assert refused.value.code == "no-job-server"
    assert world.events() == []


def test_requests_are_the_same_where_their_content_is() -> None:
    again = JobRequest(entrypoint="python train.py", submission_id="train-1", metadata={"team": "a"})
    assert again.digest == JOB.digest
    others = [
        JobRequest(submission_id="train-1", entrypoint="python train.py"),
        JobRequest(
            submission_id="train-1", entrypoint="python train.py", metadata={"team": "a"}, entrypoint_num_cpus=1
        ),
        JobRequest(submission_id="train-2", entrypoint="python train.py", metadata={"team": "a"}),
    ]
    assert len({one.digest for one in (JOB, *others)}) == 4
