"""The trials of a search, run one after the other by each process that takes part, until all have come to an end.

A trial is a training like any other, in a run folder of its own, killed and gone on with like any other. Whether it is
given up is a function of the trials of lower number alone: where these are behind, it waits for them. So what a search
comes to depends neither on how many processes run it nor on which is faster, and a killed search goes on to the same
end.
"""

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from noisebox import graph
from noisebox.config import RunConfig, teacher_of
from noisebox.config.best import Trial, write_trials
from noisebox.config.search import Search
from noisebox.errors import UserError
from noisebox.machine import check_device
from noisebox.search.study import Study
from noisebox.structures import Examples
from noisebox.tasks import open_task
from noisebox.training.loop import train
from noisebox.training.provenance import difference, fingerprint

SECONDS_BETWEEN_LOOKS = 0.5  # at what other processes do
Told = Callable[[Trial], None]


class _BehindError(Exception):
    """A trial of lower number that nobody runs has to get further before this one can."""


def run_search(search: Search, told: Told) -> list[Trial]:
    """Take part in a search until it is finished, and write its CSV; `told` is given each trial that has ended.

    Raises UserError when the lineage's parent or teacher, the data or the device is not there, or nothing can be
    written.
    """
    base = search.resolved({})
    check_device(base)
    runner = _Runner(search, base)
    with runner.study.in_use():
        for trial in runner.until_finished():
            told(trial)
        found = runner.study.results()
    write_trials(search.root / graph.search_csv(search.name), found)
    return found


class _Runner:
    """One process's part in a search."""

    def __init__(self, search: Search, base: RunConfig) -> None:
        self.search, self.base = search, base
        parent, seed = search.lineage.parent, search.config.seed
        named = teacher_of(search.lineage, seed, search.root)
        self.parent = search.root / graph.checkpoint(parent.name, seed) if parent else None
        self.teacher = search.root / named if named else None
        for path in (self.parent, self.teacher):
            if path and not path.exists():
                raise UserError(
                    f"{path} does not exist, from which every trial of {search.path} starts; train it first"
                )
        data_hash = open_task(base).data_hash
        said = search.config.model_dump(mode="json", exclude={"description", "trials", "count"})
        inputs = fingerprint(base.family, self.parent, self.teacher, data_hash, search.root)
        self.study = Study(search, {"search": said, "config": base.model_dump(mode="json"), **inputs})

    def until_finished(self) -> Iterator[Trial]:
        """Run what nobody else runs, the lowest number first; yields trials as they end, whoever ran them.

        Raises UserError when params/ no longer say what they said: trials from then on would be other ones.
        """
        known: set[int] = set()
        while True:
            self._check_params()
            unfinished = self.study.unfinished()
            for trial in self.study.results():
                if trial.number not in known:
                    known.add(trial.number)
                    yield trial
            if not unfinished:
                return
            if not any(self._run_if_free(number) for number in unfinished):
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def _check_params(self) -> None:
        before, now = ({"config": each.model_dump(mode="json")} for each in (self.base, self.search.resolved({})))
        if changed := difference(before, now):
            raise UserError(
                f"{self.search.path}: the search ends, because {changed}; put that back and run it again to go on, or "
                "run it again to begin anew"
            )

    def _run_if_free(self, number: int) -> bool:
        """Run a trial to its end, unless another process has it; returns whether this one had it."""
        with self.study.claimed(number) as is_mine:
            if is_mine and not self.study.of(number).state.is_finished():
                with suppress(_BehindError):
                    self._run(number)
            return is_mine

    def _run(self, number: int) -> None:
        """Run a trial, or go on with it, and enter what it came to."""
        trial = self.study.begin(number)
        run = self.study.run_folder(number)
        watch = _Stopwatch(trial)
        try:
            if not _is_published(run):
                self._train(trial, run, watch)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (torch.OutOfMemoryError, MemoryError) as error:
            state = TrialState.FAIL
            trial.set_user_attr("reason", f"out of memory: {_one_line(error)}")
        except UserError as error:
            if isinstance(error.__cause__ or error.__context__, OSError):
                raise  # a full disk is no trial's fault
            state = TrialState.FAIL
            trial.set_user_attr("reason", _one_line(error))
        watch.stop()
        trial.set_user_attr("loss", _last_loss(run))
        for path in run.rglob("*.pth*"):  # large, and of no more use
            path.unlink()
        measured = self.study.of(number).intermediate_values
        self.study.end(number, state, _score(measured[max(measured)]) if state == TrialState.COMPLETE else None)

    def _train(self, trial: optuna.Trial, run: Path, watch: "_Stopwatch") -> None:
        """Raises TrialPruned when the trial is given up, UserError when it cannot be trained."""
        search, budget = self.search, self.search.config.budget
        values = trial.user_attrs["values"]
        task = open_task(search.resolved(values))
        solver = task.config.solver
        every = budget.every(solver.iterations)
        config = task.config.model_copy(update={"solver": solver.model_copy(update={"eval_every": every})})
        evaluated = 0  # times, set where the training starts or goes on

        def batches(start: int, stop: int) -> Iterator[Examples]:
            nonlocal evaluated
            evaluated = start // every
            return iter(task.batches(start, stop))

        def validate(model: Any) -> float:
            nonlocal evaluated
            evaluated += 1
            value = task.validate(model)
            if evaluated not in self.study.of(trial.number).intermediate_values:  # a killed trial may repeat some
                trial.report(value, evaluated)
            watch.stop()
            self._judge(trial.number, evaluated, budget.evaluated(solver.iterations), value)
            return value

        train(
            config,
            run,
            task.classes,
            batches,
            task.data_hash,
            metric=task.metric,
            validate=validate,
            parent=self.parent,
            teacher=self.teacher,
            root=search.root,
        )

    def _judge(self, number: int, evaluated: int, of: int, value: float) -> None:
        """Raises TrialPruned when the trial is to be given up after so many evaluations of all that it has."""
        pruning = self.search.config.pruning
        if pruning is None:
            return
        if pruning.early_stop_threshold is not None and _score(value) < pruning.early_stop_threshold:
            raise optuna.TrialPruned
        halving = pruning.successive_halving
        if halving and evaluated in halving.rungs(of):
            scores = sorted([_score(value), *self._rivals(number, evaluated)], reverse=True)
            if _score(value) < scores[max(1, len(scores) // halving.reduction_factor) - 1]:
                raise optuna.TrialPruned

    def _rivals(self, number: int, evaluated: int) -> list[float]:
        """The scores of the trials of lower number after so many evaluations, waited for where they are behind."""
        scores = []
        for lower in range(number):
            while evaluated not in (measured := self.study.of(lower)).intermediate_values:
                if measured.state.is_finished():
                    break
                with self.study.claimed(lower) as is_free:
                    if is_free and not self.study.of(lower).state.is_finished():
                        raise _BehindError
                time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                scores.append(_score(measured.intermediate_values[evaluated]))
        return scores


class _Stopwatch:
    """The seconds that a trial has taken, over all the times that it was gone on with."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self._before, self._started = trial, trial.user_attrs.get("seconds", 0.0), time.monotonic()

    def stop(self) -> None:
        self.trial.set_user_attr("seconds", round(self._before + time.monotonic() - self._started, 1))


def _score(value: float) -> float:
    """The metric; nan, where nothing was detected, is the lowest."""
    return 0.0 if math.isnan(value) else value


def _is_published(run: Path) -> bool:
    """Whether a training ended there, though the study does not know it yet."""
    return (run / "run.json").exists() and not (run / "work").exists()


def _last_loss(run: Path) -> float | None:
    """The last loss in the metrics of a run, finished or not; None where there is none."""
    for path in (run / "metrics.csv", run / "work/metrics.csv"):
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                losses = [row["loss"] for row in csv.DictReader(file) if row["mode"] == "train"]
            return float(losses[-1]) if losses else None
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
