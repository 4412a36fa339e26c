"""`noisebox table`: the results table that a small file describes, as Markdown, TSV and LaTeX.

A row is a lineage sampled in one way, taken from `evals/`, or where it is `imported` from the results of past
experiments in `imported/`; or values from the literature with their source. What is not there is a dash with a reason
below the table, never a guess.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from noisebox import graph
from noisebox.config import Count, ExperimentConfig, GuidanceConfig, Positive, Sampling, Section, check_section
from noisebox.errors import UserError, what_fits
from noisebox.files import read_json, read_yaml, write_text
from noisebox.report import markdown
from noisebox.report.evaluations import (
    CLASS_PREFIX,
    DATASET,
    IMPORTED,
    METRICS,
    RESULTS,
    SPEED,
    Columns,
    described,
    imported_path,
    read_evaluation,
    results_path,
    speed_path,
)
from noisebox.report.statistics import interval, mean_of, seed_means, spread_of

# What a column's ending makes of the means of the train seeds; without one it is their mean.
OVER_SEEDS: dict[str, Callable[["pd.Series[float]"], float]] = {
    "_std": spread_of,
    "_low": lambda means: interval(means)[0],
    "_high": lambda means: interval(means)[1],
}
TIMES = ("s_per_img", "FPS")
PLAIN = ("steps", *METRICS, *TIMES)
DECIMALS = {"s_per_img": 4, "FPS": 1}  # all others are AP
EXACT = {"s_per_img": 6, "FPS": 3}  # in the TSV
EVIDENCE = ("path", "ckpt_sha256")


def _one_line(text: str) -> str:
    """Words as all three forms take them: a line break would end a row, or a comment in LaTeX."""
    return " ".join(text.split())


def _as_text(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return _one_line(str(value))
    raise ValueError("must be a number, or words in quotes")


Text = Annotated[str, AfterValidator(_one_line)]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_one_line)]


class LineageRow(Section):
    """A lineage sampled in one way: the mean over train seeds of their means over eval seeds.

    `train_seeds` are by default the experiment's, or all that are `imported`; `eval_seeds` are by default all that the
    evaluations have for this way. `crops` is YOLC's second look.
    """

    lineage: str
    name: Words | None = None
    sample_step: Positive = 1
    guidance: GuidanceConfig = GuidanceConfig()
    crops: bool = False
    train_seeds: Annotated[list[Count], Field(min_length=1)] | None = None
    eval_seeds: Annotated[list[Count], Field(min_length=1)] | None = None
    imported: bool = False

    def sampling(self) -> Sampling:
        """The way that the row is about."""
        return Sampling(steps=self.sample_step, guidance=self.guidance, crops=self.crops)


class LiteratureRow(Section):
    """Values by column, as they were published (quote a number to keep its last zeros), and where."""

    name: Words
    source: Words
    values: dict[Text, Annotated[str, BeforeValidator(_as_text)]]


class TableSpec(Section):
    """A file for `noisebox table`; its rows are each a LineageRow or a LiteratureRow."""

    columns: Annotated[list[Text], Field(min_length=1)]
    rows: Annotated[list[dict[str, Any]], Field(min_length=1)]
    caption: Text = ""


@dataclass(frozen=True)
class Line:
    """A row of the finished table: by column its value or the reason why there is none, and what it stands on; `data`
    is what a lineage was measured on, if that is known."""

    name: str
    values: Mapping[str, float | str]
    missing: Mapping[str, str]
    source: str
    checkpoints: str = ""  # none behind values from the literature
    data: str = ""


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    lines: Sequence[Line]
    caption: str


class _Missing(Exception):
    """Why a cell has no value."""


def make_table(path: Path, experiment: Callable[[], ExperimentConfig], root: Path = Path()) -> Table:
    """The table that the file `path` describes, from the evaluations below `root`; `experiment` is asked for its train
    seeds only where a row names none.

    Raises UserError naming file and key, or the evaluation that is broken.
    """
    spec, rows = read_spec(path)
    lines = []
    for row in rows:
        if isinstance(row, LineageRow):
            imported = graph.imported_results(root).values() if row.imported else []
            own = [seed for lineage, seed in imported if lineage == row.lineage]
            seeds = dict.fromkeys(row.train_seeds or own or experiment().train_seeds)
            lines.append(_of_lineage(row, list(seeds), spec.columns, root))
        else:
            given = {column: row.values[column] for column in spec.columns if column in row.values}
            missing = {column: f"not given by {row.source}" for column in spec.columns if column not in given}
            lines.append(Line(row.name, given, missing, row.source))
    return Table(spec.columns, lines, spec.caption)


def read_spec(path: Path) -> tuple[TableSpec, list[LineageRow | LiteratureRow]]:
    """Read and check a table's description, YAML or JSON by its name; UserError names file, key and what fits."""
    spec = check_section(TableSpec, (read_json if path.suffix == ".json" else read_yaml)(path), path)
    for column in spec.columns:
        known = [*PLAIN, *(name + ending for name in METRICS for ending in OVER_SEEDS)]
        if column not in known and not column.startswith(CLASS_PREFIX):
            raise UserError(f"{path}: columns names {column!r}; {what_fits(column, known, 'these exist')}, AP-<class>")
        if spec.columns.count(column) > 1:
            raise UserError(f"{path}: columns names {column!r} twice")
    return spec, [_row(values, place, spec.columns, path) for place, values in enumerate(spec.rows)]


def _row(values: dict[str, Any], place: int, columns: Sequence[str], path: Path) -> LineageRow | LiteratureRow:
    key = f"rows.{place}"
    if ("lineage" in values) == ("source" in values):
        raise UserError(f"{path}: {key} must name either a lineage, which is measured, or the source of its values")
    if "source" in values:
        cited = check_section(LiteratureRow, values, path, key)
        for name in cited.values:
            if name not in columns:
                raise UserError(f"{path}: {key}.values names {name!r}; {what_fits(name, columns, 'columns has')}")
        return cited
    row = check_section(LineageRow, values, path, key)
    try:
        graph.Lineage.parse(row.lineage)
    except UserError as error:
        raise UserError(f"{path}: {key}.lineage: {error}") from None
    return row


def _of_lineage(row: LineageRow, seeds: Sequence[int], columns: Sequence[str], root: Path) -> Line:
    """Measure what can be measured of a lineage."""
    measured = _Measured(row, seeds, root)
    values: dict[str, float | str] = {}
    missing: dict[str, str] = {}
    for column in columns:
        try:
            values[column] = measured.value(column)
        except _Missing as reason:
            missing[column] = str(reason)
    name = row.name or (f"{row.lineage} (imported)" if row.imported else row.lineage)
    return Line(name, values, missing, *measured.evidence(columns), measured.data)


@dataclass(frozen=True)
class _Measured:
    """What the evaluations of some train seeds of a lineage have for a row of the table."""

    row: LineageRow
    seeds: Sequence[int]
    root: Path

    def value(self, column: str) -> float | str:
        """A cell; raises _Missing where there is nothing to say."""
        if column == "steps":
            return str(self.row.sample_step)
        if column in TIMES and self.row.imported:
            raise _Missing("logs are imported without their times")
        if column in TIMES:
            seconds = mean_of(self.speed["inference_s_per_img"])
            return 1 / seconds if column == "FPS" else seconds
        endings = [] if column in self.results else [ending for ending in OVER_SEEDS if column.endswith(ending)]
        metric = column.removesuffix(*endings or [""])
        if metric not in self.results:
            raise _Missing(f"{self.results['path'].iloc[0]} has no column {metric!r}")
        unmeasured = self.results[self.results[metric].isna()]
        if len(unmeasured):
            raise _Missing(f"nan in {unmeasured['path'].iloc[0]}: there was nothing to measure")
        found = (OVER_SEEDS[endings[0]] if endings else mean_of)(seed_means(self.results, [metric])[metric])
        if math.isnan(found):
            raise _Missing("train seeds that differ are needed, two at least")
        return found

    @cached_property
    def results(self) -> pd.DataFrame:
        """The rows of every results.tsv, under the same eval seeds for each train seed."""
        rows = self._rows(*((imported_path, IMPORTED) if self.row.imported else (results_path, RESULTS)))
        of_seed = {seed: sorted(rows["eval_seed"][rows["train_seed"] == seed]) for seed in self.seeds}
        wanted = sorted(set(self.row.eval_seeds)) if self.row.eval_seeds else of_seed[self.seeds[0]]
        for seed, there in of_seed.items():
            if there != wanted:
                raise _Missing(
                    f"train seed {seed} was evaluated under the eval seeds {_joined(there)}, not {_joined(wanted)}"
                )
        if not self.row.imported:
            rows["dataset"] = rows["train_seed"].map({seed: self._trained_on(seed) for seed in self.seeds})
        if len(sets := _datasets(rows)) > 1:
            raise _Missing(f"its results are on {' and '.join(sets)}: choose some by train_seeds or eval_seeds")
        return rows

    def _trained_on(self, seed: int) -> str:
        """A dataset's name and hash, by the run.json beside the results; nothing where there is none."""
        path = self.root / results_path(self.row.lineage, seed)
        told = read_json(path.with_name("run.json")) if path.with_name("run.json").exists() else {}
        return ", sha256 ".join(filter(None, (told.get("dataset"), (told.get("data_hash") or "")[:12])))

    @property
    def data(self) -> str:
        """What was measured on; nothing where that is what logs say, or nothing was measured."""
        with suppress(_Missing):
            return "" if self.row.imported else _datasets(self.results)[0]
        return ""

    @cached_property
    def speed(self) -> pd.DataFrame:
        """The rows of every speed.tsv."""
        return self._rows(speed_path, SPEED)

    def _rows(self, path_of: Callable[[str, int], str], columns: Columns) -> pd.DataFrame:
        return pd.concat([self._rows_of(seed, path_of(self.row.lineage, seed), columns) for seed in self.seeds])

    def _rows_of(self, seed: int, path: str, columns: Columns) -> pd.DataFrame:
        lineage, sampling = self.row.lineage, self.row.sampling()
        if not (self.root / path).exists():
            made_by = "import-logs <folder>" if self.row.imported else f"evaluate {lineage} --seed {seed}"
            raise _Missing(f"{path} does not exist; this makes it: noisebox {made_by}")
        table = read_evaluation(self.root / path, columns, lineage, seed, optional=DATASET)
        way = sampling.columns()
        asked = (table[list(way)] == list(way.values())).all(axis="columns")
        if self.row.eval_seeds and "eval_seed" in table:
            asked &= table["eval_seed"].isin(self.row.eval_seeds)
        if not asked.any():
            raise _Missing(f"{path} has no row for {described(sampling)}")
        return table[asked].assign(path=path)

    def evidence(self, columns: Sequence[str]) -> tuple[str, str]:
        """The files and the checkpoints' sha256 behind the row's values."""
        tables = []
        for name, needed in (("results", {*columns} - {"steps", *TIMES}), ("speed", {*columns} & {*TIMES})):
            if needed:
                with suppress(_Missing):
                    tables.append(getattr(self, name))
        paths, digests = (markdown.listed(cell for table in tables for cell in table[name]) for name in EVIDENCE)
        if self.row.imported and paths:
            logs = {source.rpartition(":")[0] for table in tables for source in table["source"]}
            paths = f"{paths}, imported from {markdown.plural(len(logs), 'log')} (column source)"
        return paths or "nothing evaluated", digests


def _datasets(rows: pd.DataFrame) -> list[str]:
    """What some results are on: each dataset, and part of one, in words."""
    named = rows["dataset"].fillna("") if "dataset" in rows else [""] * len(rows)
    sets = dict.fromkeys(zip(named, rows["images"], strict=True))
    return [f"{name or 'no named dataset'} ({count or '?'} images)" for name, count in sets]


def _joined(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


# The three forms


def write_table(table: Table, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.md`, `.tsv` and `.tex` into a folder; returns their paths.

    Raises UserError where one is a file of the report, such as reports/tables/main.tsv; nothing is written then.
    """
    forms = {folder / f"{stem}{suffix}": form for suffix, form in FORMS.items()}
    reported = {Path(path).resolve() for path in graph.report_outputs()}
    for path in forms:
        if path.resolve() in reported:
            raise UserError(f"{path} is the report's and would be overwritten: rename the file, or give another --out")
    for path, form in forms.items():
        write_text(path, form(table))
    return list(forms)


def as_markdown(table: Table) -> str:
    """The table, then why cells are empty and what each row stands on."""
    cells = [[line.name, *_printed(line, table.columns)] for line in table.lines]
    parts = [f"**{table.caption}**"] if table.caption else []
    parts.append(markdown.table(["method", *table.columns], cells))
    parts += ["\n".join(f"- {note}" for note in notes) for notes in (_reasons(table), _sources(table.lines)) if notes]
    return "\n\n".join(parts) + "\n"


def as_tsv(table: Table) -> str:
    """Numbers with more digits, and for each row its source, checkpoints, and why cells are empty."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["method", *table.columns, "source", "ckpt_sha256", "missing"])
    for line in table.lines:
        reasons = "; ".join(_told(line))
        cells = _cells(line, table.columns, EXACT, 4)
        writer.writerow([line.name, *cells, line.source, line.checkpoints, reasons])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A `table` environment for LaTeX with the package booktabs; the files behind measured rows are comments."""
    rows = [["method", *table.columns]]
    rows += [[line.name, *_printed(line, table.columns)] for line in table.lines]
    header, *body = [f"    {_as_row(row)} \\\\" for row in rows]
    caption = [f"  \\caption{{{escaped(table.caption)}}}"] if table.caption else []
    measured, cited = ([line for line in table.lines if bool(line.checkpoints) is own] for own in (True, False))
    notes = [f"  \\par {escaped(note)}" for note in (*_reasons(table), *_sources(cited))]
    notes += [f"  % {note}" for note in _sources(measured)]
    lines = [
        "% needs \\usepackage{booktabs}",
        *["\\begin{table}", "  \\centering", *caption, f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}"],
        *["    \\toprule", header, "    \\midrule", *body, "    \\bottomrule", "  \\end{tabular}"],
        *["  \\medskip", "  \\footnotesize", *notes, "\\end{table}"],
    ]
    return "\n".join(lines) + "\n"


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "−": "$-$", "×": r"$\times$"},
    **{"±": r"$\pm$", "…": r"\dots{}"},
}


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], text)


def _as_row(cells: Sequence[str]) -> str:
    r"""Cells in LaTeX. The \\ or \midrule before them would take a bracket or a star at their beginning for its own."""
    row = " & ".join(map(escaped, cells))
    return f"{{}}{row}" if row.startswith(("[", "*")) else row


FORMS = {".md": as_markdown, ".tsv": as_tsv, ".tex": as_latex}


def _cells(line: Line, columns: Sequence[str], decimals: Mapping[str, int], of_ap: int) -> list[str]:
    """Values as text: numbers rounded, those from the literature as they were given, a dash for what is missing."""
    values = [line.values.get(column, markdown.ABSENT) for column in columns]
    digits = [decimals.get(column, of_ap) for column in columns]
    return [value if isinstance(value, str) else f"{value:.{n}f}" for value, n in zip(values, digits, strict=True)]


def _printed(line: Line, columns: Sequence[str]) -> list[str]:
    """Values for a reader."""
    return [re.sub(r"^-(?=\d)", markdown.MINUS, cell) for cell in _cells(line, columns, DECIMALS, 2)]


def _reasons(table: Table) -> list[str]:
    """Why cells are empty, and rows not comparable."""
    absent = [f"{markdown.ABSENT} {line.name}, {reason}" for line in table.lines for reason in _told(line)]
    names = {line.data: [each.name for each in table.lines if each.data == line.data] for line in table.lines}
    measured = [f"{markdown.listed(of_data)} on {data}" for data, of_data in names.items() if data]
    return absent + ([f"Not comparable, because the data differ: {'; '.join(measured)}"] if len(measured) > 1 else [])


def _told(line: Line) -> list[str]:
    """Each reason once, after the columns that it is about."""
    of_reason: dict[str, list[str]] = {}
    for column, reason in line.missing.items():
        of_reason.setdefault(reason, []).append(column)
    return [f"{', '.join(columns)}: {reason}" for reason, columns in of_reason.items()]


def _sources(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(f"{line.name}: {line.source}" for line in lines))
