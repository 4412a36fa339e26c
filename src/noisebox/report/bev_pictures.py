"""Maps as pictures: camera image, depth ground truth, true map, and of each lineage the predicted map and its errors.

A map is drawn as it is stored: row 0, the far end, on top, so the vehicle is below its lower edge. Every sample is a
sheet of its own, with its legend; sheets below each other are the report's grid, single ones what `noisebox show-bev`
writes.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from noisebox.config import check_section
from noisebox.config.bev import BevLabelsConfig
from noisebox.errors import UserError
from noisebox.report.markdown import plural
from noisebox.report.pictures import (
    GAP,
    HEAD_LINE,
    HEAD_SIZE,
    MARGIN,
    TAG_SIZE,
    cell_factor,
    class_legend,
    font_of,
    scaled_size,
    wrapped_name,
    write_png,
)

# The first classes of a dataset, which are often the ground's, take quiet colours; then come those of Okabe and Ito
# (2008), told apart with any colour vision, and for datasets of many classes some that lie between.
COLOURS = (
    *("#E4DFD3", "#8F9299", "#BFB08F", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#F0E442"),
    *("#5B3A8C", "#6B4A2B", "#A6C96A", "#7A1F3D", "#F2B5A0", "#2F6F6A"),
)
RIGHT, WRONG, IGNORED = "#CFE3EE", "#C7380A", "#3B3B3B"
DEPTH_MAP, DEPTH_SHADES = "viridis", (1.0, 0.25)  # told apart with any colour vision; where near and far lie in it
DIMMED = 0.35  # of the camera image behind the depth
DOT = 3  # pixels: the side of a return
WIDEST = 1.35  # of a camera image, in widths of a map
VEILED = 0.7  # of what is predicted where the truth does not count
WORDS = "far end of a map on top, vehicle below it;\npredictions are dim where the truth is ignored"
TENS = 10.0  # metres between the marks of the depth's legend

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class MapSample:
    """One image of the split: `image` (H, W, 3) uint8, `depth` (H, W) metres, 0 where none is known, and the maps of
    label values `truth` and `predicted`, (rows, columns) uint8 each."""

    place: int
    name: str
    image: Array
    depth: Array
    truth: Array
    predicted: Array


@dataclass(frozen=True)
class Maps:
    """What a maps.npz holds: some images under one eval seed at one step count; `classes` are the dataset's."""

    classes: tuple[str, ...]
    labels: BevLabelsConfig
    eval_seed: int
    sample_step: int
    samples: tuple[MapSample, ...]

    @property
    def values(self) -> list[int]:
        """The label values that count, each of one class."""
        return [value for value in self.labels.values(len(self.classes)) if value != self.labels.ignore_index]


def read_maps(path: Path) -> Maps:
    """Read an evaluation's maps.npz; raises UserError naming the file and what is wrong in it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            samples = tuple(_sample(arrays, int(place), name) for place, name in facts["images"].items())
            return Maps(
                classes=tuple(map(str, facts["classes"])),
                labels=check_section(BevLabelsConfig, facts["labels"], path),
                eval_seed=int(facts["eval_seed"]),
                sample_step=int(facts["sample_step"]),
                samples=samples,
            )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing") from None
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not what an evaluation writes: {error}") from None


def _sample(arrays: Any, place: int, name: str) -> MapSample:
    parts = [arrays[f"{part}_{place}"] for part in ("image", "depth", "truth", "predicted")]
    image, depth, truth, predicted = parts
    if image.ndim != 3 or depth.shape != image.shape[:2] or truth.ndim != 2 or predicted.shape != truth.shape:
        raise ValueError(f"the arrays of image {place} are {', '.join(str(part.shape) for part in parts)}")
    return MapSample(place, name, image, depth.astype(np.float64), truth, predicted)


def sheets(maps: Mapping[str, Maps]) -> list[Image.Image]:
    """For each image a sheet of it and of what each lineage, by name, says.

    Raises UserError when the lineages were evaluated on other images, classes or label maps.
    """
    first = next(iter(maps.values()))
    for lineage, other in maps.items():
        if not _alike(first, other):
            raise UserError(
                f"{next(iter(maps))!r} and {lineage!r} show different images or classes: evaluate both on the same "
                "dataset, and as the experiment now says"
            )
    farthest = max((sample.depth.max() for sample in first.samples), default=0.0)
    far = TENS * max(1, math.ceil(farthest / TENS))
    return [_sheet(place, maps, far) for place in range(len(first.samples))]


def _alike(one: Maps, other: Maps) -> bool:
    if (one.classes, one.labels) != (other.classes, other.labels):
        return False
    named, others = ([(sample.place, sample.name) for sample in maps.samples] for maps in (one, other))
    return named == others and all(
        np.array_equal(mine.truth, theirs.truth) for mine, theirs in zip(one.samples, other.samples, strict=True)
    )


def grid(maps: Mapping[str, Maps]) -> Image.Image:
    """The sheets below each other; raises UserError as `sheets`."""
    every = sheets(maps)
    whole = Image.new("RGB", (max(sheet.width for sheet in every), sum(sheet.height for sheet in every)), "white")
    top = 0
    for sheet in every:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def write_sheets(files: Mapping[str, Path], out: Path) -> list[Path]:
    """Draw the maps.npz of each lineage as `sample_0000.png` and so on, by the images' places, below `out`.

    Returns what was written; raises UserError when the lineages cannot be shown side by side.
    """
    maps = {lineage: read_maps(path) for lineage, path in files.items()}
    samples = next(iter(maps.values())).samples
    written = [out / f"sample_{sample.place:04d}.png" for sample in samples]
    for path, sheet in zip(written, sheets(maps), strict=True):
        write_png(sheet, path)
    return written


def _sheet(number: int, maps: Mapping[str, Maps], far: float) -> Image.Image:
    """Two rows: camera, truth and predictions; below them depth, the legend and errors."""
    first = next(iter(maps.values()))
    sample, colours = first.samples[number], class_colours(first)
    truth = _map_picture(sample.truth, first, colours)
    camera = _within(Image.fromarray(sample.image), (round(WIDEST * truth.width), truth.height))
    legend = _legend(colours, far, truth.width)
    columns = [
        (("camera", camera), (f"depth ground truth{_returns(sample)}", _depth_picture(sample, camera, far))),
        (("ground truth", truth), ("", legend)),
    ]
    for lineage, own in maps.items():
        said = own.samples[number].predicted
        head = f"{lineage}, {plural(own.sample_step, 'step')}" if own.sample_step > 1 else lineage
        counted = np.isin(sample.truth, own.values)
        wrong = counted & (said != sample.truth)
        errors = f"errors: {100 * wrong.sum() / max(1, counted.sum()):.1f} % of cells"
        prediction = _map_picture(said, own, colours, VEILED * ~counted)
        columns.append(((head, prediction), (errors, _error_picture(counted, wrong))))
    return _laid_out(f"image {sample.place}: {sample.name}", columns)


Cell = tuple[str, Image.Image]


def _laid_out(title: str, columns: Sequence[tuple[Cell, Cell]]) -> Image.Image:
    """The title, and below it columns of two pictures each, each with its head above it."""
    heads = [[wrapped_name(head, picture.width) for head, picture in cells] for cells in columns]
    row_heads = [max(len(head[row]) for head in heads) * HEAD_LINE for row in (0, 1)]
    row_heights = [max(cells[row][1].height for cells in columns) for row in (0, 1)]
    widths = [max(picture.width for _, picture in cells) for cells in columns]
    tops = [MARGIN + HEAD_LINE + GAP + row_heads[0]]
    tops.append(tops[0] + row_heights[0] + GAP + row_heads[1])
    size = (sum(widths) + GAP * (len(widths) - 1) + 2 * MARGIN, tops[1] + row_heights[1] + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, "black", font_of(HEAD_SIZE))
    left = MARGIN
    for cells, lines, width in zip(columns, heads, widths, strict=True):
        for (_, picture), head, top in zip(cells, lines, tops, strict=True):
            draw.multiline_text((left, top - 4), "\n".join(head), "black", font_of(HEAD_SIZE), anchor="ld")
            sheet.paste(picture, (left, top))
        left += width + GAP
    return sheet


def class_colours(maps: Maps) -> dict[str, str]:
    """The colour of each class that counts."""
    return {maps.classes[value]: COLOURS[value % len(COLOURS)] for value in maps.values}


def _rgb(colours: Sequence[str]) -> Array:
    return np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in colours], np.uint8)


def _map_picture(values: Array, maps: Maps, colours: Mapping[str, str], veil: Array | float = 0.0) -> Image.Image:
    """A map of label values, those that do not count in the colour of what is ignored; `veil` (rows, columns) is the
    share of that colour everywhere."""
    table = np.repeat(_rgb([IGNORED]), 256, axis=0)
    table[maps.values] = _rgb(list(colours.values()))
    share = np.broadcast_to(veil, values.shape)[..., None]
    return _enlarged((1 - share) * table[values] + share * _rgb([IGNORED]))


def _error_picture(counted: Array, wrong: Array) -> Image.Image:
    ignored, right, mistaken = _rgb([IGNORED, RIGHT, WRONG])
    return _enlarged(np.where(wrong[..., None], mistaken, np.where(counted[..., None], right, ignored)))


def _enlarged(pixels: Array) -> Image.Image:
    """Pixels as squares, so that cells stay sharp."""
    picture = Image.fromarray(pixels.astype(np.uint8))
    return picture.resize(scaled_size(*picture.size, cell_factor(picture.width)), Image.Resampling.NEAREST)


def _within(photograph: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The photograph as large as it fits into a size, (width, height)."""
    factor = min(size[0] / photograph.width, size[1] / photograph.height)
    return photograph.resize(scaled_size(*photograph.size, factor), Image.Resampling.LANCZOS)


def _returns(sample: MapSample) -> str:
    count = int((sample.depth > 0).sum())
    return f": {count} pixels" if count else ": none"


def _depth_picture(sample: MapSample, camera: Image.Image, far: float) -> Image.Image:
    """Each known depth as a dot over the dimmed camera image, the nearest on top."""
    pixels = (np.asarray(camera.convert("L"))[..., None] * DIMMED).astype(np.uint8).repeat(3, axis=2)
    rows, columns = np.nonzero(sample.depth)
    order = np.argsort(-sample.depth[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    shades = depth_shades(sample.depth[rows, columns], far)
    (height, width), stored = pixels.shape[:2], sample.depth.shape
    tops = ((rows + 0.5) * height / stored[0]).astype(int) - DOT // 2
    lefts = ((columns + 0.5) * width / stored[1]).astype(int) - DOT // 2
    for top, left, shade in zip(tops, lefts, shades, strict=True):
        pixels[max(top, 0) : top + DOT, max(left, 0) : left + DOT] = shade
    return Image.fromarray(pixels)


def depth_shades(metres: Array, far: float) -> Array:
    """(N, 3) uint8, the colours of depths from 0 to `far`."""
    near_shade, far_shade = DEPTH_SHADES
    shades = near_shade + (far_shade - near_shade) * np.clip(np.asarray(metres) / far, 0, 1)
    return np.asarray(colormaps[DEPTH_MAP](shades, bytes=True))[..., :3]


def _legend(colours: Mapping[str, str], far: float, width: int) -> Image.Image:
    """What the colours of maps, errors and depths mean."""
    width -= GAP
    of_classes = class_legend(dict(colours), width)
    of_errors = class_legend({"right": RIGHT, "wrong": WRONG, "ignored": IGNORED}, width)
    bar = _depth_bar(far, width)
    parts = [of_classes, of_errors, bar]
    legend = Image.new("RGB", (width + GAP, sum(part.height + GAP for part in parts) + 2 * HEAD_LINE), "white")
    top = 0
    for part in parts:
        legend.paste(part, (GAP, top))
        top += part.height + GAP
    ImageDraw.Draw(legend).multiline_text((GAP, top), WORDS, "black", font_of(TAG_SIZE))
    return legend


def _depth_bar(far: float, width: int) -> Image.Image:
    """The colours of depth with a mark every TENS metres."""
    bar = Image.new("RGB", (width, 2 * HEAD_LINE), "white")
    length = width - 4 * TAG_SIZE
    shades = depth_shades(np.linspace(0, far, length), far)
    bar.paste(Image.fromarray(np.repeat(shades[None], HEAD_LINE - 4, axis=0)), (TAG_SIZE // 2, 0))
    draw = ImageDraw.Draw(bar)
    for metres in np.arange(0, far + 1, TENS * math.ceil(far / (6 * TENS))):
        x = TAG_SIZE // 2 + round(metres / far * (length - 1))
        draw.line((x, HEAD_LINE - 4, x, HEAD_LINE), "black")
        draw.text((x, HEAD_LINE), f"{metres:.0f}", "black", font_of(TAG_SIZE), anchor="ma")
    draw.text((TAG_SIZE + length, HEAD_LINE - 4), "m", "black", font_of(TAG_SIZE), anchor="ls")
    return bar
