"""What a detector that looks twice saw in images from above: true boxes, heatmap with crops, coarse and final boxes."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from noisebox.errors import UserError
from noisebox.report.pictures import COLOURS as BRIGHT
from noisebox.report.pictures import (
    DARK,
    GAP,
    HEAD_LINE,
    HEAD_SIZE,
    MARGIN,
    UNKNOWN,
    Box,
    class_legend,
    font_of,
    pixel_edges,
    scaled_size,
    write_png,
)

SCORE = 0.1  # boxes below are not drawn; a short training is certain of little
PANEL = 560  # pixels: about as wide is each of the two columns
TONES = 112  # colours of a picture beside those that it draws in: with them a third of the bytes, and hardly other
COLOURS = (*BRIGHT, "#FFFFFF", "#A8E05F", "#B9A6FF")
HEAT = "inferno"  # Brightness rises with it, so it is read with any colour vision
FRAME = "#FFFFFF"
DIMMED = 0.45  # of the image behind the heatmap

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sight:
    """One image: `image` (H, W, 3) uint8, `heatmap` (H, W) in [0, 1], the largest over the classes, `crops`, and boxes
    in falling order of score, all in the image's pixels."""

    name: str
    image: Array
    heatmap: Array
    crops: tuple[tuple[float, float, float, float], ...]
    truth: tuple[Box, ...]
    coarse: tuple[Box, ...]
    final: tuple[Box, ...]


@dataclass(frozen=True)
class Looks:
    """What a looks.npz holds: the dataset's classes, and what one run saw in some images, with `crops` twice."""

    classes: tuple[str, ...]
    crops: bool
    sights: tuple[Sight, ...]


def read_looks(path: Path) -> Looks:
    """Read an evaluation's looks.npz; raises UserError naming the file and what is wrong in it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            classes = tuple(map(str, facts["classes"]))
            sights = tuple(_sight(arrays, place, str(name), classes) for place, name in enumerate(facts["images"]))
            return Looks(classes, bool(facts["crops"]), sights)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing") from None
    except (ValueError, TypeError, AttributeError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not what an evaluation writes: {error}") from None


def _sight(arrays: Any, place: int, name: str, classes: Sequence[str]) -> Sight:
    image, heatmap = arrays[f"image_{place}"], arrays[f"heatmap_{place}"]
    if image.ndim != 3 or heatmap.shape != image.shape[:2]:
        raise ValueError(f"image {place} is {image.shape} and its heatmap {heatmap.shape}")
    return Sight(
        name=name,
        image=image,
        heatmap=heatmap.astype(np.float64),
        crops=tuple(box.xyxy for box in _boxes(arrays[f"crops_{place}"], None, None, classes)),
        truth=_boxes(arrays[f"truth_{place}"], arrays[f"truth_labels_{place}"], None, classes),
        coarse=_found(arrays, "coarse", place, classes),
        final=_found(arrays, "final", place, classes),
    )


def _found(arrays: Any, part: str, place: int, classes: Sequence[str]) -> tuple[Box, ...]:
    corners, labels, scores = (arrays[f"{part}{what}_{place}"] for what in ("", "_labels", "_scores"))
    return _boxes(corners, labels, scores, classes)


def _boxes(corners: Array, labels: Array | None, scores: Array | None, classes: Sequence[str]) -> tuple[Box, ...]:
    names = [""] * len(corners) if labels is None else [classes[label] for label in labels.tolist()]
    certain = [None] * len(corners) if scores is None else scores.tolist()
    found = []
    for (left, top, right, bottom), name, score in zip(corners.tolist(), names, certain, strict=True):
        found.append(Box((left, top, right, bottom), name, score))
    return tuple(found)


def grid(looks: Looks) -> Image.Image:
    """Each image in four panels, two beside each other, under each other; at least one image. In few colours."""
    factor = PANEL / max(sight.image.shape[1] for sight in looks.sights)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(looks.classes)}
    blocks = [_block(sight, factor, colours) for sight in looks.sights]
    width = max(block.width for block in blocks)
    legend = class_legend(colours, width)
    height = sum(block.height + GAP for block in blocks)
    made = Image.new("RGB", (width + 2 * MARGIN, height + legend.height + 2 * MARGIN), "white")
    top = MARGIN
    for block in blocks:
        made.paste(block, (MARGIN, top))
        top += block.height + GAP
    made.paste(legend, (MARGIN, top))
    return _in_few_colours(made, [*colours.values(), UNKNOWN, DARK, FRAME])


def _in_few_colours(picture: Image.Image, exact: Sequence[str]) -> Image.Image:
    """With a palette of the `exact` colours and the TONES that suit the picture best; a pixel takes the nearest."""
    from scipy.spatial import cKDTree  # slow to import, and of no use where nothing is drawn

    tones = np.array(picture.quantize(TONES, dither=Image.Dither.NONE).getpalette(), np.uint8).reshape(-1, 3)
    palette = np.concatenate((np.array([ImageColor.getrgb(name)[:3] for name in exact], np.uint8), tones[:TONES]))
    colours, place = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
    _, nearest = cKDTree(palette.astype(np.float64)).query(colours.astype(np.float64))
    made = Image.fromarray(np.asarray(nearest, np.uint8)[place].reshape(picture.height, picture.width))
    made.putpalette(palette.tobytes())
    return made


def write_pictures(folder: Path) -> list[Path]:
    """Draw each looks file `<image>.npz` of a folder as `<image>.png` beside it; returns what was written.

    Raises UserError as `read_looks` does.
    """
    written = []
    for file in sorted(folder.glob("*.npz")):
        written.append(file.with_suffix(".png"))
        write_png(grid(read_looks(file)), written[-1])
    return written


def _block(sight: Sight, factor: float, colours: dict[str, str]) -> Image.Image:
    """The four panels of one image, each under its title."""
    size = scaled_size(sight.image.shape[1], sight.image.shape[0], factor)
    photograph = Image.fromarray(sight.image).resize(size, Image.Resampling.LANCZOS)
    coarse, final = ([box for box in boxes if (box.score or 0) >= SCORE] for boxes in (sight.coarse, sight.final))
    panels = {
        f"ground truth: {len(sight.truth)}" if sight.truth else "image": _with_outlines(
            photograph, sight.truth, factor, colours
        ),
        f"heatmap up to {sight.heatmap.max():.2f}, crops: {len(sight.crops)}": _with_crops(photograph, sight, factor),
        f"coarse boxes: {len(coarse)}": _with_outlines(photograph, coarse, factor, colours),
        f"final boxes: {len(final)}": _with_outlines(photograph, final, factor, colours),
    }
    block = Image.new("RGB", (2 * size[0] + GAP, 2 * (size[1] + HEAD_LINE + GAP)), "white")
    draw = ImageDraw.Draw(block)
    for place, (title, panel) in enumerate(panels.items()):
        left, top = place % 2 * (size[0] + GAP), place // 2 * (size[1] + HEAD_LINE + GAP)
        draw.text((left, top + HEAD_LINE - 4), title, "black", font_of(HEAD_SIZE), anchor="ls")
        block.paste(panel, (left, top + HEAD_LINE))
    return block


def _with_outlines(
    photograph: Image.Image, boxes: Sequence[Box], factor: float, colours: dict[str, str]
) -> Image.Image:
    """Thin outlines, the best on top: a person is a few pixels wide."""
    drawn = photograph.copy()
    draw = ImageDraw.Draw(drawn)
    for box in reversed(boxes):
        left, top, right, bottom = pixel_edges(box, factor)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK)
        draw.rectangle((left, top, right, bottom), outline=colours.get(box.label, UNKNOWN))
    return drawn


def _with_crops(photograph: Image.Image, sight: Sight, factor: float) -> Image.Image:
    """The heatmap, brightest where it is highest, over the dimmed image, and the crops framed."""
    heat = Image.fromarray((255 * sight.heatmap / max(sight.heatmap.max(), 1e-6)).astype(np.uint8))
    heat = heat.resize(photograph.size)
    strength = np.asarray(heat, dtype=np.float64) / 255
    behind = DIMMED * np.asarray(photograph.convert("L"), dtype=np.float64)[..., None]
    shown = (1 - strength[..., None]) * behind + strength[..., None] * 255 * colormaps[HEAT](strength)[..., :3]
    drawn = Image.fromarray(shown.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for crop in sight.crops:
        left, top, right, bottom = pixel_edges(Box(crop, ""), factor)
        draw.rectangle((left, top, right, bottom), outline=DARK, width=4)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=FRAME, width=2)
    return drawn
