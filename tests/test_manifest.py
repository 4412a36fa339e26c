"""The manifest: every file that a claim stands on, by its hash, and what differs from it found."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported_project import SEEDS, SPREADS, WRITTEN, an_experiment, hash_anew, report

from noisebox import graph
from noisebox.errors import UserError
from noisebox.files import read_yaml
from noisebox.report.evaluations import results_path, speed_path
from noisebox.report.manifest import COLUMNS, Entry, check, compare, find_manifest, read_manifest, write_manifest
from noisebox.report.summary import write_report
from noisebox.training.checkpoint import write_sha256

pytest_plugins = ("reported_fixtures",)

RUNS = [(lineage, seed) for lineage in SPREADS for seed in SEEDS]
RESULTS = results_path("baseline", 1)


def expected_files() -> set[str]:
    """What a manifest of the project must name."""
    evaluated = {path for run in RUNS for path in graph.evaluation_outputs(*run)}
    tables = {path for path in graph.report_outputs() if path.endswith(".tsv")} - {graph.RESULTS_MANIFEST}
    return {graph.checkpoint(*run) for run in RUNS} | evaluated | tables


def test_every_file_of_the_experiment_has_its_row(reported: Path) -> None:
    """Read as a user would, with pandas alone."""
    table = pd.read_csv(reported / graph.RESULTS_MANIFEST, sep="\t", dtype=str, keep_default_na=False)
    assert list(table) == list(COLUMNS)
    assert set(table["path"]) == expected_files() and table["path"].is_unique
    for row in table.to_dict("records"):
        content = (reported / row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert int(row["size"]) == len(content)
    (one,) = table[table["path"] == graph.checkpoint("baseline+finetune", 1)].to_dict("records")
    data_hash = read_yaml(reported / graph.DATA_MANIFEST)["hash"]
    assert [one[name] for name in list(COLUMNS)[3:]] == [
        *["checkpoint", "baseline+finetune", "1", "main,guidance", "c" * 40 + "-dirty", data_hash, WRITTEN]
    ]
    results = table[table["path"] == RESULTS].iloc[0]
    assert (results["kind"], results["protocols"], results["git_commit"]) == ("results", "main", "c" * 40)
    assert set(table[table["path"].str.startswith("reports/")]["kind"]) == {"table"}


def test_it_is_made_from_the_evaluations_alone_and_always_the_same(reported: Path) -> None:
    before = (reported / graph.RESULTS_MANIFEST).read_bytes()
    for folder in ("runs", "data", "params"):
        shutil.rmtree(reported / folder)
    for path in reported.rglob("*.*"):
        os.utime(path, (1, 1))
    report(reported)
    assert (reported / graph.RESULTS_MANIFEST).read_bytes() == before


def test_the_report_writes_it_last(reported: Path) -> None:
    """So that it holds the tables of this report, and is the same when nothing has changed."""
    manifest = reported / graph.RESULTS_MANIFEST
    manifest.unlink()
    written = []
    for _ in range(2):
        assert manifest in write_report(an_experiment(), reported)
        written.append(manifest.read_bytes())
    assert written[0] == written[1]
    listed = read_manifest(manifest)
    assert compare(reported, listed).sound == listed and {entry.path for entry in listed} == expected_files()


def test_what_an_evaluation_did_not_pass_on_is_empty(reported: Path) -> None:
    path = reported / graph.evaluation_folder("baseline", 0) / "run.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name in ("iterations", "teacher")}
    path.write_text(json.dumps(kept))
    report(reported)
    entry = read_manifest(reported / graph.RESULTS_MANIFEST)[0]
    assert (entry.path, entry.size) == (graph.checkpoint("baseline", 0), None)
    assert (entry.git_commit, entry.data_hash, entry.when) == ("", "", "")


words = st.text("abc+ _,\"'é", max_size=8)
entries = st.builds(
    Entry,
    path=st.from_regex(r"[a-z+]{1,9}(/[a-z\.]{1,3}x){0,2}", fullmatch=True),
    sha256=st.from_regex("[0-9a-f]{64}", fullmatch=True),
    size=st.none() | st.integers(0, 2**40),
    kind=words,
    lineage=words,
    train_seed=st.none() | st.integers(0, 99),
    protocols=words,
    git_commit=words,
    data_hash=words,
    when=words,
)


@given(st.lists(entries, min_size=1, max_size=5, unique_by=lambda entry: entry.path))
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Entry]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.tsv"
    write_manifest(path, written)
    assert read_manifest(path) == written


def test_any_byte_of_any_file_counts(made_once: Path) -> None:
    listed = read_manifest(made_once / graph.RESULTS_MANIFEST)
    assert compare(made_once, listed).sound == listed

    @given(st.sampled_from(listed), st.data())
    def flip_and_look(entry: Entry, data: st.DataObject) -> None:
        path = made_once / entry.path
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        try:
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
            )
            found = compare(made_once, listed)
        finally:
            path.write_bytes(whole)
        (mismatch,) = found.mismatches
        assert str(path) in mismatch and found.sound == [other for other in listed if other is not entry]

    flip_and_look()


def test_what_is_not_here_is_no_mismatch(reported: Path) -> None:
    shutil.rmtree(reported / graph.run_folder("baseline", 0))
    listed = read_manifest(reported / graph.RESULTS_MANIFEST)
    counted: list[tuple[int, int]] = []
    found = compare(reported, listed, lambda done, total: counted.append((done, total)))
    assert [entry.path for entry in found.absent] == [graph.checkpoint("baseline", 0)]
    assert (found.mismatches, len(found.sound)) == ([], len(listed) - 1)
    assert counted == [(done, len(listed)) for done in range(1, len(listed) + 1)]


def test_checkpoints_of_epochs_are_held_to_their_own_hash(reported: Path) -> None:
    kept = reported / graph.run_folder("baseline", 0) / "checkpoint_epoch_4.pth"
    kept.write_bytes(b"weights")
    write_sha256(kept)
    checked = check(reported)
    assert "1 checkpoints of epochs are what their .sha256 say" in checked.said and not checked.mismatches
    kept.write_bytes(b"weighty")
    assert check(reported).mismatches == [f"{kept} is not what checkpoint_epoch_4.pth.sha256 says"]


@pytest.mark.parametrize("path", [RESULTS, speed_path("baseline", 1)])
def test_rows_of_another_checkpoint_are_found(reported: Path, path: str) -> None:
    """Although the table's own hash is right."""
    lines = (reported / path).read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace(lines[2].strip().rpartition("\t")[2], "e" * 64)
    (reported / path).write_text("".join(lines))
    hash_anew(reported, path)
    (mismatch,) = compare(reported, read_manifest(reported / graph.RESULTS_MANIFEST)).mismatches
    assert mismatch.startswith(
        f"{reported / path}, line 3: ckpt_sha256 is {'e' * 64}, but the manifest's checkpoint has"
    )


def test_a_table_that_cannot_be_read_is_a_mismatch(reported: Path) -> None:
    (reported / RESULTS).write_text("run\n")
    hash_anew(reported, RESULTS)
    (mismatch,) = compare(reported, read_manifest(reported / graph.RESULTS_MANIFEST)).mismatches
    assert mismatch.startswith(f"{reported / RESULTS}: column 'train_seed' is missing")


def change(column: str, cell: str) -> Callable[[pd.DataFrame], object]:
    return lambda table: table.__setitem__(column, [cell, *table[column][1:]])


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (change("path", "/etc/passwd"), "line 2: column 'path' must be a path inside the folder, not '/etc/passwd'"),
        (change("path", "a/../../b"), "line 2: column 'path' must be a path inside the folder, not 'a/../../b'"),
        (change("sha256", "abc"), "line 2: column 'sha256' must be 64 hexadecimal digits, not 'abc'"),
        (change("size", "-1"), "line 2: column 'size' must be a whole number or empty, not '-1'"),
        (change("train_seed", "one"), "line 2: column 'train_seed' must be a whole number or empty, not 'one'"),
        (change("path", results_path("baseline", 0)), f"{results_path('baseline', 0)} has two rows"),
        (lambda table: table.pop("kind"), "column 'kind' is missing"),
    ],
)
def test_a_manifest_that_is_none_is_told(
    reported: Path, edit: Callable[[pd.DataFrame], object], complaint: str
) -> None:
    path = reported / graph.RESULTS_MANIFEST
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    edit(table)
    table.to_csv(path, sep="\t", index=False)
    with pytest.raises(UserError) as told:
        read_manifest(path)
    assert str(path) in str(told.value) and complaint in str(told.value)


def test_where_a_manifest_is_looked_for(reported: Path) -> None:
    assert find_manifest(reported) == reported / graph.RESULTS_MANIFEST
    shutil.copy(reported / graph.RESULTS_MANIFEST, reported / graph.MANIFEST)
    assert find_manifest(reported) == reported / graph.MANIFEST
    with pytest.raises(UserError, match=r"data holds no results_manifest.tsv: `noisebox report` writes"):
        find_manifest(reported / "data")
