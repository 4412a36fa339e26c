"""`noisebox freeze`: a deliverable is whole or absent, stands alone, and is verified where nothing else is."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, run
from reported_project import DATASET, SEEDS, hash_anew, import_results

from noisebox import graph
from noisebox.errors import UserError
from noisebox.report import freeze as freezing
from noisebox.report.evaluations import results_path
from noisebox.report.freeze import freeze
from noisebox.report.manifest import read_manifest

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
LINEAGE = "baseline+finetune"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_past_experiments_are_not_delivered(reported: Path) -> None:
    import_results(reported, "baseline", 0)
    assert "imported" in {entry.kind for entry in read_manifest(reported / graph.RESULTS_MANIFEST)}
    freeze("paper", ["baseline"], reported)
    assert "imported" not in {path.split("/")[0] for path in files_below(reported / "deliverables/paper")}


@pytest.fixture
def elsewhere(reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository that got nothing but the deliverable `paper`, of one lineage."""
    freeze("paper", [LINEAGE], reported)
    place = tmp_path / "elsewhere"
    shutil.copytree(reported / "deliverables/paper", place / "deliverables/paper")
    monkeypatch.chdir(place)
    return place


def test_all_that_a_claim_stands_on_is_delivered(reported: Path, command_line: CommandLine) -> None:
    code, said, _ = command_line("freeze", "paper", "--lineages", "baseline", LINEAGE)
    assert (code, said) == (0, "deliverables/paper; check it with: noisebox verify deliverables/paper\n")
    folder = reported / "deliverables/paper"
    runs = ("model_final.pth", "model_final.pth.sha256", "metrics.csv", "run.json", "config.yaml")
    expected = {
        *(f"runs/{lineage}/seed{seed}/{name}" for lineage in ("baseline", LINEAGE) for seed in SEEDS for name in runs),
        *(
            path
            for lineage in ("baseline", LINEAGE)
            for seed in SEEDS
            for path in graph.evaluation_outputs(lineage, seed)
        ),
        *(graph.DATA_MANIFEST, graph.dataset_file(DATASET)),
    }
    assert files_below(folder) == expected | {"README.md", graph.MANIFEST}
    assert {entry.path for entry in read_manifest(folder / graph.MANIFEST)} == expected
    for path in expected:
        assert (folder / path).read_bytes() == (reported / path).read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["paper"]


def test_only_the_lineages_asked_for_are_delivered(elsewhere: Path) -> None:
    listed = read_manifest(elsewhere / "deliverables/paper" / graph.MANIFEST)
    assert {entry.lineage for entry in listed} == {LINEAGE, ""}
    assert not any("seed" in entry.path and LINEAGE not in entry.path for entry in listed)


def test_it_is_verified_where_nothing_else_is(elsewhere: Path, command_line: CommandLine) -> None:
    files = len(files_below(elsewhere / "deliverables/paper")) - 2
    code, said, _ = command_line("verify", "deliverables/paper")
    first, _, last = said.splitlines()
    assert (code, first) == (0, f"{files} files are what deliverables/paper/results_manifest.tsv says")
    assert last.startswith("not evaluated again: data/detection.json does not exist")


def test_with_the_dataset_its_rows_are_evaluated_again(
    elsewhere: Path, reported: Path, command_line: CommandLine
) -> None:
    shutil.copytree(reported / "data", elsewhere / "data")
    shutil.copytree(reported / "params/datasets", elsewhere / "params/datasets")
    before = files_below(elsewhere / "deliverables")
    code, said, _ = command_line("verify", "deliverables/paper", "--rows", 1000)
    rows = sum(
        len((elsewhere / "deliverables/paper" / results_path(LINEAGE, k)).read_text().splitlines()) - 1 for k in SEEDS
    )
    assert (code, said.splitlines()[-1]) == (0, f"{rows} rows of results evaluated again")
    assert files_below(elsewhere / "deliverables") == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "model_final.pth"])
def test_what_changed_or_is_missing_is_named(elsewhere: Path, command_line: CommandLine, name: str) -> None:
    path = elsewhere / "deliverables/paper" / graph.run_folder(LINEAGE, 1) / name
    path.write_bytes(path.read_bytes()[:-1])
    code, said, _ = command_line("verify", "deliverables/paper")
    shown = path.relative_to(elsewhere)
    assert code == 1 and said.splitlines()[-1].startswith(f"{shown} is not what the manifest says")
    path.unlink()
    code, said, _ = command_line("verify", "deliverables/paper")
    assert (code, said.splitlines()[-1]) == (1, f"{shown} is missing")


def test_the_readme_fits_a_page_and_its_commands_are_right(elsewhere: Path, reported: Path) -> None:
    text = (elsewhere / "deliverables/paper/README.md").read_text()
    assert len(text.splitlines()) < 70
    for command in (
        "noisebox verify deliverables/paper ",
        "dvc add deliverables/paper && git add deliverables &&",
        "dvc pull deliverables/paper && noisebox verify deliverables/paper",
        "cp -r deliverables/paper/runs .",
        f"noisebox evaluate {LINEAGE} --seed 0",
    ):
        assert command in text
    assert f"`{'c' * 40}-dirty`" in text and "hash `" in text
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{LINEAGE}` |     1 |"))
    rows = [
        line.split("\t")
        for seed in SEEDS
        for line in (reported / results_path(LINEAGE, seed)).read_text().splitlines()[1:]
    ]
    header = (reported / results_path(LINEAGE, 0)).read_text().splitlines()[0].split("\t")
    of_step = [[float(row[header.index("AP")]) for row in rows if row[1] == str(k) and row[3] == "1"] for k in SEEDS]
    means = [sum(values) / len(values) for values in of_step]
    assert f"{sum(means) / 2:.2f} | {abs(means[0] - means[1]) / 2:.2f}" in row


def test_a_deliverable_is_shared_by_dvc(reported: Path, tmp_path: Path, command_line: CommandLine) -> None:
    """Through git and a remote into an empty clone, with the repository's own .gitignore."""
    shutil.copy(ROOT / ".gitignore", reported)
    shutil.copy(ROOT / ".dvcignore", reported)
    run(reported, "git", "init", "-q", "-b", "main")
    run(reported, "git", "config", "user.email", "test@example.invalid")
    run(reported, "git", "config", "user.name", "test")
    run(reported, "dvc", "init", "-q")
    run(reported, "dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"))
    freeze("paper", [LINEAGE], reported)
    run(reported, "dvc", "add", "-q", "deliverables/paper")
    run(reported, "git", "add", "deliverables", ".dvc", ".gitignore", "params")
    run(reported, "git", "commit", "-qm", "deliverable paper")
    assert ".pth" not in run(reported, "git", "ls-files").stdout
    run(reported, "dvc", "push", "-q", "deliverables/paper")
    run(tmp_path, "git", "clone", "-q", str(reported), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "deliverables/paper").exists()
    run(clone, "dvc", "pull", "-q", "deliverables/paper")
    assert files_below(clone / "deliverables/paper") == files_below(reported / "deliverables/paper")
    code, said, _ = command_line("verify", clone / "deliverables/paper", "--rows", 2)
    assert code == 0 and "rows of results evaluated again" in said, said


# Mistakes


def test_a_name_is_taken_once(elsewhere: Path, reported: Path) -> None:
    before = (reported / "deliverables/paper" / graph.MANIFEST).read_bytes()
    with pytest.raises(UserError, match="deliverables/paper exists, and a deliverable never changes: choose another"):
        freeze("paper", ["baseline"], reported)
    assert (reported / "deliverables/paper" / graph.MANIFEST).read_bytes() == before


def test_a_freeze_cut_short_leaves_nothing(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (reported / "deliverables/.writing-paper/runs").mkdir(parents=True)  # another one was killed here
    (reported / "deliverables/.writing-paper/runs/stale").touch()
    copy, copied = shutil.copyfile, []

    def full_disk(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(freezing.shutil, "copyfile", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        freeze("paper", ["baseline"], reported)
    assert list((reported / "deliverables").iterdir()) == []
    monkeypatch.undo()
    assert "runs/stale" not in files_below(freeze("paper", ["baseline"], reported))


def tampered_results(root: Path) -> None:
    path = root / results_path("baseline", 0)
    path.write_text(path.read_text().replace("9", "8", 1))


def other_data(root: Path) -> None:
    path = root / graph.DATA_MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": "0" * 64}))


def made_anew(root: Path) -> None:
    """A run trained again on other data since the report."""
    other_data(root)
    (root / graph.checkpoint("baseline", 0)).write_bytes(b"other weights")


def strange_rows(root: Path) -> None:
    tampered_results(root)
    (root / results_path("baseline", 0)).write_text("run\n")
    hash_anew(root, results_path("baseline", 0))


@pytest.mark.parametrize(
    ("name", "lineage", "change", "complaint"),
    [
        ("a/b", "baseline", None, "'a/b' is no name for a folder: use letters"),
        ("..", "baseline", None, "'..' is no name for a folder"),
        ("x", "baselin", None, "reports/results_manifest.tsv has no lineage 'baselin'; did you mean 'baseline'?"),
        ("x", "baseline", lambda root: shutil.rmtree(root / "reports"), "this makes it: noisebox report"),
        ("x", "baseline", lambda root: shutil.rmtree(root / "runs"), "does not exist, so it cannot be delivered; `dvc"),
        ("x", "baseline", tampered_results, "evals/baseline/seed0/results.tsv is not what the manifest says"),
        ("x", "baseline", made_anew, "model_final.pth is not what the manifest says"),
        ("x", "baseline", made_anew, "run noisebox report, which makes reports/results_manifest.tsv anew"),
        ("x", "baseline", strange_rows, "evals/baseline/seed0/results.tsv: column 'train_seed' is missing"),
        ("x", "baseline", other_data, "data/detection.json describes other data than runs/baseline/seed0/model_final"),
        ("x", "baseline", lambda root: shutil.rmtree(root / "data"), "data/detection.json does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    reported: Path,
    command_line: CommandLine,
    name: str,
    lineage: str,
    change: Callable[[Path], None] | None,
    complaint: str,
) -> None:
    if change:
        change(reported)
    code, said, told = command_line("freeze", name, "--lineages", lineage)
    assert (code, said) == (2, "") and told.startswith("noisebox: ")
    assert complaint in told and len(told.splitlines()) == 1 and ".writing" not in told
    assert not (reported / "deliverables").exists() or not list((reported / "deliverables").iterdir())
