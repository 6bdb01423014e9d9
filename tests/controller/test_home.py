from pathlib import Path

import pytest

from trimtab.controller.home import home


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("TRIMTAB_HOME", "")
    assert home() == Path.home() / ".trimtab"
