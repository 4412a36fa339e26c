"""The study of a search: its trials, what each has come to, and who is at work on which.

It is one SQLite file in Optuna's form. Who is at work on a trial is told by a record lock, which the kernel lets go
however a process ends: so the trial of a killed process is free at once, and no clock is asked.
"""

import errno
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from noisebox import graph
from noisebox.config.best import Status, Trial
from noisebox.config.search import RangeConfig, Search, is_number
from noisebox.errors import UserError
from noisebox.files import BusyError, only_here, unwritable
from noisebox.randomness import seed_of
from noisebox.training.provenance import difference

STUDY = "study.db"
SECONDS_FOR_OTHERS = 60  # to be done with writing to the study
STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """The trials of a search by number, from 0; any number of processes may have it open."""

    def __init__(self, search: Search, inputs: Mapping[str, Any]) -> None:
        """Open the study of a search, or begin it; `inputs` is what its results depend on besides the trials' values.

        One that was made from other inputs is begun anew; raises UserError when a process is at work on it, or the
        study cannot be read or written.
        """
        self.search, self.folder = search, search.root / graph.search_folder(search.name)
        now = json.loads(json.dumps(inputs))
        with only_here(self.folder / "lock"), self.in_use():
            self._open()
            if changed := self._changed(now):
                self._begin_anew(changed)
            self._study.set_user_attr("inputs", now)
            for values in search.plan[len(self._study.get_trials(deepcopy=False)) :]:
                self._add(values)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Raises UserError where the block could not read or write the study; what was entered before stays."""
        path = self.folder / STUDY
        try:
            yield
        except (StorageInternalError, DatabaseError) as error:
            of_sql = error.__cause__ if isinstance(error, StorageInternalError) else error
            cause = getattr(of_sql, "orig", None) or of_sql or error  # SQLite's own words, without the statement
            if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise unwritable(path, OSError(errno.ENOSPC, str(cause))) from None
            said = " ".join(str(cause).split())
            raise UserError(
                f"{path} cannot be used ({said}); mend that, or delete {self.folder} and search again"
            ) from None

    def _open(self) -> None:
        waiting = {"connect_args": {"timeout": SECONDS_FOR_OTHERS}}
        self._storage = RDBStorage(f"sqlite:///{self.folder / STUDY}", engine_kwargs=waiting)
        self._study = optuna.create_study(
            storage=self._storage, study_name=self.search.name, direction="maximize", load_if_exists=True
        )
        self._id = self._storage.get_study_id_from_name(self.search.name)

    def _add(self, values: dict[str, Any] | None) -> None:
        """Enter a trial that waits to be run. Its values, where they are known, are an attribute, which is what counts,
        and parameters of Optuna only to be seen in its dashboard."""
        attributes = {} if values is None else {"values": values}
        waiting = partial(create_trial, state=TrialState.WAITING, user_attrs=attributes)
        try:
            params, distributions = _parameters(values or {}, self.search.space)
            self._study.add_trial(waiting(params=params, distributions=distributions))
        except ValueError:  # Optuna takes one kind of distribution for a key, and trials of before may have another
            self._study.add_trial(waiting())

    def _changed(self, now: Mapping[str, Any]) -> str | None:
        """In a few words why the study cannot be gone on with; None where it can."""
        before = self._study.user_attrs.get("inputs")
        if before is None:
            return None
        for trial, values in zip(self._study.get_trials(deepcopy=False), self.search.plan, strict=False):
            if values is not None and trial.user_attrs.get("values") != json.loads(json.dumps(values)):
                return f"trial {trial.number} has other values"
        return difference(before, dict(now))

    def _begin_anew(self, changed: str) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            with only_here(self._lock(trial.number), f"{self.folder}: what it was before {changed} is run"):
                pass
        self._storage.remove_session()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self._open()

    def run_folder(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def of(self, number: int) -> FrozenTrial:
        """What the study has of a trial now."""
        return self._storage.get_trial(self._trial_id(number))

    def unfinished(self) -> list[int]:
        """The numbers of the trials that have come to no end."""
        trials = self._study.get_trials(deepcopy=False)[: len(self.search.plan)]
        return [trial.number for trial in trials if not trial.state.is_finished()]

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Hold a trial while the block runs, if no other process does; yields whether this one has it."""
        is_mine = False
        with ExitStack() as held:
            with suppress(BusyError):
                held.enter_context(only_here(self._lock(number), f"trial {number} of {self.folder} is run"))
                is_mine = True
            yield is_mine

    def _lock(self, number: int) -> Path:
        return self.folder / "locks" / str(number)

    def begin(self, number: int) -> optuna.Trial:
        """A trial to be run, or gone on with; where its values are not known yet, they are drawn by its number and what
        the finished ones came to."""
        identity = self._trial_id(number)
        if self.of(number).state == TrialState.WAITING:
            self._storage.set_trial_state_values(identity, TrialState.RUNNING)
        key = seed_of(self.search.config.sampler_seed, "search", number) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=key)
        trial = optuna.Trial(self._study, identity)
        if "values" not in trial.user_attrs:
            drawn = {key: values.suggested(trial, key) for key, values in self.search.space.items()}
            trial.set_user_attr("values", drawn)
        return trial

    def end(self, number: int, state: TrialState, score: float | None = None) -> None:
        self._study.tell(number, score, state)

    def results(self) -> list[Trial]:
        """The finished trials, by number."""
        trials = self._study.get_trials(deepcopy=False)[: len(self.search.plan)]
        return [_row(trial) for trial in trials if trial.state.is_finished()]

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _parameters(
    values: Mapping[str, Any], space: Mapping[str, RangeConfig]
) -> tuple[dict[str, float | str], dict[str, BaseDistribution]]:
    """What Optuna can hold of a trial's values, and in which distributions. More trials must not change these: so
    they are those of the space or, where trials are listed, each number's own; what else a list may bring has none.

    Raises ValueError where a value is not among the choices as they are written.
    """
    if space:
        return (
            {key: space[key].in_optuna(value) for key, value in values.items()},
            {key: space[key].distribution() for key in values},
        )
    numbers = {key: float(value) for key, value in values.items() if is_number(value)}
    return dict(numbers), {key: FloatDistribution(value, value) for key, value in numbers.items()}


def _row(trial: FrozenTrial) -> Trial:
    measured, facts = trial.intermediate_values, trial.user_attrs
    return Trial(
        number=trial.number,
        status=STATUS[trial.state],
        metric=measured[max(measured)] if measured else None,
        loss=facts.get("loss"),
        seconds=facts.get("seconds", 0.0),
        values=facts.get("values", {}),
        reason=facts.get("reason", ""),
    )
