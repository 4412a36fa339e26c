"""The command line: light to start, every verb told in one line, mistakes in one sentence with exit code 2."""

import errno
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_yaml, run
from rich.text import Text
from typer.main import get_command

from noisebox.cli import told
from noisebox.cli.app import PANELS, app, logged

pytest_plugins = ("reported_fixtures",)


def test_help_lists_every_verb_in_one_line_under_what_it_is_for(project: Path) -> None:
    verbs = [verb for panel in PANELS.values() for verb in panel]
    assert sorted(verbs) == sorted(vars(get_command(app))["commands"])
    shown = run(project, "noisebox", "--help").stdout.splitlines()
    headings = [line.strip("╭─╮ ") for line in shown if line.startswith("╭")]
    assert headings == ["Options", *PANELS]
    for verb in verbs:
        described = [line for line in shown if line.split()[1:2] == [verb]]
        assert len(described) == 1, verb
        following = shown[shown.index(described[0]) + 1]
        assert not following.startswith("│   "), f"{verb} takes more than a line"


def test_help_loses_no_words_as_markup() -> None:
    for name, verb in vars(get_command(app))["commands"].items():
        for option in verb.params:
            words = getattr(option, "help", None) or ""
            assert Text.from_markup(words).plain == words.replace("\\[", "["), (name, option.name)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['noisebox', '--help']\n"
        "from noisebox.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'dvc', 'snakemake', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("ends", "code"), [("sys.exit()", 0), ("sys.exit(130)", 130), ("sys.exit('why')", 1), ("1 / 0", 1)]
)
def test_a_process_ends_with_its_code_and_nothing_lost(ends: str, code: int) -> None:
    """What waits in a pipe's buffer, and what others have put off to the end, come before it."""
    ended = (
        "import atexit, sys, noisebox.cli\n"
        "from noisebox.__main__ import program\n"
        f"def main(): atexit.register(print, 'put off'); print('said'); {ends}\n"
        "noisebox.cli.main = main\n"
        "program()"
    )
    done = subprocess.run([sys.executable, "-c", ended], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "said\nput off\n")
    assert ("why" in done.stderr, "Traceback" in done.stderr) == ("why" in ends, "/" in ends)


def test_mistakes_are_one_sentence_and_exit_2(project: Path) -> None:
    for command, sentence in {
        ("train", "nope"): "recipe 'nope' is missing",
        ("train", "Base line"): "is no lineage",
        ("smoke", "nope"): "recipe 'nope' is missing",
        ("smoke", "baseline+finetune"): "takes one recipe, such as finetune, not a lineage",
        ("overfit", "baseline+finetune"): "takes one recipe, such as finetune, not a lineage",
        ("smoke", "../../notes"): "'../../notes' is no name",
        ("train", "+".join(["finetune"] * 40)): "File name too long",
        ("bench", "5"): "'5' is one word too many",
        (
            "train",
            "baseline",
            "--iters",
            "2",
            "--set",
            "solver.max_iter=3",
        ): "override 'solver.max_iter' is given twice",
        ("train", "baseline", "--set", "dataset=[a]"): "override 'dataset' must be a name, not ['a']",
        ("train", "baseline", "--epochs", "inf"): "override 'solver.epochs': input should be a finite number",
        (
            "train",
            "baseline",
            "--set",
            "threads=100000",
        ): "override 'threads': input should be less than or equal to 1024",
        ("evaluate", "baseline"): "noisebox train baseline --seed 0",
        ("evaluate", "nope"): "recipe 'nope' is missing",
        ("report",): "noisebox evaluate baseline --seed 0",
        ("bench", "--precision", "fp16"): "fp16",
        ("train", "baseline", "--scale", ""): "--scale '' names nothing; give a name, or leave the option out",
        ("evaluate", "baseline", "--dataset", ""): "--dataset '' names nothing",
        ("data", "--dataset", ""): "--dataset '' names nothing",
        ("data", "arial"): "'arial' is no line of research; did you mean 'aerial'?",
    }.items():
        done = run(project, "noisebox", *command, check=False)
        assert done.returncode == 2, (command, done.stderr)
        assert sentence in done.stderr, (command, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, (command, done.stderr)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--bogus"], "No such option: --bogus"),
        (["nope"], "No such command 'nope'"),
        (["train", "baseline", "--seed", "x"], "Invalid value for '--seed'"),
    ],
)
def test_of_launched_processes_the_first_tells_a_mistake_of_the_words(words: list[str], sentence: str) -> None:
    said = []
    for rank in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "noisebox", *words],
            env={**os.environ, "RANK": rank, "WORLD_SIZE": "2"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stdout == ""
        said.append(done.stderr)
    assert said[0].startswith(f"noisebox: {sentence}") and said[1] == ""


@pytest.mark.parametrize("verb", ["sync", "merge", "record", "prune", "code"])
def test_between_the_engines_nothing_is_done_beside_the_project(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, told = command_line(verb, *(["some"] if verb == "record" else []))
    assert code == 2 and "there is no params/experiment.yaml here: run this in the folder that" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", ["", "runs", "[1]", '{"made": 3}', '{"done": []}'])
def test_record_is_told_what_was_made_or_says_so(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params/experiment.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    code, _, told = command_line("record")
    assert code == 2 and "run snakemake, which records by itself, or name the outputs" in told


@pytest.mark.parametrize(
    "make",
    [lambda: torch.empty(10**15), lambda: np.empty(10**17), lambda: (_ for _ in ()).throw(torch.OutOfMemoryError())],
)
def test_what_no_memory_is_large_enough_for_is_one_sentence(
    make: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, told():
        make()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith("noisebox: this does not fit the memory: ") and "lower the batch size" in said
    with pytest.raises(RuntimeError, match="a bug"), told():
        raise RuntimeError("a bug")


def test_a_file_that_may_not_be_used_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a run that prune cannot delete."""
    with pytest.raises(SystemExit) as end, told():
        raise OSError(errno.EROFS, "Read-only file system", "runs/baseline/seed0/last.pth")
    assert end.value.code == 2
    said = "runs/baseline/seed0/last.pth cannot be used (Read-only file system); mend that and run again"
    assert capsys.readouterr().err == f"noisebox: {said}\n"
    with pytest.raises(FileNotFoundError), told():
        Path("nowhere").read_text()


def test_nothing_starts_on_a_bad_configuration(project: Path) -> None:
    edit_yaml(project / "params/scales/test.yaml", solver__max_itr=3)
    done = run(project, "noisebox", "train", "baseline", check=False)
    assert done.returncode == 2
    assert "params/scales/test.yaml: key 'solver.max_itr' does not exist; did you mean 'max_iter'?" in done.stderr
    assert not (project / "runs").exists()


def test_a_log_is_begun_anew_but_not_while_another_process_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log, refused = logging.getLogger("noisebox"), "is being trained by another process"
    code = (
        "from noisebox.cli.app import logged\nfrom noisebox.errors import UserError\n"
        f"with logged('train', 'baseline', 'seed0'): raise UserError({refused!r})"
    )
    for began in ("yesterday", "today"):
        with logged("train", "baseline", "seed0"):
            log.info("%s: going on", began)
            second = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            assert second.returncode == 1
            log.info("%s: done", began)
        lines = (tmp_path / "logs/train/baseline/seed0.log").read_text().splitlines()
        said = [line.split(maxsplit=2)[2] for line in lines]
        assert said == [f"{began}: going on", refused, f"{began}: done"]
