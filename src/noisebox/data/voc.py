"""PASCAL VOC's annotations: an XML file for each image of a list, read safely.

VOC counts pixels from 1 and names the first and the last one of a box; here a box ends where its last pixel does. What
VOC calls difficult is neither a target in training nor counts in evaluation: a crowd of its class, for COCO's counters
know no other way to say so. In a crowd a detection lies by the share of its own area, and any number may.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from noisebox.data.coco import CocoSplit, ImageRecord, mended_record, tell_left_out
from noisebox.errors import UserError, what_fits

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    name: str, annotations: Path, images: Path, listed: Path, classes: Sequence[str] | None = None
) -> CocoSplit:
    """Read and check a split: `annotations` is the folder of XML files, `images` that of the .jpg files, and `listed`
    names the images of the split, one a line, without suffix; those of a folder below these two with that folder. They
    are numbered from 1 in that order.

    `classes` selects and orders the classes, whether VOC's, which None takes all, or others. Objects of VOC's other
    classes are dropped; a name that is neither VOC's nor chosen is refused. Boxes are clipped to their image, those
    without area left out, and their number is logged. Raises UserError naming file and line, or file and object.
    """
    names = tuple(classes or CLASSES)
    given, records = 0, []
    for number, stem in enumerate(_listed(listed), start=1):
        record, boxes = _read(number, annotations / f"{stem}.xml", images / f"{stem}.jpg", names)
        records.append(replace(record, file_name=f"{stem}.jpg"))
        given += boxes
    tell_left_out(given - sum(len(record.labels) for record in records), annotations)
    return CocoSplit(name, names, tuple(range(1, len(names) + 1)), tuple(records), annotations, list_file=listed)


def _listed(file: Path) -> list[str]:
    """The stems that a list of ImageSets/Main names; a second word of a line, which the lists of a class have, is left
    aside."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error})") from None
    for place, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{file}, line {place} has a NUL byte, which no name may have; save the file as UTF-8")
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise UserError(f"{file} names no image; it must name one a line, without .jpg")
    if len(set(stems)) < len(stems):
        again = next(stem for place, stem in enumerate(stems) if stem in stems[:place])
        raise UserError(f"{file} names {again} twice; each image may be there once")
    return stems


def _read(number: int, file: Path, path: Path, names: tuple[str, ...]) -> tuple[ImageRecord, int]:
    """One image, and how many boxes of the classes `names` its file has."""
    root = _parsed(file)
    if not path.is_file():
        raise UserError(f"{file} has no image: {path} does not exist")
    width, height = (_number(root, f"size/{side}", str(file)) for side in ("width", "height"))
    xywh, labels, crowd = [], [], []
    for place, entry in enumerate(root.findall("object"), start=1):
        where = f"{file}: object {place}"
        called = (entry.findtext("name") or "").strip()
        if called not in names and called not in CLASSES:
            known = list(dict.fromkeys([*names, *CLASSES]))
            raise UserError(
                f"{where} is of class {called!r}, which is unknown; {what_fits(called, known, 'known are')}"
            )
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{side}", where) for side in SIDES)
        if called in names:
            xywh.append((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))
            labels.append(names.index(called))
            crowd.append((entry.findtext("difficult") or "0").strip() == "1")
    if width < 1 or height < 1:
        raise UserError(f"{file}: size is {width:g} x {height:g} pixels (width x height); neither may be below 1")
    return mended_record(number, path, (int(width), int(height)), xywh, labels, crowd), len(xywh)


class _NoDeclarations(ElementTree.TreeBuilder):
    """Refuses a document type, and with it every entity: a few bytes of them can grow to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UserError("declares a document type, which no annotation needs; take <!DOCTYPE ...> out")


def _parsed(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_NoDeclarations()))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except ElementTree.ParseError as error:
        raise UserError(
            f"{file}, line {error.position[0]}: this is not valid XML ({error.msg.partition(':')[0]})"
        ) from None
    except (ValueError, LookupError) as error:  # what the parser says of a declared encoding
        raise UserError(
            f"{file}, line 1: its encoding cannot be read ({error}); save and declare it as UTF-8"
        ) from None
    except UserError as error:
        raise UserError(f"{file} {error}") from None


def _number(entry: ElementTree.Element, place: str, where: str) -> float:
    text = entry.findtext(place)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {place} is {'missing' if text is None else repr(text)}; it must be a number")
    return value
