"""/metrics, read with the parsers of prometheus_client, held to the conventions of its naming."""

from collections.abc import Iterable
from dataclasses import replace

import anyio
import httpx
import pytest
from plain import RUN, Door, records, train
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from trimtab.api.tokens import Role
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.state import RunState

FOREIGN = {"milliseconds", "ms", "minutes", "hours", "kilobytes", "mb", "percent", "s"}


def scrape(door: Door, token: str | None = "", accept: str = "*/*") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with door.client(token) as client:
            return await client.get("/metrics", headers={"Accept": accept})

    return anyio.run(ask)


def families(text: str) -> dict[str, Metric]:
    return {one.name: one for one in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], sample: str, **labels: str) -> float:
    (one,) = [s for family in found.values() for s in family.samples if s.name == sample and s.labels == labels]
    return one.value


def faults(found: Iterable[Metric]) -> list[str]:
    """What promtool would say of them."""
    told = []
    for one in found:
        words = set(one.name.split("_"))
        told += [
            f"{one.name}: {what}" for what, there in (("HELP", one.documentation), ("TYPE", one.type)) if not there
        ]
        told += [f"{one.name}: no type"] if one.type in ("unknown", "untyped") else []
        told += [f"{one.name}: {unit} is no base unit" for unit in words & FOREIGN]
        told += [f"{one.name}: _total is for counters"] if one.type != "counter" and one.name.endswith("_total") else []
        told += [f"{one.name}: upper case"] if one.name != one.name.lower() else []
        seen = [(s.name, tuple(sorted(s.labels.items()))) for s in one.samples]
        told += [f"{one.name}: {s} twice" for s in set(seen) if seen.count(s) > 1]
    return told


def test_every_figure_has_a_value_help_and_type(door: Door) -> None:
    controller = door.gateway.controller
    train(controller, range(1, 11))
    version = controller.pin(RUN, "lr", 0.01, "me", "", None).version
    controller.ingest(replace(records(range(11, 21)), applied=((version, 12),), produced=20))
    controller.expire(0.003)
    answer = scrape(door)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    found = families(answer.text)
    assert faults(found.values()) == []
    assert value(found, "trimtab_decision_to_applied_seconds_count") == 1
    assert value(found, "trimtab_decision_to_applied_seconds_bucket", le="+Inf") == 1
    assert value(found, "trimtab_controller_lag_seconds_bucket", le="0.005") == 1
    assert value(found, "trimtab_records_produced_total") == 20
    assert value(found, "trimtab_records_stored_total") == 20
    assert value(found, "trimtab_runs", state="running") == 1
    assert value(found, "trimtab_run_step", run=RUN) == 20
    assert value(found, "trimtab_run_learning_rate", run=RUN) == 0.01
    assert value(found, "trimtab_run_proposals_refused_total", run=RUN) == 0
    assert value(found, "trimtab_run_policies_disabled", run=RUN) == 0
    assert value(found, "trimtab_controller_up") == 1
    assert value(found, "trimtab_node_resource_free", node="head/aaaaaaaa", resource="CPU") == 3
    assert value(found, "trimtab_feed_events_total", topic="metrics") == 2
    assert found["trimtab_build_info"].samples[0].labels.keys() == {"trimtab", "ray", "torch", "python"}
    assert "process_cpu_seconds" in found
    assert all(name.startswith(("trimtab_", "process_")) for name in found)


def test_what_breaks_the_conventions_is_found_out() -> None:
    text = (
        "# TYPE trimtab_wait_milliseconds gauge\ntrimtab_wait_milliseconds 1\ntrimtab_wait_milliseconds 2\n"
        "# HELP trimtab_x_total told\n# TYPE trimtab_x_total gauge\ntrimtab_x_total 1\n"
    )
    assert len(faults(families(text).values())) == 4


def test_openmetrics_is_spoken_to_whoever_asks_for_it(door: Door) -> None:
    answer = scrape(door, accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    found = {one.name for one in openmetrics.text_string_to_metric_families(answer.text)}
    assert {"trimtab_decision_to_applied_seconds", "trimtab_run_step"} <= found


def test_a_viewer_may_scrape_and_nobody_else_unless_it_is_opened(door: Door) -> None:
    assert scrape(door, door.tokens.new("prometheus", Role.VIEWER)).status_code == 200
    assert scrape(door, None).status_code == 401
    object.__setattr__(door.app.state.context, "open_metrics", True)
    assert scrape(door, None).status_code == 200


def test_without_a_controller_the_rest_is_told(door: Door) -> None:
    door.gateway.error = ControllerUnreachable("there is no controller")
    found = families(scrape(door).text)
    assert value(found, "trimtab_controller_up") == 0
    assert "trimtab_event_stream_clients" in found
    assert "trimtab_runs" not in found


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.LOST])
def test_runs_that_have_ended_have_no_series(door: Door, state: RunState) -> None:
    door.gateway.controller.set_state(RUN, state)
    found = families(scrape(door).text)
    assert found["trimtab_run_step"].samples == []
    assert value(found, "trimtab_runs", state=state.value) == 1
