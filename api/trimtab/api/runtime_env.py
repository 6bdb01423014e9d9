"""What a client may ask of a job's environment: fields and remote places that are named here, and nothing else.

Code comes by a URI that a cluster fetches, never from a path: what lies on a cluster's nodes is nobody's to name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

SCHEMES = ("gcs", "https", "s3", "gs", "azure", "abfss")  # gcs: uploaded to the cluster itself, by Ray's client
FIELDS = ("working_dir", "py_modules", "excludes", "env_vars", "pip", "uv", "conda", "config")
CONFIG = ("setup_timeout_seconds", "eager_install")
LARGEST = 2**18  # [bytes] of JSON
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(?=/)", re.IGNORECASE)
_LOCAL = re.compile(r"\s*(-|/|\.|~|.*[\\]|.*\.(txt|in|toml|ya?ml)\s*$)", re.IGNORECASE)


def check(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises ValueError with what to do instead."""
    if unknown := environment.keys() - set(FIELDS):
        raise ValueError(f"{', '.join(sorted(unknown))}: not taken from a client; there are {', '.join(FIELDS)}")
    if (size := len(to_json(environment))) > LARGEST:
        raise ValueError(f"has {size:,} bytes as JSON, at most {LARGEST:,} are taken")
    _check_variables(environment.get("env_vars") or {})
    for field in ("working_dir", "py_modules"):
        for uri in _texts(environment.get(field)):
            if not _SCHEME.match(uri):
                raise ValueError(f"{field}: {uri!r} is a path; `trimtab submit` and `ray job submit` upload it first")
    for field in ("pip", "uv", "conda"):
        given = environment.get(field)
        if isinstance(given, str) or any(_LOCAL.match(text) for text in _texts(given)):
            raise ValueError(f"{field}: name the packages themselves, not a file, a path or an option of the installer")
    for text in _texts({name: value for name, value in environment.items() if name != "env_vars"}):
        for scheme in _SCHEME.findall(text):
            if scheme.lower().removeprefix("git+") not in SCHEMES:
                raise ValueError(f"{text[:200]!r}: code is fetched by {', '.join(SCHEMES)} only, not by {scheme}")
    if others := (environment.get("config") or {}).keys() - set(CONFIG):
        raise ValueError(f"config: {', '.join(sorted(others))} are not taken from a client")
    return environment


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise ValueError("env_vars: must be an object of strings")


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, names included."""
    match value:
        case str():
            yield value
        case Mapping():
            for name, one in value.items():
                yield from _texts(name)
                yield from _texts(one)
        case Sequence():
            for one in value:
                yield from _texts(one)
