"""Detectron2's configuration, a YAML file with `_BASE_` and KEY VALUE overrides, as a recipe and a scale.

What each key means is the table in detectron2_keys.py. A key that is not given has Detectron2's default, or that of
DiffusionDet's own additions to it. A key without a meaning here is refused, and so is a value that cannot be honoured.
"""

import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from noisebox import graph
from noisebox.config import ImageConfig, RecipeConfig, Sampling, ScaleConfig, Section, SolverConfig
from noisebox.config.diffusiondet import DiffusionDetConfig, DistillConfig, LossConfig
from noisebox.config.section import first_complaint, merged
from noisebox.errors import UserError, what_fits
from noisebox.files import read_yaml
from noisebox.interop.detectron2_keys import (
    ALIASES,
    BY_NAME,
    FIXED,
    KEYS,
    NOTHING,
    PUBLIC_SAMPLER,
    UNREAD,
    Key,
    ValueOf,
)

BASE = "_BASE_"
COMMAND_LINE = "the command line"
SCALE = "detectron2"  # the name of a scale that was made from a configuration
TRAINED, TESTED = ("train", "trainval"), ("val", "minival", "valid", "test")  # how the names of datasets end


@dataclass(frozen=True)
class Given:
    """A value, and the file or command line that it is from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Detectron2Config:
    """What a configuration came to.

    `weights` are those to start from; `train` and `test` the names of datasets; `num_classes` is None where it is not
    given; `sampling` is how --eval-only samples. `notes` are sentences about what was given and has no effect.
    """

    name: str
    recipe: RecipeConfig
    scale: ScaleConfig
    seed: int
    weights: str
    output_dir: Path
    num_classes: int | None
    sampling: Sampling
    notes: list[str] = field(default_factory=list)


def load_config(path: Path, overrides: Sequence[str], root: Path = Path()) -> Detectron2Config:
    """Read a configuration with the `overrides` KEY VALUE KEY VALUE …; datasets are those of `root`.

    Raises UserError naming file or command line, key, and what fits.
    """
    return _Translation(path, read_values(path, overrides), root).config()


# Reading


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Given]:
    """Every value given, by its whole key: those of the files named by `_BASE_`, of the file, of the overrides, each
    over those before.

    Values are read as Detectron2 does: text that is a literal of Python, such as `(480,)` or `1e-4`, is what it says.
    """
    return {**_of_file(path, ()), **of_pairs(overrides)}


def _of_file(path: Path, including: tuple[Path, ...]) -> dict[str, Given]:
    here = path.resolve()
    if here in including:
        way = " → ".join(each.name for each in (*including[including.index(here) :], here))
        raise UserError(f"{path}: {BASE} goes in a circle: {way}")
    content = read_yaml(path)
    bases = content.pop(BASE, [])
    values: dict[str, Given] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or "://" in base:
            raise UserError(f"{path}: {BASE} must be the path of a file, relative to this one, not {base!r}")
        values |= _of_file(path.parent / Path(base).expanduser(), (*including, here))
    return {**values, **dict(whole_keys(content, path))}


def whole_keys(content: dict[Any, Any], path: Path, within: str = "") -> Iterator[tuple[str, Given]]:
    """The values of nested sections, by keys such as `MODEL.DEVICE`; raises UserError at a key under two names."""
    spelled: dict[str, str] = {}
    for part, value in content.items():
        key = f"{within}{part}"
        if isinstance(value, dict):
            yield from whole_keys(value, path, f"{key}.")
            continue
        name = ALIASES.get(key, key)
        if name in spelled:
            raise UserError(f"{path}: {spelled[name]} and {key} are one key under two names; give one of them")
        spelled[name] = key
        yield name, Given(_literal(value), str(path))


def of_pairs(overrides: Sequence[str]) -> dict[str, Given]:
    """The values of KEY VALUE pairs; raises UserError where they are none."""
    for word in overrides[::2]:
        if word.startswith("--"):
            raise UserError(f"option {word!r} does not exist here; overrides of a configuration are KEY VALUE pairs")
        if "=" in word:
            raise UserError(f"overrides of a configuration are KEY VALUE pairs, so {word!r} must be two words")
    if len(overrides) % 2:
        raise UserError(f"overrides of a configuration are KEY VALUE pairs, but {overrides[-1]!r} has no value")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return {ALIASES.get(key, key): Given(_literal(value), COMMAND_LINE) for key, value in pairs}


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


# What the values mean


def sampling_of(path: Path, given: dict[str, Given]) -> Sampling:
    """How an evaluation sampled that ran with these values; raises UserError where no evaluation could."""
    translation = _Translation(path, given, Path())
    placed = translation.placed([key for key in KEYS if key.place.startswith("sampling.")])
    sampling: Sampling = translation.checked(Sampling, placed["sampling"], "sampling")
    return sampling


class _Translation:
    """The way from the values given to a recipe and a scale."""

    def __init__(self, path: Path, given: dict[str, Given], root: Path) -> None:
        self.path, self.given, self.root = path, given, root
        self.notes: list[str] = []
        self.unread: dict[str, list[str]] = {}  # by source, what DiffusionDet does not look at

    def of(self, name: str) -> Any:
        """The value of a key, given or not."""
        return self.given[name].value if name in self.given else BY_NAME[name].default

    def config(self) -> Detectron2Config:
        for name, value in self.given.items():
            self._check(name, value)
        for source, names in self.unread.items():
            self.notes.append(f"{source}: without effect, because DiffusionDet does not look there: {', '.join(names)}")
        parts = self.placed()
        threshold, sampler = "DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SAMPLER_TRAIN"
        if self.of(threshold) and "repeat_threshold" not in parts["scale"]["solver"]:
            unheard = f"{threshold} is without effect, because {sampler} is {self.of(sampler)}"
            self.notes.append(f"{self._source(threshold)}: {unheard}")
        run, name = parts["run"], re.sub(r"[^a-z0-9_]", "_", self.path.stem.lower())
        recipe, scale = parts["recipe"], parts["scale"]
        recipe["model"]["sampler"] = PUBLIC_SAMPLER.model_dump() | recipe["model"]["sampler"]
        sized = scale["models"]["diffusiondet"]
        sized["pretrained"] = bool(run["weights"])
        if not run["weights"]:
            sized["backbone"] = sized["backbone"].partition(".")[0]  # what follows names weights
        self.checked(DiffusionDetConfig, merged(sized, recipe["model"]), "scale.models.diffusiondet", "recipe.model")
        self.checked(LossConfig, recipe["loss"], "recipe.loss")
        self.checked(SolverConfig, {**scale["solver"], **recipe["solver"]}, "scale.solver", "recipe.solver")
        self.checked(ImageConfig, scale["image"], "scale.image")
        sampling = self._sampling(parts["sampling"])
        if "distill" in recipe:
            self.checked(DistillConfig, recipe["distill"], "recipe.distill")
        for section, defaults in (("model", DiffusionDetConfig()), ("loss", LossConfig())):
            recipe[section] = _without(recipe[section], defaults.model_dump())
        return Detectron2Config(
            name=name if re.fullmatch(graph.RECIPE_PATTERN, name) else f"d2_{name}",
            recipe=RecipeConfig(description=f"made from {self.path.name}", **recipe),
            scale=self.checked(ScaleConfig, {**scale, "dataset": self._dataset()}, "scale"),
            seed=self._seed(),
            weights=run["weights"],
            output_dir=Path(run["output_dir"]),
            num_classes=run["num_classes"] if "MODEL.DiffusionDet.NUM_CLASSES" in self.given else None,
            sampling=sampling,
            notes=self.notes,
        )

    def _check(self, name: str, given: Given) -> None:
        """Raises UserError when a key means nothing here, or its value is of another kind or cannot be honoured."""
        if name in BY_NAME:
            self._check_kind(BY_NAME[name], given)
        elif name in FIXED:
            named, reason = FIXED[name]
            fitting = [self.of(each.name) if isinstance(each, ValueOf) else each for each in named]
            if not any(_equal(given.value, each) for each in fitting):
                shown = " or ".join(repr(each) for each in fitting)
                raise UserError(f"{given.source}: {name} must be {shown}, not {given.value!r}: {reason}")
        elif name.startswith(UNREAD):
            self.unread.setdefault(given.source, []).append(name)
        else:
            raise UserError(f"{given.source}: {name} means nothing here; {_what_fits(name)}")

    def _check_kind(self, key: Key, given: Given) -> None:
        kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a list"}
        value, wanted = given.value, type(key.default)
        fits = isinstance(value, list | tuple) if wanted is tuple else isinstance(value, wanted)
        if wanted is float:
            fits = isinstance(value, int | float)
        elif key.name == "INPUT.MIN_SIZE_TRAIN":  # one, or several
            fits = fits or isinstance(value, int)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise UserError(f"{given.source}: {key.name} must be {kinds[wanted]}, not {value!r}")
        if key.needs and not self.of(key.needs) and not _equal(value, key.default):
            raise UserError(f"{given.source}: {key.name} has no effect without {key.needs}: set that too, or leave it")

    def placed(self, keys: Iterable[Key] = KEYS) -> dict[str, Any]:
        """By place what keys come to."""
        parts: dict[str, Any] = {"recipe": {"model": {}, "loss": {}, "solver": {}}}
        for key in keys:
            if key.needs and not self.of(key.needs):
                continue
            try:
                value = key.convert(self.of(key.name), self.of)
            except ValueError as complaint:
                raise UserError(f"{self._source(key.name)}: {key.name} {complaint}") from None
            if value is not NOTHING:
                _put(parts, key.place, list(value) if isinstance(value, tuple) else value)
        return parts

    def checked(self, section: type[Section], values: dict[str, Any], *places: str) -> Any:
        """`values` as a section; a complaint names the key of Detectron2 that has its place below one of `places`."""
        try:
            return section(**values)
        except ValidationError as error:
            where, complaint = first_complaint(section, error, "")
            names = [key.name for key in KEYS if key.place in {f"{place}.{where}" for place in places}]
            named = f"{self._source(names[0])}: {names[0]}" if names else f"{self.path}"
            raise UserError(f"{named}: {complaint}") from None

    def _source(self, name: str) -> str:
        return self.given[name].source if name in self.given else f"{self.path}, which leaves it at the default"

    def _sampling(self, values: dict[str, Any]) -> Sampling:
        sampling: Sampling = self.checked(Sampling, values, "sampling")
        guidance, mode = sampling.guidance, "MODEL.DiffusionDet.QUALITY_GUIDANCE_MODE"
        if sampling.steps > 1 and guidance.scale > 0 and guidance.mode == "final":
            unheard = "which of several steps is left out; --set model.sampler.ensemble=all keeps it"
            self.notes.append(f"{self._source(mode)}: {mode} final guides the last step alone, {unheard}")
        return sampling

    def _seed(self) -> int:
        seed: int = self.of("SEED")
        if seed >= 0:
            return seed
        self.notes.append(f"{self._source('SEED')}: SEED {seed} is 0 here, where no random number depends on the clock")
        return 0

    def _dataset(self) -> str:
        """The dataset whose training split DATASETS.TRAIN names, and whose validation split DATASETS.TEST names."""
        found = {}
        for key, endings in (("DATASETS.TRAIN", TRAINED), ("DATASETS.TEST", TESTED)):
            names = self.of(key)
            if len(names) != 1:
                raise UserError(f"{self._source(key)}: {key} must name one dataset, not {list(names)}")
            found[key] = self._dataset_of(key, str(names[0]), endings)
        train, test = found.values()
        if train != test:
            raise UserError(
                f"{self._source('DATASETS.TEST')}: DATASETS.TEST is of dataset {test!r}, DATASETS.TRAIN of {train!r}; "
                f"describe both as the splits of one in {graph.dataset_file('<name>')}"
            )
        return train

    def _dataset_of(self, key: str, name: str, endings: Sequence[str]) -> str:
        folder = (self.root / graph.dataset_file("any")).parent
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        fitting = [each for each in known if name == each or name.startswith(f"{each}_")]
        if not fitting:
            stem = re.sub(rf"_({'|'.join((*TRAINED, *TESTED))})$", "", name)
            raise UserError(
                f"{self._source(key)}: {key} names {name!r}, but {folder} has no {stem}.yaml; "
                f"{what_fits(stem, known, 'these exist')}"
            )
        dataset = max(fitting, key=len)
        ending = name[len(dataset) + 1 :]
        if ending and ending not in endings:
            raise UserError(
                f"{self._source(key)}: {key} names {name!r}; of dataset {dataset!r} it is the split "
                f"{dataset}_{endings[0]}"
            )
        return dataset


def _what_fits(name: str) -> str:
    known = [*BY_NAME, *FIXED, *ALIASES]
    if inside := [each for each in known if each.startswith(f"{name}.")]:
        return f"it holds keys, such as {inside[0]}"
    section = name.rpartition(".")[0]
    beside = [each for each in known if each.rpartition(".")[0] == section]
    if section and beside:
        return what_fits(name, beside, f"{section} has")
    beginnings = sorted({each.partition(".")[0] for each in known})
    return what_fits(name.partition(".")[0], beginnings, "keys begin with")


def _equal(value: Any, other: Any) -> bool:
    """Equal as a setting: a list is a tuple, and colours are rounded."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(value, bool) is not isinstance(other, bool):
        return False
    if isinstance(value, int | float) and isinstance(other, int | float):
        return abs(value - other) < 1e-9
    return bool(value == other)


def _put(parts: dict[str, Any], place: str, value: Any) -> None:
    *within, last = place.split(".")
    for key in within:
        parts = parts.setdefault(key, {})
    parts[last] = value


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`values` less those that are the default."""
    kept = {
        key: _without(value, defaults[key] or {}) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    }
    return {key: value for key, value in kept.items() if value != {}}
