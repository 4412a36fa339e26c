"""Reading the `breakdown.json` of evaluations: what lies behind an AP, as evaluation/breakdown.py wrote it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisebox.errors import UserError
from noisebox.files import read_json

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
IOUS = ("0.5", "0.75")  # of the curves
RECALLS = np.linspace(0, 1, 101)
SIZES = ("all", "small", "medium", "large")

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Breakdown:
    """One evaluation's breakdown, of one step count and the mean over some eval seeds.

    `objects`: how many each class has; `curves`: by IoU the precision (K, 101) at recall 0, 0.01, … 1; `sizes`: by size
    the AP of each class; `confusion` (K + 1, K + 1): true against detected class, last row background, last column
    missed, of detections from `score` on; `costs`: by kind of error the AP50 that it costs; `counts`: how often it is
    there under each eval seed, on average. nan where there is no object.
    """

    sample_step: int
    eval_seeds: tuple[int, ...]
    classes: tuple[str, ...]
    objects: Counts
    ap50: float
    curves: dict[str, Numbers]
    sizes: dict[str, Numbers]
    confusion: Counts
    score: float
    costs: dict[str, float]
    counts: dict[str, float]


def read_breakdown(path: Path) -> Breakdown:
    """Read an evaluation's breakdown.json; raises UserError naming the file and what is wrong in it."""
    content = read_json(path)
    try:
        return _breakdown(content)
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what an evaluation writes: {error}") from None


def _breakdown(content: dict[str, Any]) -> Breakdown:
    classes, errors = tuple(map(str, content["classes"])), content["errors"]
    eval_seeds = tuple(map(int, content["eval_seeds"]))
    found = Breakdown(
        sample_step=int(content["sample_step"]),
        eval_seeds=eval_seeds,
        classes=classes,
        objects=np.array(content["objects"], np.int64),
        ap50=float(_numbers(content["AP50"])),
        curves={iou: _numbers(content["curves"][iou]).reshape(len(classes), len(RECALLS)) for iou in IOUS},
        sizes={size: _numbers(content["sizes"][size]).reshape(len(classes)) for size in SIZES},
        confusion=np.array(content["confusion"]["counts"], np.int64),
        score=float(content["confusion"]["score"]),
        costs={kind: float(_numbers(errors[kind]["cost"])) for kind in KINDS},
        counts={kind: int(errors[kind]["count"]) / len(eval_seeds) for kind in KINDS},
    )
    if found.confusion.shape != (len(classes) + 1,) * 2 or found.objects.shape != (len(classes),):
        raise ValueError(f"the counts are not those of {len(classes)} classes")
    return found


def _numbers(values: object) -> Numbers:
    """Numbers of a JSON file, null as nan."""
    return np.array(values, np.float64)


def objects_of(breakdowns: Mapping[str, Sequence[Breakdown]]) -> tuple[tuple[str, ...], Counts]:
    """The classes and how many objects each has, of lineages with a breakdown for each train seed.

    Raises UserError when they were evaluated on different ones.
    """
    first, *others = [each for of_lineage in breakdowns.values() for each in of_lineage]
    for other in others:
        if other.classes != first.classes or (other.objects != first.objects).any():
            raise UserError(
                f"{', '.join(breakdowns)} were evaluated on different objects: evaluate all on the same dataset"
            )
    return first.classes, first.objects
