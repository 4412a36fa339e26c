"""`params/searches/<name>.yaml`: what a budget search tunes, how little each trial may cost, and when it is given up.

What can be known before a trial starts is checked here, against the configuration that the trial will have: every key,
the ends of every range, every choice, and every trial whose values do not depend on what others come to.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from noisebox import graph
from noisebox.config.best import TUNABLE, cell_of, value_of
from noisebox.config.resolve import load_recipe, resolve
from noisebox.config.run import AUTO, RunConfig
from noisebox.config.section import AboveZero, Count, Positive, Section, check_section
from noisebox.errors import UserError
from noisebox.files import expanded, read_yaml, unreadable
from noisebox.randomness import numpy_generator

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

DIGITS = 4  # of a drawn number that count: more would tell no two trials apart
LOG_FROM = 10  # values whose largest is so many times the smallest are spread over a logarithmic range
BUDGETED = tuple(
    f"solver.{key}" for key in ("max_iter", "epochs", "length", "subset_size", "subset_seed", "eval_every", "overfit")
)


class BudgetConfig(Section):
    """What a trial may cost: `iters` iterations or `epochs` passes over a subset of `subset` images (by default all),
    their short edge brought to `image_size` from first to last (by default as the scale says); it is evaluated
    `evaluations` times, or as often as iterations can be shared out evenly without more."""

    iters: Positive | None = None
    epochs: AboveZero | None = None
    subset: Positive | None = None
    subset_seed: Count = 0
    image_size: Positive | None = None
    evaluations: Positive = 1

    @model_validator(mode="after")
    def _one_duration(self) -> "BudgetConfig":
        if (self.iters is None) == (self.epochs is None):
            raise ValueError("give one of iters and epochs: a trial lasts so many iterations or so many epochs")
        return self

    def every(self, iterations: int) -> int:
        """After how many iterations a trial of so many is evaluated, and again, and at its end."""
        return math.ceil(iterations / self.evaluations)

    def evaluated(self, iterations: int) -> int:
        """How often a trial of so many iterations is evaluated."""
        return math.ceil(iterations / self.every(iterations))

    def overrides(self, image: Any) -> dict[str, Any]:
        """The keys of a run that it sets; `image` is the run's own ImageConfig, whose proportions stay."""
        found: dict[str, Any] = {"solver.max_iter": self.iters, "solver.epochs": self.epochs}
        if self.subset:
            found |= {"solver.subset_size": self.subset, "solver.subset_seed": self.subset_seed}
        if self.image_size:
            longest = round(image.max_edge * self.image_size / image.eval_short_edge)
            found |= {"image.train_short_edges": [self.image_size], "image.eval_short_edge": self.image_size}
            found |= {"image.max_edge": longest, "image.resize_schedule": []}
        return {key: value for key, value in found.items() if value is not None}


Ends = tuple[float, float]


class RangeConfig(Section):
    """The values that a key may have: between two ends, drawn evenly (`uniform`) or evenly in the logarithm
    (`log_uniform`), or one of `choice`."""

    uniform: Ends | None = None
    log_uniform: Ends | None = None
    choice: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "RangeConfig":
        given = self.model_fields_set
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        if self.choice is None:
            low, high = self.ends
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"the lower end {low:g} must be below the upper end {high:g}")
            if self.log_uniform and low <= 0:
                raise ValueError(f"the lower end {low:g} has no logarithm; it must be above 0")
        return self

    @property
    def ends(self) -> Ends:
        """Of a range; of choices their places."""
        return self.uniform or self.log_uniform or (0.0, float(len(self.choice or ())))

    def extremes(self) -> list[Any]:
        """What must be sound for all values to be."""
        return self.choice if self.choice is not None else list(self.ends)

    @classmethod
    def spanning(cls, values: Sequence[Any]) -> "RangeConfig":
        """The range of values that were given: between the ends of numbers, or a choice."""
        numbers = [value for value in values if is_number(value)]
        if len(numbers) < len(values) or min(numbers) == max(numbers):
            return cls(choice=[value_of(cell) for cell in dict.fromkeys(cell_of(value) for value in values)])
        low, high = min(numbers), max(numbers)
        is_wide = low > 0 and high / low >= LOG_FROM
        return cls(log_uniform=(low, high)) if is_wide else cls(uniform=(low, high))

    def distribution(self) -> "BaseDistribution":
        """The range as Optuna has it, whose choices are the cells of a CSV: it knows no lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.choice is not None:
            return CategoricalDistribution([cell_of(value) for value in self.choice])
        return FloatDistribution(*self.ends, log=self.log_uniform is not None)

    def in_optuna(self, value: Any) -> float | str:
        """A value of this range as Optuna has it; raises ValueError where it is none of the choices."""
        return cell_of(self.choice[self.choice.index(value)]) if self.choice is not None else float(value)

    def suggested(self, trial: "optuna.Trial", key: str) -> Any:
        """What Optuna suggests for a trial."""
        if self.choice is not None:
            return value_of(trial.suggest_categorical(key, [cell_of(value) for value in self.choice]))
        return trial.suggest_float(key, *self.ends, log=self.log_uniform is not None)

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.choice is not None:
            return self.choice[int(place * len(self.choice))]
        low, high = self.ends
        return min(max(float(f"{self._number_at(place):.{DIGITS}g}"), low), high)

    def _number_at(self, place: float) -> float:
        low, high = self.ends
        return low * (high / low) ** place if self.log_uniform else low + (high - low) * place


class WholeRange(RangeConfig):
    """The whole numbers between two ends, both included: each stands for all numbers from it up to the next."""

    @property
    def ends(self) -> Ends:
        low, high = super().ends
        return low, high + 1

    def suggested(self, trial: "optuna.Trial", key: str) -> int:
        return self._whole(super().suggested(trial, key))

    def at(self, place: float) -> int:
        return self._whole(self._number_at(place))

    def _whole(self, drawn: float) -> int:
        return min(math.floor(drawn), int(super().ends[1]))  # the upper end itself may be drawn


class HalvingConfig(Section):
    """Successive halving, asynchronous (Li et al. 2020, arXiv 1810.05934): after `min_resource` evaluations, and again
    whenever that number has grown `reduction_factor`-fold, a trial goes on if it is in the best 1 / `reduction_factor`
    of those that came before it and got as far."""

    reduction_factor: Annotated[int, Field(ge=2)] = 2
    min_resource: Positive = 1

    def rungs(self, evaluations: int) -> Iterator[int]:
        """After which evaluations a trial may be given up, the last one not among them."""
        rung = self.min_resource
        while rung < evaluations:
            yield rung
            rung *= self.reduction_factor


class PruningConfig(Section):
    """When a trial is given up: by `successive_halving`, or where the metric is below `early_stop_threshold` at any
    evaluation."""

    successive_halving: HalvingConfig | None = None
    early_stop_threshold: float | None = None

    @model_validator(mode="after")
    def _says_when(self) -> "PruningConfig":
        if not self.model_fields_set:
            raise ValueError("give successive_halving or early_stop_threshold, or take pruning out")
        return self


class SearchConfig(Section):
    """A file of `params/searches/`: trials of one lineage at one train seed that differ in a few keys of a recipe.

    They are listed in `trials`, here or in a JSON file that it names, or drawn from a `space` of `count` points: by
    `quasi_random` (a Halton sequence, of which a longer one has the shorter as its beginning), or each after those that
    are finished (`tpe`, Bergstra et al. 2011), so that with several processes it matters who is faster.
    """

    description: Annotated[str, Field(min_length=1)]
    lineage: str
    seed: Count = 0
    budget: BudgetConfig
    trials: Annotated[list[dict[str, Any]], Field(min_length=1)] | str | None = None
    space: Annotated[dict[str, RangeConfig], Field(min_length=1)] | None = None
    count: Positive | None = None
    sampler: Literal["quasi_random", "tpe"] = "quasi_random"
    sampler_seed: Count = 0
    pruning: PruningConfig | None = None

    @model_validator(mode="after")
    def _list_or_space(self) -> "SearchConfig":
        if (self.trials is None) == (self.space is None):
            raise ValueError("give one of trials and space: a list of trials, or ranges to draw them from")
        if (self.space is None) != (self.count is None):
            raise ValueError("space and count go together: how many trials are drawn")
        return self

    @model_validator(mode="after")
    def _halving_may_give_up(self) -> "SearchConfig":
        halving, evaluations = self.pruning and self.pruning.successive_halving, self.budget.evaluations
        if halving and not any(halving.rungs(evaluations)):
            raise ValueError(
                f"pruning.successive_halving looks after evaluation {halving.min_resource} for the first time, and "
                f"budget.evaluations is {evaluations}: no trial would be given up before its end, so ask for more"
            )
        return self


class Search:
    """A search at a scale: its file, checked, and what its trials are."""

    def __init__(self, path: Path, scale: str, root: Path = Path()) -> None:
        """Read the file `path`, whose stem names the search.

        Raises UserError naming file, key and what fits.
        """
        self.path, self.name, self.scale, self.root = path, path.stem, scale, root
        self.config = load_search(path, root)
        try:
            self.lineage = graph.Lineage.parse(self.config.lineage)
            for part in self.lineage.parts:
                taken = load_recipe(part, root).from_search
                if taken and taken.name == self.name:
                    raise UserError(f"recipe {part!r} takes the best of this very search")
            config = resolve(self.lineage, self.config.seed, scale, root)
        except UserError as error:
            raise UserError(f"{path}: lineage: {error}") from None
        if self.config.budget.image_size and graph.line_of(config.family) == "bev":
            raise UserError(
                f"{path}: budget.image_size: the dataset says how large the images of family {config.family} are; "
                "take it out"
            )
        self._image = config.image
        self.space = {key: self._drawn_from(key, values) for key, values in (self.config.space or {}).items()}
        listed = [] if self.config.space else self._listed()
        self._trials = [self._sound(values, f"trials.{number}") for number, values in enumerate(listed)]

    @cached_property
    def plan(self) -> list[dict[str, Any] | None]:
        """The values of each trial by dotted key, or None where they depend on what other trials come to.

        Raises UserError when the lineage cannot be trained with some of them.
        """
        count = self.config.count
        if count is None:
            return list(self._trials)
        if self.config.sampler == "tpe":
            return [None] * count
        return [self._sound(values, f"trial {number}") for number, values in enumerate(self._quasi_random(count))]

    def resolved(self, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial; where it lasts so many epochs, its task gives the iterations.

        Raises UserError naming what does not fit.
        """
        overrides = {**values, **self.config.budget.overrides(self._image)}
        return resolve(self.lineage, self.config.seed, self.scale, self.root, overrides=overrides)

    def as_resolved(self, values: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
        """The values in the types of the configuration: a rate that YAML reads as text, such as 1e-4, as a number."""
        return {key: _value_at(config, key) for key in values}

    def keys(self) -> list[str]:
        """What the trials differ in; raises UserError as `plan` does."""
        return list(dict.fromkeys(key for values in self.plan for key in values or self.space))

    def _drawn_from(self, key: str, values: RangeConfig) -> RangeConfig:
        """The range of a key, of whole numbers where it takes no others; raises UserError where it is not sound."""
        extremes = [self._sound({key: value}, f"space.{key}")[key] for value in values.extremes()]
        is_whole = values.choice is None and all(isinstance(end, int) for end in extremes)
        return WholeRange(**values.model_dump(exclude_unset=True)) if is_whole else values

    def _listed(self) -> list[dict[str, Any]]:
        trials = self.config.trials
        if not isinstance(trials, str):
            return trials or []
        path = expanded(trials, self.root)
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path}: trials: {path} does not exist") from None
        except OSError as error:  # such as that it is a folder
            raise UserError(f"{self.path}: trials: {unreadable(path, error)}") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
            raise UserError(f'{path} must hold a list of trials such as [{{"solver.base_lr": 1e-4}}]')
        return listed

    def _quasi_random(self, count: int) -> list[dict[str, Any]]:
        from scipy.stats import qmc  # takes as long as all else together

        rng = numpy_generator(self.config.sampler_seed, "search")
        points = qmc.Halton(len(self.space), rng=rng).random(count)
        ranges = self.space.items()
        return [{key: range_.at(place) for (key, range_), place in zip(ranges, point, strict=True)} for point in points]

    def _sound(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values as they are resolved; raises UserError when the lineage cannot be trained with them."""
        try:
            for key in values:
                _check_key(key)
            config = self.resolved(values)
            if config.solver.batch_size == AUTO:
                raise UserError(
                    f"solver.batch_size is auto, here, in the recipe or in {graph.scale_file(self.scale)}; trials are "
                    "compared at equal cost, so give a number"
                )
            return self.as_resolved(values, config)
        except UserError as error:
            raise UserError(f"{self.path}: {where}: {error}") from None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load_search(path: Path, root: Path = Path()) -> SearchConfig:
    """Read the file of a search; raises UserError naming the key and what fits."""
    if not re.fullmatch(graph.RECIPE_PATTERN, path.stem):
        raise UserError(
            f"{path}: a search is named after its file, and recipes after the search: in lower-case letters, digits "
            "and '_'"
        )
    return check_section(SearchConfig, read_yaml(root / path), path)


def _check_key(key: str) -> None:
    """Raises UserError when a key is nothing that trials may differ in."""
    if key.partition(".")[0] not in TUNABLE:
        sections = ", ".join(f"{section}." for section in TUNABLE)
        raise UserError(f"{key!r} is no key of a recipe, so the best could not become one; keys begin with {sections}")
    if key in BUDGETED:
        raise UserError(f"{key!r} is what budget says; trials are compared at equal cost")


def _value_at(config: BaseModel, dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = getattr(value, key)
    if isinstance(value, BaseModel):
        raise UserError(
            f"{dotted!r} is a section: name one of its keys, such as {dotted}.{next(iter(type(value).model_fields))}"
        )
    return value
