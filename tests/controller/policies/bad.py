"""Ten bad policies, given with a job as a user's file would be. None may harm anybody; see test_third_party.py."""
# ruff: noqa: ARG002

import json
import math
import os
import sys
import time
from contextlib import suppress
from typing import ClassVar

from trimtab.controller.observation import Command, Notice, Scale, Set
from trimtab.controller.policies import Policy
from trimtab.controller.trajectory import Constant, Ramp


class Bad(Policy):
    """Behaves, until it is asked for the third time."""

    kind: ClassVar[str] = "bad"
    source: ClassVar[str] = "none: a test"

    def reads(self):
        return frozenset({"loss"})

    def writes(self):
        return {"knob": "base"}

    def initial(self):
        return {"asked": 0}

    def decide(self, state, observation):
        asked = state["asked"] + 1
        return ({"asked": asked}, ()) if asked < 3 else self.misbehave(asked, observation)


class Raises(Bad):
    """Raises an exception whose text cannot be stored."""

    kind: ClassVar[str] = "raises"

    def misbehave(self, asked, observation):
        raise ValueError("\ud800" * 5000)


class Hangs(Bad):
    """Loops for ever, deaf to most signals."""

    kind: ClassVar[str] = "hangs"

    def misbehave(self, asked, observation):
        while True:
            with suppress(BaseException):
                time.sleep(0.01)


class Hoards(Bad):
    """Eats memory."""

    kind: ClassVar[str] = "hoards"

    def misbehave(self, asked, observation):
        kept = []
        while True:
            kept.append(bytearray(2**26))


class Leaves(Bad):
    """Ends its process."""

    kind: ClassVar[str] = "leaves"

    def misbehave(self, asked, observation):
        os._exit(3) if asked % 2 else sys.exit("enough")


class Rubbish(Bad):
    """Answers what is no answer."""

    kind: ClassVar[str] = "rubbish"

    def misbehave(self, asked, observation):
        return {"asked": asked}, [{"action": "set", "param": 3}, object()]


class NotFinite(Bad):
    """Proposes and remembers what is no number, past all checks."""

    kind: ClassVar[str] = "not_finite"

    def misbehave(self, asked, observation):
        constant = Constant(1.0)
        object.__setattr__(constant, "value", math.nan)
        return {"asked": asked, "best": math.inf}, [Set("knob", constant, "why")]


class Floods(Bad):
    """Proposes without end, and remembers all."""

    kind: ClassVar[str] = "floods"

    def misbehave(self, asked, observation):
        many = [Set("knob", Constant(float(i)), "why") for i in range(5000)]
        return {"asked": asked, "all": list(range(100_000))}, many


class Prints(Bad):
    """Writes everywhere: on stdout, on stderr, and over the answers."""

    kind: ClassVar[str] = "prints"

    def misbehave(self, asked, observation):
        for _ in range(200):
            print("x" * 10_000)
            print("y" * 10_000, file=sys.stderr)
        answer = {"n": asked + 1, "answer": {"state": {"asked": 0}, "proposals": []}}
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, json.dumps(answer).encode() + b"\n{\n")
            except OSError:
                continue
        return {"asked": asked}, ()


class Oscillates(Bad):
    """Turns its knob up and down at every tick."""

    kind: ClassVar[str] = "oscillates"

    def misbehave(self, asked, observation):
        to = Constant(2.0 + asked % 2)
        return {"asked": asked}, [Set("knob", to, "up and down")]


class Trespasses(Bad):
    """Reaches for all that is not its own, and asks for a checkpoint every time."""

    kind: ClassVar[str] = "trespasses"

    def misbehave(self, asked, observation):
        now = observation.progress.samples
        return {"asked": asked}, [
            Set("lr", Constant(1e308), "mine"),
            Scale("lr", Ramp(1.0, 1e300, now, now + 1), "mine"),
            Set("batch_size", Constant("many"), "mine"),
            Scale("nowhere", Constant(2.0), "mine"),
            Scale("knob", Constant(0.0), "mine"),
            Set("knob", Constant("word"), "mine"),
            Command("checkpoint", "again"),
            Notice("look at me"),
        ]


KINDS = (Raises, Hangs, Hoards, Leaves, Rubbish, NotFinite, Floods, Prints, Oscillates, Trespasses)
