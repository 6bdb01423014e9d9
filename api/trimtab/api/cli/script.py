"""A training script, FILE[:FUNC], loaded so that its function can be sent to workers which lack the file."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from trimtab.api.cli.connection import CommandError

DEFAULT = "train"


def load(text: str) -> tuple[Path, Any]:
    """The script's path and its train function. Raises CommandError with what to do."""
    name, colon, function = text.rpartition(":")
    file, wanted = (name, function) if colon else (text, DEFAULT)
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise CommandError(f"there is no script {path}")
    module = _imported(path)
    found = getattr(module, wanted, None)
    if not callable(found):
        others = [name for name, value in vars(module).items() if callable(value) and _home(value) == module.__name__]
        there = f"; there are {', '.join(others)}: say {path.name}:NAME" if others else ""
        raise CommandError(f"{path.name} has no function {wanted!r}{there}")
    return path, found


def named(path: Path, text: str) -> str:
    """The script for good: its whole path, with the function's name if `text` has one."""
    return str(path.with_name(Path(text).name))


def _home(function: Any) -> str:
    """The module where a function was made; a Trainable's is that of what it wraps."""
    return str(getattr(getattr(function, "function", function), "__module__", ""))


def _imported(path: Path) -> ModuleType:
    import ray.cloudpickle

    sys.path.insert(0, str(path.parent))  # its neighbours, as with `python FILE`
    spec = importlib.util.spec_from_file_location(f"trimtab_script_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CommandError(f"{path.name} cannot be imported: {type(error).__name__}: {error}") from error
    ray.cloudpickle.register_pickle_by_value(module)
    return module
