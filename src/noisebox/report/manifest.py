"""`results_manifest.tsv`: the bytes that every claim stands on, written by the report, checked by `noisebox verify`.

A row is a file: a checkpoint, what its evaluation wrote, imported results of a past experiment, or a table of the
report. Commit, data hash and time are those of the training behind the file, as the evaluation passed them on; so the
same evaluations give the same manifest.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from noisebox import graph
from noisebox.config import ExperimentConfig
from noisebox.errors import UserError
from noisebox.files import sha256, write_text
from noisebox.report.evaluations import RESULTS, Columns, Evaluated, read_evaluation, read_table

CHECKPOINT = "checkpoint"
TABLE = "table"
IMPORTED = "imported"  # results of past experiments; what is known of their checkpoints is in their rows
NAMING_A_CHECKPOINT = ("results", "speed")  # kinds whose rows have a column ckpt_sha256
NAMES: Columns = {name: RESULTS[name] for name in ("run", "train_seed", "ckpt_sha256")}


@dataclass(frozen=True)
class Entry:
    """A row of the manifest: the file `path`, below the manifest's folder, has the hash `sha256`.

    `kind` is `checkpoint`, `imported`, `table`, or the stem of an evaluation's file, such as `results`. `protocols` are
    those that the lineage was asked, joined by ','. What is not known, or does not apply, is empty.
    """

    path: str
    sha256: str
    size: int | None  # bytes
    kind: str
    lineage: str = ""
    train_seed: int | None = None
    protocols: str = ""
    git_commit: str = ""  # with -dirty where the training ran from uncommitted changes
    data_hash: str = ""
    when: str = ""  # the training ended, ISO 8601 in UTC

    @property
    def run(self) -> tuple[str, int | None]:
        return self.lineage, self.train_seed


def _inside(cell: str) -> str:
    path = PurePosixPath(cell)
    if not cell or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"must be a path inside the folder, not {cell!r}")
    return cell


def _digest(cell: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", cell):
        raise ValueError(f"must be 64 hexadecimal digits, not {cell!r}")
    return cell


def _count_or_nothing(cell: str) -> str:
    if cell and not cell.isdecimal():
        raise ValueError(f"must be a whole number or empty, not {cell!r}")
    return cell


READERS: Columns = {"path": _inside, "sha256": _digest, "size": _count_or_nothing, "train_seed": _count_or_nothing}
COLUMNS: Columns = {field.name: READERS.get(field.name, str) for field in fields(Entry)}


def report_entries(experiment: ExperimentConfig, runs: Sequence[Evaluated], root: Path) -> list[Entry]:
    """What the manifest says after a report of `runs`: each checkpoint and all that its evaluation wrote, run by run in
    the report's order, then the results of past experiments, and the report's tables, which must be written by now."""
    entries = []
    for run in runs:
        facts = _facts(experiment, run)
        path, digest = run.results.iloc[0][["ckpt", "ckpt_sha256"]]
        size = run.provenance.get("checkpoint", {}).get("size")
        entries.append(Entry(path, digest, size, CHECKPOINT, **facts))
        section = next(name for name, section in experiment.sections().items() if run.lineage in section.lineages)
        written = graph.evaluation_outputs(run.lineage, run.train_seed, section)
        entries += [entry_of(root, name, PurePosixPath(name).stem, **facts) for name in written]
    for path, (lineage, seed) in graph.imported_results(root).items():
        entries.append(entry_of(root, path, IMPORTED, lineage=lineage, train_seed=seed))
    tables = [path for path in graph.report_outputs() if path.endswith(".tsv") and path != graph.RESULTS_MANIFEST]
    return entries + [entry_of(root, path, TABLE) for path in tables]


def _facts(experiment: ExperimentConfig, run: Evaluated) -> dict[str, Any]:
    provenance = run.provenance
    commit = provenance.get("git_commit") or ""
    main = ["main"] if run.lineage in experiment.detr.lineages else []
    return {
        "lineage": run.lineage,
        "train_seed": run.train_seed,
        "protocols": ",".join(experiment.asked.get(run.lineage, main)),
        "git_commit": f"{commit}-dirty" if commit and provenance.get("git_dirty") else commit,
        "data_hash": provenance.get("data_hash") or "",
        "when": provenance.get("checkpoint", {}).get("written") or "",
    }


def entry_of(root: Path, path: str, kind: str, **facts: Any) -> Entry:
    """The entry of a file that lies at `root / path`."""
    return Entry(path, sha256(root / path), (root / path).stat().st_size, kind, **facts)


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    """Write the entries as a table with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    write_text(path, text.getvalue())


def find_manifest(folder: Path) -> Path:
    """The manifest of a deliverable or, in `reports/`, that of a repository; raises UserError where there is none."""
    for path in (folder / graph.MANIFEST, folder / graph.RESULTS_MANIFEST):
        if path.is_file():
            return path
    raise UserError(
        f"{folder} holds no {graph.MANIFEST}: `noisebox report` writes that of the repository, `noisebox freeze` that "
        "of a deliverable, and `dvc pull` fetches a deliverable that was shared"
    )


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest; raises UserError, naming file and line, when it is missing or no such table."""
    table = read_table(path, COLUMNS)
    entries = [_entry(row) for row in table[list(COLUMNS)].to_dict("records")]
    rows = Counter(entry.path for entry in entries)
    if twice := next((name for name, count in rows.items() if count > 1), None):
        raise UserError(f"{path}: {twice} has two rows")
    return entries


def _entry(cells: dict[Any, Any]) -> Entry:
    counts = {name: int(cells[name]) if cells[name] else None for name in ("size", "train_seed")}
    return Entry(**{**cells, **counts})


@dataclass(frozen=True)
class Comparison:
    """What a manifest's files turned out to be: those with the bytes that it names, those that are not there, and a
    sentence for each of the others."""

    sound: list[Entry]
    absent: list[Entry]
    mismatches: list[str]


def compare(folder: Path, entries: Sequence[Entry], progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Hash every file of `entries` below `folder`; `progress(done, total)` counts them.

    A file is sound when it has the bytes that the manifest names and, if its rows name a checkpoint, they all name the
    one that the manifest has for the run.
    """
    checkpoints = {entry.run: entry.sha256 for entry in entries if entry.kind == CHECKPOINT}
    compared = Comparison([], [], [])
    for done, entry in enumerate(entries, start=1):
        path = folder / entry.path
        if not path.is_file():
            compared.absent.append(entry)
        elif (found := sha256(path)) != entry.sha256:
            compared.mismatches.append(f"{path} is not what the manifest says: its sha256 is {found}")
        elif faults := list(_naming_others(path, entry, checkpoints.get(entry.run))):
            compared.mismatches.extend(faults)
        else:
            compared.sound.append(entry)
        if progress:
            progress(done, len(entries))
    return compared


def _naming_others(path: Path, entry: Entry, checkpoint: str | None) -> Iterator[str]:
    """The first row that names another checkpoint than the run's, in a sentence; nothing where none does."""
    if entry.kind not in NAMING_A_CHECKPOINT or entry.train_seed is None:
        return
    try:
        named = read_evaluation(path, NAMES, entry.lineage, entry.train_seed)["ckpt_sha256"]
    except UserError as error:
        yield str(error)
        return
    for line, digest in enumerate(named, start=2):
        if digest != checkpoint:
            yield f"{path}, line {line}: ckpt_sha256 is {digest}, but the manifest's checkpoint has {checkpoint}"
            return


def _is_as_noted(file: Path) -> bool:
    note = file.with_name(f"{file.name}.sha256")
    return note.is_file() and note.read_text(encoding="utf-8").split()[:1] == [sha256(file)]


@dataclass(frozen=True)
class Checked:
    """The files that are what the manifest says, what there is to say of the others, and a sentence for each fault."""

    sound: list[Entry]
    said: list[str]
    mismatches: list[str]


def check(folder: Path, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Compare a repository or a deliverable with its manifest; a deliverable must be complete. Checkpoints of epochs,
    which no manifest names, are held to their own .sha256.

    Raises UserError when there is no manifest, or none of its files.
    """
    path = find_manifest(folder)
    compared = compare(folder, read_manifest(path), progress)
    absent = [str(folder / entry.path) for entry in compared.absent]
    if not compared.sound and not compared.mismatches:
        raise UserError(f"no file that {path} names is here; dvc pull brings them")
    said = [f"{len(compared.sound)} files are what {path} says"]
    if of_epochs := sorted(folder.glob(f"{graph.run_folder('*', '*')}/{graph.EPOCHS}")):
        others = [file for file in of_epochs if not _is_as_noted(file)]
        compared.mismatches.extend(f"{file} is not what {file.name}.sha256 says" for file in others)
        said.append(f"{len(of_epochs) - len(others)} checkpoints of epochs are what their .sha256 say")
    if path.parent == folder:
        return Checked(compared.sound, said, [*compared.mismatches, *(f"{name} is missing" for name in absent)])
    if absent:
        said.append(f"{len(absent)} files are not here, such as {absent[0]}; dvc pull brings them")
    return Checked(compared.sound, said, compared.mismatches)
