"""How one YOLC learns from another: heatmap and coarse boxes of the whole image, refined boxes inside crops.

Each is asked for what it is good at: the first look for where things are, the second for what they are exactly. Boxes
are compared as boxes, not as raw numbers, at the places where the teacher sees objects.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebox.config.yolc import YolcDistillConfig
from noisebox.errors import UserError
from noisebox.models.yolc.crops import Crops
from noisebox.models.yolc.decode import STRIDE, cells_of
from noisebox.models.yolc.heatmap import inside, peaks
from noisebox.models.yolc.network import Output
from noisebox.structures import Batch

if TYPE_CHECKING:
    from noisebox.models.yolc.detector import Yolc

# The teacher's highest peaks, in the whole image and in each crop, at which boxes are compared.
PLACES = 100


def check_teacher(student: "Yolc", teacher: "Yolc") -> None:
    """Raises UserError unless both have heatmaps of the same classes; backbone and widths may differ."""
    if teacher.num_classes != student.num_classes:
        raise UserError(
            f"its heatmaps are of {teacher.num_classes} classes, the student's of {student.num_classes}, and they are "
            "compared class by class"
        )


def distillation_terms(
    student: "Yolc", teacher: "Yolc", batch: Batch, seed: int, step: int, config: YolcDistillConfig
) -> dict[str, Tensor]:
    """The terms against ground truth, and `loss_kd_global_hm`, `loss_kd_global_coarse` and `loss_kd_local_refine`.

    The local term is a mean over an image's crops, 0 where it has none; each term is a mean over images.
    """
    output = student.encode(batch)
    with torch.no_grad():
        lesson = teacher.encode(batch)
        cells, certainty = _places(lesson, batch.sizes_hw)
        goals = teacher.network.coarse_at(lesson, cells).boxes_xyxy
    heatmap = heatmap_error(output.heatmap, lesson.heatmap, batch.sizes_hw, config)
    coarse = box_error(student.network.coarse_at(output, cells).boxes_xyxy, goals, certainty)
    guide = (lesson if config.use_teacher_crop else output).heatmap.detach().sigmoid()
    crops = student.crops(batch, student.regions(guide, batch, config))
    refined = _refined_error(student, teacher, crops) if len(crops) else heatmap.new_zeros(0)
    count = torch.bincount(crops.image, minlength=len(batch)).clamp(min=1)
    local = heatmap.new_zeros(len(batch)).index_add(0, crops.image, refined) / count
    return {
        **student.supervised(output, batch, seed, step),
        "loss_kd_global_hm": config.kd_weight_global_hm * heatmap.mean(),
        "loss_kd_global_coarse": config.kd_weight_global_coarse * coarse.mean(),
        "loss_kd_local_refine": config.kd_weight_local_refine * local.mean(),
    }


def _refined_error(student: "Yolc", teacher: "Yolc", crops: Crops) -> Tensor:
    """Both look at each crop: how far the student's refined boxes are from the teacher's there, (C,)."""
    with torch.no_grad():
        lesson = teacher.network(crops.images, crops.sizes_hw)
        cells, certainty = _places(lesson, crops.sizes_hw)
        _, goals = teacher.network.boxes_at(lesson, cells)
    _, said = student.network.boxes_at(student.network(crops.images, crops.sizes_hw), cells)
    return box_error(said.boxes_xyxy, goals.boxes_xyxy, certainty)


def _places(lesson: Output, sizes_hw: Tensor) -> tuple[Tensor, Tensor]:
    """The cells (B, N) where the teacher sees most, and how certain it is of an object there, (B, N) in [0, 1]."""
    certainty, _, pixels = peaks(lesson.heatmap, sizes_hw, PLACES)
    return cells_of(pixels, lesson.grid_hw), certainty


def box_error(boxes_xyxy: Tensor, goals_xyxy: Tensor, certainty: Tensor) -> Tensor:
    """The mean squared error (B,) of boxes (B, N, 4), in units of the grid's cells, each box weighing as much as the
    teacher is certain of it, (B, N): so what it says of empty places does not count, and one that is certain of
    nothing teaches nothing."""
    error = ((boxes_xyxy - goals_xyxy) / STRIDE).square().mean(-1)
    return (certainty * error).sum(1) / certainty.sum(1).clamp(min=1)


def heatmap_error(logits: Tensor, lesson: Tensor, sizes_hw: Tensor, config: YolcDistillConfig) -> Tensor:
    """How far heatmaps (B, K, H, W), logits, are from the lesson's: (B,), means over classes and the image's pixels.

    `mse`: the squared difference of the sigmoids. `kl`: the Kullback-Leibler divergence of each value's Bernoulli
    distribution at temperature T, times T² (Hinton et al. 2015, section 2).
    """
    if config.heatmap_loss == "mse":
        error = (logits.sigmoid() - lesson.sigmoid()).square()
    else:
        said, goal = logits / config.temperature, lesson / config.temperature
        error = config.temperature**2 * (
            goal.sigmoid() * (F.logsigmoid(goal) - F.logsigmoid(said))
            + (-goal).sigmoid() * (F.logsigmoid(-goal) - F.logsigmoid(-said))
        )
    return (error * inside(error, sizes_hw)).sum((1, 2, 3)) / (error.shape[1] * sizes_hw.prod(-1))
