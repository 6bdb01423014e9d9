"""A third-party policy as Trimtab knows it without running it: where its code is, and what it says of itself."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trimtab.controller.observation import Observation, Proposal
from trimtab.controller.policies.policy import Part

__all__ = ["OBSERVATION", "PROPOSALS", "About", "Code", "Description", "Facts"]

LARGEST = 2**18  # bytes of a policy's source
PROPOSALS: TypeAdapter[tuple[Proposal, ...]] = TypeAdapter(tuple[Proposal, ...])
OBSERVATION: TypeAdapter[Observation] = TypeAdapter(Observation)


@dataclass(frozen=True, slots=True)
class Code:
    """A class of policies: that of an entry point, or one in the text of a file that was given with a job."""

    name: str  # `module:Class` of an entry point, or the class in `text`
    file: str = ""  # as its user calls it; "": an entry point
    text: str = ""

    @classmethod
    def read(cls, file: str, name: str) -> "Code":
        """The class `name` in a file of this machine. Raises ValueError with what is wrong."""
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no policy file {path.absolute()}")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{file} is larger than {LARGEST:,} bytes; a policy is one small file")
        try:
            return cls(name, path.name, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class About:
    """What a class says of itself."""

    kind: str
    title: str
    doc: str
    rule: int
    source: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a configured policy says of itself."""

    reads: tuple[str, ...]
    writes: Mapping[str, Part]
    initial: Mapping[str, Any]
    lasting: bool = False  # see Policy.lasting


@dataclass(frozen=True, slots=True)
class Description:
    """A class, and what became of one choice of its parameters: all of them with `facts`, or what is `invalid`."""

    about: About
    params: Mapping[str, Any]
    facts: Facts | None
    invalid: Mapping[str, str]  # parameter -> what is wrong with it
