"""The picture grid: ground truth beside each lineage's detections, on the first validation images.

Small images are enlarged by a whole factor, large ones reduced, so that a column is about CELL pixels wide.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from noisebox.errors import UserError
from noisebox.files import atomic_path, read_json
from noisebox.pixels import rgb_pixels, turned_as

SCORE = 0.3  # a detection below is drawn only where an image has none above
FALLBACK = 3  # so many, dashed, are drawn then
CELL = 320  # pixels
GAP, MARGIN = 8, 12  # between cells, around the grid
HEAD_SIZE, HEAD_LINE, TAG_SIZE = 14, 20, 11
LINE, DASH = 2, 5
DARK, UNKNOWN = "#202020", "#FFFFFF"
BASIC = ImageFont.Layout.BASIC  # the same letters with and without the optional layout library

# Okabe and Ito (2008), the bright ones first: they show on dark and light photographs.
COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#0072B2")

Edges = tuple[int, int, int, int]  # left, top, right, bottom: the first and last pixels, in the drawn image


@dataclass(frozen=True)
class Box:
    """A box in pixels of the stored image; `score` is None for ground truth."""

    xyxy: tuple[float, float, float, float]
    label: str
    score: float | None = None


@dataclass(frozen=True)
class Picture:
    """One validation image, `file` as the evaluation found it from the repository's root."""

    id: int | str
    file: str
    width: int
    height: int
    ground_truth: tuple[Box, ...]
    detections: tuple[Box, ...]


@dataclass(frozen=True)
class Pictures:
    """What `detections.json` keeps of an evaluation: some images, at one eval seed and one step count."""

    sample_step: int
    eval_seed: int
    images: tuple[Picture, ...]


def read_pictures(path: Path) -> Pictures:
    """Read an evaluation's detections.json; raises UserError naming the file and what is wrong in it."""
    content = read_json(path)
    try:
        images = tuple(_picture(entry) for entry in content["images"])
        return Pictures(int(content["sample_step"]), int(content["eval_seed"]), images)
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what an evaluation writes: {error}") from None


def _picture(entry: dict[str, Any]) -> Picture:
    boxes = {
        "ground_truth": tuple(Box(_corners(box), str(box["label"])) for box in entry["ground_truth"]),
        "detections": tuple(Box(_corners(box), str(box["label"]), float(box["score"])) for box in entry["detections"]),
    }
    return Picture(entry["id"], str(entry["file"]), int(entry["width"]), int(entry["height"]), **boxes)


def _corners(box: dict[str, Any]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in box["box_xyxy"])
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"box_xyxy {box['box_xyxy']} is not finite")
    return left, top, right, bottom


def shown(image: Picture) -> tuple[Sequence[Box], bool]:
    """The detections to draw, best first, and whether they pass: those from SCORE up, or else the FALLBACK best."""
    ranked = sorted(image.detections, key=lambda box: -(box.score or 0.0))
    passing = [box for box in ranked if (box.score or 0.0) >= SCORE]
    return (passing, True) if passing else (ranked[:FALLBACK], False)


def picture_grid(columns: dict[str, Pictures], classes: Sequence[str], root: Path) -> Image.Image:
    """The grid: one row per image; ground truth, then each of `columns` (lineage → its pictures).

    Raises UserError when the lineages were evaluated on other images, or an image cannot be read or changed its size.
    """
    lineages = list(columns)
    images = columns[lineages[0]].images
    for lineage in lineages[1:]:
        if [image.file for image in columns[lineage].images] != [image.file for image in images]:
            raise UserError(
                f"{lineages[0]!r} and {lineage!r} were evaluated on different images: evaluate both on the same dataset"
            )
    widest = max((image.width for image in images), default=CELL)
    factor = cell_factor(widest)
    cell = scaled_size(widest, max((image.height for image in images), default=1), factor)
    heads = [wrapped_name(title, cell[0]) for title in ("ground truth", *lineages)]
    top = MARGIN + max(len(lines) for lines in heads) * HEAD_LINE
    bottom = top + len(images) * (cell[1] + GAP)
    width = len(heads) * (cell[0] + GAP) - GAP
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(classes)}
    named = len(colours) > len(COLOURS)  # a colour means several classes then, so the labels say which
    legend = class_legend({} if named else colours, width)
    grid = Image.new("RGB", (width + 2 * MARGIN, bottom + legend.height + MARGIN), "white")
    grid.paste(legend, (MARGIN, bottom))
    draw = ImageDraw.Draw(grid)
    lefts = [MARGIN + column * (cell[0] + GAP) for column in range(len(heads))]
    for left, lines in zip(lefts, heads, strict=True):
        draw.multiline_text((left, top - 6), "\n".join(lines), "black", font_of(HEAD_SIZE), anchor="ld")
    for row, image in enumerate(images):
        photograph = load_photograph(root, image)
        photograph = photograph.resize(scaled_size(*photograph.size, factor), Image.Resampling.LANCZOS)
        drawn = [(image.ground_truth, True), *(shown(columns[lineage].images[row]) for lineage in lineages)]
        for left, (boxes, passing) in zip(lefts, drawn, strict=True):
            grid.paste(
                with_boxes(photograph, boxes, factor, colours, not passing, named), (left, top + row * (cell[1] + GAP))
            )
    return grid


def words_picture(words: str) -> Image.Image:
    """A picture of words, where there is nothing to draw."""
    size = (math.ceil(font_of(HEAD_SIZE).getlength(words)) + 2 * MARGIN, HEAD_LINE + 2 * MARGIN)
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).text((MARGIN, MARGIN), words, "black", font_of(HEAD_SIZE))
    return picture


def write_png(image: Image.Image, path: Path) -> None:
    """Write an image atomically, the same bytes every time."""
    with atomic_path(path) as temporary:
        image.save(temporary)


def load_photograph(root: Path, image: Picture) -> Image.Image:
    path = root / image.file
    try:
        with Image.open(path) as opened:
            photograph = Image.fromarray(rgb_pixels(turned_as(opened, (image.width, image.height))))
    except FileNotFoundError:
        raise UserError(f"{path}, an image of the picture grid, does not exist: make or restore the data") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(f"{path}, an image of the picture grid, cannot be read: {error}") from None
    if photograph.size != (image.width, image.height):
        raise UserError(
            f"{path} is {photograph.width}×{photograph.height}, but was evaluated as {image.width}×{image.height}: "
            "restore the data, or evaluate again"
        )
    return photograph


def cell_factor(width: int) -> float:
    """What brings an image of so many pixels to a cell: a whole factor for one that is not much wider, at least 1."""
    return round(CELL / width) or 1 if width < 1.5 * CELL else CELL / width


def scaled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    return max(1, round(width * factor)), max(1, round(height * factor))


def with_boxes(
    photograph: Image.Image, boxes: Sequence[Box], factor: float, colours: dict[str, str], dashed: bool, named: bool
) -> Image.Image:
    """The image with its boxes, the best on top, and their labels where there is room for them."""
    photograph = photograph.copy()
    draw = ImageDraw.Draw(photograph)
    edges = [pixel_edges(box, factor) for box in boxes]
    for box, around in reversed(list(zip(boxes, edges, strict=True))):
        _rectangle(draw, around, colours.get(box.label, UNKNOWN), dashed)
    tags: list[Edges] = []
    for box, around in zip(boxes, edges, strict=True):
        text = _label(box, named)
        tag = _free_place(text, around, photograph.size, tags)
        if text and tag:
            tags.append(tag)
            draw.rectangle(tag, fill=colours.get(box.label, UNKNOWN))
            draw.text((tag[0] + 2, (tag[1] + tag[3] + 1) / 2), text, "black", font_of(TAG_SIZE), anchor="lm")
    return photograph


def _label(box: Box, named: bool) -> str:
    """The score without its leading zero, after the class if it is to be named."""
    score = "" if box.score is None else f"{box.score:.2f}".removeprefix("0")
    return f"{box.label} {score}".rstrip() if named else score


def pixel_edges(box: Box, factor: float) -> Edges:
    """The first and last pixels of a box in the drawn image."""
    left, top, right, bottom = (round(side * factor) for side in box.xyxy)
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _rectangle(draw: ImageDraw.ImageDraw, edges: Edges, colour: str, dashed: bool) -> None:
    """A coloured outline, dashed or between two dark hairlines so that it shows on any ground."""
    left, top, right, bottom = edges
    if dashed:
        for start in range(left, right + 1, 2 * DASH):
            for y in (top, bottom):
                draw.line((start, y, min(start + DASH, right), y), colour, LINE)
        for start in range(top, bottom + 1, 2 * DASH):
            for x in (left, right):
                draw.line((x, start, x, min(start + DASH, bottom)), colour, LINE)
        return
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK)
    if right - left > 2 * LINE and bottom - top > 2 * LINE:
        draw.rectangle((left + LINE, top + LINE, right - LINE, bottom - LINE), outline=DARK)
    draw.rectangle(edges, outline=colour, width=LINE)


def _free_place(text: str, around: Edges, size: tuple[int, int], taken: Sequence[Edges]) -> Edges | None:
    """Where a label fits at a corner of its box, inside the image and clear of those taken; None if nowhere."""
    width, height = math.ceil(font_of(TAG_SIZE).getlength(text)) + 4, TAG_SIZE + 2
    left, top, right, bottom = around
    for y in (top - height, bottom + 1, top):
        for x in (left, right + 1 - width):
            x = min(max(x, 0), size[0] - width)
            place = (x, y, x + width - 1, y + height - 1)
            if y >= 0 and place[3] < size[1] and not any(_overlap(place, other) for other in taken):
                return place
    return None


def _overlap(one: Edges, other: Edges) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def class_legend(colours: dict[str, str], width: int) -> Image.Image:
    """Each class beside a patch of its colour, in as many lines as it takes."""
    font, places, x, y = font_of(HEAD_SIZE), [], 0, 0
    for name in colours:
        length = 27 + math.ceil(font.getlength(name))
        if x and x + length > width:
            x, y = 0, y + HEAD_LINE
        places.append((x, y))
        x += length + 24
    legend = Image.new("RGB", (width, y + HEAD_LINE), "white")
    draw = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(colours.items(), places, strict=True):
        draw.rectangle((left, top + 4, left + 20, top + 16), fill=colour, outline=DARK)
        draw.text((left + 27, top + 10), name, "black", font, anchor="lm")
    return legend


def wrapped_name(title: str, width: int) -> list[str]:
    """A lineage's name in lines of at most `width` pixels, broken before a '+'."""
    lines = [""]
    for part in re.split(r"(?=\+)", title):
        fits = font_of(HEAD_SIZE).getlength(lines[-1] + part) <= width
        lines = [*lines[:-1], lines[-1] + part] if fits or not lines[-1] else [*lines, part]
    return lines


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib, the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size, layout_engine=BASIC)
