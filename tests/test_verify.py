"""`noisebox verify`: tampering is found and named, and rows come out of their checkpoints to the printed digits."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from reported_project import hash_anew, import_results, save_weights

from noisebox import graph
from noisebox.config import RunConfig
from noisebox.evaluation import verify
from noisebox.files import read_yaml, sha256
from noisebox.report.evaluations import results_path, speed_path
from noisebox.report.manifest import read_manifest

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
RESULTS = results_path("baseline", 1)
CHECKPOINT = graph.checkpoint("baseline", 1)
EVERY_ROW = 2 * (2 * 3) + 2 * (2 * 3 + 1)  # main of both lineages, guidance of one, for each train seed


def edit_cell(root: Path, path: str, line: int, column: str, edit: Callable[[str], str]) -> None:
    """Change one cell; the header is line 1."""
    rows = [row.split("\t") for row in (root / path).read_text().splitlines()]
    place = rows[0].index(column)
    rows[line - 1][place] = edit(rows[line - 1][place])
    (root / path).write_text("".join("\t".join(row) + "\n" for row in rows))


def next_digit(cell: str) -> str:
    return cell[:-1] + str((int(cell[-1]) + 1) % 10)


def test_what_nobody_touched_is_verified(reported: Path, command_line: CommandLine) -> None:
    files = len(read_manifest(reported / graph.RESULTS_MANIFEST))
    code, said, _ = command_line("verify")
    assert (code, said.splitlines()[0]) == (0, f"{files} files are what reports/results_manifest.tsv says")
    code, said, _ = command_line("verify", "--rows", 1000)
    assert (code, said.splitlines()[-1]) == (0, f"{EVERY_ROW} rows of results evaluated again")


def test_what_past_experiments_left_is_verified_as_well(reported: Path, command_line: CommandLine) -> None:
    path = import_results(reported, "baseline", 0)
    assert command_line("verify", "--rows", 1)[0] == 0
    edit_cell(reported, path.relative_to(reported).as_posix(), 2, "AP", next_digit)
    code, said, _ = command_line("verify", "--rows", 1)
    assert code == 1 and f"{graph.imported_folder('baseline', 0)}/results.tsv is not what the manifest says" in said


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [(RESULTS, 2, "AP"), (RESULTS, 7, "AP-cat"), (speed_path("baseline+finetune", 0), 3, "inference_s_per_img")],
)
def test_one_digit_of_a_table_is_found(
    reported: Path, command_line: CommandLine, path: str, line: int, column: str
) -> None:
    edit_cell(reported, path, line, column, next_digit)
    code, said, _ = command_line("verify")
    found = sha256(reported / path)
    assert (code, said.splitlines()[-1]) == (1, f"{path} is not what the manifest says: its sha256 is {found}")


def test_one_byte_of_a_checkpoint_is_found(reported: Path, command_line: CommandLine) -> None:
    content = bytearray((reported / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (reported / CHECKPOINT).write_bytes(content)
    code, said, _ = command_line("verify", "--rows", 1000)
    assert code == 1 and said.splitlines()[-1].startswith(f"{CHECKPOINT} is not what the manifest says")
    assert f"{EVERY_ROW - 6} rows of results evaluated again" in said, "those of the other runs"


def test_a_digit_that_the_manifest_agrees_with_is_found_by_evaluating_again(
    reported: Path, command_line: CommandLine
) -> None:
    true = (reported / RESULTS).read_text().splitlines()[4].split("\t")
    edit_cell(reported, RESULTS, 5, "AP75", next_digit)
    hash_anew(reported, RESULTS)
    code, said, _ = command_line("verify", "--rows", 1000)
    place = (reported / RESULTS).read_text().splitlines()[0].split("\t").index("AP75")
    assert (code, said.splitlines()[-1]) == (
        1,
        f"{RESULTS}, line 5: AP75 is {next_digit(true[place])}, but the checkpoint gives {true[place]}",
    )


def test_another_checkpoint_that_every_file_agrees_with_is_found_by_evaluating_again(
    reported: Path, command_line: CommandLine
) -> None:
    config = RunConfig(**torch.load(reported / CHECKPOINT, weights_only=True)["config"])
    before = sha256(reported / CHECKPOINT)
    save_weights(reported / CHECKPOINT, config, 2.5)
    for path in (RESULTS, speed_path("baseline", 1)):
        (reported / path).write_text((reported / path).read_text().replace(before, sha256(reported / CHECKPOINT)))
    hash_anew(reported, CHECKPOINT, RESULTS, speed_path("baseline", 1))
    code, said, _ = command_line("verify", "--rows", 0)
    assert code == 0, said
    code, said, _ = command_line("verify", "--rows", 1000)
    assert code == 1
    assert {line.partition(",")[0] for line in said.splitlines()[2:]} == {RESULTS}


def test_on_another_machine_the_difference_is_put_down_to_it(reported: Path, command_line: CommandLine) -> None:
    """Processors of one name may have other instructions; a run that does not say which is not compared in them."""
    path = f"{graph.evaluation_folder('baseline', 1)}/run.json"
    run = json.loads((reported / path).read_text())
    known = run["hardware"].pop("instructions")
    edit_cell(reported, RESULTS, 2, "AP", next_digit)
    for place, name, made, here in (
        ("packages", "torch", "1.0", version("torch")),
        ("hardware", "instructions", "NO AVX", known),
    ):
        changed = run | {place: run[place] | {name: made}}
        (reported / path).write_text(json.dumps(changed))
        hash_anew(reported, RESULTS, path)
        code, said, _ = command_line("verify", "--rows", 1000)
        assert code == 1
        assert said.splitlines()[-1] == f"{path}: made with {name} {made}, here {here}; rounding may differ"


def test_rows_sampled_together_are_evaluated_together(reported: Path) -> None:
    """One row drawn stands for its three eval seeds; another seed draws others."""
    listed = read_manifest(reported / graph.RESULTS_MANIFEST)
    kept = [entry for entry in listed if entry.run == ("baseline", 0)]
    assert verify.evaluate_again(reported, kept, 1, 0, reported) == verify.Outcome(3)
    assert verify.evaluate_again(reported, kept, 0, 0, reported) == verify.Outcome()
    counts = {verify.evaluate_again(reported, listed, 2, seed, reported).rows for seed in range(6)}
    assert counts <= {1, 2, 3, 4, 6} and len(counts) > 1


# What is not here


def test_files_that_are_not_here_are_counted(reported: Path, command_line: CommandLine) -> None:
    shutil.rmtree(reported / graph.run_folder("baseline", 0))
    code, said, _ = command_line("verify", "--rows", 1000)
    absent = graph.checkpoint("baseline", 0)
    assert code == 0 and f"1 files are not here, such as {absent}; dvc pull brings them" in said.splitlines()
    assert f"{EVERY_ROW - 6} rows of results evaluated again" in said


def no_dataset(root: Path) -> None:
    shutil.rmtree(root / "data")


def another_dataset(root: Path) -> None:
    manifest = read_yaml(root / graph.DATA_MANIFEST)
    (root / graph.DATA_MANIFEST).write_text(json.dumps(manifest | {"hash": "0" * 64}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_dataset, "data/detection.json does not exist; run `noisebox data` first"),
        (another_dataset, "data/detection.json describes 'tiny' with hash 000000000000, but runs/"),
    ],
)
def test_without_the_dataset_only_the_hashes_are_checked(
    reported: Path, command_line: CommandLine, change: Callable[[Path], None], reason: str
) -> None:
    change(reported)
    code, said, _ = command_line("verify")
    assert code == 0 and said.splitlines()[-1].startswith(f"not evaluated again: {reason}")
    code, _, complaint = command_line("verify", "--rows", 1)
    told = [line for line in complaint.splitlines() if line.startswith("noisebox: ")]
    assert code == 2 and len(told) == 1 and reason in told[0]
    edit_cell(reported, RESULTS, 2, "AP", next_digit)
    code, said, _ = command_line("verify", "--rows", 1)
    assert code == 1 and f"{RESULTS} is not what the manifest says" in said


def test_a_gpu_that_is_not_here_is_told(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.load(reported / CHECKPOINT, weights_only=True)
    save_weights(reported / CHECKPOINT, RunConfig(**(state["config"] | {"device": "cuda"})), 3.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    listed = [entry for entry in read_manifest(reported / graph.RESULTS_MANIFEST) if entry.run == ("baseline", 1)]
    reason = f"{reported / CHECKPOINT} was evaluated on a GPU, and there is none to be seen here"
    assert verify.evaluate_again(reported, listed, 1, 0, reported) == verify.Outcome(left_out=(reason,))


def test_a_run_on_other_data_does_not_hide_the_others(reported: Path, command_line: CommandLine) -> None:
    """A wrong row of one run is told although another run cannot be evaluated."""
    manifest = reported / graph.RESULTS_MANIFEST
    data_hash = read_yaml(reported / graph.DATA_MANIFEST)["hash"]
    lines = manifest.read_text().splitlines(keepends=True)
    other = [line.replace(data_hash, "0" * 64) if "\tbaseline\t0\t" in line else line for line in lines]
    manifest.write_text("".join(other))
    edit_cell(reported, RESULTS, 2, "AP", next_digit)
    hash_anew(reported, RESULTS)
    code, said, _ = command_line("verify", "--rows", 1000)
    assert code == 1 and f"{EVERY_ROW - 6} rows of results evaluated again" in said
    assert "not evaluated again: data/detection.json describes 'tiny'" in said
    assert said.splitlines()[-1].startswith(f"{RESULTS}, line 2: AP is ")


def test_mistakes_are_one_sentence(reported: Path, command_line: CommandLine) -> None:
    for folder in ("runs", "evals", "reports/tables"):
        shutil.rmtree(reported / folder)
    for arguments, complaint in {
        (): "no file that reports/results_manifest.tsv names is here; dvc pull brings them",
        ("data",): "data holds no results_manifest.tsv",
        ("nowhere",): "nowhere holds no results_manifest.tsv",
    }.items():
        code, said, told = command_line("verify", *arguments)
        assert (code, said) == (2, "")
        assert [line for line in told.splitlines() if line.startswith("noisebox: ") and complaint in line]
