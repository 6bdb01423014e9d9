"""The inside of the process that a third-party policy runs in: a question a line, an answer a line, both JSON.

`sandbox` starts it. Whatever the policy's code prints goes to stderr; the answers have a descriptor of their own.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from io import TextIOWrapper
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from trimtab.controller.policies.code import OBSERVATION, PROPOSALS, Code
from trimtab.controller.policies.contract import check_description
from trimtab.controller.policies.policy import Policy

TOLD = 1000  # characters of an exception
CPU_S = 30  # for one question; what a controller that is gone can no longer end, ends by itself
MODULE = "trimtab_given_policy"  # what a file's text becomes
PR_SET_PDEATHSIG = 1


class Unusable(Exception):
    """The code holds no policy; the message says why, to the one who wrote it."""


def main(arguments: Sequence[str]) -> None:
    parent, memory = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    serve(questions, answers)


def serve(questions: TextIOWrapper, answers: TextIOWrapper) -> None:
    host = Host()
    for line in questions:
        question = json.loads(line)
        spent = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_S, resource.RLIM_INFINITY))
        try:
            text = json.dumps({"n": question["n"], "answer": host.answer(question)}, allow_nan=False)
        except Unusable as error:
            text = json.dumps({"n": question["n"], "unusable": str(error)})
        except BaseException as error:  # somebody's code: SystemExit and all
            text = json.dumps({"n": question["n"], "error": told(error)})
        answers.write(text + "\n")
        answers.flush()


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:TOLD]


class Host:
    """Holds one class of policies and answers for it."""

    def __init__(self) -> None:
        self._cls: type[Policy] | None = None
        self._params: Mapping[str, Any] = {}
        self._policy: Policy | None = None

    def answer(self, question: Mapping[str, Any]) -> Any:
        match question["ask"]:
            case "load":
                self._cls = load(Code(**question["code"]))
                return self._cls.rule
            case "describe":
                return self._describe(question["params"])
            case _:
                return self._decide(question)

    def _describe(self, params: Mapping[str, Any]) -> Any:
        cls = self._loaded
        doc, schema = cls.__doc__ or "", cls.model_json_schema()
        about = {"kind": cls.kind, "title": cls.__name__, "doc": doc, "rule": cls.rule, "source": cls.source}
        answer = {"about": about | {"schema": schema}, "params": {}, "facts": None, "invalid": {}}
        try:
            policy = cls.model_validate(params)
        except ValidationError as error:
            return answer | {"invalid": {".".join(map(str, e["loc"])): e["msg"] for e in error.errors()}}
        facts = {
            "reads": sorted(policy.reads()),
            "writes": dict(policy.writes()),
            "initial": policy.initial(),
            "lasting": cls.lasting,
        }
        return answer | {"params": policy.model_dump(mode="json"), "facts": facts}

    def _decide(self, question: Mapping[str, Any]) -> Any:
        if self._policy is None or self._params != question["params"]:
            self._policy, self._params = self._loaded.model_validate(question["params"]), question["params"]
        observation = OBSERVATION.validate_json(json.dumps(question["observation"]))
        state, proposals = self._policy.decide(question["state"], observation)
        return {"state": state, "proposals": PROPOSALS.dump_python(tuple(proposals), mode="json", warnings=False)}

    @property
    def _loaded(self) -> type[Policy]:
        if self._cls is None:
            raise Unusable("no policy was loaded")
        return self._cls


def load(code: Code) -> type[Policy]:
    """The class of policies that `code` names. Raises Unusable unless it can be installed."""
    where = code.file or code.name
    try:
        found = _of_text(code) if code.file else EntryPoint(code.name, code.name, "trimtab.policies").load()
    except SyntaxError as error:
        raise Unusable(f"{where}, line {error.lineno}: {error.msg}") from error
    except Unusable:
        raise
    except BaseException as error:
        raise Unusable(f"{where}{_line(error, code)}: {told(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise Unusable(f"{code.name} in {where} is no subclass of trimtab.controller.policies.Policy")
    try:
        check_description(found)
    except AssertionError as error:
        raise Unusable(f"{where}: {error}") from error
    return found


def _of_text(code: Code) -> Any:
    module = sys.modules[MODULE] = ModuleType(MODULE)
    exec(compile(code.text, code.file, "exec"), vars(module))
    if code.name not in vars(module):
        own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == MODULE]
        raise Unusable(f"{code.file} has no class {code.name!r}" + (f"; there are {', '.join(own)}" if own else ""))
    return vars(module)[code.name]


def _line(error: BaseException, code: Code) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == code.file]
    return f", line {lines[-1]}" if code.file and lines else ""


if __name__ == "__main__":
    main(sys.argv[1:])
