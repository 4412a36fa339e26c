"""Files that are whole or absent: places that cannot be written are told, and never waited for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from noisebox.errors import UserError
from noisebox.files import atomic_folder, atomic_path, only_here, read_json, read_yaml, write_text


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


def test_a_folder_in_place_of_a_file_to_write_is_told_and_stays(tmp_path: Path) -> None:
    (tmp_path / "name/inner").mkdir(parents=True)
    with pytest.raises(UserError, match=r"name cannot be written .*; choose another place"):
        write_text(tmp_path / "name", "words")
    assert (tmp_path / "name/inner").is_dir() and [path.name for path in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("solver: {a: 1}\nmodel: {}\nsolver: {b: 2}\n", r"key 'solver' comes twice in .*line 3"),
        ("model: {width: 1, depth: 2, width: 3}\n", r"key 'width' comes twice in .*line 1"),
        ("x: " + "[" * 5000, "nested too deep"),
    ],
)
def test_what_yaml_would_take_without_a_word_is_told(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"some\.yaml is not valid YAML: .*{fault}"):
        read_yaml(tmp_path / "some.yaml")


def test_a_key_may_stand_over_one_that_is_merged_in(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\n")
    assert read_yaml(tmp_path / "some.yaml")["own"] == {"a": 1, "b": 3}


def test_what_is_merged_in_may_itself_be_merged(tmp_path: Path) -> None:
    text = "base: &base {a: 1}\nouter:\n  inner: &inner {<<: *base, a: 2}\nown: {<<: *inner}\n"
    (tmp_path / "some.yaml").write_text(text)
    assert read_yaml(tmp_path / "some.yaml")["own"] == {"a": 2}
