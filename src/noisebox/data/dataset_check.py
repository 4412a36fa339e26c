"""What stands between a dataset of `params/datasets/` and a training, as findings.

Everything is judged by the code that a training reads it with, but for the images: all must be there, and some are
decoded. No folder is walked.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from noisebox import graph
from noisebox.data.bev import BevView, NuScenesDataset
from noisebox.data.boxes import BoxDataset, UserDataset, check_classes_agree
from noisebox.data.catalog import load_dataset
from noisebox.data.coco import CocoSplit, ImageRecord, read_image
from noisebox.data.datasets import READERS, SPLITS, EmbeddedDataset
from noisebox.data.findings import Finding, finding_of
from noisebox.data.nuscenes_check import check_nuscenes
from noisebox.errors import UserError
from noisebox.files import DATASETS, datasets_folder
from noisebox.progress import Progress

SHOWN = 10  # classes that a row names, those with the most boxes


def check_dataset(
    name: str, root: Path = Path(), images: int | None = 32, label_hw: tuple[int, int] | None = None
) -> list[Finding]:
    """Look at a dataset: which files it needs and which are there, its annotations, its classes and boxes, and of each
    split so many `images`, evenly spread, or with None all. Label maps must be (height, width) `label_hw`, or else all
    of one size.

    Raises UserError when there is no such dataset, its file is at fault, a variable in it is not set, or `label_hw` is
    asked of one without label maps.
    """
    definition = load_dataset(name, root)
    if label_hw and not isinstance(definition, BevView):
        raise UserError(f"--label-size is of label maps, and dataset {name!r} has boxes: leave it out")
    folder = root / graph.dataset_folder(name)
    if isinstance(definition, EmbeddedDataset) and not definition.is_complete(folder):
        return [Finding("ok", str(folder), "embedded, and not drawn yet", "noisebox data draws it")]
    if isinstance(definition, BevView):
        return _frames(definition, name, root, label_hw)
    if not isinstance(definition, BoxDataset):
        raise TypeError(f"no check of {type(definition).__name__}")
    findings = _files(definition, name, root) if isinstance(definition, UserDataset) else []
    return [*findings, *_contents(definition, name, root, images)]


def _frames(definition: BevView, name: str, root: Path, label_hw: tuple[int, int] | None) -> list[Finding]:
    folder, version = definition.tables(name, root)
    if isinstance(definition, NuScenesDataset) and not folder.is_dir():
        return [
            *_root(definition.root),
            Finding("error", str(folder), "there is no such folder", definition.source or ""),
        ]
    return check_nuscenes(folder, version, definition.cameras, len(definition.names), label_hw)


def _root(*paths: str) -> Iterator[Finding]:
    """An environment variable that such paths begin with, and that leads nowhere."""
    variable, folder = datasets_folder()
    if variable and any(DATASETS[0] in path for path in paths) and not Path(folder).expanduser().is_dir():
        yield Finding("error", variable, f"is {folder}, which is no folder", "the folder that holds coco/ and the like")


def _files(definition: UserDataset, name: str, root: Path) -> list[Finding]:
    """Each file and folder that the dataset needs, once."""
    findings = list(_root(*(path for split in SPLITS for _, path in definition.files(split))))
    for split in SPLITS:
        missing = definition.missing(name, split, root)
        for key, path in definition.paths(name, split, root).items():
            if key in missing:
                fits = definition.source or ""
                findings.append(Finding("error", str(path), f"there is no such {missing[key]}", fits))
            else:
                findings.append(Finding("ok", str(path), "is there"))
    return list(dict.fromkeys(findings))


def _contents(definition: BoxDataset, name: str, root: Path, images: int | None) -> Iterator[Finding]:
    """What is in the files of each split; a split that lacks one of them is left out."""
    opened: dict[str, CocoSplit] = {}
    with Progress(f"read {name}", len(SPLITS)) as progress:
        for split in SPLITS:
            try:
                if not (isinstance(definition, UserDataset) and definition.missing(name, split, root)):
                    opened[split] = definition.open(name, split, root)
            except UserError as error:
                yield finding_of("error", split, str(error), "")
            progress.advance()
    for split, held in opened.items():
        yield from _counts(split, held)
        yield _decoded(name, split, held, images)
    if len(opened) == len(SPLITS):
        try:
            check_classes_agree(opened["train"], opened["val"], root / graph.dataset_file(name))
        except UserError as error:
            yield finding_of("error", "classes", str(error), "")


def _counts(split: str, held: CocoSplit) -> Iterator[Finding]:
    """How many images and boxes, of which classes, and the classes that have none."""
    objects = held.objects_per_class()
    free = sum(int(record.crowd.sum()) for record in held.images)
    what = f"images: {len(held)}, boxes: {sum(objects.values())}, and {free} that cost nothing"
    yield Finding("ok", split, f"{what}; classes: {len(objects)}")
    most = sorted((label for label in objects if objects[label]), key=lambda label: -objects[label])
    yield Finding("ok", split, f"boxes by class: {_named([f'{label} {objects[label]}' for label in most])}")
    if split == "train" and not most:
        yield Finding("error", split, "no image has a box to learn", "annotations of the dataset's classes, not crowds")
    elif lacking := [label for label, count in objects.items() if not count]:
        fits = "nothing teaches them" if split == "train" else "their AP is nan, and that is no failure"
        yield Finding("warning", split, f"classes without a box: {_named(lacking)}", fits)


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + rest


def _decoded(name: str, split: str, held: CocoSplit, images: int | None) -> Finding:
    """Whether so many of its images, evenly spread, are whole and of the size that is stated."""
    count = len(held) if images is None else min(images, len(held))
    places = np.linspace(0, len(held) - 1, count).round().astype(int).tolist()
    complaints = []
    with ThreadPoolExecutor(READERS) as pool, Progress(f"images of {name}/{split}", count) as progress:
        for complaint in pool.map(_fault, [held.images[place] for place in places]):
            complaints += [complaint] if complaint else []
            progress.advance()
    looked = f"{count} of {len(held)} images"
    if complaints:
        what, _, fits = complaints[0].partition("; ")
        return Finding("error", split, f"{looked} decoded, {len(complaints)} are faulty, the first: {what}", fits)
    return Finding("ok", split, f"{looked} decoded", "" if count == len(held) else "--all decodes every one")


def _fault(record: ImageRecord) -> str | None:
    try:
        read_image(record)
    except UserError as error:
        return str(error)
    return None
