"""A submit that is retried, or whose API and controller die between, makes one job."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLS = 100


def after(kills: int, *broken: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(kills), *broken]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_each_wish_makes_one_job() -> None:
    told = after(KILLS)
    assert told["kills"] >= KILLS
    assert min(told["answered"], told["given_up_after_the_intent"]) >= 15
    assert (told["missing"], told["doubled"], told["unasked"]) == ([], [], [])


def test_a_service_that_forgets_what_was_left_is_found_out() -> None:
    # Only a client that gave up with Ray not yet asked leaves a trace, which takes a few kills more at times.
    assert any(after(40, "forgets")["missing"] for _ in range(5))


def test_a_service_with_an_id_for_each_attempt_is_found_out() -> None:
    assert after(40, "new ids")["doubled"]
