"""Fixtures around the repository of reported_project.py, for the tests of what is done with results."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from reported_project import make_project, register

from noisebox import cli


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("reported") / "project")


@pytest.fixture
def reported(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository, with the family registered and the working directory there."""
    root = shutil.copytree(made_once, tmp_path / "project")
    register(monkeypatch.setitem)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["noisebox", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run
