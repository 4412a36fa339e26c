"""`noisebox prune`: only what DVC really holds is deleted, and DVC brings it back without a training."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from noisebox.errors import UserError
from noisebox.prune import CACHED, LEFTOVER, SECOND_NAMES, SHARED, UNNAMED, plan_of, remove, size_in_words

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
CONFIG = "[core]\nanalytics = false\nno_scm = true\n"
NAMES = ("best.pth", "last.pth", "model_final.pth")
TRAIN = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for size, name in enumerate(("best.pth", "last.pth", "model_final.pth"), start=1):
    (folder / name).write_bytes(f"{folder} {name} ".encode() * 1000 * size)
with Path("trained.txt").open("a") as said:
    said.write(f"{folder}\\n")
"""


def pipeline(seeds: list[int]) -> str:
    outs = [f"runs/baseline/seed${{item.seed}}/{name}" for name in NAMES]
    command = f"{sys.executable} train.py runs/baseline/seed${{item.seed}}"
    return yaml.safe_dump(
        {"stages": {"train": {"matrix": {"seed": seeds}, "cmd": command, "deps": ["train.py"], "outs": outs}}}
    )


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds 0 and 1 of `baseline`, made by DVC and pushed to a remote, the folder `remote`."""
    root = tmp_path_factory.mktemp("prune") / "project"
    root.mkdir()
    (root / "train.py").write_text(TRAIN)
    (root / "dvc.yaml").write_text(pipeline([0, 1]))
    (root / "params").mkdir()
    (root / "params/experiment.yaml").write_text("scale: test\n")
    Repo.init(str(root), no_scm=True).close()
    (root / ".dvc/config").write_text(CONFIG + "remote = shared\n['remote \"shared\"']\nurl = ../remote\n")
    with in_dvc(root) as repo:
        repo.reproduce()
        repo.push()
    return root


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shutil.copytree(trained_once, tmp_path / "project")
    monkeypatch.chdir(root)
    return root


class in_dvc:
    """A DVC repository, with the working directory in it, since its stages run there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Repo:
        self.before = Path.cwd()
        os.chdir(self.root)
        self.repo = Repo(str(self.root))
        return self.repo

    def __exit__(self, *_: object) -> None:
        self.repo.close()
        os.chdir(self.before)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "runs").rglob("*") if path.is_file()
    }


def going_on(*seeds: int) -> set[str]:
    return {f"runs/baseline/seed{seed}/{name}" for seed in seeds for name in ("best.pth", "last.pth")}


def planned(root: Path) -> dict[str, str]:
    return {item.path.relative_to(root).as_posix(): item.why for item in plan_of(root).items}


def cache_file(root: Path, path: str) -> Path:
    """Where DVC keeps a file's content, found by comparing all of it."""
    content = (root / path).read_bytes()
    (found,) = (
        each for each in (root / ".dvc/cache/files").rglob("*") if each.is_file() and each.read_bytes() == content
    )
    return found


def test_what_goes_comes_back_without_a_training(trained: Path, command_line: CommandLine) -> None:
    before = contents(trained)
    code, said, _ = command_line("prune", "--yes")
    assert code == 0
    assert set(contents(trained)) == set(before) - going_on(0, 1)
    assert {line.split("  ")[-1] for line in said.splitlines()} == {f"{path} ({CACHED})" for path in going_on(0, 1)}
    assert command_line("prune", "--yes")[1] == "nothing to prune\n"
    with in_dvc(trained) as repo:
        assert set(repo.status()) == {"train@0", "train@1"}
        repo.checkout()
        assert repo.status() == {}
    assert contents(trained) == before
    command_line("prune", "--yes")
    with in_dvc(trained) as repo:
        repo.reproduce()
    assert contents(trained) == before
    assert len((trained / "trained.txt").read_text().splitlines()) == 2


def test_checkpoints_of_epochs_stay_until_dvc_holds_them(trained: Path) -> None:
    """No stage declares them, so only who adds them to DVC can have them back."""
    kept = trained / "runs/baseline/seed0/checkpoint_epoch_4.pth"
    kept.write_bytes(b"weights of epoch 4")
    assert kept.relative_to(trained).as_posix() not in planned(trained)
    assert f"{kept.relative_to(Path.cwd())}: DVC does not hold its bytes" in plan_of(Path()).kept
    with in_dvc(trained) as repo:
        repo.add(str(kept))
    kept.unlink()
    kept.write_bytes(b"weights of epoch 4")
    assert planned(trained)[kept.relative_to(trained).as_posix()] == UNNAMED


def test_it_asks_and_says_how_much(trained: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = sum(len(content) for path, content in contents(trained).items() if path in going_on(0, 1))
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda question: bool(asked.append(question)))
    code, said, _ = command_line("prune")
    assert (code, asked) == (0, [f"Delete these 4, and free {freed / 1000:.1f} kB?"])
    assert going_on(0, 1) <= set(contents(trained))
    sizes = [float(line.split()[0]) for line in said.splitlines()]
    assert sum(sizes) == pytest.approx(freed / 1000, abs=0.2)
    monkeypatch.setattr("typer.confirm", lambda question: True)
    command_line("prune")
    assert not going_on(0, 1) & set(contents(trained))


# Only what DVC holds


def test_what_is_in_neither_cache_nor_remote_stays(trained: Path) -> None:
    path = trained / "runs/baseline/seed0/last.pth"
    path.write_bytes(b"trained on")
    plan = plan_of(trained)
    assert {str(item.path.relative_to(trained)) for item in plan.items} == going_on(0, 1) - {
        "runs/baseline/seed0/last.pth"
    }
    assert plan.kept == [f"{path}: DVC does not hold its bytes"]


def test_a_damaged_cache_holds_nothing(trained: Path) -> None:
    path = "runs/baseline/seed1/best.pth"
    cached = cache_file(trained, path)
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-1] + b"?")
    assert set(planned(trained)) == going_on(0, 1), "the remote has it"
    shutil.rmtree(trained / "remote")
    assert set(planned(trained)) == going_on(0, 1) - {path}


def test_a_remote_is_enough(trained: Path) -> None:
    shutil.rmtree(trained / ".dvc/cache")
    before = contents(trained)
    assert planned(trained) == dict.fromkeys(going_on(0, 1), SHARED)
    assert list(remove(plan_of(trained))) == []
    with in_dvc(trained) as repo:
        repo.pull()
    assert contents(trained) == before


def test_a_remote_that_cannot_be_asked_holds_nothing(trained: Path) -> None:
    shutil.rmtree(trained / ".dvc/cache")
    (trained / ".dvc/config").write_text(CONFIG + "['remote \"far\"']\nurl = hdfs://nowhere\n")
    plan = plan_of(trained)
    assert plan.items == [] and len(plan.kept) == 5
    assert plan.kept[-1].startswith("remote 'far' could not be asked: ")


def test_a_link_to_the_cache_is_left(trained: Path) -> None:
    path = "runs/baseline/seed0/best.pth"
    cached = cache_file(trained, path)
    (trained / path).unlink()
    os.link(cached, trained / path)
    assert path not in planned(trained)
    (trained / path).unlink()
    (trained / path).symlink_to(cached)
    assert path not in planned(trained)


def test_what_nobody_names_any_more_goes_if_the_cache_has_it(trained: Path) -> None:
    (trained / "dvc.yaml").write_text(pipeline([0]))
    alone = trained / "runs/other/seed3"
    alone.mkdir(parents=True)
    for name in NAMES:
        (alone / name).write_bytes(b"never seen by DVC")
    expected = dict.fromkeys(going_on(0), CACHED) | dict.fromkeys(going_on(1), UNNAMED)
    assert planned(trained) == expected
    assert plan_of(trained).kept == [
        f"{alone / name}: DVC does not hold its bytes" for name in ("last.pth", "best.pth")
    ]


# Only of finished runs


def test_an_unfinished_run_is_left(trained: Path) -> None:
    (trained / "runs/baseline/seed0/model_final.pth").unlink()
    assert set(planned(trained)) == going_on(1)


def test_a_training_that_can_go_on_is_left(trained: Path) -> None:
    work = trained / "runs/baseline/seed0/work"
    work.mkdir()
    (work / "last.pth").write_bytes(b"halfway")
    plan = plan_of(trained)
    assert {str(item.path.relative_to(trained)) for item in plan.items} == going_on(1)
    assert plan.kept == [f"{work.parent}: a training is under way or can go on from work/"]


HOLD = """
import sys
from pathlib import Path
from noisebox.training.folder import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def training(trained: Path) -> Iterator[Path]:
    """A run that another process has claimed, with nothing in its `work/` yet."""
    folder = trained / "runs/baseline/seed0"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "claimed\n"
    yield folder
    holder.communicate("")


def test_a_run_in_training_is_left(training: Path, trained: Path) -> None:
    assert set(planned(trained)) == going_on(1)


def test_what_killed_processes_left_goes(trained: Path) -> None:
    """A `work/` that was published whole, hard links and all, and the rest of a cut-off write."""
    folder = trained / "runs/baseline/seed0"
    (folder / "work").mkdir()
    (folder / "work/lock").write_text("1234")
    for name in NAMES:
        os.link(folder / name, folder / "work" / name)
    (folder / ".writing-abc").mkdir()
    (folder / ".writing-abc/last.pth").write_bytes(b"x" * 500)
    plan = plan_of(trained)
    leftovers = {item.path.name for item in plan.items if item.why == LEFTOVER}
    assert leftovers == {"work", ".writing-abc"}
    sizes = {path: len(content) for path, content in contents(trained).items()}
    assert plan.size == sum(sizes[path] for path in going_on(0, 1)) + 500 + 4, "model_final.pth keeps its bytes"
    assert list(remove(plan)) == []
    assert [path.name for path in folder.iterdir()] == ["model_final.pth"]


def test_second_names_of_a_finished_run_go_with_it(trained: Path) -> None:
    """Or deleting last.pth would free nothing."""
    folder = trained / "runs/baseline/seed0"
    (folder / ".finished").mkdir()
    for name in NAMES:
        os.link(folder / name, folder / ".finished" / name)
    sizes = {path: len(content) for path, content in contents(trained).items()}
    plan = plan_of(trained)
    assert [item.path.name for item in plan.items if item.why == SECOND_NAMES] == [".finished"]
    assert plan.size == sum(sizes[path] for path in going_on(0, 1))
    assert list(remove(plan)) == []
    assert [path.name for path in folder.iterdir()] == ["model_final.pth"]


def test_second_names_of_what_is_missing_stay(trained: Path) -> None:
    folder = trained / "runs/baseline/seed0"
    (folder / ".finished").mkdir()
    (folder / "last.pth").rename(folder / ".finished/last.pth")
    assert set(planned(trained)) == going_on(1)
    assert plan_of(trained).kept == [f"{folder}: some of its files are in .finished/ alone"]


def test_what_changed_since_it_was_looked_at_stays(trained: Path) -> None:
    plan = plan_of(trained)
    path = trained / "runs/baseline/seed1/last.pth"
    path.write_bytes(b"trained anew")
    assert list(remove(plan)) == [f"{path} has changed meanwhile and stays"]
    assert path.read_bytes() == b"trained anew"
    assert not going_on(0) & set(contents(trained))


def test_what_is_anothers_stays(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several users share: a claim that cannot be asked, and a file that cannot be deleted."""
    lock, last = trained / "runs/baseline/seed0/work/lock", trained / "runs/baseline/seed1/last.pth"
    lock.parent.mkdir()
    lock.touch()

    def denied(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *more: Any, **named: Any) -> Any:
            if path in (lock, last):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *more, **named)

        return called

    monkeypatch.setattr(os, "open", denied(os.open))
    monkeypatch.setattr(Path, "unlink", denied(Path.unlink))
    plan = plan_of(trained)
    assert plan.kept == [f"{lock.parent.parent}: a training is under way or can go on from work/"]
    assert list(remove(plan)) == [f"{last} cannot be deleted (Permission denied) and stays"]
    assert last.exists() and not (going_on(1) - {"runs/baseline/seed1/last.pth"}) & set(contents(trained))


def test_without_dvc_nothing_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no DVC repository here, so nothing could be had back"):
        plan_of(tmp_path)


def test_a_broken_pipeline_is_told(trained: Path) -> None:
    (trained / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"DVC cannot read this repository: .*dvc\.yaml"):
        plan_of(trained)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_300_000_000, "1.3 GB"), (5 * 10**15, "5000.0 TB")],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size_in_words(count) == words
