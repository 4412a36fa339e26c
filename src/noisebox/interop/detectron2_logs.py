"""Reading the log.txt files of Detectron2: every evaluation in them, with the configuration that it ran under.

A log holds sessions, one for each time that a program was started, because Detectron2 appends. A session tells its
command line and its whole configuration; an evaluation is the lines that Detectron2 prints to be copied.
"""

import ast
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from noisebox.errors import UserError
from noisebox.interop.detectron2_config import Given, of_pairs, whole_keys

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LOG = "log.txt"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
STAMP = re.compile(r"^\[\d\d/\d\d \d\d:\d\d:\d\d")  # how a line of a log begins, and none that goes on with one
STARTED = re.compile(r"Command line arguments: (.*)")
CONFIG = "Running with full config:"
PER_CLASS = "Per-category bbox AP:"
ITERATION = re.compile(r"\biter: (\d+)\b")
LOADED = re.compile(r"Loaded (\d+) images in")
WEIGHTS = re.compile(r"Loading from (\S+) \.\.\.")
DATASET = re.compile(r"Evaluation results for (\S+) in csv format")
RULE = re.compile(r"[|:\- ]+")  # between a table's header and its rows
COPYPASTE = re.compile(r"copypaste: (.*)")


@dataclass
class Session:
    """A program's part of a log: what it was started with, and its last printed iteration, None where nothing was
    trained."""

    log: Path
    given: dict[str, Given] = field(default_factory=dict)
    eval_only: bool | None = None
    weights: str = ""  # those loaded last
    iteration: int | None = None

    @property
    def trains(self) -> bool:
        return self.iteration is not None if self.eval_only is None else not self.eval_only

    def value(self, key: str) -> Any:
        """What the session says of a key; None where it says nothing."""
        return self.given[key].value if key in self.given else None


@dataclass(frozen=True)
class Evaluation:
    """What was measured: `metrics` as printed, by METRICS and AP-<class>; `images` is None where that is not told."""

    session: Session
    line: int
    metrics: dict[str, str]
    images: int | None
    dataset: str

    @property
    def source(self) -> str:
        return f"{self.session.log}:{self.line}"


def logs_of(places: Iterable[Path]) -> list[Path]:
    """The files named, and of folders every log.txt at any depth; raises UserError where there is none."""
    found: dict[Path, None] = {}
    for place in places:
        if place.is_file():
            found[place] = None
        elif place.is_dir():
            inside = sorted(place.rglob(LOG))
            if not inside:
                raise UserError(f"{place} holds no {LOG}; name the folder of an archive, or a log itself")
            found |= dict.fromkeys(inside)
        else:
            raise UserError(f"{place} does not exist; name a {LOG} of Detectron2, or a folder of them")
    return list(found)


def read_log(path: Path) -> tuple[list[Session], list[Evaluation]]:
    """Every session and evaluation of a log, in its order.

    Raises UserError, naming file and line, where an evaluation is cut off or is none.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    reader = _Reader(path, [ANSI.sub("", line) for line in text.splitlines()])
    evaluations = list(reader.evaluations())
    return reader.sessions, evaluations


class _Reader:
    """The way through a log, line by line."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines = path, lines
        self.sessions: list[Session] = []
        self.per_class: dict[str, str] = {}
        self.images: int | None = None
        self.dataset = ""

    def evaluations(self) -> Iterator[Evaluation]:
        for place, line in enumerate(self.lines):
            if found := STARTED.search(line):
                self._start(found[1])
            elif CONFIG in line:
                self._configured(place)
            elif found := ITERATION.search(line):
                self._session().iteration = int(found[1])
            elif found := LOADED.search(line):
                self.images = int(found[1])
            elif found := WEIGHTS.search(line):
                self._session().weights = found[1]
            elif PER_CLASS in line:
                self.per_class = self._table(place)
            elif found := DATASET.search(line):
                self.dataset = found[1]
            elif (found := COPYPASTE.search(line)) and found[1].strip() == "Task: bbox":
                yield self._evaluation(place)
                self.per_class = {}

    def _session(self) -> Session:
        """The session under way; a log that does not begin with one is part of one all the same."""
        if not self.sessions:
            self.sessions.append(Session(self.path))
        return self.sessions[-1]

    def _start(self, arguments: str) -> None:
        session = Session(self.path)
        self.sessions.append(session)
        self.per_class, self.images, self.dataset = {}, None, ""
        told = _namespace(arguments)
        if isinstance(told.get("eval_only"), bool):
            session.eval_only = told["eval_only"]
        with suppress(UserError):  # Detectron2 took them otherwise
            session.given = of_pairs([str(word) for word in told.get("opts") or []])

    def _configured(self, place: int) -> None:
        try:
            content = yaml.safe_load("\n".join(self._block(place)))
        except yaml.YAMLError:
            content = None
        if not isinstance(content, dict):
            raise UserError(
                f"{self.path}, line {place + 1}: the configuration after it is no YAML; is the log cut off?"
            )
        self._session().given |= dict(whole_keys(content, self.path))

    def _block(self, place: int) -> Iterator[str]:
        """The lines after one that it goes on with."""
        for line in self.lines[place + 1 :]:
            if STAMP.match(line):
                return
            yield line

    def _table(self, place: int) -> dict[str, str]:
        """AP by class, from a table whose cells are class, AP, class, AP and so on."""
        lines = (line for line in self._block(place) if line.startswith("|") and not RULE.fullmatch(line))
        cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
        pairs = [pair for row in cells[1:] for pair in zip(row[::2], row[1::2], strict=False) if pair[0]]
        return {f"AP-{name}": self._percentage(value, place + 1) for name, value in pairs}

    def _evaluation(self, place: int) -> Evaluation:
        rows = []
        for line in self.lines[place + 1 : place + 3]:
            found = COPYPASTE.search(line)
            rows.append(found[1].strip().split(",") if found else [])
        names, values = [*rows, [], []][:2]
        if len(names) != len(values) or not set(METRICS) <= set(names):
            raise UserError(
                f"{self.path}, line {place + 1}: the evaluation is cut off: {','.join(METRICS)} must follow, and as "
                "many numbers; take it out of the log, or leave the log out"
            )
        scores = dict(zip(names, values, strict=True))
        metrics = {name: self._percentage(scores[name], place + 3) for name in METRICS}
        session = self._session()
        return Evaluation(session, place + 1, metrics | self.per_class, self.images, self.dataset)

    def _percentage(self, cell: str, line: int) -> str:
        try:
            value = float(cell)
            if not (math.isnan(value) or 0 <= value <= 100):
                raise ValueError
        except ValueError:
            raise UserError(f"{self.path}, line {line}: {cell!r} is no AP; it must lie in 0 to 100 or be nan") from None
        return f"{value:.4f}"


def _namespace(text: str) -> dict[str, Any]:
    """The arguments in `Namespace(config_file='x.yaml', eval_only=True, …)`, those that are literals."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return {}
    told: dict[str, Any] = {}
    for keyword in call.keywords if isinstance(call, ast.Call) else []:
        try:
            told[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return told
