"""Requests made from the API's own description, right and wrong ones: no answer is a fault, each is as described.

TRIMTAB_LONG=1 makes 5,000 and more of them, TRIMTAB_SEED=… those of an earlier run again.
"""

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from plain import GROUP, RUN, Door, door_to, keep_checkpoints, start_group, train
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

LONG = os.environ.get("TRIMTAB_LONG") == "1"
SEED = int(os.environ.get("TRIMTAB_SEED", secrets.randbits(32) if LONG else 1))
CASES = 60 if LONG else 3  # of each operation, kind and way to name what it is about
CHECKS = [
    not_a_server_error,
    negative_data_rejection,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
THERE = {"run": RUN, "param": "lr", "name": "plateau", "token": "ci", "submission_id": "known"}
KINDS = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


class Fuzz:
    """Asks one app, and counts what it answers."""

    def __init__(self, door: Door, portal: BlockingPortal) -> None:
        self._door = door
        self._portal = portal
        self.statuses: Counter[int] = Counter()
        description = httpx.Response(200, json=door.app.openapi()).json()
        self.schema = schemathesis.openapi.from_dict(description)

    def operations(self) -> list[APIOperation[Any, Any, Any, Any]]:
        return [found.ok() for found in self.schema.get_all_operations()]

    def run(self, operation: APIOperation[Any, Any, Any, Any], kind: GenerationMode, cases: int = CASES) -> None:
        """Make `cases` requests about things made up, and as many about things that are there."""
        there = {one.name: THERE[one.name] for one in operation.path_parameters}
        for about in ({}, {"path_parameters": there}) if there else ({},):
            strategy = operation.as_strategy(kind, **about)
            self._each(strategy, cases if there else 2 * cases)

    def _each(self, strategy: st.SearchStrategy[Any], cases: int) -> None:
        @seed(SEED)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def ask(case: Any) -> None:
            answer = self._portal.call(self._answer, case)
            self.statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
            ask()

    async def _answer(self, case: Any) -> httpx.Response:
        asked = case.as_transport_kwargs(base_url="http://127.0.0.1:8270")
        asked.pop("cookies", None)
        if isinstance(asked.get("data"), str | bytes):
            asked["content"] = asked.pop("data")
        headers = {name: value for name, value in (asked.pop("headers", None) or {}).items() if name.lower() != "host"}
        headers["Authorization"] = f"Bearer {self._door.token}"
        transport = httpx.ASGITransport(app=self._door.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(**asked, headers=headers)


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


def fuzz_of(folder: Path, portal: BlockingPortal) -> tuple[Door, Fuzz]:
    """An app over runs that have trained, with a policy, checkpoints and a token beside the admin's."""
    folder.mkdir()
    door = door_to(folder)
    controller = door.gateway.controller
    train(controller, range(1, 101), loss=float("nan"))  # which every answer has to tell in strict JSON
    keep_checkpoints(controller, 50, 100)
    start_group(controller)
    for run in (RUN, GROUP):
        controller.put_policy(run, "plateau", "plateau", {}, "active", "alice", "", None)
    controller.expire()
    door.hub._closed = True  # so that a stream ends as soon as it has begun
    return door, Fuzz(door, portal)


@pytest.mark.timeout(1800 if LONG else 180)
def test_no_request_is_answered_with_a_fault(tmp_path: Path, portal: BlockingPortal) -> None:
    _, fuzz = fuzz_of(tmp_path / "app", portal)
    operations = sorted(fuzz.operations(), key=lambda one: one.path.endswith("/stop"))  # what is stopped takes no more
    assert len(operations) > 25
    for operation in operations:
        for kind in KINDS:
            fuzz.run(operation, kind)
    told, total = dict(sorted(fuzz.statuses.items())), fuzz.statuses.total()
    print(f"seed {SEED}: {total:,} requests of {len(operations)} operations: {told}")
    assert total >= (5_000 if LONG else 200)
    assert sum(count for status, count in told.items() if status < 300) >= total / 10
    assert max(told) < 500


@pytest.mark.parametrize("broken", ["fault", "answer"])
def test_a_broken_route_is_found_out(
    tmp_path: Path, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    door, fuzz = fuzz_of(tmp_path / "broken", portal)
    pin = door.gateway.controller.pin

    def broken_pin(run: str, param: str, value: Any, *rest: Any) -> Any:
        if broken == "fault" and value is None:
            raise ZeroDivisionError
        revision, version = pin(run, param, value, *rest)
        return (revision, version) if broken == "fault" else (revision, f"version {version}")

    monkeypatch.setattr(door.gateway.controller, "pin", broken_pin)
    operation = next(one for one in fuzz.operations() if one.label.startswith("PUT") and "/pins/" in one.label)
    with pytest.raises((FailureGroup, ExceptionGroup, AssertionError)):
        fuzz.run(operation, GenerationMode.POSITIVE, cases=60)
    assert fuzz.statuses[500] == 1
