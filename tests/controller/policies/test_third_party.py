"""A bad policy stops nobody: what the others decide beside it is exactly what they decide without it.

All ten at once over 60 decisions; with TRIMTAB_LONG=1 each of them alone over 1,000.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.controller.controller import TICK_S, Controller, PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import Observed, PolicyGiven, RunSpec, Versioned, decode
from trimtab.controller.guards import REST
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import MemoryJournal, MemoryStore
from trimtab.controller.observation import Horizon
from trimtab.controller.policies import sandbox
from trimtab.controller.policies.code import Code
from trimtab.controller.records import COLUMNS, Records
from trimtab.controller.run import Absent
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
BAD = ("Raises", "Hangs", "Hoards", "Leaves", "Rubbish", "NotFinite", "Floods", "Prints", "Oscillates", "Trespasses")
LONG = os.environ.get("TRIMTAB_LONG") == "1"
STEPS = 4  # a tick
BATCH = 64

KNOBS = tuple(HyperParameter(name="knob" + "_" * i, default=1.0, min=0.0, max=10.0) for i in range(len(BAD)))
SPEC = RunSpec(
    name="r",
    world_size=1,
    parameters=(HyperParameter(name="batch_size", kind="integer", default=BATCH, min=2, max=4096), *KNOBS),
    micro_batch=16,
    max_micro_batch=64,
    horizon=Horizon(100_000),
)
GOOD = (
    PolicySpec(name="grow", kind="noise_scale", params={"first_window": 20, "window": 20, "confirm": 1}),
    PolicySpec(name="warmup", kind="warmup", params={"samples": 3000}),
    PolicySpec(name="plateau", kind="plateau", params={"patience": 2, "factor": 0.5, "metric": "val_loss"}),
    PolicySpec(name="cruise", kind="", params={"loss": 1.9}, code=Code.read(str(EXAMPLES / "my_policy.py"), "Cruise")),
)


def bad(name: str, knob: str = "knob") -> PolicySpec:
    """One of the ten; each has a knob of its own, since a base has one owner."""
    code = Code.read(str(HERE / "bad.py"), name)
    return PolicySpec(
        name=name, kind="", params={}, code=Code(name, code.file, code.text.replace('"knob"', f'"{knob}"'))
    )


class World:
    """A controller, and one rank whose measurements are drawn from a seed."""

    def __init__(self, path: Path, store: MemoryStore | None = None) -> None:
        self.now = 1_000_000.0
        self.path = path
        self.store = store or MemoryStore()
        path.joinpath("metrics").mkdir(parents=True, exist_ok=True)
        self.controller = Controller(MemoryJournal(self.store), path / "metrics", lambda: self.now)
        self.step = 0
        self.random = np.random.default_rng(7)
        self.longest = 0.0  # that the controller kept its caller waiting [s]

    def begin(self, *policies: PolicySpec) -> None:
        self.controller.create_run("r", SPEC, policies)
        formation = self.controller.start_formation("r", 1, Progress()).number
        lr = HyperParameter(name="lr", default=0.1, min=0.0, max=10.0)
        self.controller.register("r", formation, [lr], "linear", 5000)

    def records(self) -> Records:
        steps = np.arange(self.step - STEPS + 1, self.step + 1)
        columns = {name: np.full(STEPS, 1.0, np.float32) for name in COLUMNS}
        columns["loss"] = (1 + np.exp(-steps / 100) + 0.01 * self.random.normal(size=STEPS)).astype(np.float32)
        columns["grad_norm"] = (1 + 0.1 * self.random.normal(size=STEPS)).astype(np.float32)
        columns["local_sq"] = (3.5 + 0.2 * self.random.normal(size=STEPS)).astype(np.float32)
        columns |= {
            "local_batch": np.full(STEPS, BATCH / 4, np.float32),
            "batch_size": np.full(STEPS, BATCH, np.float32),
        }
        logs = {"val_loss": (steps[:1], np.array([1 + np.exp(-self.step / 50)], np.float32).round(2))}
        return Records("r", 0, 1, steps, steps * BATCH, np.full(STEPS, self.now), columns, logs, produced=self.step)

    def tick(self) -> None:
        """One message, and then as many moments as it takes until all have answered."""
        self.now += TICK_S
        self.step += STEPS
        records = self.records()
        self.controller.heartbeat("r")
        self._timed(lambda: self.controller.ingest(records))
        while self.live.question is not None:
            time.sleep(0.002)
            self._timed(self.controller.expire)

    def _timed(self, action: Callable[[], None]) -> None:
        start = time.perf_counter()
        action()
        self.longest = max(self.longest, time.perf_counter() - start)

    def put(self, policy: PolicySpec) -> None:
        run = self.live.run
        kind = policy.kind or next(given.kind for given in run.given.values() if given.code == policy.code)
        self.controller.put_policy("r", policy.name or kind, kind, policy.params, "active", "ann", "", None)

    @property
    def live(self) -> Any:
        return self.controller._live["r"]

    def events(self, kind: type) -> list[Any]:
        return [event for event in (decode(entry.event) for entry in self.store.entries) if isinstance(event, kind)]

    def decisions(self, names: Sequence[str]) -> list[Any]:
        """All that these policies said, with what became of it, and the values that they have made."""
        said = [
            (event.observation.progress, [one for one in event.outcomes if one.policy in names])
            for event in self.events(Observed)
        ]
        changes = [
            (event.progress, [change for change in event.changes if change.by in (*names, "batch")])
            for event in self.events(Versioned)
        ]
        states = {name: self.live.run.policies[name].state for name in names}
        return [said, [one for one in changes if one[1]], states]

    def alerts(self) -> list[str]:
        items = [item for item in self.controller.feed._items if item.topic == "alerts"]
        return [json.loads(item.data)["message"] for item in items]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter patience, less memory; starts may take long on a busy machine."""
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(answer_s=0.3, start_s=30, memory=2**28))


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(store: MemoryStore | None = None) -> World:
        made.append(World(tmp_path / str(len(made)), store))
        return made[-1]

    yield make
    for world in made:
        world.controller.close()
    assert not [key for key in sandbox._children if key[0] == "r"]


NAMES = ("grow", "warmup", "plateau", "cruise")


def without(make: Callable[..., World], ticks: int, few: bool = False) -> list[Any]:
    world = make()
    world.begin(*GOOD)
    for _ in range(ticks):
        world.tick()
    decisions = world.decisions(NAMES)
    world.controller.close()
    assert few or {change.by for _, changes in decisions[1] for change in changes} >= set(NAMES)
    return decisions


@pytest.mark.usefixtures("quick")
def test_what_others_decide_beside_ten_bad_policies_is_what_they_decide_without(
    worlds: Callable[..., World],
) -> None:
    ticks = 60
    expected = without(worlds, ticks)
    strangers = [bad(name, knob.name) for name, knob in zip(BAD, KNOBS, strict=True)]
    world = worlds()
    world.begin(GOOD[0], *strangers, *GOOD[1:])
    for i in range(ticks):
        world.tick()
        if i == ticks // 2:
            world.put(strangers[0])  # anew: it misbehaves again
    assert world.decisions(NAMES) == expected
    views = {view.name: view for view in world.controller.policies("r")}
    disabled = set(BAD) - {"Trespasses"}
    assert {name for name, view in views.items() if view.disabled} == disabled
    assert all(views[name].faults == 3 for name in disabled)
    assert {a.split()[1] for a in world.alerts() if "is disabled" in a} == disabled
    faults = {name: [e.faults[name] for e in world.events(Observed) if name in e.faults] for name in disabled}
    assert {name: len(told) for name, told in faults.items()} == dict.fromkeys(disabled, 3) | {"Raises": 6}
    for name, start in TOLD.items():
        assert faults[name][0].startswith(start), faults[name][0]
    told = {record.changes[0].param for record in world.controller.changes("r") if record.status == "refused"}
    assert told >= {f"policy {name}" for name in disabled}
    checkpoints = [c for e in world.events(Versioned) for c in e.changes if c.param == "checkpoint"]
    assert 1 <= len(checkpoints) <= 1 + ticks // REST
    assert world.longest < 0.4  # nobody waits for the one that hangs
    assert all(0 <= value <= 10 for value in (world.live.run.version.at(Progress()).values[k.name] for k in KNOBS))


def test_the_comparison_would_find_a_difference(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.begin(bad("Oscillates", "lr"), *GOOD)  # within its rights: it owns the base
    for _ in range(20):
        world.tick()
    assert world.decisions(NAMES) != without(worlds, 20, few=True)


TOLD = {
    "Raises": "ValueError: ",
    "Hangs": "no answer within 0.3 s",
    "Hoards": "MemoryError",
    "Leaves": "its process ended with code 3",
    "Rubbish": "pydantic_core._pydantic_core.PydanticSerializationError",
    "NotFinite": "ValueError: Out of range float",
    "Floods": "its answer is longer than 65,536 bytes",
    "Prints": "its answer is ",
    "Oscillates": "knob",
}


@pytest.mark.skipif(not LONG, reason="TRIMTAB_LONG=1 runs it: some minutes")
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", BAD)
def test_a_thousand_decisions_beside_each(worlds: Callable[..., World], name: str) -> None:
    ticks = 1000
    expected = without(worlds, ticks)
    world = worlds()
    world.begin(bad(name), *GOOD)
    for i in range(ticks):
        world.tick()
        if i % 50 == 49:
            world.put(bad(name))
    assert world.decisions(NAMES) == expected
    faults = sum(name in event.faults for event in world.events(Observed))
    assert faults == (0 if name == "Trespasses" else 60)
    assert world.longest < 0.4
    print(f"{name}: {ticks} decisions, {faults} faults, the controller was away for {world.longest:.3f} s at most")


# ---- code that comes with the job ------------------------------------------------------------------------------------


def test_the_source_is_in_the_journal_and_its_kind_in_the_run(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.begin(GOOD[3])
    (given,) = world.events(PolicyGiven)
    assert given.code.text == (EXAMPLES / "my_policy.py").read_text()
    assert (given.kind, given.sha256, given.code.file) == ("cruise", given.code.sha256, "my_policy.py")
    assert world.live.run.policies["cruise"].params == {"loss": 1.9, "factor": 0.5}
    kinds = {kind.kind: kind for kind in world.controller.policy_kinds("r")}
    assert (kinds["cruise"].origin, kinds["cruise"].writes, kinds["cruise"].reads) == ("my_policy.py", ["lr"], ["loss"])
    assert "loss" in kinds["cruise"].schema_["properties"]
    assert "cruise" not in {kind.kind for kind in world.controller.policy_kinds()}
    record = world.controller.changes("r")[0]
    assert record.changes[0].to == "comes with the job: Cruise of my_policy.py"
    world.controller.put_policy("r", "cruise", "cruise", {"loss": 0.5}, "active", "ann", "", None)
    world.controller.put_policy("r", "again", "cruise", {"factor": 0.1}, "active", "ann", "", None)
    with pytest.raises(Refused, match="cruise: factor: Input should be less than 1") as refused:
        world.controller.put_policy("r", "cruise", "cruise", {"factor": 2}, "active", "ann", "", None)
    assert refused.value.fields.keys() == {"params.factor"}


def test_a_recovery_starts_no_process_and_decides_nothing(
    worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds()
    world.begin(*GOOD)
    for _ in range(5):
        world.tick()
    before = world.live.run
    world.controller.close()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox.subprocess, "Popen", pytest.fail)
        again = worlds(world.store)
        assert again.live.run == before
        assert again.controller.policies("r") == world.controller.policies("r")
    again.step, again.now = world.step, world.now
    again.tick()
    assert again.live.run.policies["cruise"].state != before.policies["cruise"].state


def test_processes_end_with_the_policy_and_with_the_run(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.begin(GOOD[3])
    world.put(PolicySpec(name="second", kind="cruise", params={}))
    world.tick()
    first, second = (sandbox._children["r", name]._process for name in ("cruise", "second"))
    assert first is not None
    assert second is not None
    world.controller.delete_policy("r", "second", "ann", "", None)
    assert second.wait(5) < 0
    assert first.poll() is None
    world.controller.set_state("r", RunState.FINISHED)
    assert first.wait(5) < 0


def test_a_change_while_one_ponders_makes_the_question_void(
    worlds: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(answer_s=0.7, start_s=30))
    world = worlds()
    world.begin(bad("Hangs"), *GOOD)
    for _ in range(2):
        world.tick()
    world.now += TICK_S
    world.step += STEPS
    world.controller.ingest(world.records())
    assert world.live.question is not None
    seen = len(world.events(Observed))
    world.controller.pin("r", "lr", 0.01, "ann", "by hand", None)
    world.now += TICK_S
    world.step += STEPS
    world.controller.ingest(world.records())
    assert len(world.events(Observed)) == seen
    while world.live.question is not None:
        time.sleep(0.01)
        world.controller.expire()
    (*_, last) = world.events(Observed)
    assert last.observation.values["lr"] == 0.01
    assert last.observation.metrics["loss"][0].count == 2 * STEPS  # what was measured meanwhile is not lost
    assert "Hangs" in last.faults


BROKEN = {
    "class Cruise(:\n    pass": "mine.py, line 1: invalid syntax",
    "import nowhere_to_be_found": "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    "def f():\n    raise SystemExit(3)\nf()": "mine.py, line 2: SystemExit: 3",
    "class Other: pass": "mine.py has no class 'Mine'; there are Other",
    "class Mine: pass": "Mine in mine.py is no subclass of trimtab.controller.policies.Policy",
    "from typing import ClassVar\nfrom trimtab.controller.policies import Policy\n"
    "class Mine(Policy):\n    'Does.'\n    kind: ClassVar[str] = 'mine'": "mine.py: Mine.source must name the paper",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=lambda value: value.splitlines()[0])
def test_a_file_that_holds_no_policy_is_refused_with_what_is_wrong(
    worlds: Callable[..., World], text: str, message: str
) -> None:
    spec = PolicySpec(name="", kind="", params={}, code=Code("Mine", "mine.py", text))
    world = worlds()
    with pytest.raises(Refused) as refused:
        world.controller.create_run("r", SPEC, [spec])
    assert message.partition(": ")[0] in refused.value.message
    assert message.rpartition(": ")[2] in refused.value.message
    assert refused.value.code == "invalid-parameters"
    assert world.controller.runs() == ([], None)


def test_a_kind_has_one_meaning(worlds: Callable[..., World]) -> None:
    world = worlds()
    text = GOOD[3].code.text if GOOD[3].code else ""
    taken = Code("Cruise", "mine.py", text.replace('"cruise"', '"plateau"'))
    with pytest.raises(Refused, match=r"mine.py: there is already a kind of policy 'plateau'"):
        world.controller.create_run("r", SPEC, [PolicySpec(name="", kind="", params={}, code=taken)])
    other = Code("Cruise", "mine.py", text + "\n")
    with pytest.raises(Refused, match="already a kind of policy 'cruise'"):
        world.begin(GOOD[3], PolicySpec(name="x", kind="", params={}, code=other))
    world.begin(GOOD[3], PolicySpec(name="x", kind="", params={"loss": 0.1}, code=GOOD[3].code))
    assert set(world.live.run.policies) == {"cruise", "x"}
    assert len(world.events(PolicyGiven)) == 1


# ---- other packages --------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the entry point `cruise`."""
    from trimtab.controller.policies.policy import strangers

    folder = tmp_path / "site"
    (folder / "fleet-1.0.dist-info").mkdir(parents=True)
    (folder / "fleet-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet\nVersion: 1.0\n")
    entries = "[trimtab.policies]\ncruise = fleet:Cruise\nplateau = fleet:Cruise\nbroken = fleet:Nothing\n"
    (folder / "fleet-1.0.dist-info" / "entry_points.txt").write_text(entries)
    (folder / "fleet.py").write_text((EXAMPLES / "my_policy.py").read_text())
    monkeypatch.syspath_prepend(folder)
    strangers.cache_clear()
    yield folder
    monkeypatch.undo()
    strangers.cache_clear()


@pytest.mark.usefixtures("package")
def test_a_policy_of_another_package_runs_in_a_process_too(worlds: Callable[..., World]) -> None:
    import sys

    world = worlds()
    world.begin(PolicySpec(name="cruise", kind="cruise", params={"loss": 1.9}), *GOOD[:3])
    for _ in range(40):
        world.tick()
    assert "cruise" in {change.by for event in world.events(Versioned) for change in event.changes}
    assert "fleet" not in sys.modules
    kinds = {kind.kind: kind for kind in world.controller.policy_kinds()}
    assert (kinds["cruise"].origin, kinds["cruise"].title) == ("fleet", "Cruise")
    assert kinds["plateau"].origin == ""  # Trimtab's own come first
    assert kinds["broken"].doc.startswith("It cannot be used: fleet:Nothing: AttributeError")
    with pytest.raises(Refused, match="fails at once: fleet:Nothing"):
        world.controller.put_policy("r", "broken", "broken", {}, "active", "ann", "", None)


def test_a_policy_whose_package_is_gone_is_absent(worlds: Callable[..., World], package: Path) -> None:
    from trimtab.controller.policies.policy import strangers

    world = worlds()
    world.begin(
        PolicySpec(name="cruise", kind="cruise", params={}), PolicySpec(name="warmup", kind="warmup", params={})
    )
    world.tick()
    world.controller.close()
    (package / "fleet-1.0.dist-info" / "entry_points.txt").unlink()
    strangers.cache_clear()
    again = worlds(world.store)
    entry = again.live.run.policies["cruise"]
    assert isinstance(entry.policy, Absent)
    assert entry.state == world.live.run.policies["cruise"].state
    again.step, again.now = world.step, world.now
    again.tick()
    assert again.live.run.policies["cruise"].faults == 0
