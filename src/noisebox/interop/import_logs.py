"""`noisebox import-logs`: the evaluations in Detectron2's logs as results.tsv files below `imported/`.

They have the columns of those below `evals/`, and at the end the log and its line that a row is from. What the graph
made lies elsewhere, and is never touched.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisebox import graph
from noisebox.errors import UserError
from noisebox.files import sha256, write_text
from noisebox.interop.detectron2_config import Given, sampling_of
from noisebox.interop.detectron2_logs import Evaluation, Session, logs_of, read_log
from noisebox.report.evaluations import GUIDANCE, IMPORTED, LOOK, METRICS, RUN, Columns, read_table

# How a path tells lineage and train seed: baseline+geofeat/seed0/model_final.pth, or baseline_seed0. The word in
# eval_seed0 says which seed is meant.
NO_LINEAGE = r"(?!(?:eval|test|train|val|run)[/_-]seed)"
NAMED = re.compile(rf"(?:^|/){NO_LINEAGE}({graph.LINEAGE_PATTERN})[/_-]seed[_-]?(\d+)(?=/|$)")
KEY: Columns = {**RUN, **GUIDANCE, **LOOK}
LAST_COLUMNS = ("images", "dataset", "ckpt", "ckpt_sha256", "source", "source_sha256")
STEPS = "MODEL.DiffusionDet.SAMPLE_STEP"

Row = dict[str, str]


@dataclass(frozen=True)
class Told:
    """What a user says of logs, over what they say themselves; None leaves it to them."""

    lineage: str | None = None
    train_seed: int | None = None
    eval_seed: int | None = None
    sample_step: int | None = None
    dataset: str | None = None


@dataclass
class Imported:
    """The files written, with how many rows each has, and sentences about what was left out or is not known."""

    rows: dict[Path, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def import_logs(places: Sequence[Path], told: Told, root: Path = Path()) -> Imported:
    """Read every log of `places`, and write imported/<lineage>/seed<k>/results.tsv below `root`; rows that are there
    stay.

    Raises UserError, and writes nothing, when a log is broken, says too little, or two evaluations of one key differ.
    """
    if told.lineage:
        graph.Lineage.parse(told.lineage)
    paths = logs_of(places)
    logs = [read_log(path) for path in paths]
    sessions = [session for own, _ in logs for session in own]
    evaluations = [each for _, own in logs for each in own]
    if not evaluations:
        raise UserError(f"{places[0]}: no line says `copypaste: Task: bbox`, as Detectron2 prints after an evaluation")
    imported = Imported()
    if idle := [path for path, (_, own) in zip(paths, logs, strict=True) if not own]:
        some = f"{idle[0]} holds" if len(idle) == 1 else f"{len(idle)} logs, such as {idle[0]}, hold"
        imported.notes.append(f"{some} no evaluation")
    kept = _of_interest(evaluations, told, imported.notes)
    archive = _Archive(sessions, told)
    rows = [archive.row(each) for each in kept]
    tables = {path: _merged(root / path, own) for path, own in _by_file(rows).items()}
    if unhashed := sorted({row["ckpt"] for row in rows if not row["ckpt_sha256"]}):
        more = f" and {len(unhashed) - 1} more" if len(unhashed) > 1 else ""
        imported.notes.append(f"{unhashed[0]}{more} not here, so ckpt_sha256 is empty")
    for path, table in tables.items():
        write_text(root / path, _as_tsv(table))
        imported.rows[path] = len(table)
    return imported


def _of_interest(evaluations: Sequence[Evaluation], told: Told, notes: list[str]) -> list[Evaluation]:
    """Those of --eval-only, and with an eval seed given the last one of each finished training."""
    asked = [each for each in evaluations if told.dataset in (None, each.dataset)]
    if not asked:
        there = ", ".join(dict.fromkeys(each.dataset for each in evaluations))
        raise UserError(f"--dataset {told.dataset}: the logs evaluate {there}")
    last = {id(each.session): each for each in asked if each.session.trains}
    finished = [each for each in last.values() if _is_finished(each.session)] if told.eval_seed is not None else []
    kept = [each for each in asked if not each.session.trains or each in finished]
    if left := len(asked) - len(kept):
        why = "the last one of each finished training counts, and --eval-seed says under which seed"
        if not kept:
            raise UserError(f"{asked[0].source}: all evaluations were made while training; {why}")
        notes.append(f"{left} evaluation{'s' if left > 1 else ''} made while training left out; {why}")
    return kept


def _is_finished(session: Session) -> bool:
    """Whether a training came to its end: Detectron2 counts from 0, and prints every twentieth iteration."""
    last = session.value("SOLVER.MAX_ITER")
    return last is None or (session.iteration or 0) + 1 + 20 >= last


class _Archive:
    """All that the logs say together."""

    def __init__(self, sessions: Iterable[Session], told: Told) -> None:
        self.told = told
        self.hashes: dict[Path, str] = {}
        self.seeds = {
            str(Path(folder)): seed
            for session in sessions
            if session.trains and (folder := session.value("OUTPUT_DIR")) and (seed := _seed_of(session)) is not None
        }

    def row(self, each: Evaluation) -> Row:
        """The row of an evaluation; raises UserError naming what neither the log nor an option says."""
        session, told = each.session, self.told
        checkpoint = self._checkpoint(session)
        named = self._named(session, checkpoint)
        seed = self.seeds.get(str(Path(checkpoint).parent)) if checkpoint else None
        lineage = told.lineage or (named[0] if named else None)
        train_seed = _first(told.train_seed, int(named[1]) if named else None, seed)
        eval_seed = _first(told.eval_seed, None if session.trains else _seed_of(session))
        for option, value in (("lineage", lineage), ("train-seed", train_seed), ("eval-seed", eval_seed)):
            if value is None:
                raise UserError(f"{each.source}: the log does not say the {option.replace('-', ' ')}: give --{option}")
        sampling = self._sampling(each)
        ours = {"run": lineage, "train_seed": train_seed, "eval_seed": eval_seed, **sampling}
        path = Path(checkpoint)
        evidence = {
            "images": "" if each.images is None else each.images,
            "dataset": each.dataset,
            "ckpt": checkpoint or "unknown",
            "ckpt_sha256": self._hash(path) if checkpoint and path.is_file() else "",
            "source": each.source,
            "source_sha256": self._hash(session.log),
        }
        return {name: str(value) for name, value in {**ours, **each.metrics, **evidence}.items()}

    def _checkpoint(self, session: Session) -> str:
        """The weights that were evaluated; a training's are those it ended with."""
        if session.trains:
            folder = session.value("OUTPUT_DIR")
            return f"{folder}/model_final.pth" if folder else ""
        return session.weights or str(session.value("MODEL.WEIGHTS") or "")

    def _named(self, session: Session, checkpoint: str) -> tuple[str, str] | None:
        """Lineage and train seed as the first path tells them: the checkpoint's, OUTPUT_DIR, the log's own."""
        for path in (checkpoint, str(session.value("OUTPUT_DIR") or ""), session.log.absolute().as_posix()):
            if found := NAMED.search(path):
                return found[1], found[3]
        return None

    def _sampling(self, each: Evaluation) -> dict[str, Any]:
        given = dict(each.session.given)
        if self.told.sample_step is not None:
            given[STEPS] = Given(self.told.sample_step, "the command line")
        if STEPS not in given:
            raise UserError(f"{each.source}: the log does not say the sampling steps: give --sample-step")
        return sampling_of(each.session.log, given).columns()

    def _hash(self, path: Path) -> str:
        if path not in self.hashes:
            self.hashes[path] = sha256(path)
        return self.hashes[path]


def _seed_of(session: Session) -> int | None:
    """SEED, where it is one: below 0 Detectron2 draws another each time."""
    seed: int | None = session.value("SEED")
    return None if seed is None or seed < 0 else seed


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _by_file(rows: Iterable[Row]) -> dict[Path, list[Row]]:
    files: dict[Path, list[Row]] = {}
    for row in rows:
        path = Path(graph.imported_folder(row["run"], row["train_seed"])) / "results.tsv"
        files.setdefault(path, []).append(row)
    return files


def _merged(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a file that is there, and those that it lacks, by their keys in rising order. What counts is what a
    cell says, not how: a spreadsheet that saves the file makes 0 of 0.0.

    Raises UserError when two rows of one key measured something else.
    """
    before: list[Row] = []
    if path.exists():
        read_table(path, IMPORTED)
        with path.open(encoding="utf-8-sig", newline="") as file:
            before = [{"dataset": ""} | row for row in csv.DictReader(file, delimiter="\t")]
    found: dict[tuple[Any, ...], Row] = {}
    for row in (*before, *rows):
        key = tuple(read(row[name]) for name, read in KEY.items())
        known = found.setdefault(key, row)
        if different := [name for name in METRICS if _measured(known[name]) != _measured(row[name])]:
            name, what = different[0], ", ".join(f"{name} {value}" for name, value in zip(RUN, key, strict=False))
            raise UserError(
                f"{row['source']} and {known['source']} are both of {what}, but {name} is {row[name]} and "
                f"{known[name]}: leave one of them out, or of several datasets choose one by --dataset"
            )
    return [found[key] for key in sorted(found)]


def _measured(cell: str) -> float | None:
    """A metric; None where it is nan, which would not equal itself."""
    value = float(cell)
    return None if math.isnan(value) else value


def _as_tsv(rows: Sequence[Mapping[str, str]]) -> str:
    """The table, `nan` where a row has no AP of a class that others have."""
    classes = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith("AP-")]
    columns = [*KEY, *METRICS, *classes, *LAST_COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", restval="nan")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
