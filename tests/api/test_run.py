"""`trimtab run` as a person calls it: a process of its own, with a Ray of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.api.cli import follow

SCRIPT = """
import time
import torch
from torch import nn
from neighbour import classes
from trimtab.workers import trainable

@trainable(steps=200, batch_size=32, lr=0.1)
def train(session):
    print(f"rank {session.rank} prints")
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    net = nn.Linear(8, classes)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for inputs, labels in session.batches((x, y)):
        session.step(nn.functional.cross_entropy(model(inputs), labels))
        time.sleep(0.01)
        if session.every(steps=50):
            session.log(val_loss=1.0, argument=float(session.arguments[0]))

def other():
    pass
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("classes = 2\n")
    path = tmp_path / "small.py"
    path.write_text(SCRIPT)
    return path


def trimtab(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from trimtab.api.cli import main; main()", *arguments]
    environment = os.environ | {"TRIMTAB_HOME": str(home), "NO_COLOR": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)


def test_a_script_is_trained_followed_and_summed_up(script: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = [
        "--workers",
        "2",
        "--policy",
        "warmup:steps=50",
        "--policy",
        "plateau:patience=1",
        "--shadow",
        "schedule:shape=cosine",
        "--hp",
        "lr=0.2:0.001:1",
    ]
    where = ["--address", "local", "--port", "0", "--summary", str(out)]
    done = trimtab(tmp_path / "home", "run", str(script), *options, *where, "--", "7")
    assert done.returncode == 0, done.stderr
    assert "lr 0.2 → 0.002 by warmup" in done.stdout
    assert "by plateau: val_loss 1 has not improved" in done.stdout
    assert "finished" in done.stdout
    for rank in (0, 1):
        assert re.search(rf"\(rank {rank} pid=.*rank {rank} prints", done.stdout)
    assert "Warning" not in done.stdout + done.stderr
    summary = json.loads(out.read_text())
    assert (summary["steps"], summary["samples"], summary["state"]) == (200, 6400, "finished")
    assert summary["metrics"]["argument"] == 7
    assert summary["dropped_points"] == 0
    assert summary["controller_overhead"]["ticks"] > 0
    applied = [version["applied"] for version in summary["versions"] if version["status"] == "applied"]
    assert applied
    assert all(len(set(ranks.values())) == 1 and len(ranks) == 2 for ranks in applied)
    change = summary["versions"][0]["changes"][0]
    assert change.keys() == {"param", "from", "to", "by", "reason"}
    assert "policy schedule shadow: schedule(" in done.stdout
    assert all(change["by"] != "schedule" for version in summary["versions"] for change in version["changes"])


def test_a_run_that_goes_on_is_summed_up_with_where_it_went_on_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {"run": "r", "state": "finished", "steps": 100, "samples": 3200, "dropped_points": 0}
    summary |= {"versions": [], "metrics": {}, "first_metrics": {}}
    kept: list[Any] = []
    monkeypatch.setattr(follow, "call", lambda *_: SimpleNamespace(checkpoints=kept))
    for told in ("100 steps, 3,200 samples in 0 s", "100 steps, 3,200 samples, those from step 40 on in 0 s"):
        follower = follow.Follower("http://localhost", quiet=True)
        follower.start("r")
        follower.conclude(summary, stays=bool(kept))
        out = capsys.readouterr().out
        assert told in out
        assert f"look at it again: {'' if kept else 'trimtab up, then '}trimtab changes r" in out
        kept.append(SimpleNamespace(step=40))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{script}:nothing"], 1, "small.py has no function 'nothing'; there are train, other"),
        (["{script}x"], 1, "there is no script"),
        (["{folder}/broken.py"], 1, "broken.py cannot be imported: ZeroDivisionError"),
        (["{script}", "--hp", "lr"], 2, "name=value"),
        (["{script}", "--policy", "a:b"], 2, "name=value"),
        (["{script}", "--shadow", "no.py:Mine"], 2, "--shadow"),
        (["{script}", "--lr-rule", "cubic"], 2, "none, linear, sqrt, adascale"),
        (["{script}", "--workers", "0"], 2, "equal to 1"),
        (["{script}", "--workers", "1", "--min-workers", "2"], 2, "fewer than --min-workers 2"),
        (["{script}", "--workers", "3", "--max-workers", "2"], 2, "more than --max-workers 2"),
        (["{script}", "--learners", "2", "--max-learners", "1"], 2, "more than --max-learners 1"),
        (["{script}", "--spares", "-1"], 2, "--spares"),
        (["{script}", "--resume", "r", "--samples", "9", "--lr-rule", "none"], 2, "leave out --samples, --lr-rule"),
        (["{script}", "--sync", "gossip"], 2, "'sma'"),
        (["{script}", "--on-resize", "grow"], 2, "'scale'"),
        (["{script}", "--summary", "{folder}/no/where.json"], 1, "no folder"),
    ],
)
def test_bad_input_starts_nothing(script: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    filled = [a.format(script=script, folder=tmp_path) for a in arguments]
    done = trimtab(tmp_path / "home", "run", *filled)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
