"""The dashboards for Grafana: as they are made, of Grafana's own schema, and asking for nothing that there is not."""

import json
import runpy
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import BOARDS, FOLDER, asked, missing, names, queries, scraped


def test_the_files_are_what_is_made() -> None:
    made = runpy.run_path(str(FOLDER / "make.py"))["dashboards"]()
    assert {board.name: board.read_text() for board in BOARDS} == made


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_a_dashboard_is_of_the_schema(board: Path) -> None:
    text = board.read_text()
    read = Dashboard.from_json(json.loads(text))
    assert json.loads(JSONEncoder().encode(read)) == json.loads(text)
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel.get("targets") or panel["type"] == "row" for panel in panels)
    for panel in panels:  # inside the grid's 24 columns
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_query_asks_for_what_there_is(tmp_path: Path) -> None:
    assert len(BOARDS) == 2
    assert all(len(queries(board)) >= 10 for board in BOARDS)
    noise = {"trimtab_run_noise_scale", "trimtab_run_overhead_ratio"}  # a rank alone, without gradients, tells none
    assert missing(asked(), scraped(tmp_path)) <= noise


def test_a_query_for_what_there_is_not_is_found_out(tmp_path: Path) -> None:
    broken = tmp_path / "run.json"
    broken.write_text(BOARDS[0].read_text().replace("trimtab_run_loss{", "trimtab_run_lost{", 1))
    assert missing(queries(broken), scraped(tmp_path)) >= {"trimtab_run_lost"}
    with pytest.raises(ValueError, match=r".+"):
        list(names("rate(trimtab_versions_total[1m]"))
