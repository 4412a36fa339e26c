"""The dynamic head: a series of stages that refine boxes and classify them, conditioned on the diffusion time.

Stages are those of Sparse R-CNN (Sun et al. 2021) with the time conditioning of DiffusionDet (Chen et al. 2023,
section 3.2). Parameters carry the public names, so public head weights load as they are.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.config.diffusiondet import DiffusionDetConfig
from noisebox.models import size_monitors
from noisebox.models.diffusiondet.attention import attend
from noisebox.models.diffusiondet.dynamic_layer import halves
from noisebox.models.diffusiondet.geometry import GeometryBias, GeometryFeatures
from noisebox.models.diffusiondet.pooling import Pyramid, pool_regions

DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
MAX_LOG_GROWTH = math.log(100_000 / 16)
PRIOR_PROBABILITY = 0.01


class HeadOutput(NamedTuple):
    """What the S stages say of N rows of P proposals: class `logits` (S, N, P, K) and `boxes_xyxy` (S, N, P, 4)
    float32; with a quality head the `quality` (S, N, P), a logit of the box's IoU with its object; where asked for, the
    last stage's `attention` (N, P, P) between proposals, a mean over attention heads whose rows sum to 1."""

    logits: Tensor
    boxes_xyxy: Tensor
    quality: Tensor | None = None
    attention: Tensor | None = None


def box_monitors(output: HeadOutput) -> dict[str, Tensor]:
    """Median width and height in pixels of the last stage's boxes, of all processes: near 0 where they have collapsed
    to points."""
    boxes = output.boxes_xyxy[-1].flatten(0, 1)
    return size_monitors(boxes[:, 2:] - boxes[:, :2])


class Conditions(NamedTuple):
    """What every stage sees beside boxes and proposals, for N rows: whose features (`image_index` (N,)), their images'
    sizes `image_whwh` (N, 4), the `time` embedding (N, 4C), `fade` (N,), which falls from 1 at t = 0 to 0, and the
    label features (N, P, C)."""

    pyramid: Pyramid
    image_index: Tensor
    image_whwh: Tensor
    time: Tensor
    fade: Tensor
    labels: Tensor | None


class DynamicHead(nn.Module):
    """`num_heads` stages, each starting from the boxes and proposal features that the one before left."""

    def __init__(self, config: DiffusionDetConfig, num_classes: int) -> None:
        super().__init__()
        self.timesteps = config.timesteps
        self.head_series = nn.ModuleList(RefinementStage(config, num_classes) for _ in range(config.num_heads))
        width = config.hidden_dim
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width)
        )
        self.label_embedding = nn.Embedding(num_classes + 1, width) if config.label_state else None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        # What a switch adds says nothing at first, so that a finetune starts as its parent.
        if self.label_embedding is not None:
            nn.init.zeros_(self.label_embedding.weight)
        for module in self.modules():
            if isinstance(module, GeometryFeatures | GeometryBias):
                module.reset_output()

    def forward(
        self,
        pyramid: Pyramid,
        boxes_xyxy: Tensor,
        t: Tensor,
        image_index: Tensor,
        image_whwh: Tensor,
        label_state: Tensor | None = None,
        want_attention: bool = False,
    ) -> HeadOutput:
        """What all S stages say of `boxes_xyxy` (N, P, 4) float32 in pixels, at times `t` (N,).

        `image_index`: (N,) says whose features each row looks at, so that many rows share one image's without copies
        of them; `image_whwh`: (N, 4) the sizes of the rows' images. `label_state`: (N, P, K + 1) weights over the
        label embeddings. In training, boxes pass from stage to stage without their gradient.
        """
        labels = None
        if self.label_embedding is not None and label_state is not None:
            labels = label_state @ self.label_embedding.weight
        fade = 1 - t.to(boxes_xyxy.dtype) / self.timesteps
        conditions = Conditions(pyramid, image_index, image_whwh, self.time_mlp(t), fade, labels)
        proposals, stages = None, []
        for stage in self.head_series:
            last = stage is self.head_series[-1]
            said = stage(boxes_xyxy, proposals, conditions, want_attention and last)
            proposals, boxes_xyxy = said.proposals, said.boxes_xyxy.detach() if self.training else said.boxes_xyxy
            stages.append(said)
        return HeadOutput(
            torch.stack([said.logits for said in stages]),
            torch.stack([said.boxes_xyxy for said in stages]),
            torch.stack([said.quality for said in stages]) if stages[0].quality is not None else None,
            stages[-1].attention,
        )


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


class StageOutput(NamedTuple):
    """One stage's part of a HeadOutput, without the dimension S, and its `proposals` (N, P, C)."""

    logits: Tensor
    boxes_xyxy: Tensor
    proposals: Tensor
    quality: Tensor | None
    attention: Tensor | None


class RefinementStage(nn.Module):
    """Proposals attend to each other, meet their region of the image, and yield class logits and a better box."""

    def __init__(self, config: DiffusionDetConfig, num_classes: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.resolution = config.pooler_resolution
        self.sampling_ratio = config.sampling_ratio
        self.attention = None if config.disable_self_attn else config.self_attn
        if self.attention:
            self.self_attn = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
            self.geo_bias = GeometryBias(config.geo_bias, config.attention_heads)
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
        self.geo_feat = GeometryFeatures(width) if config.geo_feat.enabled else None
        self.fades = config.geo_feat.schedule == "fade"
        self.quality = nn.Linear(width, 1) if config.quality_head else None
        # At first every class is rare (Lin et al. 2017, focal loss, section 3.3).
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(
        self, boxes_xyxy: Tensor, proposals: Tensor | None, given: Conditions, want_attention: bool
    ) -> StageOutput:
        """What this stage says of `boxes_xyxy` (N, P, 4).

        `proposals` is what the stage before returned; None for the first, which starts from the regions' means and the
        labels.
        """
        rows, count = boxes_xyxy.shape[:2]
        regions = pool_regions(given.pyramid, boxes_xyxy, given.image_index, self.resolution, self.sampling_ratio)
        if proposals is None:
            proposals = regions.mean(1).view(rows, count, -1)
            proposals = proposals if given.labels is None else proposals + given.labels
        if self.geo_feat is not None:
            geometry = self.geo_feat(boxes_xyxy, given.image_whwh)
            proposals = proposals + (geometry * given.fade[:, None, None] if self.fades else geometry)
        attention = None
        if self.attention:
            bias = self.geo_bias(boxes_xyxy, given.image_whwh)
            attended, attention = attend(self.self_attn, proposals, bias, self.attention, want_attention)
            proposals = proposals + attended
        proposals = self.norm1(proposals)
        interacted = self.inst_interact(proposals.flatten(0, 1), regions)
        proposals = self.norm2(proposals + interacted.view_as(proposals))
        proposals = self.norm3(proposals + self.linear2(F.relu(self.linear1(proposals))))
        scale, shift = self.block_time_mlp(given.time)[:, None].chunk(2, dim=-1)
        conditioned = proposals * (scale + 1) + shift
        logits = self.class_logits(self.cls_module(conditioned)).float()
        localised = self.reg_module(conditioned)
        boxes_xyxy = apply_deltas(self.bboxes_delta(localised).float(), boxes_xyxy)
        quality = None if self.quality is None else self.quality(localised).squeeze(-1).float()
        return StageOutput(logits, boxes_xyxy, proposals, quality, attention)


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
        narrow, widen = halves(self.dynamic_layer, proposals)
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
