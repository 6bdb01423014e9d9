"""Every command there is, found in the command line itself: its help, its JSON, its exit codes."""

import json
from collections.abc import Iterator

import click
import pytest
import typer
from plain import RUN, Door, Trimtab, keep_checkpoints, train

from trimtab.api.cli import app, main
from trimtab.controller.state import RunState

ELSEWHERE = {  # commands that need more than an app over a plain controller, and where their JSON is tested
    "up": "test_server.py",
    "run": "test_run.py",
    "probe": "test_probe.py",
    "backup": "test_backup.py",
    "restore": "test_backup.py",
    "scale": "test_cli.py",
    "sync": "test_cli.py",
    "watch": "test_watch.py",
    "submit": "test_submit.py",
    **dict.fromkeys(("jobs", "job show", "job logs", "job stop", "job rm"), "test_submit.py"),
}
PLAIN = {"job logs"}  # a text that somebody else has written
EXAMPLES = {  # of the others, in an order in which each can be served
    "runs": (),
    "show": (RUN,),
    "metrics": (RUN,),
    "changes": (RUN,),
    "why": (RUN, "lr"),
    "pin": (RUN, "lr", "0.01"),
    "unpin": (RUN, "lr"),
    "policy kinds": (),
    "policy set": (RUN, "cut", "plateau"),
    "policy ls": (RUN,),
    "policy dry-run": (RUN, "cut", "plateau:patience=2"),
    "policy rm": (RUN, "cut"),
    "replay": (RUN,),
    "export": (RUN, "memory://every.csv"),
    "token new": ("eve",),
    "token ls": (),
    "token rm": ("eve",),
    "checkpoint": (RUN,),
    "decay": (RUN,),
    "pause": (RUN,),
    "resume": (RUN,),
    "rollback": (RUN,),
    "stop": (RUN,),
}


def commands(of: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in getattr(of, "commands", {}).items():
        yield from commands(command, (*path, name))
    if not hasattr(of, "commands"):
        yield " ".join(path), of


EVERY = dict(commands(typer.main.get_command(app)))


def test_every_command_is_known_here() -> None:
    assert set(EVERY) - set(EXAMPLES) - set(ELSEWHERE) == set()
    assert set(EXAMPLES) | set(ELSEWHERE) <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_help_and_json(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert name.split()[-1] in out
    assert "[[" not in out  # brackets in brackets
    assert EVERY[name].help
    has = any("--json" in option.opts for option in EVERY[name].params)
    assert has == (name not in PLAIN), f"{name} has {'' if has else 'no '}--json"


def test_every_command_answers_in_json_or_says_why_not(door: Door, trimtab: Trimtab) -> None:
    controller = door.gateway.controller
    train(controller, range(1, 101))
    keep_checkpoints(controller, 100)
    controller.put_policy(RUN, "wsd", "schedule", {"shape": "wsd"}, "shadow", "ann", "", None)
    controller.expire()
    for name, arguments in EXAMPLES.items():
        code, out, err = trimtab(*name.split(), *arguments, "--json")
        assert (code, err) == (0, ""), name
        json.loads(out)
    controller.set_state(RUN, RunState.STOPPED)
    assert trimtab("pause", RUN)[0] == 1
    assert trimtab("pause")[0] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TRIMTAB_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", "trimtab wa")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "trimtab wa")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(["wa"], prog_name="trimtab")
    assert "watch" in capsys.readouterr().out
