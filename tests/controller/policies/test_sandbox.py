import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trimtab.controller.observation import Observation, Scale
from trimtab.controller.policies import sandbox
from trimtab.controller.policies.code import Code
from trimtab.controller.policies.contract import check_policy, sample_observations
from trimtab.controller.policies.sandbox import Fault, Sandboxed, Unusable, described, sandboxed
from trimtab.controller.trajectory import Constant

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_policy.py"
HEAD = """
import os, sys, threading, time
from typing import ClassVar
from pydantic import Field
from trimtab.controller.observation import Scale
from trimtab.controller.policies import Policy
from trimtab.controller.trajectory import Constant

class Mine(Policy):
    "Does what it is told."
    kind: ClassVar[str] = "mine"
    source: ClassVar[str] = "none: a test"
    size: int = Field(1, ge=1, description="Anything.")
    def reads(self): return frozenset({"loss"})
    def writes(self): return {"lr": "factor"}
    def initial(self): return {"n": 0}
    def decide(self, state, observation):
"""


@pytest.fixture(autouse=True)
def _end() -> Iterator[None]:
    yield
    sandbox.retain("r", ())


def mine(body: str, rule: int = 1, **params: Any) -> Sandboxed:
    code = Code("Mine", "mine.py", HEAD + "".join(f"        {line}\n" for line in body.splitlines()))
    known = described(code, params)
    assert known.facts is not None
    return sandboxed("r", "mine", code, rule, known.params, known.facts)


def once(policy: Sandboxed, state: Mapping[str, Any] | None = None) -> Any:
    """What it makes of a new observation."""
    (observation,) = sample_observations(policy, 1)
    return policy.decide(policy.initial() if state is None else state, observation)


def test_the_example_keeps_the_contract_inside_and_outside() -> None:
    space: dict[str, Any] = {"__name__": "my_policy"}
    exec(compile(EXAMPLE.read_text(), str(EXAMPLE), "exec"), space)
    direct = space["Cruise"](loss=1.5)
    check_policy(direct)
    code = Code.read(str(EXAMPLE), "Cruise")
    known = described(code, {"loss": 1.5})
    assert known.facts is not None
    proxy = sandboxed("r", "cruise", code, known.about.rule, known.params, known.facts)
    assert (proxy.reads(), proxy.writes(), proxy.initial()) == (direct.reads(), direct.writes(), direct.initial())
    state, acted = direct.initial(), []
    for observation in sample_observations(direct):
        answer = direct.decide(state, observation)
        assert proxy.decide(state, observation) == (answer[0], tuple(answer[1]))
        state, acted = answer[0], [*acted, *answer[1]]
    assert [(one.param, one.by) for one in acted] == [("lr", Constant(0.5))]
    assert len(EXAMPLE.read_text().splitlines()) <= 42


def test_a_description() -> None:
    known = described(Code.read(str(EXAMPLE), "Cruise"), {"factor": 3, "what": 1})
    assert (known.about.kind, known.about.title, known.about.rule) == ("cruise", "Cruise", 1)
    assert known.facts is None
    assert known.invalid.keys() == {"factor", "what"}


def test_a_question_is_put_once() -> None:
    policy = mine("return {'n': os.getpid(), 'at': time.time()}, ()")
    (observation,) = sample_observations(policy, 1)
    (asked,) = sandbox.ask([(policy, {"n": 0}, observation)])
    assert sandbox.done([asked], 10)
    assert policy.decide({"n": 0}, observation) == asked.result()
    assert policy.decide({"n": 1}, observation) != asked.result()


def test_all_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(answer_s=5))
    slow = mine("time.sleep(0.5)\nreturn state, ()")
    policies = [slow.model_copy(update={"name": f"mine{i}"}) for i in range(4)]
    (observation,) = sample_observations(slow, 1)
    sandbox.warm(policies)
    for policy in policies:
        sandbox._child(policy)._thread.submit(int).result()  # it has started
    start = time.perf_counter()
    assert sandbox.done(sandbox.ask((policy, {"n": 0}, observation) for policy in policies), 10)
    assert time.perf_counter() - start < 1.5


def test_a_fault_ends_the_process_and_the_next_question_starts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(answer_s=0.2))
    policy = mine("if state['n'] == 1: time.sleep(60)\nreturn {'n': os.getpid()}, ()")
    first, _ = once(policy)
    process = sandbox._children["r", "mine"]._process
    assert process is not None
    with pytest.raises(Fault, match=r"no answer within 0\.2 s"):
        once(policy, {"n": 1})
    assert process.returncode == -9
    second, _ = once(policy)
    assert first["n"] != second["n"]


FAULTS = {
    "return state": "",
    "return 3, ()": "a state must be a mapping, got 3",
    "return {'n': float('nan')}, ()": "Out of range float",
    "return state, [Scale('lr', 3, 'why')]": "its answer is none: 0.scale.by",
    "return state, 5": "TypeError: 'int' object is not iterable",
    "raise KeyError('x')": "KeyError: 'x'",
    "os.kill(os.getpid(), 11)": "its process ended by SIGSEGV",
    "print('farewell', file=sys.stderr, flush=True); os._exit(7)": "its process ended with code 7: farewell",
    "return {'n': 'x' * 100_000}, ()": "its answer is longer than 65,536 bytes",
    "return {'n': int('9' * 5000)}, ()": "",
    "x = []\nfor _ in range(5000): x = [x]\nreturn {'n': x}, ()": "",
    "a = bytearray(2**31)\nreturn state, ()": "MemoryError",
}


@pytest.mark.parametrize(("body", "message"), FAULTS.items())
def test_faults_are_told(body: str, message: str) -> None:
    policy = mine(body)
    with pytest.raises(Fault) as fault:
        once(policy)
    assert message in str(fault.value)


def test_what_it_prints_and_leaves_behind_does_no_harm() -> None:
    policy = mine("for _ in range(50): print('x' * 10_000); print('y' * 10_000, file=sys.stderr)\nreturn state, ()")
    for _ in range(5):
        assert once(policy) == ({"n": 0}, ())


def test_no_secret_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    policy = mine("return {'seen': sorted(os.environ), 'all': 'secret' in str(os.environ)}, ()")
    state, _ = once(policy)
    assert not state["all"]
    assert "TRIMTAB_TOKEN" not in state["seen"]


def test_a_rule_that_has_changed_is_told() -> None:
    policy = mine("return state, ()", rule=2)
    with pytest.raises(Fault, match="its rule is number 1 by now, it was put as number 2; put it anew"):
        once(policy)


def test_a_description_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(start_s=2))
    with pytest.raises(Fault, match="no answer within 2 s"):
        described(Code("Mine", "mine.py", "while True: pass"), {})
    with pytest.raises(Unusable, match="no class 'Mine'"):
        described(Code("Mine", "mine.py", ""), {})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no policy file .*nowhere\.py"):
        Code.read(str(tmp_path / "nowhere.py"), "Mine")
    (tmp_path / "large.py").write_text("#" * 300_000)
    with pytest.raises(ValueError, match="larger than"):
        Code.read(str(tmp_path / "large.py"), "Mine")
    (tmp_path / "latin.py").write_bytes(b"# \xff")
    with pytest.raises(ValueError, match="cannot be read"):
        Code.read(str(tmp_path / "latin.py"), "Mine")


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_it_dies_with_its_parent_even_while_it_hangs(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import os, sys, time
from trimtab.controller.policies import sandbox
from trimtab.controller.policies.code import Code
from trimtab.controller.policies.contract import sample_observations
sandbox.LIMITS = sandbox.Limits(answer_s=60)
code = Code("Mine", "mine.py", {HEAD + "        time.sleep(600)"!r})
known = sandbox.described(code, {{}})
policy = sandbox.sandboxed("r", "mine", code, 1, known.params, known.facts)
sandbox.warm([policy])
sandbox._child(policy)._thread.submit(int).result()
policy.ask({{"n": 0}}, sample_observations(policy, 1)[0])
print(sandbox._child(policy)._process.pid, flush=True)
time.sleep(0.3)
os.kill(os.getpid(), 9)
"""
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == -9, done.stderr
    until = time.monotonic() + 5
    while _lives(int(done.stdout)):
        assert time.monotonic() < until
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_proposals_come_as_the_journal_gives_them_back() -> None:
    policy = mine("return state, (Scale('lr', Constant(1), 'why'),)")
    _, (proposal,) = once(policy)
    assert proposal == Scale("lr", Constant(1), "why")
    assert isinstance(proposal.by.value, int)


def test_an_observation_arrives_whole() -> None:
    policy = mine("return {'seen': repr(observation)}, ()")
    observations: list[Observation] = list(sample_observations(policy, 30))
    for observation in observations:
        state, _ = policy.decide({}, observation)
        assert state["seen"].replace("frozenset()", "") == repr(observation).replace("frozenset()", "")
