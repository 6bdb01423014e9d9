"""The metrics that Grafana's dashboards ask for, and those that /metrics tells."""

import json
from collections.abc import Iterator
from pathlib import Path

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"


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


def missing(folder: Path, scraped: str) -> set[str]:
    """What dashboards ask for and the text of /metrics has not."""
    told = {one.name for family in text_string_to_metric_families(scraped) for one in family.samples}
    asked = {name for board in folder.glob("*.json") for promql in queries(board) for name in names(promql)}
    return asked - told
