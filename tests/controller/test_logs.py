"""Logs as JSON: one object a line, whatever is logged, with the run, rank and version where they are known."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trimtab.controller.controller import Controller
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.logs import JsonFormatter


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What the logger `trimtab.test` and the controller's write, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(lambda: {"run": "mnist-1", "rank": 3, "version": 7}))
    logger = logging.getLogger("trimtab")
    logger.addHandler(handler)
    before, logger.level = logger.level, logging.INFO
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_one_line_with_what_is_known_of_it(out: io.StringIO) -> None:
    log = logging.getLogger("trimtab.test")
    log.warning("a line\nand %s", "another")
    log.info("of a later version", extra={"version": 8, "job": "nightly-41", "other": object()})
    first, second = lines(out)
    time = datetime.fromisoformat(first.pop("time"))
    assert timedelta() <= datetime.now(UTC) - time < timedelta(minutes=1)
    assert first == {
        "level": "warning",
        "logger": "trimtab.test",
        "message": "a line\nand another",
        "run": "mnist-1",
        "rank": 3,
        "version": 7,
    }
    assert (second["version"], second["job"]) == (8, "nightly-41")
    assert "other" not in second


def test_an_exception_stays_in_its_line() -> None:
    try:
        raise OSError("disk full\udc80 – é")  # not even encodable, so pytest must not hear of it
    except OSError:
        record = logging.LogRecord("trimtab.test", logging.ERROR, __file__, 1, "it failed", None, sys.exc_info())
    text = JsonFormatter(dict).format(record)
    line = json.loads(text)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("OSError: disk full\udc80 – é")
    assert text.isascii()
    assert "\n" not in text


def test_the_controller_tells_the_run_and_its_version(out: io.StringIO, tmp_path: Path) -> None:
    batch = HyperParameter(name="batch_size", kind="integer", default=8, min=2, max=64, unit="samples")
    controller = Controller(MemoryJournal(), tmp_path)
    controller.create_run(
        "bytes-2", RunSpec(name="x", world_size=1, parameters=(batch,), micro_batch=8, max_micro_batch=8)
    )
    controller.tell("bytes-2", "a worker is gone")
    last = lines(out)[-1]
    assert (last["run"], last["version"], last["level"]) == ("bytes-2", 1, "warning")
    assert last["message"] == "run bytes-2: workers: a worker is gone"


@pytest.mark.parametrize("own", [True, False])
def test_a_process_of_somebody_else_shows_what_is_logged_unless_it_has_a_way_of_its_own(own: bool) -> None:
    code = f"""
import logging
from trimtab.controller import logs
if {own}:
    logging.basicConfig(format="mine %(message)s")
logs.show()
logs.show()
logging.getLogger("trimtab.workers").info("told")
logging.getLogger("other").info("not ours")
logging.getLogger("trimtab.workers").warning("beware")
"""
    paths = {"PYTHONPATH": str(Path(__file__).parents[2] / "controller")}
    done = subprocess.run([sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True)
    assert "not ours" not in done.stderr
    if own:
        assert done.stderr == "mine beware\n"
    else:
        first, second = done.stderr.splitlines()
        assert first.endswith("INFO trimtab.workers told")
        assert second.endswith("WARNING trimtab.workers beware")


@pytest.mark.parametrize(("wanted", "is_json"), [("json", True), ("text", False), ("", False), ("xml", False)])
def test_a_process_logs_as_the_environment_asks(wanted: str, is_json: bool) -> None:
    code = """
import logging, warnings
from trimtab.controller import logs
logs.configure()
warnings.warn("beware")
logging.getLogger("x").info("told")
"""
    paths = {"PYTHONPATH": str(Path(__file__).parents[2] / "controller")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**paths, "TRIMTAB_LOG": wanted}, capture_output=True, text=True, check=True
    )
    *before, last = done.stderr.splitlines()
    assert done.stdout == ""
    assert "beware" in done.stderr
    if is_json:
        assert [json.loads(line)["logger"] for line in (*before, last)] == ["py.warnings", "x"]
    else:
        assert last.endswith("INFO x told")
    assert ("must be text or json" in done.stderr) == (wanted == "xml")
