"""A look at depth ground truth: what the files of each camera hold, as a table, and pictures of depth over images."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from noisebox.data.depth import DepthSettings, Floats, Mask, depth_file, in_threads, read_depth
from noisebox.data.nuscenes import Frame, check_image
from noisebox.errors import UserError
from noisebox.files import atomic_path
from noisebox.progress import Progress

BIN = 5  # metres, the width of a column of the histogram
DECIMALS = 5
PICTURES = 6  # of each camera, evenly spaced over its frames
COLOURS, FARTHEST = "plasma", 0.2  # its lightness rises, for any colour vision; near is bright, far short of black
WIDTH = 640  # pixels: narrower depth images are enlarged by a whole factor
DOT = 3  # pixels, the least side of a return's square
LEGEND, BAR, MARGIN, LETTERS, TICKS = 56, 14, 8, 14, 5  # pixels, but for the number of ticks

Colours = NDArray[np.uint8]


def write_depth_report(
    frames: Sequence[Frame],
    folder: Path,
    settings: DepthSettings,
    report: Path,
    pictures: Path,
    workers: int | None = None,
) -> pd.DataFrame:
    """Look at the depth file of every frame; write the report as TSV, and pictures/<image stem>.png of some frames.

    The report has a row per camera: files, height, width, `valid_ratio` (the share of pixels with a return, its mean,
    min and max over files), `empty` (files without a return), the depth's min, mean and max in metres, and how the
    returns spread over bins of depth, as shares.

    Raises UserError when a file is missing, damaged, of another size or not what its settings allow, and when no file
    of a camera holds a return; then nothing is written.
    """
    facts = []
    with Progress(f"depth-gt check {folder.name}", len(frames)) as progress:
        for of_file in in_threads(partial(_facts, folder=folder, settings=settings), frames, workers):
            facts.append(of_file)
            progress.advance()
    table = _by_camera(pd.DataFrame(facts), settings)
    if blind := table.loc[table["empty"] == table["files"], "camera"].tolist():
        raise UserError(f"{folder}: no file of {blind[0]} holds a return; check the poses in calibrated_sensor.json")
    for camera in table["camera"]:
        own = [frame for frame in frames if frame.camera == camera]
        for place in np.linspace(0, len(own) - 1, min(PICTURES, len(own))).round().astype(int):
            with atomic_path(pictures / f"{own[place].stem}.png") as temporary:
                overlay(own[place], *read_depth(depth_file(folder, own[place])), settings).save(temporary)
    with atomic_path(report) as temporary:
        table.to_csv(temporary, sep="\t", index=False, lineterminator="\n")
    return table


def _bins(settings: DepthSettings) -> dict[str, tuple[float, float]]:
    """The histogram's bins by their names, cut at the multiples of BIN."""
    inner = np.arange(BIN, settings.max_depth, BIN)
    edges = [settings.min_depth, *inner[inner > settings.min_depth].tolist(), settings.max_depth]
    return {f"{low:g}-{high:g}m": (low, high) for low, high in pairwise(edges)}


def _facts(frame: Frame, folder: Path, settings: DepthSettings) -> dict[str, str | float]:
    """What the file of one frame holds; the counts of its returns by bin are named by the bin."""
    path = depth_file(folder, frame)
    depth, mask = read_depth(path)
    if depth.shape != (settings.height, settings.width):
        raise UserError(
            f"{path} is {depth.shape[0]} × {depth.shape[1]} pixels (height × width), not {settings.height} × "
            f"{settings.width}; ask for that size, or make it anew"
        )
    returns = depth[mask]
    if depth[~mask].any() or not ((returns >= settings.min_depth) & (returns < settings.max_depth)).all():
        raise UserError(
            f"{path} holds depths outside its mask, or not from {settings.min_depth:g} to {settings.max_depth:g} m; "
            "ask for the depths it was made with, or make it anew"
        )
    bins = _bins(settings)
    counts, _ = np.histogram(returns, [*(low for low, _ in bins.values()), settings.max_depth])
    return {
        "camera": frame.camera,
        "returns": len(returns),
        "depth_sum": float(returns.sum(dtype=np.float64)),
        "depth_min": float(returns.min(initial=np.inf)),
        "depth_max": float(returns.max(initial=0)),
        **dict(zip(bins, counts.tolist(), strict=True)),
    }


def _by_camera(facts: pd.DataFrame, settings: DepthSettings) -> pd.DataFrame:
    """The report's table from what every file holds."""
    ratio = facts["returns"] / (settings.height * settings.width)
    grouped = facts.assign(ratio=ratio, empty=ratio == 0).groupby("camera", sort=False)
    returns = grouped["returns"].sum()
    table = pd.DataFrame({"files": grouped.size(), "height": settings.height, "width": settings.width})
    table["valid_ratio"], table["valid_ratio_min"] = grouped["ratio"].mean(), grouped["ratio"].min()
    table["valid_ratio_max"], table["empty"] = grouped["ratio"].max(), grouped["empty"].sum()
    table["depth_min"], table["depth_mean"] = grouped["depth_min"].min(), grouped["depth_sum"].sum() / returns
    table["depth_max"] = grouped["depth_max"].max()
    for column in _bins(settings):
        table[column] = grouped[column].sum() / returns
    return table.round(DECIMALS).reset_index()


def overlay(frame: Frame, depth: Floats, mask: Mask, settings: DepthSettings) -> Image.Image:
    """The image in grey, stretched over the depth image (H, W), every return in the colour of its depth, a legend."""
    check_image(frame)
    factor = max(1, WIDTH // settings.width)
    width, height = settings.width * factor, settings.height * factor
    picture = Image.new("RGB", (width, height + LEGEND), "white")
    with Image.open(frame.image) as image:
        picture.paste(image.convert("L").resize((width, height)))
    draw, side = ImageDraw.Draw(picture), max(DOT, factor)
    rows, columns = np.nonzero(mask)
    far_first = np.argsort(-depth[mask], kind="stable")
    colours = _colours(depth[mask], settings)
    for row, column, colour in zip(rows[far_first], columns[far_first], colours[far_first], strict=True):
        left, top = int(column) * factor - (side - factor) // 2, int(row) * factor - (side - factor) // 2
        draw.rectangle((left, top, left + side - 1, min(top + side, height) - 1), tuple(colour.tolist()))
    _draw_legend(picture, height, f"{frame.camera}  {mask.sum()} returns, {mask.mean():.2%} of pixels", settings)
    return picture


def _colours(depth: Floats, settings: DepthSettings) -> Colours:
    """The colour of each depth, (N, 3)."""
    nearness = (settings.max_depth - depth) / (settings.max_depth - settings.min_depth)
    colours: Colours = matplotlib.colormaps[COLOURS](FARTHEST + (1 - FARTHEST) * nearness, bytes=True)[:, :3]
    return colours


def _draw_legend(picture: Image.Image, top: int, title: str, settings: DepthSettings) -> None:
    """A bar of the colours below `top` with depths in metres; the title stands beside it."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    left, right = MARGIN, picture.width // 2
    depths = np.linspace(settings.min_depth, settings.max_depth, right - left, dtype=np.float32)
    bar = np.broadcast_to(_colours(depths, settings), (BAR, right - left, 3))
    picture.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top + MARGIN))
    for share in np.linspace(0, 1, TICKS):
        depth = settings.min_depth + share * (settings.max_depth - settings.min_depth)
        anchor = "lt" if share == 0 else "rt" if share == 1 else "mt"
        draw.text((left + share * (right - left), top + MARGIN + BAR + 6), f"{depth:.3g} m", "black", font, anchor)
    draw.text((right + 2 * MARGIN, top + MARGIN), title, "black", font)
