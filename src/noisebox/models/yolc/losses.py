"""The loss against ground truth: focal on the heatmap, Gaussian Wasserstein distance and L1 on both stages of boxes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from noisebox.config.yolc import YolcLossConfig
from noisebox.models.yolc.decode import STRIDE, Regression, cells_of, encode
from noisebox.models.yolc.heatmap import crowded_pixels, focal_loss
from noisebox.models.yolc.network import Network, Output
from noisebox.structures import Targets


def squared_wasserstein(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """The squared Wasserstein distance (...) in pixels² between the Gaussians of two boxes (..., 4): mean the centre,
    standard deviations half the width and half the height (Yang et al. 2021, arXiv 2101.11952, equation 3).

    Of boxes along the axes it is the squared distance of (x, y, w/2, h/2).
    """
    apart = boxes_xyxy - others_xyxy
    low, high = apart[..., :2], apart[..., 2:]
    return (((low + high) / 2).square() + ((high - low) / 2).square()).sum(-1)


def gwd_loss(boxes_xyxy: Tensor, goals_xyxy: Tensor, tau: float) -> Tensor:
    """1 - 1 / (tau + log(1 + d²)) (...), with d² in units of the grid's cells (Yang et al. 2021, section 3.3); with tau
    1 it is 0 for equal boxes."""
    return 1 - 1 / (tau + torch.log1p(squared_wasserstein(boxes_xyxy, goals_xyxy) / STRIDE**2))


def supervised_terms(
    network: Network, output: Output, targets: Sequence[Targets], heatmap: Tensor, config: YolcLossConfig
) -> tuple[dict[str, Tensor], Tensor]:
    """Weighted terms (B,), one value an image: `loss_heatmap`, and for coarse and refined boxes `loss_…_gwd` and
    `loss_…_l1`, means over the image's objects, 0 where it has none. With them the refined boxes (G, 4) of all objects.

    A box is held to account at the cell that holds the object's centre. L1 is that of the raw numbers, so it counts in
    shares of the reference's size. `heatmap`: the target of the heatmap, which crowds leave unjudged.
    """
    goals = pad_sequence([target.boxes_xyxy for target in targets], batch_first=True)
    counts = torch.tensor([len(target.labels) for target in targets], device=goals.device)
    valid = torch.arange(goals.shape[1], device=goals.device) < counts[:, None]
    image = valid.nonzero()[:, 0]
    stages = network.boxes_at(output, cells_of((goals[..., :2] + goals[..., 2:]) / 2, output.grid_hw))
    crowded = crowded_pixels(targets, output.heatmap.shape)
    terms = {"loss_heatmap": config.heatmap_weight * focal_loss(output.heatmap, heatmap, crowded)}
    for name, stage in zip(("coarse", "refined"), stages, strict=True):
        said, goal = Regression(stage.raw[valid], stage.reference_xyxy[valid]), goals[valid]
        gwd = gwd_loss(said.boxes_xyxy, goal, config.gwd_tau)
        l1 = (said.raw - encode(goal, said.reference_xyxy)).abs().sum(-1)
        for kind, weight, values in (("gwd", config.gwd_weight, gwd), ("l1", config.l1_weight, l1)):
            per_image = values.new_zeros(len(targets)).index_add(0, image, values) / counts.clamp(min=1)
            terms[f"loss_{name}_{kind}"] = weight * per_image
    return terms, stages[1].boxes_xyxy[valid].detach()
