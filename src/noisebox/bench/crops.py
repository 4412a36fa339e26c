"""The time that YOLC takes to look at images, and to look at them again at crops."""

import statistics
from functools import partial
from typing import cast

import torch
from torch import Tensor

from noisebox.bench.made import batch, detector
from noisebox.bench.settings import MOST_CROPS, BenchSettings
from noisebox.bench.timing import Timing, timed
from noisebox.config import Sampling
from noisebox.errors import UserError
from noisebox.evaluation.measuring import autocast
from noisebox.models.yolc.detector import Yolc
from noisebox.models.yolc.lsm import COLUMNS, ROWS
from noisebox.report.markdown import plural
from noisebox.structures import Batch

# Where the planted heatmap is hot: so many places in the grid of the local scale module, none beside another.
PLACES = [(row, column) for row in (2, 7) for column in (2, 7, 12)]
assert len(PLACES) == MOST_CROPS
HOT, COLD = 5.0, -5.0  # logits


def timings(settings: BenchSettings) -> list[Timing]:
    """Seconds per image without crops and at each of `settings.crops`, and per crop from none to the most.

    Raises UserError when no crops are asked for, or the images are too small for so many.
    """
    if not settings.crops:
        raise UserError("--parts crops needs numbers of crops, such as --crops 1 2 4")
    model = cast(Yolc, detector(settings))
    images = batch(settings, settings.images, "infer").to(settings.device)
    looks = [_looking(model, images, settings, count) for count in (0, *settings.crops)]
    most = max(settings.crops)
    without, with_most = looks[0], looks[1 + settings.crops.index(most)]
    plain = statistics.median(without.seconds)
    slope = tuple(seconds - plain for seconds in with_most.seconds)
    return [*looks, Timing("crops", "each crop more", "crop", slope, most * settings.images)]


def _looking(model: Yolc, images: Batch, settings: BenchSettings, crops: int) -> Timing:
    """A look, and a second one at so many crops. An untrained network sees no crowds, so they are planted in the
    heatmap; all else is computed as ever."""
    heatmap = crowded(crops, (len(images), settings.classes, *images.images.shape[-2:])).to(settings.device)
    found = len(model.crops(images, model.regions(heatmap.sigmoid(), images))) // len(images)
    if found < crops:
        height, width = settings.size
        raise UserError(f"--crops {crops}: an image of {height} × {width} gives {found}; take a larger --size")
    return timed(
        partial(_look_twice, model, images, heatmap, settings, crops > 0),
        settings,
        part="crops",
        what=plural(crops, "crop"),
        unit="image",
        units=len(images),
        images=len(images),
        with_flop=True,
    )


def _look_twice(model: Yolc, images: Batch, heatmap: Tensor, settings: BenchSettings, crops: bool) -> None:
    with torch.no_grad(), autocast(settings.device, settings.precision):
        encoded = model.encode(images)._replace(heatmap=heatmap)
        model.detect(encoded, images, [0], Sampling(steps=1, crops=crops))


def crowded(crops: int, shape: tuple[int, int, int, int]) -> Tensor:
    """A heatmap (B, K, H, W), logits, that is hot in so many cells of the local scale module's grid."""
    heatmap = torch.full(shape, COLD)
    height, width = shape[-2:]
    for row, column in PLACES[:crops]:
        rows, columns = (
            slice(k * side // n, (k + 1) * side // n) for k, side, n in ((row, height, ROWS), (column, width, COLUMNS))
        )
        heatmap[:, 0, rows, columns] = HOT
    return heatmap
