"""`trimtab probe` as a person calls it, after the run has ended."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from plain import RUN, controller_with_run
from test_run import trimtab

from trimtab.api.cli.connection import CommandError
from trimtab.api.cli.probe import report, train_function
from trimtab.controller.noise import Noise
from trimtab.controller.probe import Ending, Verdict
from trimtab.controller.views import RunView

SCRIPT = """
import torch
from torch import nn
from trimtab.workers import trainable

@trainable(steps=400, batch_size=32, lr=0.1)
def classify(session):
    x = torch.randn(1000, int(session.arguments[0]), generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    net = nn.Linear(x.shape[1], 2)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for inputs, labels in session.batches((x, y)):
        session.step(nn.functional.cross_entropy(model(inputs), labels))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SCRIPT)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_run_is_probed_by_its_name_alone(script: Path, controller: Path, where: list[str]) -> None:
    done = trimtab(controller, "run", f"{script}:classify", *where, "--json", "--", "8")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run"]

    told = trimtab(controller, "probe", "small-", *where, "--factors", "2,4", "--samples", "2000", "--tolerance", "9")
    assert told.returncode == 0, told.stderr
    assert "was changed" not in told.stderr
    lines = told.stdout.splitlines()
    started = sorted(re.sub(r"-\w{4}:", ":", line) for line in lines[:3])
    assert started[0] == f"{run}-probe-x1: ×1, batch 32, lr 0.1"
    assert started[1].startswith(f"{run}-probe-x2: ×2, batch 64, lr 0.1")  # AdaScale's: above it, at most twice
    assert started[2].startswith(f"{run}-probe-x4: ×4, batch 128, lr ")
    assert lines[3].split() == ["factor", "batch", "lr", "loss", "difference", "std", "error", "recovers"]
    assert [line.split()[0] for line in lines[4:7]] == ["×1", "×2", "×4"]
    assert [line.split()[-1] for line in lines[4:7]] == ["yes", "yes", "yes"]
    assert lines[7].startswith("Batch 128 (×4) still recovers, the largest that was tried. The noise scale ")


@pytest.mark.parametrize("factors", ["", "1,x", "1.5"])
def test_factors_are_whole_numbers(tmp_path: Path, factors: str) -> None:
    done = trimtab(tmp_path / "home", "probe", "small", "--factors", factors)
    assert done.returncode == 2
    assert "whole numbers" in done.stderr
    assert not (tmp_path / "home").exists()


def made(tmp_path: Path, script: str) -> RunView:
    """A run of that script."""
    view = controller_with_run(tmp_path / "metrics").run(RUN)
    return view.model_copy(update={"script": script, "created": datetime(2026, 1, 1, tzinfo=UTC)})


def test_the_script_is_the_run_s_own_unless_another_is_given(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, f"{script}:classify")
    other_run = run.model_copy(update={"script": ""})
    named, function = train_function(run, None)
    assert (named, function.hp["lr"]) == (f"{script}:classify", 0.1)
    assert capsys.readouterr().err == ""
    other = tmp_path / "other.py"
    other.write_text(SCRIPT.replace("def classify", "def train").replace("lr=0.1", "lr=0.2"))
    os.utime(other, (4e9, 4e9))
    named, function = train_function(other_run, str(other))
    assert (named, function.hp["lr"]) == (str(other), 0.2)
    assert capsys.readouterr().err == "trimtab: other.py was changed after run bytes-lm-3f9a had begun\n"
    with pytest.raises(CommandError, match="name its script with --script"):
        train_function(other_run, None)
    script.unlink()
    with pytest.raises(CommandError, match=r"there is no script .*small.py"):
        train_function(run, None)


def ending(factor: int, loss: float | None, difference: float | None, recovered: bool) -> Ending:
    return Ending(
        factor=factor,
        batch_size=32 * factor,
        lr=0.1,
        loss=loss,
        difference=difference,
        std_error=None if difference is None else 0.00625,
        recovered=recovered,
        sure=True,
    )


def test_a_verdict_is_a_table_and_a_sentence_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    endings = (ending(1, 1.5, 0.0, True), ending(2, 1.531, 0.03125, False), ending(4, None, None, False))
    verdict = Verdict(tolerance=0.01, endings=endings, noise=Noise(190.0, 150.0, None, 1.0, 190.0, 500, 0))
    report("small-1", verdict, as_json=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:4] == [
        ["×1", "32", "0.1", "1.5", "–", "–", "yes"],
        ["×2", "64", "0.1", "1.531", "+0.0312", "0.0063", "no"],
        ["×4", "128", "0.1", "–", "–", "–", "diverged"],
    ]
    assert " ".join(rows[4]) == (
        "Batch 32 (×1) still recovers; ×2 does not (loss +0.0312 ± 0.0063). "
        "The noise scale said 190 (95 % at least 150, 500 estimates)."
    )
    report("small-1", verdict, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"run", "critical_batch", "tolerance", "endings", "noise", "verdict"}
    assert (answer["run"], answer["critical_batch"], answer["noise"]["high"]) == ("small-1", 32, None)
    assert answer["endings"][1] == {
        "factor": 2,
        "batch_size": 64,
        "lr": 0.1,
        "loss": 1.531,
        "difference": 0.03125,
        "std_error": 0.00625,
        "recovered": False,
        "sure": True,
    }
