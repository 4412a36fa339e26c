"""What lies behind an AP: precision-recall curves, AP by class and size, confusions, and what each kind of error costs.

Precision is counted as COCO counts it. The kinds of error are those of TIDE (Bolya et al. 2020), and each is weighed as
there: by the AP50 that would be gained if it alone were put right.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisebox.data.coco import CocoSplit
from noisebox.structures import Detections

FOUND, NEAR = 0.5, 0.1  # IoU from which a box has found an object, and from which it is near one at all
CONFIDENT = 0.3  # the score from which a detection counts in the confusion matrix
CURVES = (0.5, 0.75)  # IoU
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU, of the AP by class and size
RECALLS = np.linspace(0, 1, 101)
EVERY_SIZE = (0.0, 1e10)  # square pixels
SIZES = {"all": EVERY_SIZE, "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
KINDS = ("class", "location", "both", "duplicate", "background", "missed")

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Objects(NamedTuple):
    """G objects of all images: labels, areas in square pixels, whether each is a crowd; (G,) all."""

    labels: Places
    areas: Numbers
    crowd: Flags


class Found(NamedTuple):
    """D detections of all images in falling order of score: labels, areas in square pixels, scores; (D,) all."""

    labels: Places
    areas: Numbers
    scores: Numbers


class Pairs(NamedTuple):
    """P pairs of a detection and an object of one image that it is near: their places and their IoU; (P,) all.

    With a crowd, the IoU is the share of the detection that lies inside it, as COCO has it.
    """

    found: Places
    objects: Places
    iou: Numbers

    def where(self, chosen: Flags) -> "Pairs":
        return Pairs(self.found[chosen], self.objects[chosen], self.iou[chosen])


class Counted(NamedTuple):
    """`partner` (D,): the object that each detection was matched with, -1 for none. `kept` (D,): whether the detection
    counts at all; `hits` (D,): whether it counts as true. `totals` (K,): how many objects there are to find."""

    partner: Places
    kept: Flags
    hits: Flags
    totals: Places


class Told(NamedTuple):
    """The breakdown of one eval seed's detections: AP50; the precision of each class at CURVES (2, K, 101); its AP by
    SIZES (4, K); the `confusion` (K + 1, K + 1); of each of KINDS how often it is there and what it costs, (6,) both.
    """

    ap50: float
    curves: Numbers
    sizes: Numbers
    confusion: Places
    counts: Places
    costs: Numbers


def breakdown(split: CocoSplit, every: Sequence[Mapping[int, Detections]]) -> dict[str, Any]:
    """The breakdown of each eval seed's detections, by image id, against a split, as plain values for a JSON file:
    means over the eval seeds, and of counts sums.

    Lists run over `classes`; curves hold the interpolated precision at recall 0, 0.01, … 1; AP is from 0 to 100; None
    stands where the ground truth has no object. `confusion.counts` has a row for each class of the ground truth and one
    for background, and a column for each detected class and one for what was missed. `errors` says of each of KINDS how
    many detections (of `missed`: objects) it concerns, and what it costs in AP50.

    All detections given are counted; COCO looks at the 100 best of an image and class, which a Measurement holds.
    """
    parts = zip(*(told(split, detections) for detections in every), strict=True)
    ap50, curves, sizes, confusions, counts, costs = (np.array(part) for part in parts)
    errors = zip(KINDS, counts.sum(0).tolist(), _values(costs.mean(0)), strict=True)
    return {
        "images": len(split.images),
        "classes": list(split.classes),
        "objects": list(split.objects_per_class().values()),
        "AP50": _value(ap50.mean()),
        "curves": {f"{iou:g}": [*map(_values, rows)] for iou, rows in zip(CURVES, curves.mean(0), strict=True)},
        "sizes": {size: _values(row) for size, row in zip(SIZES, sizes.mean(0), strict=True)},
        "confusion": {"iou": FOUND, "score": CONFIDENT, "counts": confusions.sum(0).tolist()},
        "errors": {"iou": FOUND, "near": NEAR, **{kind: {"count": n, "cost": cost} for kind, n, cost in errors}},
    }


def told(split: CocoSplit, detections: Mapping[int, Detections]) -> Told:
    """The breakdown of one eval seed's detections."""
    objects, found, pairs = columns(split, detections)
    classes = len(split.classes)
    own = pairs.where(objects.labels[pairs.objects] == found.labels[pairs.found])
    base = count(objects, found, own, FOUND, classes)
    return Told(
        average_precision(curve(found, base)),
        np.array([curve(found, count(objects, found, own, iou, classes)) for iou in CURVES]),
        np.array([by_class(objects, found, own, size, classes) for size in SIZES]),
        confusion(objects, found, pairs, classes),
        *errors(objects, found, pairs, base),
    )


def columns(split: CocoSplit, detections: Mapping[int, Detections]) -> tuple[Objects, Found, Pairs]:
    """Ground truth, detections and their overlaps of all images, by rising image id, as COCO orders equal scores."""
    images = sorted(split.images, key=lambda image: image.id)
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    found = [_arrays(detections[image.id]) if image.id in detections else nothing for image in images]
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-scores, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    pairs, first_found, first_object = [], 0, 0
    for image, (own, _, _) in zip(images, found, strict=True):
        iou = overlaps(own, image.stored_xywh, image.crowd)
        row, column = np.nonzero(iou >= NEAR)
        pairs.append(Pairs(rank[row + first_found], column + first_object, iou[row, column]))
        first_found, first_object = first_found + len(own), first_object + len(image.labels)
    objects = Objects(*(np.concatenate([getattr(i, name) for i in images]) for name in ("labels", "areas", "crowd")))
    ranked = Found(labels[order], boxes[order, 2] * boxes[order, 3], scores[order])
    return objects, ranked, Pairs(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))


def _arrays(found: Detections) -> tuple[Numbers, Numbers, Places]:
    """Boxes (x, y, width, height), scores and labels of one image."""
    xywh: Numbers = found.boxes_xyxy.double().numpy().copy()
    xywh[:, 2:] -= xywh[:, :2]
    return xywh, found.scores.double().numpy(), found.labels.numpy()


def overlaps(found_xywh: Numbers, objects_xywh: Numbers, crowd: Flags) -> Numbers:
    """(D, G) IoU of detections with objects; with a crowd the share of the detection inside it."""
    found, objects = found_xywh[:, None], objects_xywh[None]
    lowest = np.maximum(found[..., :2], objects[..., :2])
    highest = np.minimum(found[..., :2] + found[..., 2:], objects[..., :2] + objects[..., 2:])
    shared = (highest - lowest).clip(min=0).prod(-1)
    own = found[..., 2:].prod(-1)
    union = np.where(crowd, own, own + objects[..., 2:].prod(-1) - shared)
    iou: Numbers = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def matched(pairs: Pairs, ignored: Flags, crowd: Flags, found: int) -> Places:
    """(D,) the object of each detection, -1 for none.

    In falling order of score each takes, of the objects that are still free, the one that it overlaps most; an ignored
    one only where no other is left. A crowd is always free.
    """
    partner, free = [-1] * found, [True] * len(ignored)
    order = np.lexsort((-pairs.objects, -pairs.iou, ignored[pairs.objects], pairs.found))
    many = crowd.tolist()
    for mine, target in zip(pairs.found[order].tolist(), pairs.objects[order].tolist(), strict=True):
        if partner[mine] < 0 and free[target]:
            partner[mine], free[target] = target, many[target]
    return np.array(partner, np.int64)


def count(
    objects: Objects, found: Found, own: Pairs, iou: float, classes: int, size: tuple[float, float] = EVERY_SIZE
) -> Counted:
    """Match detections with objects of their class (`own`), from an IoU on, among objects of a size.

    Crowds and objects of other sizes are ignored: what is matched with them does not count, nor does what is matched
    with nothing and has another size itself.
    """
    ignored = objects.crowd | (objects.areas < size[0]) | (objects.areas > size[1])
    partner = matched(own.where(own.iou >= min(iou, 1 - 1e-10)), ignored, objects.crowd, len(found.labels))
    beyond = (found.areas < size[0]) | (found.areas > size[1])
    kept = ~np.where(partner >= 0, _at(ignored, partner), beyond)
    totals = np.bincount(objects.labels[~ignored], minlength=classes)
    return Counted(partner, kept, kept & (partner >= 0), totals)


def curve(found: Found, counted: Counted) -> Numbers:
    """(K, 101) the interpolated precision of each class at RECALLS, nan where there is nothing to find."""
    return _curve(found.labels[counted.kept], counted.hits[counted.kept], counted.totals)


def _curve(labels: Places, hits: Flags, totals: Places) -> Numbers:
    """As `curve`, of detections in falling order of score: the highest precision at any recall not below."""
    rows = np.full((len(totals), len(RECALLS)), np.nan)
    for label in np.flatnonzero(totals):
        hit = hits[labels == label]
        true = hit.cumsum()
        highest = np.maximum.accumulate((true / np.arange(1, len(hit) + 1))[::-1])[::-1]
        rows[label] = np.append(highest, 0.0)[np.searchsorted(true / totals[label], RECALLS)]
    return rows


def average_precision(rows: Numbers) -> float:
    """AP from 0 to 100: the mean of a curve, and over the classes that have one; nan where none has."""
    present = rows[~np.isnan(rows[:, 0])]
    return 100 * float(present.mean()) if len(present) else np.nan


def by_class(objects: Objects, found: Found, own: Pairs, size: str, classes: int) -> Numbers:
    """(K,) AP over IoU 0.50:0.95 of each class among objects of a size."""
    curves = [curve(found, count(objects, found, own, iou, classes, SIZES[size])) for iou in THRESHOLDS]
    ap: Numbers = 100 * np.mean(curves, axis=(0, 2))
    return ap


def confusion(objects: Objects, found: Found, pairs: Pairs, classes: int) -> Places:
    """(K + 1, K + 1) true against detected class of what CONFIDENT detections found, last row and column background.

    In falling order of score each detection takes the free object, of any class, that it overlaps most, from FOUND on.
    """
    same = objects.labels[pairs.objects] == found.labels[pairs.found]
    counts = (found.scores[pairs.found] >= CONFIDENT) & (pairs.iou >= FOUND)
    partner = matched(
        pairs.where(counts & (same | ~objects.crowd[pairs.objects])), objects.crowd, objects.crowd, len(found.labels)
    )
    kept = (found.scores >= CONFIDENT) & ~_at(objects.crowd, partner)
    truth = np.where(partner >= 0, _at(objects.labels, partner), classes)
    missed = ~objects.crowd
    missed[partner[partner >= 0]] = False
    rows = np.concatenate([truth[kept], objects.labels[missed]])
    detected = np.concatenate([found.labels[kept], np.full(missed.sum(), classes)])
    return np.bincount(rows * (classes + 1) + detected, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def errors(objects: Objects, found: Found, pairs: Pairs, base: Counted) -> tuple[Places, Numbers]:
    """(6,), (6,) how many each of KINDS concerns, and what it costs (Bolya et al. 2020, section 2.3).

    A false detection is of the first kind that fits: `duplicate`, from FOUND on an object of its class, which a better
    one has taken; `class`, from FOUND on an object of another; `location`, from NEAR on one of its own class; `both`,
    from NEAR on another; else `background`. An object is `missed` when nothing found it and no error of class or
    location is about it.
    """
    pairs = pairs.where(~objects.crowd[pairs.objects])
    same = objects.labels[pairs.objects] == found.labels[pairs.found]
    (own, own_iou), (other, other_iou) = (_nearest(pairs.where(of), len(found.labels)) for of in (same, ~same))
    fits = [own_iou >= FOUND, other_iou >= FOUND, own_iou >= NEAR, other_iou >= NEAR]
    kind = np.select(fits, ["duplicate", "class", "location", "both"], "background")
    kind[~base.kept | base.hits] = "none"
    meant = np.where(kind == "class", other, own)
    missed = ~objects.crowd
    missed[base.partner[base.hits]] = False
    missed[meant[np.isin(kind, ("class", "location"))]] = False

    before = average_precision(curve(found, base))
    after = {
        **{name: _put_right(objects, found, base, kind == name, meant) for name in ("class", "location")},
        **{name: _left_out(found, base, kind == name) for name in ("both", "duplicate", "background")},
        "missed": _excused(objects, found, base, missed),
    }
    concerned = [(missed if name == "missed" else kind == name).sum() for name in KINDS]
    return np.array(concerned), np.array([after[name] - before for name in KINDS])


def _nearest(pairs: Pairs, found: int) -> tuple[Places, Numbers]:
    """(D,), (D,) the object of `pairs` that each detection overlaps most, and the IoU; -1 and 0 where there is none."""
    nearest, iou = np.full(found, -1, np.int64), np.zeros(found)
    order = np.lexsort((-pairs.iou, pairs.found))
    mine, first = np.unique(pairs.found[order], return_index=True)
    nearest[mine], iou[mine] = pairs.objects[order[first]], pairs.iou[order[first]]
    return nearest, iou


def _put_right(objects: Objects, found: Found, base: Counted, wrong: Flags, meant: Places) -> float:
    """AP50 if `wrong` detections had the class and the box of the object that they meant.

    Of several on one object, the best counts and the others are left out.
    """
    claim = np.where(wrong, meant, np.where(base.hits, base.partner, -1))
    claimants = np.flatnonzero(claim >= 0)
    hits = np.zeros_like(base.hits)
    hits[claimants[np.unique(claim[claimants], return_index=True)[1]]] = True
    kept = base.kept & (hits | (claim < 0))
    labels = np.where(wrong, _at(objects.labels, meant), found.labels)
    return average_precision(_curve(labels[kept], hits[kept], base.totals))


def _left_out(found: Found, base: Counted, wrong: Flags) -> float:
    """AP50 without `wrong` detections."""
    return average_precision(curve(found, base._replace(kept=base.kept & ~wrong)))


def _excused(objects: Objects, found: Found, base: Counted, missed: Flags) -> float:
    """AP50 without the objects that were missed; 100 if that leaves none of those there were."""
    left = base.totals - np.bincount(objects.labels[missed], minlength=len(base.totals))
    nothing_left = base.totals.any() and not left.any()
    return 100.0 if nothing_left else average_precision(curve(found, base._replace(totals=left)))


def _at(values: NDArray[Any], places: Places) -> NDArray[Any]:
    """The values at `places`; False or 0 at -1."""
    return np.append(values, np.zeros(1, values.dtype))[places]


def _value(number: float) -> float | None:
    return None if np.isnan(number) else round(float(number), 4)


def _values(numbers: Numbers) -> list[float | None]:
    return [_value(number) for number in numbers.tolist()]
