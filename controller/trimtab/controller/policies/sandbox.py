"""Third-party policies, each in a child process of its own: a bad one harms neither the controller nor other policies.

An answer that is late, too long, no JSON or an error ends the process and is a fault of the policy; the next question
starts another. This guards against mistakes, not against malice: the process runs under the controller's own account,
though without its environment.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from trimtab.controller.observation import Observation, Proposal
from trimtab.controller.policies.code import OBSERVATION, PROPOSALS, Code, Description, Facts
from trimtab.controller.policies.policy import JsonState, Part, Policy

__all__ = [
    "Fault",
    "Limits",
    "Sandboxed",
    "Unusable",
    "ask",
    "describe",
    "described",
    "done",
    "retain",
    "sandboxed",
    "warm",
]

LONGEST = 2**16  # bytes of one answer
TAIL = 300  # bytes of what a process printed last, told when it dies
KEPT = 64  # descriptions
INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
T = TypeVar("T")
_DESCRIPTION: TypeAdapter[Description] = TypeAdapter(Description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a third-party policy may take."""

    answer_s: float = 1.0  # wall clock, for one decision
    start_s: float = 8.0  # wall clock, for the imports of its process
    memory: int = 2**30  # bytes of address space; Python with numpy and pydantic takes 160 MB of it


LIMITS = Limits()


class Fault(Exception):
    """The policy did something that it must not; the message says what."""


class Unusable(Fault):
    """Its code holds no policy that can be installed."""


class Sandboxed(Policy):
    """Stands for a policy in a child process, which runs from its first decision on."""

    kind: ClassVar[str] = "sandboxed"

    run: str
    name: str
    code: Code
    number: int  # of the rule
    params: Mapping[str, Any]
    facts: Facts

    def reads(self) -> frozenset[str]:
        return frozenset(self.facts.reads)

    def writes(self) -> Mapping[str, Part]:
        return self.facts.writes

    @property
    def heeds_decay(self) -> bool:
        return True

    def initial(self) -> JsonState:
        return self.facts.initial

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        """The answer of its process. Waits for it, within the limits, unless `ask` has already fetched it."""
        return self.ask(state, observation).result()

    def ask(self, state: JsonState, observation: Observation) -> "Future[Answer]":
        return _child(self).decide(self.params, state, observation)


class Lasting(Sandboxed):
    """The same for one that outlasts a roll back."""

    lasting: ClassVar[bool] = True


Answer = tuple[JsonState, tuple[Proposal, ...]]


def sandboxed(run: str, name: str, code: Code, rule: int, params: Mapping[str, Any], facts: Facts) -> Sandboxed:
    return (Lasting if facts.lasting else Sandboxed)(
        run=run, name=name, code=code, number=rule, params=params, facts=facts
    )


# ---- many ----------------------------------------------------------------------------------------------------------

_children: dict[tuple[str, str], "Child"] = {}  # by run and policy
_descriptions: dict[str, Future[Description]] = {}


def _child(policy: Sandboxed) -> "Child":
    key = (policy.run, policy.name)
    child = _children.get(key)
    if child is None or (child.code, child.rule) != (policy.code, policy.number):
        if child is not None:
            child.close()
        child = _children[key] = Child(policy.code, policy.number)
    return child


def ask(questions: Iterable[tuple[Policy, JsonState, Observation]]) -> list[Future[Answer]]:
    """Put their questions to all third-party policies at once; `decide` then finds the answer."""
    return [policy.ask(state, shown) for policy, state, shown in questions if isinstance(policy, Sandboxed)]


def done(asked: Sequence[Future[Answer]], timeout_s: float = 0) -> bool:
    """Has every answer, or fault, come within `timeout_s`?"""
    return not wait_for(asked, timeout_s).not_done


def warm(policies: Iterable[Policy]) -> None:
    """Let the processes of these policies start, in the background."""
    for policy in policies:
        if isinstance(policy, Sandboxed):
            _child(policy).warm()


def retain(run: str, names: Collection[str]) -> None:
    """End the processes of the run's other policies."""
    for key in [key for key in _children if key[0] == run and key[1] not in names]:
        _children.pop(key).close()


def describe(code: Code, params: Mapping[str, Any]) -> Future[Description]:
    """Have a process load the class and try `params` on it."""
    key = _key(code, params)
    if key not in _descriptions:
        child = Child(code)
        future = child.describe(params)
        future.add_done_callback(lambda _: child.close())
        while len(_descriptions) >= KEPT:
            del _descriptions[next(iter(_descriptions))]
        _descriptions[key] = future
    return _descriptions[key]


def described(code: Code, params: Mapping[str, Any]) -> Description:
    """The same, waited for. Raises Fault; a fault is not remembered, since another time it may go well."""
    try:
        return describe(code, params).result()
    except Fault:
        _descriptions.pop(_key(code, params), None)
        raise


def _key(code: Code, params: Mapping[str, Any]) -> str:
    return json.dumps([asdict(code), params], sort_keys=True)


# ---- one -----------------------------------------------------------------------------------------------------------


class Child:
    """A process that holds one class of policies, and the thread that speaks with it."""

    def __init__(self, code: Code, rule: int | None = None) -> None:
        self.code = code
        self.rule = rule
        # The thread lasts as long as the process: with the thread that started it a process gets its death signal.
        self._thread = ThreadPoolExecutor(1, "trimtab-policy")
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._count = 0
        self._printed = b""
        self._last: tuple[Mapping[str, Any], JsonState, Observation, Future[Answer]] | None = None

    def describe(self, params: Mapping[str, Any]) -> Future[Description]:
        return self._thread.submit(self._described, params)

    def decide(self, params: Mapping[str, Any], state: JsonState, observation: Observation) -> Future[Answer]:
        if self._last is not None:
            *asked, future = self._last
            if asked == [params, state, observation]:
                return future
        future = self._thread.submit(self._decided, params, state, observation)
        self._last = (params, state, observation, future)
        return future

    def warm(self) -> None:
        self._thread.submit(self._guarded, lambda: None)

    def close(self) -> None:
        """End the process now; its thread, which may be reading from it, clears up."""
        if not self._closed:
            self._closed = True
            if self._process is not None:
                _end(self._process)
            self._thread.submit(self._kill)
            self._thread.shutdown(wait=False)

    # ---- in the thread ---------------------------------------------------------------------------------------------

    def _described(self, params: Mapping[str, Any]) -> Description:
        return self._guarded(lambda: _valid(_DESCRIPTION, self._ask("describe", LIMITS.start_s, params=params)))

    def _decided(self, params: Mapping[str, Any], state: JsonState, observation: Observation) -> Answer:
        def decide() -> Answer:
            seen = OBSERVATION.dump_python(observation, mode="json")
            said = self._ask("decide", LIMITS.answer_s, params=dict(params), state=dict(state), observation=seen)
            if not isinstance(said["state"], dict):
                raise Fault(f"a state must be a mapping, got {said['state']!r:.100}")
            return said["state"], _valid(PROPOSALS, said["proposals"])

        return self._guarded(decide)

    def _guarded(self, exchange: Callable[[], T]) -> T:
        """Whatever goes wrong ends the process and becomes a Fault."""
        try:
            if self._closed:
                raise Fault("its process was closed")
            if self._process is None:
                self._start()
            return exchange()
        except Fault:
            self._kill()
            raise
        except Exception as error:
            self._kill()
            raise Fault(f"{type(error).__name__}: {error}") from error

    def _start(self) -> None:
        command = [sys.executable, "-m", "trimtab.controller.policies.child", str(os.getpid()), str(LIMITS.memory)]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process = subprocess.Popen(
            command, **pipes, bufsize=0, cwd="/", env=_environment(), start_new_session=True
        )
        self._printed = b""
        for pipe in _pipes(self._process):
            os.set_blocking(pipe.fileno(), False)
        if self._closed:  # meanwhile
            raise Fault("its process was closed")
        rule = self._ask("load", LIMITS.start_s, code=asdict(self.code))
        if self.rule is not None and rule != self.rule:
            raise Fault(f"its rule is number {rule} by now, it was put as number {self.rule}; put it anew")

    def _ask(self, what: str, within_s: float, **question: Any) -> Any:
        self._count += 1
        line = json.dumps({"n": self._count, "ask": what} | question, allow_nan=False)
        try:
            answer = json.loads(self._exchanged(line.encode() + b"\n", within_s), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Fault(f"its answer is no JSON: {error}") from error
        match answer:
            case {"n": self._count, "unusable": str(message)}:
                raise Unusable(message)
            case {"n": self._count, "error": str(message)}:
                raise Fault(message)
            case {"n": self._count, "answer": said}:
                return said
        raise Fault("its answer is to no question")

    def _exchanged(self, unsent: bytes, within_s: float) -> bytes:
        """Send a line and receive one; what is printed meanwhile is read, so that nobody waits for it, and dropped."""
        if (process := self._process) is None:
            raise Fault("its process was closed")
        stdin, stdout, stderr = _pipes(process)
        said = b""
        until = time.monotonic() + within_s
        with selectors.DefaultSelector() as ready:
            ready.register(stdin, selectors.EVENT_WRITE)
            ready.register(stdout, selectors.EVENT_READ)
            ready.register(stderr, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                events = ready.select(max(0.0, until - time.monotonic()))
                late = time.monotonic() > until
                if not events or (late and all(key.fileobj is not stdout for key, _ in events)):
                    raise Fault(f"no answer within {within_s:g} s")
                for key, _ in events:
                    if key.fileobj is stdin:
                        with suppress(BrokenPipeError):  # its death is told below
                            unsent = unsent[os.write(key.fd, unsent) :]
                        if not unsent:
                            ready.unregister(stdin)
                        continue
                    got = os.read(key.fd, 2**16)
                    if key.fileobj is stderr:
                        self._printed = (self._printed + got)[-TAIL:]
                        if not got:
                            ready.unregister(stderr)
                    elif not got:
                        raise Fault(self._death(process))
                    else:
                        said += got
                if len(said) > LONGEST:
                    raise Fault(f"its answer is longer than {LONGEST:,} bytes")
        return said

    def _death(self, process: subprocess.Popen[bytes]) -> str:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        with suppress(OSError):
            self._printed = (self._printed + (_pipes(process)[2].read() or b""))[-TAIL:]
        code = process.returncode
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        printed = self._printed.decode(errors="replace").strip()
        return f"its process ended {how}" + (f": {printed}" if printed else "")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _end(process)
        process.wait()
        for pipe in _pipes(process):
            pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and what it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[Any, Any, Any]:
    return process.stdin, process.stdout, process.stderr


def _environment() -> dict[str, str]:
    """What imports need, nothing else of what the controller was told; one thread, sets in the same order always."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return inherited | threads | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}


def _valid(adapter: TypeAdapter[T], said: Any) -> T:
    """`said` as the journal would give it back."""
    try:
        return adapter.validate_json(json.dumps(said, allow_nan=False))
    except ValidationError as error:
        first = error.errors()[0]
        raise Fault(f"its answer is none: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
