"""A small project in which every verb has run undisturbed, and the lives of processes in copies of it."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from conftest import ROOT, edit_yaml, small_experiment
from own_process import processes

from noisebox import cli, graph
from noisebox.training.checkpoint import load_checkpoint

SHORT_SEARCH = {
    "description": "a few rates",
    "lineage": "baseline",
    "budget": {"iters": 12, "evaluations": 2},
    "trials": [{"solver.base_lr": 1e-4}, {"solver.base_lr": 1e-3}, {"solver.base_lr": 1e-2}],
}
CHECKPOINT_EVERY = 5
ITERATIONS = 24


@dataclass(frozen=True)
class Verb:
    """What is disturbed: a command, the folder of what it makes, and the file there that tells the time, or the column
    of its tables that does; and where what a killed one goes on from lies elsewhere, that folder."""

    name: str
    command: str
    folder: str
    varying: str = ""
    varying_column: str = ""
    state: str = ""

    @property
    def trains(self) -> bool:
        return self.folder.startswith("runs/")


TRAIN = Verb("train", "train baseline", "runs/baseline/seed0", "run.json")
DISTIL = Verb("distil", "train baseline+distill_20to1", "runs/baseline+distill_20to1/seed0", "run.json")
EVALUATE = Verb("evaluate", "evaluate baseline", "evals/baseline/seed0", "speed.tsv")
DEPTH = Verb("depth-gt", "depth-gt --split train", "depth_gt")
SEARCH = Verb("search", "search params/searches/rate.yaml", "reports/searches", "", "seconds", "searches")
VERBS = (TRAIN, DISTIL, EVALUATE, DEPTH, SEARCH)


class Life:
    """One process of the command line, in a session of its own, from its start to its end.

    At its operation number `moment` on the verb's folder (an open, a rename; the first is 1) it does the `deed`.
    """

    def __init__(
        self, root: Path, verb: Verb, moment: int = 0, deed: Callable[[], None] | None = None, log: str = "said"
    ) -> None:
        self._log = root / log
        self.process: BaseProcess = processes.Process(target=_live, args=(root, verb, self._log, moment, deed))
        self.process.start()

    def end(self) -> int:
        """Wait for its end; returns the exit code, -9 after kill -9."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code

    def said(self, word: str) -> str:
        """The last line with this word that it wrote; process ids become dots."""
        lines = [line for line in self._log.read_text().splitlines() if word in line]
        return re.sub(r"process \d+", "process …", lines[-1]) if lines else ""

    def ends_well(self) -> None:
        """Wait for its end, which must be that of work done."""
        assert self.end() == 0, self._log.read_text()

    @property
    def operations(self) -> int:
        return int(self._log.with_suffix(".operations").read_text())


def _live(root: Path, verb: Verb, log: Path, moment: int, deed: Callable[[], None] | None) -> None:
    os.setsid()
    os.chdir(root)
    multiprocessing.set_start_method(None, force=True)  # for the loader's processes, as at the command line
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would have it ignored
    passed = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        paths = [root / argument for argument in arguments if isinstance(argument, str | os.PathLike)]
        if any(path.is_relative_to(root / verb.folder) for path in paths):
            passed += 1
            if passed == moment and deed:
                deed()

    sys.addaudithook(watch)
    sys.argv = ["noisebox", *verb.command.split()]
    try:
        cli.main()
    finally:
        log.with_suffix(".operations").write_text(str(passed))


def kill() -> None:
    """As a deed: kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """As a deed: SIGTERM to every process of the job, as schedulers send it."""
    os.killpg(0, signal.SIGTERM)


def interrupt() -> None:
    """As a deed: what Ctrl-C sends."""
    os.killpg(0, signal.SIGINT)


@dataclass
class Whole:
    """A project where every verb has run undisturbed: how long it took, in how many operations."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    _copies: "count[int]" = field(default_factory=count)

    def fresh(self, verb: Verb) -> Path:
        """A copy in which all is made but by this verb."""
        copy = self.root.parent / f"copy{next(self._copies)}"
        left_out = {
            self.root / name for name in (verb.folder, verb.state or verb.folder, "logs", "said", "said.operations")
        }

        def ignored(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(folder, name) in left_out]

        return shutil.copytree(self.root, copy, ignore=ignored, copy_function=os.link)

    def equal(self, root: Path, verb: Verb) -> bool:
        """Whether the verb has made the same bytes there."""
        return _content(root, verb) == _content(self.root, verb)

    def size(self, verb: Verb) -> int:
        """Bytes that the verb makes."""
        return sum(path.stat().st_size for path in (self.root / verb.folder).rglob("*") if path.is_file())

    def moment(self, verb: Verb, fraction: float) -> int:
        """The number of the operation at this fraction of all."""
        return max(1, round(fraction * self.operations[verb.name]))


def _content(root: Path, verb: Verb) -> dict[str, bytes]:
    folder = root / verb.folder
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != verb.varying]
    files = [path for path in files if path.parent.name != graph.FINISHED]  # second names, which go with an evaluation
    return {path.relative_to(folder).as_posix(): _bytes(path, verb.varying_column) for path in files}


def _bytes(path: Path, varying_column: str) -> bytes:
    """What a file holds, a table without that column."""
    if not varying_column:
        return path.read_bytes()
    return pd.read_csv(path).drop(columns=varying_column).to_csv().encode()


def make_whole(root: Path, verbs: tuple[Verb, ...], frames: int) -> Whole:
    """Make the project, with so many camera frames for depth ground truth, and run the verbs."""
    shutil.copytree(ROOT / "params", root / "params")
    edit_yaml(root / "params/experiment.yaml", **small_experiment())
    edit_yaml(root / "params/datasets/world_test.yaml", train=32)
    edit_yaml(root / "params/datasets/world_bev_test.yaml", train=frames // 4, samples=4)
    edit_yaml(
        root / "params/scales/test.yaml",
        workers=1,  # a process that makes batches ahead
        solver__max_iter=ITERATIONS,
        solver__log_every=1,
        solver__checkpoint_every=CHECKPOINT_EVERY,
        solver__eval_every=12,
        finetune__max_iter=4 * ITERATIONS,  # a distillation takes a quarter of it
    )
    if SEARCH in verbs:
        (root / "params/searches/rate.yaml").write_text(yaml.safe_dump(SHORT_SEARCH))
    lines = "detection bev" if DEPTH in verbs else "detection"
    whole = Whole(root)
    for verb in (Verb("data", f"data {lines}", "data"), *verbs):
        started = time.monotonic()
        life = Life(root, verb)
        life.ends_well()
        whole.seconds[verb.name], whole.operations[verb.name] = time.monotonic() - started, life.operations
    return whole


def lost(root: Path, verb: Verb) -> int:
    """Iterations that an ended training has to take again: those of metrics.csv, which here has a row for each, without
    those of the checkpoint that it goes on from."""
    work = root / verb.folder / "work"
    if not (work / "metrics.csv").exists():
        return 0
    reached = (work / "metrics.csv").read_text().count("train,")
    return reached - saved(root, verb)


def saved(root: Path, verb: Verb, name: str = "last.pth") -> int:
    path = root / verb.folder / "work" / name
    return int(load_checkpoint(path)["iteration"]) if path.exists() else 0
