"""The metrics that Grafana's dashboards and Prometheus's rules ask for, and those that /metrics tells."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
import promql_parser
from plain import door_to, train
from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"
BOARDS = sorted(FOLDER.glob("*.json"))


def queries(board: Path) -> list[str]:
    """The PromQL of a dashboard's panels, with Grafana's own variables filled in."""
    panels = json.loads(board.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [one.replace("$__rate_interval", "1m").replace("$run", "a-run") for one in asked]


def names(promql: str) -> Iterator[str]:
    """The names of the series in a query; ValueError if it is none."""
    found: list[str] = []

    def note(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(promql), note)
    return iter(found)


def asked() -> list[str]:
    """All queries of all dashboards."""
    return [promql for board in BOARDS for promql in queries(board)]


def missing(wanted: Iterable[str], scraped: str) -> set[str]:
    """What queries ask for and the text of /metrics has not."""
    told = {one.name for family in text_string_to_metric_families(scraped) for one in family.samples}
    return {name for promql in wanted for name in names(promql)} - told


def scraped(home: Path) -> str:
    """/metrics over a controller with a run that has just begun."""
    door = door_to(home)
    train(door.gateway.controller, range(1, 11))

    async def ask() -> str:
        async with door.client() as client:
            return (await client.get("/metrics")).text

    return anyio.run(ask)
