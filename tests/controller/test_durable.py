from pathlib import Path

import pytest

from trimtab.controller import durable


def test_a_private_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    home, other = tmp_path / "above" / "home", tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        durable.make(home)
        (home / "kept").touch()
    assert home.stat().st_mode & 0o777 == 0o700
    assert home.parent.stat().st_mode == other.stat().st_mode


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(FileExistsError, match="home"):
        durable.make(tmp_path / "home")
