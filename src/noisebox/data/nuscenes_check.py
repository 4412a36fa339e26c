"""What stands between a nuScenes root and a training, as findings.

What a training reads is judged by the code that it reads it with: an error here is one that would stop it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from noisebox.config.bev import BevGridConfig
from noisebox.data.findings import Finding, Severity, finding_of
from noisebox.data.nuscenes import SPLITS_FILE, Frame, check_image, check_sweep, read_nuscenes, versions
from noisebox.data.nuscenes_tables import Table, missing
from noisebox.errors import UserError
from noisebox.progress import Progress

# Every table of version 1.0, and for the tokens its rows hold the table that lists them.
LINKS: dict[str, dict[str, str]] = {
    "attribute": {},
    "calibrated_sensor": {"sensor_token": "sensor"},
    "category": {},
    "ego_pose": {},
    "instance": {
        "category_token": "category",
        "first_annotation_token": "sample_annotation",
        "last_annotation_token": "sample_annotation",
    },
    "log": {},
    "map": {"log_tokens": "log"},
    "sample": {"scene_token": "scene", "prev": "sample", "next": "sample"},
    "sample_annotation": {
        "sample_token": "sample",
        "instance_token": "instance",
        "visibility_token": "visibility",
        "attribute_tokens": "attribute",
        "prev": "sample_annotation",
        "next": "sample_annotation",
    },
    "sample_data": {
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
        "prev": "sample_data",
        "next": "sample_data",
    },
    "scene": {"log_token": "log", "first_sample_token": "sample", "last_sample_token": "sample"},
    "sensor": {},
    "visibility": {},
}
READ = ("calibrated_sensor", "ego_pose", "sample", "sample_data", "scene", "sensor")  # the tables that a training reads
MAY_BE_EMPTY = ("prev", "next", "visibility_token")
SPLITS = ("train", "val")
IGNORED = 255  # the label of a cell that does not count
GRID_HW = (BevGridConfig().rows, BevGridConfig().columns)  # of model.grid where nobody says otherwise
UNPACK = "unpack the archive again"
LAYOUT: tuple[tuple[str, tuple[str, ...], str, Severity], ...] = (
    ("img_dir/{split}", (".jpg", ".jpeg", ".png"), "image", "warning"),
    ("ann_bev_dir/{split}", (".png",), "label", "error"),
    ("ann_bev_dir/{split}_depth", (".npz",), "depth", "warning"),
)


class Label(NamedTuple):
    """A label map's file, its (height, width) and its values; no size where it is damaged or something else."""

    file: str
    hw: tuple[int, int] | None
    values: set[int]


def check_nuscenes(
    root: Path,
    version: str | None = None,
    cameras: Sequence[str] = ("CAM_FRONT",),
    classes: int | None = None,
    label_hw: tuple[int, int] | None = None,
) -> list[Finding]:
    """Look at a root: tables, links, sweeps and images, and the labels beside them.

    `version` may be left out where the root has one only. Labels must be below `classes`, if that is given, or 255,
    and (height, width) `label_hw`, or else all of one size.
    """
    if not root.is_dir():
        return [finding_of("error", str(root), missing(root), "the folder that holds samples/")]
    found = versions(root)
    if version is None and len(found) != 1:
        has = f"has {', '.join(found)}" if found else "has no folder of tables, such as v1.0-mini"
        return [Finding("error", str(root), f"it {has}", "name one with --version" if found else UNPACK)]
    findings = list(_tables(root / (version or found[0]))) if version in (None, *found) else []
    try:
        dataset = read_nuscenes(root, version or found[0], cameras)
    except UserError as error:
        told = finding_of("error", version or found[0], _short(error, root), UNPACK)
        known = any((each.severity, each.what) == ("error", told.what) for each in findings)
        return findings if known else [*findings, told]
    labels = {}
    for split in SPLITS:
        try:
            frames = dataset.frames(split)
        except UserError as error:
            findings.append(Finding("error", split, _short(error, root), "list its scenes in splits.json"))
            continue
        findings += _files(root, split, frames)
        findings += _layout(root, split, frames)
        labels[split] = _read_labels(root, split, frames)
    return [*findings, *_labels(labels, classes, label_hw)]


def _short(complaint: UserError | str, root: Path) -> str:
    """A complaint with its paths from the root on."""
    return str(complaint).replace(f"{root}/", "")


def _tables(folder: Path) -> Iterator[Finding]:
    """Whether every table is there, and every token leads somewhere."""
    tokens: dict[str, set[str]] = {}
    for name in LINKS:
        try:
            tokens[name] = {row["token"] for row in Table(folder, name).rows()}
        except UserError as error:
            said = _short(error, folder.parent)
            if name in READ:
                yield Finding("error", f"{folder.name}/{name}.json", said, UNPACK)
            else:
                yield Finding("warning", f"{folder.name}/{name}.json", f"{said}; a training can do without", UNPACK)
    broken = 0
    for name in tokens:
        for key, rows in _broken_links(Table(folder, name), tokens).items():
            broken += len(rows)
            what = f"rows with a {key} that {LINKS[name][key]}.json does not list: {len(rows)}, the first {rows[0]!r}"
            yield Finding("warning", f"{folder.name}/{name}.json", what, UNPACK)
    if len(tokens) == len(LINKS) and not broken:
        samples, shots = len(tokens["sample"]), len(tokens["sample_data"])
        what = f"tables: {len(LINKS)}, samples: {samples}, sample_data: {shots}; every token leads somewhere"
        yield Finding("ok", folder.name, what)


def _broken_links(table: Table, tokens: dict[str, set[str]]) -> dict[str, list[str]]:
    """By key, the rows with a token that leads nowhere; keys into tables that could not be read are left out."""
    links = {key: tokens[target] for key, target in LINKS[table.name].items() if target in tokens}
    broken: dict[str, list[str]] = {}
    for row in table.rows() if links else ():
        for key, known in links.items():
            held = row.get(key)
            for token in held if isinstance(held, list) else [held]:
                if not isinstance(token, str) or (token not in known and not (token == "" and key in MAY_BE_EMPTY)):
                    broken.setdefault(key, []).append(row["token"])
    return broken


def _files(root: Path, split: str, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Whether sweeps and images are there and whole."""
    complaints: dict[tuple[str, str], list[str]] = {}
    with Progress(f"files of {split}", len(frames)) as progress:
        for frame in frames:
            for path, check in ((frame.sweep, check_sweep), (frame.image, check_image)):
                try:
                    check(frame)
                except UserError as error:
                    state = "damaged" if path.exists() else "missing"
                    folder = path.parent.relative_to(root).as_posix()
                    complaints.setdefault((folder, state), []).append(_short(error, root))
            progress.advance()
    for (folder, state), said in complaints.items():
        what = f"{state} files of {split}: {len(said)} of {len(frames)}, the first: {said[0]}"
        yield Finding("error", folder, what, UNPACK)
    if not complaints:
        yield Finding("ok", split, f"frames: {len(frames)}, sweeps and images there and whole")


def _layout(root: Path, split: str, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Whether img_dir, ann_bev_dir and the depth beside it hold a file for each frame of the split, and no other."""
    wanted = {frame.stem for frame in frames}
    for folder, suffixes, kind, severity in LAYOUT:
        place = root / folder.format(split=split)
        where = place.relative_to(root).as_posix()
        if not place.is_dir():
            if kind != "depth":
                fits = f"a folder of {kind}s, one per frame, named like the image"
                yield finding_of(severity, where, _short(missing(place), root), fits)
            continue
        held = {file.stem for file in place.iterdir() if file.suffix.lower() in suffixes}
        counted = f"{kind} files: {len(held)}, frames: {len(wanted)}"
        if lacking := sorted(wanted - held):
            what = f"{counted}; frames without one: {len(lacking)}, the first {lacking[0]}"
            yield Finding(severity, where, what, f"add what is missing, or leave the scene out of {SPLITS_FILE}")
        if others := sorted(held - wanted):
            what = f"{counted}; files of no frame of this split and these cameras: {len(others)}, the first {others[0]}"
            yield Finding("warning", where, what, "each split's files in its own folder")
        if held == wanted:
            yield Finding("ok", where, counted)


def _read_labels(root: Path, split: str, frames: Sequence[Frame]) -> list[Label]:
    """The labels that are there."""
    folder = root / "ann_bev_dir" / split
    files = [path for frame in frames if (path := folder / f"{frame.stem}.png").is_file()]
    labels = []
    with Progress(f"labels of {split}", len(files)) as progress:
        for path in files:
            labels.append(_read_label(path))
            progress.advance()
    return labels


def _read_label(path: Path) -> Label:
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "P"):
                return Label(path.name, (image.height, image.width), set(np.unique(np.array(image)).tolist()))
    except Exception:  # Pillow raises nearly anything on a damaged file
        pass
    return Label(path.name, None, set())


def _labels(labels: dict[str, list[Label]], classes: int | None, label_hw: tuple[int, int] | None) -> Iterator[Finding]:
    """Whether every label is a map of the size that is asked for, or else that most have, with classes in range."""
    sizes = Counter(label.hw for held in labels.values() for label in held if label.hw)
    height, width = label_hw or max(sizes, key=sizes.__getitem__, default=GRID_HW)
    for split, held in labels.items():
        yield from _faulty_labels(f"ann_bev_dir/{split}", held, classes, (height, width))
    if label_hw is None and (height, width) != GRID_HW:
        what = f"labels have {height} × {width} cells, model.grid has {GRID_HW[0]} × {GRID_HW[1]} unless it is set"
        fits = f"a model.grid of {height} rows and {width} columns; --label-size {height} {width} if it has them"
        yield Finding("warning", "ann_bev_dir", what, fits)


def _faulty_labels(
    where: str, labels: Sequence[Label], classes: int | None, label_hw: tuple[int, int]
) -> Iterator[Finding]:
    complaints: dict[str, list[str]] = {}
    for label in labels:
        if label.hw is None:
            complaints.setdefault("no 8-bit pictures of one channel", []).append(label.file)
        elif label.hw != label_hw:
            said = f"{label.hw[0]} × {label.hw[1]} cells, not {label_hw[0]} × {label_hw[1]}"
            complaints.setdefault(said, []).append(label.file)
        elif classes is not None and not label.values <= {*range(classes), IGNORED}:
            complaints.setdefault(f"values beside 0-{classes - 1} and {IGNORED}", []).append(label.file)
    for said, names in complaints.items():
        what = f"faulty labels ({said}): {len(names)} of {len(labels)}, the first {names[0]}"
        yield Finding("error", where, what, f"PNG of {label_hw[0]} × {label_hw[1]} cells with the class, or {IGNORED}")
    if labels and not complaints:
        values = sorted(set().union(*(label.values for label in labels)))
        yield Finding("ok", where, f"labels: {len(labels)}, with the values {', '.join(map(str, values))}")
