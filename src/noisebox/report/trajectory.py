"""The pictures of `noisebox show`: detections beside ground truth, and how boxes are denoised, as a strip and a film.

A strip has a row for each lineage and a column for the noise and each step; a film, an animated PNG, shows the lineages
side by side. Every box of a step is drawn thin, those that would count as detections as in the picture grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from noisebox.errors import UserError
from noisebox.files import atomic_path, read_json
from noisebox.report.pictures import (
    COLOURS,
    GAP,
    HEAD_LINE,
    HEAD_SIZE,
    MARGIN,
    Box,
    Picture,
    Pictures,
    cell_factor,
    class_legend,
    font_of,
    load_photograph,
    picture_grid,
    pixel_edges,
    read_pictures,
    scaled_size,
    shown,
    with_boxes,
    wrapped_name,
    write_png,
)

COLUMNS = 8  # of a strip, beside the noise: of more steps so many are shown, evenly spread
BETWEEN = 4  # frames of a film from the boxes that a step begins with to those that it ends with
BEGIN_MS, BETWEEN_MS, END_MS, LAST_MS = 500, 80, 900, 2500  # how long a film shows the frames of a step, and its last
LIGHT, SHADE = (255, 255, 255, 170), (0, 0, 0, 90)  # a thin box and its inner edge: red, green, blue, opacity

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Step:
    """One step: its time t, the noisy boxes that it begins with, and the image with the boxes that it ends with."""

    t: int
    given: tuple[Corners, ...]
    said: Picture


@dataclass(frozen=True)
class Trajectories:
    """What `noisebox show` computed for one lineage: detections of some images, and the steps of each."""

    classes: tuple[str, ...]
    pictures: Pictures
    steps: tuple[tuple[Step, ...], ...]


def read_trajectories(path: Path) -> Trajectories:
    """Read a file that `evaluation.trajectory` wrote; raises UserError naming the file and what is wrong in it."""
    pictures, content = read_pictures(path), read_json(path)
    try:
        classes = tuple(str(name) for name in content["classes"])
        every = zip(pictures.images, content["images"], strict=True)
        steps = tuple(tuple(_step(image, classes, step) for step in entry["trajectory"]) for image, entry in every)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} holds no trajectories: {error!r}") from None
    return Trajectories(classes, pictures, steps)


def _step(image: Picture, classes: Sequence[str], step: Mapping[str, Any]) -> Step:
    columns = zip(step["boxes_xyxy"], step["labels"], step["scores"], strict=True)
    boxes = tuple(Box(_corners(box), classes[label], float(score)) for box, label, score in columns)
    return Step(int(step["t"]), tuple(map(_corners, step["given"])), replace(image, detections=boxes))


def _corners(box: Sequence[float]) -> Corners:
    left, top, right, bottom = (float(side) for side in box)
    return left, top, right, bottom


def write_show(files: Mapping[str, Path], out: Path, root: Path) -> list[Path]:
    """Draw what `evaluation.trajectory` wrote of each lineage, with the images found below `root`.

    Writes below `out` the grid `detections.png`, and for each image the strip `<id>-steps.png` and the film
    `<id>-film.png` of those that denoise. Returns what was written; raises UserError when the lineages cannot be shown
    side by side.
    """
    of = {lineage: read_trajectories(path) for lineage, path in files.items()}
    denoising = {lineage: each for lineage, each in of.items() if any(each.steps)}
    name, first = next(iter({**denoising, **of}.items()))  # one with steps, if there is one
    for lineage, other in of.items():
        if other.classes != first.classes or (lineage in denoising and _lengths(other) != _lengths(first)):
            raise UserError(f"{lineage!r} has other classes or steps than {name!r}: show them one by one")
    written = [out / "detections.png"]
    grid = picture_grid({lineage: each.pictures for lineage, each in of.items()}, first.classes, root)
    write_png(grid, written[0])
    for place, image in enumerate(first.pictures.images if denoising else ()):
        photograph = load_photograph(root, image)
        steps = {lineage: each.steps[place] for lineage, each in denoising.items()}
        written += [out / f"{image.id}-steps.png", out / f"{image.id}-film.png"]
        write_png(strip(photograph, steps, first.classes), written[-2])
        write_film(*film(photograph, steps, first.classes), written[-1])
    return written


def _lengths(of: Trajectories) -> list[int]:
    return [len(steps) for steps in of.steps]


def strip(photograph: Image.Image, steps: Mapping[str, Sequence[Step]], classes: Sequence[str]) -> Image.Image:
    """A row for each lineage: the noise that it starts from, and what it says at each step."""
    cells = _Cells(photograph, classes)
    columns = _spread(len(next(iter(steps.values()))))
    width = (len(columns) + 1) * (cells.width + GAP) - GAP
    row_height = HEAD_LINE + cells.height + GAP
    top = MARGIN + HEAD_LINE + GAP
    legend = class_legend(cells.colours, width)
    sheet = Image.new("RGB", (width + 2 * MARGIN, top + row_height * len(steps) + legend.height + MARGIN), "white")
    sheet.paste(legend, (MARGIN, sheet.height - MARGIN - legend.height))
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + column * (cells.width + GAP) for column in range(len(columns) + 1)]
    for left, title in zip(lefts, ["noise", *(f"step {step + 1}" for step in columns)], strict=True):
        draw.text((left, MARGIN + HEAD_LINE // 2), title, "black", font_of(HEAD_SIZE), anchor="lm")
    for row, (lineage, own) in enumerate(steps.items()):
        above = top + row * row_height
        draw.text((MARGIN, above + HEAD_LINE // 2), lineage, "black", font_of(HEAD_SIZE), anchor="lm")
        pictures = [cells.faint(own[0].given), *(cells.said(own[step]) for step in columns)]
        for left, picture in zip(lefts, pictures, strict=True):
            sheet.paste(picture, (left, above + HEAD_LINE))
    return sheet


def film(
    photograph: Image.Image, steps: Mapping[str, Sequence[Step]], classes: Sequence[str]
) -> tuple[list[Image.Image], list[int]]:
    """The frames, the lineages side by side, and how many milliseconds each is shown.

    A step begins with the noisy boxes, which then move in a straight line to where it ends.
    """
    cells = _Cells(photograph, classes)
    shown_steps, total = _spread(len(next(iter(steps.values())))), len(next(iter(steps.values())))
    frames, durations = [], []
    for step in shown_steps:
        at = {lineage: own[step] for lineage, own in steps.items()}
        title = f"step {step + 1} of {total}, t = {next(iter(at.values())).t}"
        for part in range(BETWEEN + 1):
            moved = {lineage: cells.faint(_moved(each, part / (BETWEEN + 1))) for lineage, each in at.items()}
            frames.append(_frame(moved, title, cells))
            durations.append(BETWEEN_MS if part else BEGIN_MS)
        frames.append(_frame({lineage: cells.said(each) for lineage, each in at.items()}, title, cells))
        durations.append(END_MS if step != shown_steps[-1] else LAST_MS)
    return frames, durations


def write_film(frames: Sequence[Image.Image], durations: Sequence[int], path: Path) -> None:
    """Write frames as an animated PNG that repeats for ever."""
    first, *rest = frames
    with atomic_path(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=list(durations), loop=0)


def _spread(total: int) -> list[int]:
    """The first and the last of `total` steps, and between them so many that there are COLUMNS."""
    count = min(total, COLUMNS)
    return [round(k * (total - 1) / max(1, count - 1)) for k in range(count)]


def _moved(step: Step, part: float) -> list[Corners]:
    """Each box that far on its way from where the step begins to where it ends."""
    ends = zip(step.given, (box.xyxy for box in step.said.detections), strict=True)
    return [_corners([a + part * (b - a) for a, b in zip(begin, end, strict=True)]) for begin, end in ends]


def _frame(pictures: Mapping[str, Image.Image], title: str, cells: "_Cells") -> Image.Image:
    heads = [wrapped_name(lineage, cells.width) for lineage in pictures]
    top = MARGIN + max(len(lines) for lines in heads) * HEAD_LINE
    width = len(heads) * (cells.width + GAP) - GAP
    legend = class_legend(cells.colours, width)
    frame = Image.new(
        "RGB", (width + 2 * MARGIN, top + cells.height + GAP + HEAD_LINE + legend.height + MARGIN), "white"
    )
    draw = ImageDraw.Draw(frame)
    for column, (lines, picture) in enumerate(zip(heads, pictures.values(), strict=True)):
        left = MARGIN + column * (cells.width + GAP)
        draw.multiline_text((left, top - 6), "\n".join(lines), "black", font_of(HEAD_SIZE), anchor="ld")
        frame.paste(picture, (left, top))
    below = top + cells.height + GAP
    draw.text((MARGIN, below + HEAD_LINE // 2), title, "black", font_of(HEAD_SIZE), anchor="lm")
    frame.paste(legend, (MARGIN, below + HEAD_LINE))
    return frame


class _Cells:
    """Draws boxes on one photograph, scaled to a cell."""

    def __init__(self, photograph: Image.Image, classes: Sequence[str]) -> None:
        self.factor = cell_factor(photograph.width)
        self.photograph = photograph.resize(scaled_size(*photograph.size, self.factor), Image.Resampling.LANCZOS)
        self.width, self.height = self.photograph.size
        self.named = len(classes) > len(COLOURS)
        self.every = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(classes)}
        self.colours = {} if self.named else self.every

    def faint(self, boxes: Sequence[Corners]) -> Image.Image:
        """The photograph with thin boxes."""
        layer = Image.new("RGBA", self.photograph.size)
        draw = ImageDraw.Draw(layer)
        for box in boxes:
            left, top, right, bottom = pixel_edges(Box(box, ""), self.factor)
            if right - left > 2 and bottom - top > 2:
                draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=SHADE)
            draw.rectangle((left, top, right, bottom), outline=LIGHT)
        return Image.alpha_composite(self.photograph.convert("RGBA"), layer).convert("RGB")

    def said(self, step: Step) -> Image.Image:
        """The photograph with all boxes that a step ends with, those that count in the colour of their class."""
        boxes, passing = shown(step.said)
        faint = self.faint([box.xyxy for box in step.said.detections])
        return with_boxes(faint, boxes, self.factor, self.every, not passing, self.named)
