"""`noisebox merge`: what the engines wrote on two branches becomes one, and no entry claims what nobody made."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from noisebox.errors import UserError
from noisebox.merge import merge, three_way

ENTRIES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([{"md5": "1"}, {"md5": "2"}, {"md5": "3"}]))

# Writes its first argument from the others, and from the machine that it runs on, which no stage declares.
STAGE = """
import sys
from pathlib import Path
out, *inputs = map(Path, sys.argv[1:])
files = [file for path in inputs for file in ([path] if path.is_file() else sorted(path.rglob("*.tsv")))]
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("".join(file.read_text() for file in [Path("machine"), *files]))
"""
MODEL = "runs/baseline/model.pth"
PIPELINE = {
    "data": ("data/detection.json", ["scale"], []),
    "train": (MODEL, ["data/detection.json", "recipe"], []),
    "evaluate": ("evals/baseline/results.tsv", [MODEL], ["code"]),
    "report": ("reports/summary.md", ["evals"], []),
}


def pipeline(**more: tuple[str, list[str], list[str]]) -> str:
    """A dvc.yaml: of each stage what it writes, what it reads, and what it is declared to depend on besides."""
    stages = {
        name: {
            "cmd": f"{sys.executable} stage.py {out} {' '.join(read)}",
            "deps": [*read, *besides],
            "outs": [{out: {"cache": not out.startswith("reports/")}}],
        }
        for name, (out, read, besides) in {**PIPELINE, **more}.items()
    }
    return yaml.safe_dump({"stages": stages})


@contextmanager
def in_dvc(root: Path) -> Iterator[Repo]:
    """A DVC repository, with the working directory in it, since its stages run there."""
    before = Path.cwd()
    os.chdir(root)
    try:
        with Repo(str(root)) as repo:
            yield repo
    finally:
        os.chdir(before)


def make(root: Path, files: Mapping[str, str]) -> None:
    """Write files, make what depends on them, and commit."""
    for name, text in files.items():
        (root / name).write_text(text)
    with in_dvc(root) as repo:
        repo.commit("data.dvc", force=True)
        repo.reproduce(run_cache=False)
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "made")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline with the project's own names, made and committed."""
    root = tmp_path_factory.mktemp("merge") / "project"
    (root / "data/world").mkdir(parents=True)
    run(root, "git", "init", "-q", "-b", "ours")
    run(root, "git", "config", "user.email", "test@example.invalid")
    run(root, "git", "config", "user.name", "test")
    Repo.init(str(root)).close()
    shutil.copy(ROOT / ".gitattributes", root)
    (root / ".gitignore").write_text("/data/\n/runs/\n/evals/\n/machine\n")
    (root / "stage.py").write_text(STAGE)
    (root / "data.dvc").write_text("outs: [{path: data/world, hash: md5}]\n")
    inputs = ("scale", "recipe", "code", "machine", "data/world/image")
    make(root, {"dvc.yaml": pipeline(), **{name: f"{name}\n" for name in inputs}})
    return root


@pytest.fixture
def root(made_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_once, tmp_path / "project", symlinks=True)


def make_both(root: Path, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Make a branch with some files and another with others; the first is then checked out, with its data."""
    run(root, "git", "branch", "theirs")
    make(root, ours)
    run(root, "git", "checkout", "-q", "theirs")
    with in_dvc(root) as repo:
        repo.checkout(force=True)
    make(root, theirs)
    run(root, "git", "checkout", "-q", "ours")
    with in_dvc(root) as repo:
        repo.checkout(force=True)


def git_merge(root: Path, solved: Mapping[str, str]) -> None:
    """Merge the other branch, which conflicts, and solve files by hand."""
    done = run(root, "git", "merge", "theirs", check=False)
    assert done.returncode == 1 and "CONFLICT" in done.stdout, done.stdout + done.stderr
    for name, text in solved.items():
        (root / name).write_text(text)
        run(root, "git", "add", name)


def entries(root: Path, branch: str | None = None) -> dict[str, Any]:
    """The stages of dvc.lock, as it lies there or as a branch has it."""
    text = run(root, "git", "show", f"{branch}:dvc.lock").stdout if branch else (root / "dvc.lock").read_text()
    return dict(yaml.safe_load(text)["stages"])


def made_again(root: Path) -> set[str]:
    """What DVC finds stale, with all that it holds put in place."""
    run(root, "git", "commit", "-qm", "merged")
    with in_dvc(root) as repo:
        repo.checkout(force=True)
        return set(repo.status())


# Entry by entry


@given(ENTRIES, ENTRIES, ENTRIES)
def test_three_way(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    merged, contested = three_way(base, ours, theirs)
    swapped, as_contested = three_way(base, theirs, ours)
    assert set(contested) == set(as_contested)
    for name in "abcd":
        before, here, there = base.get(name), ours.get(name), theirs.get(name)
        if name in contested:
            assert here != there and before != here and before != there
            assert (merged[name], swapped[name]) == (here or there, there or here)
        else:
            assert merged.get(name) == swapped.get(name)
            assert merged.get(name) == (there if here == before else here)


@given(ENTRIES, ENTRIES)
def test_a_side_that_did_nothing_counts_for_nothing(base: dict[str, Any], side: dict[str, Any]) -> None:
    assert three_way(base, side, base) == three_way(base, base, side) == three_way(base, side, side) == (side, [])


# In a repository


def test_what_each_side_added_stays_and_only_the_report_is_made_again(root: Path) -> None:
    ours = {"more_ours": ("evals/ours/results.tsv", ["scale"], [])}
    theirs = {"more_theirs": ("evals/theirs/results.tsv", ["code"], [])}
    make_both(root, {"dvc.yaml": pipeline(**ours)}, {"dvc.yaml": pipeline(**theirs)})
    git_merge(root, {"dvc.yaml": pipeline(**ours, **theirs)})
    assert merge(root) == [
        "dvc.lock: 6 stages, 1 of them from theirs",
        "made on both sides, not known to fit the merge, and so ours until made anew: report",
        "reports/: each file in conflict is as its stage in dvc.lock has it",
        "now: git commit, dvc pull, noisebox sync, and then either engine",
    ]
    assert entries(root) == entries(root, "theirs") | entries(root, "ours")
    assert (root / "reports/summary.md").read_text() == run(root, "git", "show", "ours:reports/summary.md").stdout
    assert made_again(root) == {"report"}
    with in_dvc(root) as repo:
        assert [stage.addressing for stage in repo.reproduce()] == ["report"]


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_of_two_versions_that_stays_which_the_merge_holds(root: Path, side: str) -> None:
    """Both sides trained anew from other recipes, and one of these is kept."""
    make_both(root, {"recipe": "ours\n"}, {"recipe": "theirs\n"})
    git_merge(root, {"recipe": f"{side}\n"})
    merge(root)
    for stage in ("data", "train", "evaluate"):
        assert entries(root)[stage] == entries(root, side)[stage]
    assert entries(root, "ours")["train"] != entries(root, "theirs")["train"]
    assert made_again(root) <= {"report"}


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_what_lies_in_reports_goes_with_its_stage(root: Path, side: str) -> None:
    """The rows of a search, and folders of numbers, are in git as the report is."""
    search, metrics = "reports/searches/rate.csv", "reports/metrics/baseline.json"
    more = pipeline(search=(search, ["recipe"], []), metrics=(metrics, [MODEL], []))
    more = more.replace(f"{metrics}:", "reports/metrics:")  # the folder is what the stage declares
    make(root, {"dvc.yaml": more})
    make_both(root, {"recipe": "ours\n"}, {"recipe": "theirs\n"})
    git_merge(root, {"recipe": f"{side}\n"})
    merge(root)
    for path in (search, metrics):
        assert (root / path).read_text() == run(root, "git", "show", f"{side}:{path}").stdout
        assert side in (root / path).read_text()
    assert made_again(root) <= {"report"}


def test_what_neither_side_made_is_made_again(root: Path) -> None:
    make_both(root, {"recipe": "ours\n"}, {"recipe": "theirs\n"})
    git_merge(root, {"recipe": "both\n"})
    assert any(line.endswith("made anew: train, evaluate, report") for line in merge(root))
    assert made_again(root) == {"train"}, "and then what depends on it"


def test_results_of_two_machines_are_not_mixed(root: Path) -> None:
    """Both sides made the same, to other bytes: each stage must stand on the results that are kept before it."""
    make_both(root, {"recipe": "new\n", "machine": "ours\n"}, {"recipe": "new\n", "machine": "theirs\n"})
    git_merge(root, {})
    merge(root)
    merged = entries(root)
    assert merged["train"]["outs"] != entries(root, "theirs")["train"]["outs"]
    assert merged["evaluate"]["deps"][1]["md5"] == merged["train"]["outs"][0]["md5"]
    assert made_again(root) == set()


def test_no_entry_is_joined_from_two(root: Path, tmp_path: Path) -> None:
    """Ours has another recipe, theirs other code, with which the results came out the same: both at once nobody ran."""
    make_both(root, {"recipe": "ours\n"}, {"code": "theirs\n"})
    sides = [entries(root, side)["evaluate"] for side in ("ours", "theirs")]
    by_lines = shutil.copytree(root, tmp_path / "by_lines", symlinks=True)
    (by_lines / ".git/info/attributes").write_text("dvc.lock merge\n")
    run(by_lines, "git", "merge", "-q", "theirs")
    assert entries(by_lines)["evaluate"] not in sides, "what .gitattributes is there to prevent"
    git_merge(root, {})
    merge(root)
    assert entries(root)["evaluate"] == sides[0]
    assert "evaluate" in made_again(root)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_data_pin_goes_with_the_manifest(root: Path, side: str) -> None:
    make_both(
        root,
        {"scale": "ours\n", "data/world/image": "our image\n"},
        {"scale": "theirs\n", "data/world/image": "their image\n"},
    )
    git_merge(root, {"scale": f"{side}\n"})
    merge(root)
    assert (root / "data.dvc").read_text() == run(root, "git", "show", f"{side}:data.dvc").stdout
    assert made_again(root) <= {"report"}
    assert (root / "data/world/image").read_text() == f"{side.removesuffix('s')[:5]} image\n"


# Mistakes


def test_other_conflicts_come_first(root: Path) -> None:
    make_both(root, {"recipe": "ours\n"}, {"recipe": "theirs\n"})
    git_merge(root, {})
    before = run(root, "git", "status", "--porcelain").stdout
    with pytest.raises(UserError, match=r"^recipe: these conflicts are yours to solve"):
        merge(root)
    assert run(root, "git", "status", "--porcelain").stdout == before


def test_without_conflicts_nothing_is_done(root: Path) -> None:
    assert merge(root) == ["no conflicts in dvc.lock, data.dvc or the report"]
    assert run(root, "git", "status", "--porcelain").stdout == ""


def test_without_git_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a git repository"):
        merge(tmp_path)
