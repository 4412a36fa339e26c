"""The dynamic head: a series of stages that refine boxes and classify them, conditioned on the diffusion time.

Stages are those of Sparse R-CNN (Sun et al. 2021) with the time conditioning of DiffusionDet (Chen et al. 2023,
section 3.2). Parameters carry the public names, so public head weights load as they are.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.config import DiffusionDetConfig
from noisebox.models.diffusiondet.pooling import Pyramid, pool_regions

DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
MAX_LOG_GROWTH = math.log(100_000 / 16)
PRIOR_PROBABILITY = 0.01


class DynamicHead(nn.Module):
    """`num_heads` stages, each starting from the boxes and proposal features that the one before left."""

    def __init__(self, config: DiffusionDetConfig, num_classes: int) -> None:
        super().__init__()
        self.head_series = nn.ModuleList(RefinementStage(config, num_classes) for _ in range(config.num_heads))
        width = config.hidden_dim
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, pyramid: Pyramid, boxes_xyxy: Tensor, t: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (S, N, P, K) and boxes (S, N, P, 4) float32 of all S stages.

        `boxes_xyxy`: (N, P, 4) float32 in pixels. `t`: (N,). `image_index`: (N,) says whose features each row looks at,
        so that many rows share one image's without copies of them.
        """
        time = self.time_mlp(t)
        proposals = None
        stage_logits, stage_boxes = [], []
        for stage in self.head_series:
            logits, boxes_xyxy, proposals = stage(pyramid, boxes_xyxy.detach(), image_index, proposals, time)
            stage_logits.append(logits)
            stage_boxes.append(boxes_xyxy)
        return torch.stack(stage_logits), torch.stack(stage_boxes)


class SinusoidalEmbedding(nn.Module):
    """t (N,) to sines and cosines (N, width) of geometrically spaced frequencies from 1 to 1e-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, t: Tensor) -> Tensor:
        half = self.width // 2
        exponent = torch.arange(half, device=t.device) / (half - 1)
        angle = t[:, None] * torch.exp(-math.log(10_000) * exponent)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


class RefinementStage(nn.Module):
    """Proposals attend to each other, meet their region of the image, and yield class logits and a better box."""

    def __init__(self, config: DiffusionDetConfig, num_classes: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.resolution = config.pooler_resolution
        self.sampling_ratio = config.sampling_ratio
        self.self_attn = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
        self.inst_interact = DynamicConv(width, config.dim_dynamic, config.pooler_resolution)
        self.linear1 = nn.Linear(width, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.block_time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * width, 2 * width))
        self.cls_module = _tower(width, config.num_cls)
        self.reg_module = _tower(width, config.num_reg)
        self.class_logits = nn.Linear(width, num_classes)
        self.bboxes_delta = nn.Linear(width, 4)
        # At first every class is rare (Lin et al. 2017, focal loss, section 3.3).
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(
        self,
        pyramid: Pyramid,
        boxes_xyxy: Tensor,
        image_index: Tensor,
        proposals: Tensor | None,
        time: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, P, K), boxes (N, P, 4) and proposal features (N, P, C) of this stage.

        `proposals` is what the stage before returned; None for the first, which starts from the regions' means.
        `time`: (N, 4C).
        """
        rows, count = boxes_xyxy.shape[:2]
        regions = pool_regions(pyramid, boxes_xyxy, image_index, self.resolution, self.sampling_ratio)
        if proposals is None:
            proposals = regions.mean(1).view(rows, count, -1)
        attended, _ = self.self_attn(proposals, proposals, proposals, need_weights=False)
        proposals = self.norm1(proposals + attended)
        interacted = self.inst_interact(proposals.flatten(0, 1), regions)
        proposals = self.norm2(proposals + interacted.view_as(proposals))
        proposals = self.norm3(proposals + self.linear2(F.relu(self.linear1(proposals))))
        scale, shift = self.block_time_mlp(time)[:, None].chunk(2, dim=-1)
        conditioned = proposals * (scale + 1) + shift
        logits = self.class_logits(self.cls_module(conditioned)).float()
        deltas = self.bboxes_delta(self.reg_module(conditioned)).float()
        return logits, apply_deltas(deltas, boxes_xyxy), proposals


class DynamicConv(nn.Module):
    """Two 1×1 convolutions over a proposal's region whose weights are made from the proposal itself."""

    def __init__(self, width: int, dim_dynamic: int, resolution: int) -> None:
        super().__init__()
        self.width = width
        self.dim_dynamic = dim_dynamic
        self.dynamic_layer = nn.Linear(width, 2 * width * dim_dynamic)
        self.norm1 = nn.LayerNorm(dim_dynamic)
        self.norm2 = nn.LayerNorm(width)
        self.out_layer = nn.Linear(width * resolution**2, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """`proposals` (R, C) and `regions` (R, resolution², C) to (R, C)."""
        narrow, widen = self.dynamic_layer(proposals).chunk(2, dim=-1)
        regions = F.relu(self.norm1(torch.bmm(regions, narrow.view(-1, self.width, self.dim_dynamic))), inplace=True)
        regions = F.relu(self.norm2(torch.bmm(regions, widen.view(-1, self.dim_dynamic, self.width))), inplace=True)
        return F.relu(self.norm3(self.out_layer(regions.flatten(1))))


def apply_deltas(deltas: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """`boxes_xyxy` (..., 4) moved and scaled by deltas (dx, dy, dw, dh), weighted (2, 2, 1, 1) (Ren et al. 2015)."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), DELTA_WEIGHTS, strict=True))
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    width, height = x2 - x1, y2 - y1
    cx = x1 + width / 2 + dx * width
    cy = y1 + height / 2 + dy * height
    half_width = width * dw.clamp(max=MAX_LOG_GROWTH).exp() / 2
    half_height = height * dh.clamp(max=MAX_LOG_GROWTH).exp() / 2
    return torch.stack((cx - half_width, cy - half_height, cx + half_width, cy + half_height), dim=-1)


def _tower(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*layers)
