"""Files that are whole or absent: places that cannot be written are told, and never waited for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from noisebox.errors import UserError
from noisebox.files import atomic_folder, atomic_path, only_here, read_json, read_yaml


@pytest.mark.parametrize("hold", [atomic_path, atomic_folder, lambda path: only_here(path, "it is being made")])
def test_a_place_below_a_file_is_told(tmp_path: Path, hold: Callable[[Path], AbstractContextManager[Any]]) -> None:
    (tmp_path / "plain").write_text("kept")
    with (
        pytest.raises(UserError, match=r"plain/folder cannot be made \(Not a directory"),
        hold(tmp_path / "plain/folder/name"),
    ):
        pass
    assert (tmp_path / "plain").read_text() == "kept"


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path, read: Callable[[Path], dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is a folder, not a file"):
        read(tmp_path)
