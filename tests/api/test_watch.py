"""The command `watch` against a served app."""

import json
from collections.abc import Iterator

import pytest
from plain import GROUP, RUN, Door, Trimtab, regroup, start_group, train

from trimtab.api.cli import follow, watch
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.state import RunState


@pytest.fixture
def life(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens to the run, one thing after each look: `step`, `pin`, `away`, `back`, or a state that it ends in."""
    todo: list[str] = []
    controller = door.gateway.controller
    steps = iter(range(1, 1000, 10))

    def happens(_: float) -> None:
        match todo.pop(0):
            case "step":
                start = next(steps)
                train(controller, range(start, start + 10))
            case "pin":
                controller.pin(RUN, "lr", 0.01, "ann", "it [diverged]", None)
            case "away":
                door.gateway.error = ControllerUnreachable("it is away")
            case "back":
                door.gateway.error = None
            case state:
                controller.set_state(RUN, RunState(state), "the end")

    monkeypatch.setattr(watch.time, "sleep", happens)
    monkeypatch.setattr("trimtab.api.ray_gateway.PATIENCE_S", 0.1)
    yield todo
    assert todo == []


def test_decisions_are_told_as_they_fall(door: Door, trimtab: Trimtab, life: list[str]) -> None:
    for i in range(12):
        door.gateway.controller.pin(RUN, "lr", 0.02 + i / 100, "bob", "before", None)
    life += ["step", "pin", "away", "back", "finished"]
    code, out, err = trimtab("watch", "bytes")
    assert (code, err) == (0, "")
    assert out.count("  v") == out.count("by bob: before") == follow.EARLIER
    assert out.startswith(f"so far (all of it: trimtab changes {RUN}):\n  v4 step 0 lr 0.03 → 0.04 by bob: before\n")
    assert "  v13 step 0 lr 0.12 → 0.13 by bob: before\nfrom now on:\nv14 step 10 lr 0.13 → 0.01" in out
    assert out.count("lr 0.13 → 0.01 by ann: it [diverged]") == 1
    assert out.splitlines()[-1] == f"{RUN} finished (the end): 10 steps, 320 samples; loss 1; version 14"


def test_recoveries_are_told_in_their_place_among_decisions(door: Door, trimtab: Trimtab) -> None:
    controller = door.gateway.controller
    start_group(controller)
    controller.pin(GROUP, "lr", 0.05, "bob", "", None)
    regroup(controller, 2, "loss", 1, at=1200, lost=1)
    controller.pin(GROUP, "lr", 0.02, "bob", "", None)
    controller.set_state(GROUP, RunState.FINISHED, "the end")
    told = [line.split()[0] for line in trimtab("watch", GROUP)[1].splitlines()]
    assert told == ["so", "v2", "recovery", "v4", GROUP]


def test_lines_for_programs(trimtab: Trimtab, life: list[str]) -> None:
    life += ["step", "pin", "failed"]
    code, out, _ = trimtab("watch", RUN, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [next(iter(line)) for line in lines] == ["progress", "progress", "change", "progress", "progress", "end"]
    assert lines[1]["progress"]["progress"] == {"steps": 10, "samples": 320}
    assert lines[2]["change"]["changes"][0] | {"reason": ""} == {
        "param": "lr",
        "from": 0.1,
        "to": 0.01,
        "by": "ann",
        "reason": "",
    }
    assert lines[3]["progress"]["values"]["lr"] == 0.01
    assert (lines[-1]["end"]["state"], lines[-1]["end"]["state_reason"]) == ("failed", "the end")


def test_who_is_away_for_too_long_is_told(trimtab: Trimtab, life: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    life += ["away"]
    code, _, err = trimtab("watch", RUN)
    assert (code, err) == (1, "trimtab: it is away\n")
