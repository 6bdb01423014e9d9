"""The command line against a served app."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import fsspec
import pytest
from plain import GROUP, RUN, SPEC, Door, Trimtab, answer, keep_checkpoints, regroup, start_group, train

from trimtab.api.cli.connection import CommandError
from trimtab.api.cli.follow import Screen
from trimtab.api.cli.output import print_line
from trimtab.api.cli.runs import last_word
from trimtab.api.client import Client
from trimtab.controller.journal import SqliteJournal
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress
from trimtab.controller.views import PolicyView


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from trimtab.api.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'ray', 'torch', 'numpy', 'fastapi', 'httpx', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)


def test_the_package_alone_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); import trimtab.api; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    ours = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours == {"trimtab", "trimtab.api"}


def test_runs(door: Door, trimtab: Trimtab) -> None:
    door.gateway.controller.create_run("another", SPEC)
    code, out, _ = trimtab("runs")
    assert code == 0
    assert out.index("another") < out.index(RUN)
    assert [run["id"] for run in answer(trimtab, "runs", "--limit", "1")] == ["another"]


def test_show(door: Door, trimtab: Trimtab) -> None:
    train(door.gateway.controller, range(1, 11))
    code, out, _ = trimtab("show", "bytes")
    assert code == 0
    assert f"{RUN}: running, 1 worker," in out
    assert "batch 32 = 1 worker × 4 micro-batches of 8" in out
    assert "lr 0.1 = 0.1" in out
    assert answer(trimtab, "show", RUN)["hyperparameters"][1]["name"] == "lr"


def test_why(trimtab: Trimtab) -> None:
    trimtab("policy", "set", RUN, "noise", "noise_scale")
    trimtab("pin", RUN, "lr", "0.01", "--reason", "it [diverged]")
    trimtab("unpin", RUN, "lr", "--reason", "calm again")
    code, out, _ = trimtab("why", RUN, "lr")
    assert code == 0
    assert out.startswith("lr 0.1 = 0.1")
    assert "owned by no policy" in out
    assert "it [diverged]" in out
    assert "calm again" in out
    assert "owned by policy noise" in trimtab("why", RUN, "batch_size")[1]
    assert [one["changes"][0]["to"] for one in answer(trimtab, "why", RUN, "lr")["changes"]] == [0.01, 0.1]
    code, _, err = trimtab("why", RUN, "momentum")
    assert (code, err) == (1, "trimtab: no hyper-parameter 'momentum'; there are batch_size, lr, precision\n")


def test_changes(trimtab: Trimtab) -> None:
    for _ in range(3):
        trimtab("checkpoint", RUN)
    assert trimtab("changes", RUN)[1].count("checkpoint") == 3
    assert [one["id"] for one in answer(trimtab, "changes", RUN, "--last", "2")] == [2, 3]


def test_a_change_of_a_policy_is_in_force_at_once(trimtab: Trimtab) -> None:
    trimtab("policy", "set", RUN, "plateau", "plateau:metric=loss")
    assert "applied at step 0" in trimtab("changes", RUN)[1]


def test_a_change_behind_a_pin_leaves_the_value_unchanged(door: Door, trimtab: Trimtab) -> None:
    door.gateway.controller.register(RUN, 1, (), "linear", None)
    for param, value in (("lr", "0.03"), ("batch_size", "64"), ("lr", "0.030000001")):
        trimtab("pin", RUN, param, value)
    moves = [["0.1", "0.03"], ["0.03", "unchanged"], ["0.03", "0.030000001"]]
    rows = [line.split() for line in trimtab("changes", RUN)[1].splitlines()]
    assert [row[3:5] for row in rows if row[2] == "lr"] == moves
    rows = [line.split() for line in trimtab("why", RUN, "lr")[1].partition("reason")[2].splitlines()]
    assert [row[1:3] for row in rows if row[0].isdecimal()] == moves
    door.gateway.controller.set_state(RUN, RunState.FINISHED, "")
    assert "v4 step 0 lr 0.03 (unchanged) by batch: " in trimtab("watch", RUN)[1]


def test_changes_over_all_runs(door: Door, trimtab: Trimtab) -> None:
    door.gateway.controller.create_run("another", replace(SPEC, owner="eve"))
    for run in (RUN, "another"):
        trimtab("pin", run, "lr", "0.01")
    rows = [line.split()[:4] for line in trimtab("changes")[1].splitlines()]
    assert rows == [["run", "decided", "at", "version"], [RUN, "0", "2", "lr"], ["another", "0", "2", "lr"]]
    assert [one["run"] for one in answer(trimtab, "changes", "--by", "alice", "--last", "1")] == ["another"]
    assert answer(trimtab, "changes", "--by", "bob") == []
    assert [run["id"] for run in answer(trimtab, "runs", "--owner", "eve")] == ["another"]
    assert [run["id"] for run in answer(trimtab, "runs", "--state", "starting", "--sort", "name")] == [RUN]


def test_metrics(door: Door, trimtab: Trimtab) -> None:
    train(door.gateway.controller, range(1, 101))
    door.gateway.controller.expire()
    assert "loss" in trimtab("metrics", RUN)[1].split()
    assert answer(trimtab, "metrics", RUN, "loss", "--points", "2")["series"]["loss"]["x"] == [50, 100]
    assert "loss" in trimtab("metrics", RUN, "loss", "grad_norm")[1]
    lines = trimtab("metrics", RUN, "loss", "--csv")[1].splitlines()
    assert (lines[0], len(lines)) == ("step,samples,time,loss", 101)
    assert trimtab("metrics", RUN, "loss", "--x", "epoch")[0] == 2
    code, _, err = trimtab("metrics", RUN, "los")
    assert (code, "no metric los; there are " in err) == (1, True)


def test_export_writes_a_whole_file_or_none(door: Door, trimtab: Trimtab, tmp_path: Path) -> None:
    train(door.gateway.controller, range(1, 101))
    door.gateway.controller.expire()
    for destination in (str(tmp_path / "loss.csv"), f"file://{tmp_path}/again.csv", "memory://runs/loss.csv"):
        assert trimtab("export", RUN, destination, "--key", "loss")[::2] == (0, "")
        with fsspec.open(destination, "rt") as file:
            assert file.read() == trimtab("metrics", RUN, "loss", "--csv")[1].replace("\r\n", "\n")
    before = sorted(tmp_path.rglob("*"))
    for destination, told in ((f"{tmp_path}/nowhere/x.csv", "nowhere"), ("nix://x.csv", "Protocol not known: nix")):
        code, _, err = trimtab("export", RUN, destination)
        assert code == 1
        assert told in err
    assert sorted(tmp_path.rglob("*")) == before


def test_policies(trimtab: Trimtab) -> None:
    made = answer(trimtab, "policy", "set", RUN, "cut", "plateau:patience=3,instead=null", "--reason", "try")
    assert (made["revision"], made["params"]["patience"]) == (1, 3)
    assert answer(trimtab, "policy", "set", RUN, "cut", "plateau", "--mode", "off", "--revision", "1")["mode"] == "off"
    code, _, err = trimtab("policy", "set", RUN, "cut", "plateau", "--revision", "1")
    assert (code, err) == (1, "trimtab: you saw revision 1, the present one is 2; load it and try again\n")
    assert "plateau" in trimtab("policy", "ls", RUN)[1]
    assert trimtab("policy", "rm", RUN, "cut")[0] == 0
    assert answer(trimtab, "policy", "ls", RUN) == []


def test_a_line_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    long = "/a/folder" * 50 + " and more"
    print_line(long)
    Screen().say(long)
    assert capsys.readouterr().out == f"{long}\n{long}\n"


def test_what_was_heard_of_a_policy_last() -> None:
    def told(**heard: str | None) -> str | None:
        return last_word(
            cast(PolicyView, SimpleNamespace(**{"disabled": None, "last_reason": None, "waits": None} | heard))
        )

    assert told() is None
    assert told(waits="lr is rising") == "waits: lr is rising"
    assert told(last_reason="a cut", waits="lr is rising") == "a cut; waits: lr is rising"
    assert told(last_reason="a cut", disabled="it has failed") == "it has failed"


def test_a_policy_s_mode_is_changed_alone(door: Door, trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch) -> None:
    trimtab("policy", "set", RUN, "cut", "plateau:patience=3")
    put = answer(trimtab, "policy", "set", RUN, "cut", "--mode", "shadow")
    assert (put["kind"], put["params"]["patience"], put["mode"], put["revision"]) == ("plateau", 3, "shadow", 2)
    put = answer(trimtab, "policy", "set", RUN, "cut", "plateau:patience=4")  # which activates nothing by the way
    assert (put["params"]["patience"], put["mode"], put["revision"]) == (4, "shadow", 3)
    assert answer(trimtab, "policy", "set", RUN, "cut", "--mode", "off", "--revision", "3")["revision"] == 4
    stale = trimtab("policy", "set", RUN, "cut", "--mode", "active", "--revision", "2")
    assert (stale[0], "you saw revision 2, the present one is 4" in stale[2]) == (1, True)
    there = Client.policies

    def edited_meanwhile(api: Client, run: str) -> list[PolicyView]:
        found = there(api, run)
        door.gateway.controller.put_policy(RUN, "cut", "plateau", {"patience": 9}, "off", "bob", "", None)
        return found

    monkeypatch.setattr(Client, "policies", edited_meanwhile)
    stale = trimtab("policy", "set", RUN, "cut", "--mode", "active")
    assert (stale[0], "you saw revision 4, the present one is 5" in stale[2]) == (1, True)
    code, _, err = trimtab("policy", "set", RUN, "nix", "--mode", "shadow")
    assert (code, err) == (1, f"trimtab: run {RUN} has no policy 'nix'; to install it say its KIND, too\n")
    assert trimtab("policy", "set", RUN, "cut")[0] == 2


def trained(door: Door, trimtab: Trimtab) -> None:
    """A run whose plateau cuts at step 100."""
    trimtab("policy", "set", RUN, "plateau", "plateau:metric=loss,patience=0,factor=0.5,threshold=0.9")
    for end in (50, 100):
        door.gateway.controller._live[RUN].ticked = 0.0  # the next tick is due
        train(door.gateway.controller, range(end - 49, end + 1))
    door.gateway.controller.expire()


def test_replay(door: Door, trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(door, trimtab)
    code, out, _ = trimtab("replay", "bytes")
    assert code == 0
    assert out.splitlines()[0] == (
        "Over the run's 2 observations the policies make 1 decision; on record: 1 decision, the very same."
    )
    row = next(line for line in out.splitlines() if line.startswith("100"))
    assert row.split()[:10] == ["100", "lr", "0.1", "→", "0.05", "plateau", "0.1", "→", "0.05", "plateau"]
    assert answer(trimtab, "replay", RUN)["equal"] is True
    code, out, _ = trimtab("replay", RUN, "--policy", "warmup:steps=10", "--policy", "early_stop:metric=acc")
    assert (code, "not the same." in out) == (0, True)  # others were asked for
    assert "early_stop had to do without acc, which this run has not recorded" in out
    rows = [line.split()[:8] for line in out.splitlines()[-1:]]
    assert rows == [["100", "lr", "–", "0.1", "→", "0.05", "plateau", "loss"]]
    refused = trimtab("replay", RUN, "--policy", "mine.py:Mine")
    assert (refused[0], "code comes with a job only" in refused[2]) == (1, True)
    monkeypatch.setattr(Plateau, "decide", lambda self, state, observation: (state, ()))  # noqa: ARG005
    code, out, _ = trimtab("replay", RUN)
    assert (code, "no decision; on record: 1 decision, not the same." in out) == (1, True)
    monkeypatch.setattr(Plateau, "rule", 2)
    assert "recorded with rule 1 of kind plateau" in trimtab("replay", RUN)[2]


def test_replay_needs_no_controller(door: Door, trimtab: Trimtab, tmp_path: Path) -> None:
    trained(door, trimtab)
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    journal.append(journal.take_over(), 0.0, RUN, [one.event for one in door.gateway.controller._journal.read()])
    journal.close()
    assert trimtab("--url", "http://127.0.0.1:1", "replay", RUN)[0] == 1
    code, out, _ = trimtab("--url", "http://127.0.0.1:1", "replay", RUN, "--offline", "--json")
    assert (code, json.loads(out)) == (0, answer(trimtab, "replay", RUN))
    tried = answer(trimtab, "replay", RUN, "--offline", "--policy", "plateau:metric=loss,patience=9")
    assert (tried["decisions"], len(tried["recorded"])) == ([], 1)
    assert trimtab("replay", "nix", "--offline")[2] == "trimtab: the journal has no such run\n"
    assert trimtab("--home", str(tmp_path / "none"), "replay", RUN, "--offline")[0] == 1


def test_dry_run(door: Door, trimtab: Trimtab) -> None:
    trained(door, trimtab)
    before = list(door.gateway.controller._journal.read())
    code, out, _ = trimtab(
        "policy", "dry-run", RUN, "plateau", "plateau:metric=loss,patience=0,factor=0.1,threshold=0.9"
    )
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("100"))
    assert row.split()[:10] == ["100", "lr", "0.1", "→", "0.01", "plateau", "0.1", "→", "0.05", "plateau"]
    assert out.startswith("Over the run's 2 observations plateau would have made 1 decision.\n\nstep")
    assert answer(trimtab, "policy", "dry-run", RUN, "plateau", "plateau")["decisions"] == []
    told = trimtab("policy", "dry-run", RUN, "stop", "early_stop:metric=acc")[1]
    assert told.startswith("Over the run's 2 observations stop would have made no decision.\n")
    assert "stop had to do without acc, which this run has not recorded" in told
    assert "factor: " in trimtab("policy", "dry-run", RUN, "plateau", "plateau:factor=7")[2]
    assert list(door.gateway.controller._journal.read()) == before


def test_a_dry_run_tells_how_often_it_would_have_decided(door: Door, trimtab: Trimtab) -> None:
    dry = ("policy", "dry-run", RUN, "cut")
    nothing = "The run has no observations yet on which cut could have decided.\n"
    assert trimtab(*dry, "plateau:metric=loss")[1].startswith(nothing)
    trimtab("pin", RUN, "lr", "0.01")
    for end in (50, 100):
        door.gateway.controller._live[RUN].ticked = 0.0  # the next tick is due
        train(door.gateway.controller, range(end - 49, end + 1))
    door.gateway.controller.expire()
    refused = "Over the run's 2 observations cut would have made 1 decision (1 refused).\n\nstep"
    assert trimtab(*dry, "warmup:steps=10")[1].startswith(refused)
    nothing = "Over the run's 2 observations cut would have made no decision.\n"
    assert trimtab(*dry, "plateau:metric=loss")[1] == nothing


def test_kinds(trimtab: Trimtab) -> None:
    assert {one["kind"] for one in answer(trimtab, "policy", "kinds")} >= {"plateau", "warmup", "noise_scale"}
    assert "patience" in trimtab("policy", "kinds", "plateau")[1]
    assert trimtab("policy", "kinds", "nix")[0] == 1


def test_what_is_refused_is_one_clear_line(trimtab: Trimtab) -> None:
    code, out, err = trimtab("policy", "set", RUN, "cut", "plateau:patience=-1,metric=")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "patience: " in err
    assert "metric: " in err
    assert trimtab("pin", RUN, "lr", "eleven")[2] == "trimtab: lr must be a finite number, got eleven\n"


def test_pins(trimtab: Trimtab) -> None:
    assert answer(trimtab, "pin", RUN, "precision", "bf16") == {"revision": 2, "version": 2, "value": "bf16"}
    assert "pinned by alice" in trimtab("why", RUN, "precision")[1]
    assert trimtab("pin", RUN, "lr")[0] == 0
    assert trimtab("unpin", RUN, "precision")[0] == 0
    assert trimtab("unpin", RUN, "precision")[2] == "trimtab: precision is not pinned\n"


def test_scale(door: Door, trimtab: Trimtab) -> None:
    start_group(door.gateway.controller)
    assert trimtab("scale", GROUP, "2")[1] == "accepted as version 2: 2 workers are wanted, and are there\n"
    assert trimtab("scale", GROUP, "--release")[1] == "accepted as version 3: 2 workers are wanted, and are there\n"
    code, out, _ = trimtab("scale", GROUP, "3", "--reason", "more room")
    assert (code, out) == (
        0,
        "accepted as version 4: 3 workers are wanted; the run goes on meanwhile; `trimtab show` tells when they are "
        "there, `trimtab changes` if there is no room\n",
    )
    why = trimtab("why", GROUP, "workers")[1]
    assert "workers 3, pinned by alice; wanted, 2 workers now\n" in why
    assert "more room" in why
    assert next(line for line in trimtab("runs")[1].splitlines() if GROUP in line).split()[2:5] == ["2", "→", "3"]
    assert answer(trimtab, "scale", GROUP, "2", "--learners", "2") == {
        "revision": 6,
        "version": 6,
        "values": {"workers": 2, "learners": 2},
    }
    assert answer(trimtab, "show", GROUP)["wanted"] == {"workers": 2, "learners": 2, "world_size": 4}
    assert "2 workers × 2 learners wanted; kept together by allreduce" in trimtab("show", GROUP)[1]
    assert answer(trimtab, "scale", GROUP, "--release")["values"] == {"workers": 2, "learners": 1}
    assert trimtab("scale", GROUP, "--release")[2] == "trimtab: workers is not pinned\n"
    code, _, err = trimtab("scale", GROUP, "3", "--learners", "9")
    assert (code, err) == (1, "trimtab: learners must lie in [1, 2], got 9; pinned before that: workers 3\n")
    code, _, err = trimtab("scale", GROUP, "5")
    assert (code, err) == (1, "trimtab: workers must lie in [1, 4], got 5\n")
    assert ": 1 worker is wanted;" in trimtab("scale", GROUP, "1")[1]
    code, _, err = trimtab("scale", RUN, "2")
    assert (code, "cannot be changed" in err, "start it with `trimtab run`" in err) == (1, True, True)
    for wrong in (("scale", GROUP), ("scale", GROUP, "0"), ("scale", GROUP, "2", "--release")):
        assert trimtab(*wrong)[0] == 2


def test_sync(door: Door, trimtab: Trimtab) -> None:
    start_group(door.gateway.controller)
    code, out, _ = trimtab("sync", GROUP, "local", "local_steps=16", "--reason", "slow network")
    assert (code, out) == (
        0,
        "accepted as version 3: sync local, local_steps 16; `trimtab changes` tells at which step it has happened\n",
    )
    assert "slow network" in trimtab("why", GROUP, "sync")[1]
    known = answer(trimtab, "sync", GROUP, "local", "local_steps=4")
    assert list(known["values"].items()) == [("local_steps", 4), ("sync", "local")]  # before the switch
    assert "kept together by local" in trimtab("show", GROUP)[1]
    assert answer(trimtab, "sync", GROUP, "--release")["values"] == {"sync": "allreduce", "local_steps": 8}
    assert trimtab("sync", GROUP, "--release")[2] == "trimtab: sync is not pinned\n"
    before = len(answer(trimtab, "changes", GROUP))
    for wrong, told in (
        (("gossip",), "none of allreduce, sma, pair, local"),
        (("sma", "local_steps=4"), "options of sma are sma_every=1"),
        (("local", "local_steps"), "options of local are local_steps=8"),
        (("local", "local_steps=0"), "local_steps must lie in"),
        ((), "name a strategy"),
    ):
        code, _, err = trimtab("sync", GROUP, *wrong)
        assert code == 2
        assert told in " ".join(err.replace("│", " ").split())
    assert len(answer(trimtab, "changes", GROUP)) == before


def test_show_tells_of_recoveries(door: Door, trimtab: Trimtab) -> None:
    start_group(door.gateway.controller)
    regroup(door.gateway.controller, 2, "loss", 1, at=1200, lost=1)
    out = trimtab("show", GROUP)[1]
    assert "formation 2, 2 workers wanted; kept together by allreduce" in out
    row = next(line for line in out.splitlines() if "loss  " in line and line.startswith("2 "))
    assert row.split() == ["2", "loss", "1,200", "1", "1", "0.31", "s", "–"]


def test_what_is_followed_tells_of_losses_once(
    door: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.api.cli import follow

    controller = door.gateway.controller
    start_group(controller)
    monkeypatch.setattr(follow, "call", lambda method, *args, **_: getattr(controller, method)(*args))
    follower = follow.Follower("http://127.0.0.1")
    follower.run = GROUP
    controller.resize(GROUP, 2, 3, "2 → 3 workers")
    regroup(controller, 2, "resize", 3, at=10)
    follower._look()
    regroup(controller, 3, "loss", 2, at=1200, lost=1)
    follower._look()
    controller.start_formation(GROUP, 2, Progress(1000, 32000))
    follower._look()
    controller.resize(GROUP, 4, 1, "2 → 1 workers")
    regroup(controller, 5, "resize", 1, at=1300, lost=1)
    follower._look()
    assert [line for line in capsys.readouterr().out.splitlines() if "batch_size" not in line] == [
        "resize step 10 training goes on with 3 workers, it stood still for 0.31 s",
        "recovery step 1,200 1 worker lost, training goes on with 2 workers, it stood still for 0.31 s",
        "restart step 1,000 training goes on with 2 workers, 200 steps are trained again",
        "resize step 1,300 training goes on with 1 worker, it stood still for 0.31 s",  # who was let go is not lost
    ]


def test_what_is_followed_marks_what_a_shadow_would_have_set(capsys: pytest.CaptureFixture[str]) -> None:
    from trimtab.api.cli.follow import Screen
    from trimtab.controller import views

    view = views.RunView.model_construct(recoveries=[])
    change = views.ChangeView.model_construct(param="lr", from_=0.1, to=0.2, by="goodput", reason="")
    told = {"version": None, "accepted_at": 0.0, "accepted_at_step": 7, "changes": [change]}
    Screen().tell(view, [views.RecordView.model_construct(kind="shadow", **told)])
    assert capsys.readouterr().out == "shadow step 7 lr 0.2 by goodput\n"


def test_a_decay_that_nothing_waits_for_is_refused(trimtab: Trimtab) -> None:
    code, out, err = trimtab("decay", RUN)
    assert (code, out) == (1, "")
    assert err.startswith(f"trimtab: no policy of run {RUN} waits for the word to decay; a schedule of shape wsd does")
    answer(trimtab, "policy", "set", RUN, "wsd", "schedule:shape=wsd")
    assert answer(trimtab, "decay", RUN)["version"] > 1


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "checkpoint"])
def test_commands(trimtab: Trimtab, command: str) -> None:
    assert answer(trimtab, command, RUN, "--reason", "because")["version"] in (1, 2)  # resuming what runs is no change
    assert trimtab(command, RUN)[0] == 0


def test_rollback(door: Door, trimtab: Trimtab) -> None:
    assert (
        trimtab("rollback", RUN)[2] == "trimtab: the run has kept no checkpoint yet: there is nothing to go back to\n"
    )
    train(door.gateway.controller, range(1, 301))
    keep_checkpoints(door.gateway.controller, 100, 200)
    assert "checkpoints of steps 100, 200" in trimtab("show", RUN)[1]
    refused = "trimtab: no checkpoint of step 150 is kept; there are those of 100, 200\n"
    assert trimtab("rollback", RUN, "--step", "150")[2] == refused
    assert answer(trimtab, "rollback", RUN, "--step", "100", "--skip-data", "--reason", "spikes") == {"version": 2}
    wish = door.gateway.controller._live[RUN].run.version.rollback
    assert (wish.step, wish.skip_data) == (100, True)
    assert "rollback" in trimtab("changes", RUN)[1]
    assert "already going back to step 100" in trimtab("rollback", RUN)[2]


def test_a_run_may_be_named_by_a_unique_beginning(door: Door, trimtab: Trimtab) -> None:
    door.gateway.controller.create_run("bytes", SPEC)
    assert answer(trimtab, "show", "bytes")["id"] == "bytes"  # whole ids first
    assert trimtab("show", "byt")[2] == f"trimtab: 'byt' is not unique: bytes, {RUN}\n"
    assert trimtab("show", "nix")[2] == "trimtab: no run's id begins with 'nix'; `trimtab runs` lists them\n"


@pytest.mark.parametrize("arguments", [("show",), ("nix",), ("policy", "set", RUN, "a", "b:c"), ("pin", RUN)])
def test_what_is_asked_wrongly_has_exit_code_2(trimtab: Trimtab, arguments: tuple[str, ...]) -> None:
    assert trimtab(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "variable", "passed_on"),
    [((), "", {}), ((), "json", {"TRIMTAB_LOG": "json"}), (("--log-format", "text"), "json", {})],
)
def test_what_up_starts_is_told_how_to_log_and_where_to_send_traces(
    trimtab: Trimtab,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variable: str,
    passed_on: dict[str, str],
) -> None:
    from trimtab.controller import actor

    told: list[dict[str, str]] = []

    def bring_up(*_: object) -> None:
        told.append(actor.passed_on())
        raise CommandError("told")

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("trimtab.api.cli.up.bring_up", bring_up)
    monkeypatch.setenv("TRIMTAB_LOG", variable)
    assert trimtab("up", *arguments)[0] == 1
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")  # Ray would show it
    assert trimtab("up", *arguments)[0] == 1
    assert told == [passed_on, {**passed_on, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}]
    assert trimtab("up", "--log-format", "xml")[0] == 2


def test_tokens(trimtab: Trimtab, served: str) -> None:
    code, out, _ = trimtab("token", "new", "ci", "--role", "operator", "--days", "30")
    token = out.strip()
    assert (code, len(token)) == (0, 43)
    assert trimtab("--token", token, "pin", RUN, "lr", "0.01")[0] == 0
    rows = [line.split()[:2] for line in trimtab("token", "ls")[1].splitlines()]
    assert rows == [["token", "role"], ["alice", "admin"], ["ci", "operator"]]
    assert token not in trimtab("token", "ls", "--json")[1]
    code, _, err = trimtab("--token", token, "token", "ls")
    assert (code, err) == (1, "trimtab: this needs the role admin, ci is operator\n")
    assert "there is a token 'ci' already" in trimtab("token", "new", "ci")[2]
    assert "last token of an admin" in trimtab("token", "rm", "alice")[2]
    assert trimtab("token", "rm", "ci")[:2] == (0, "ci is removed\n")
    assert "a valid token is needed" in trimtab("--url", served, "--token", token, "runs")[2]


def test_options_and_environment_come_before_the_home(
    trimtab: Trimtab, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = trimtab("--token", "wrong", "runs")
    assert code == 1
    assert "a valid token is needed" in err
    monkeypatch.setenv("TRIMTAB_URL", "http://127.0.0.1:1")
    code, _, err = trimtab("runs")
    assert code == 1
    assert "no answer from http://127.0.0.1:1" in err
    assert trimtab("--url", served + "/", "runs")[0] == 0


def test_without_a_home_it_says_what_to_do(trimtab: Trimtab, tmp_path: Path) -> None:
    code, _, err = trimtab("--home", str(tmp_path / "none"), "runs")
    assert code == 1
    assert "trimtab up" in err


def test_no_colour_where_none_is_wanted(trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in trimtab("runs")[1]
