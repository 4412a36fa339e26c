"""YOLC's network: one feature map at stride 4, a heatmap per class at every pixel, and boxes in two stages."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from noisebox.config.yolc import YolcConfig
from noisebox.models.backbone import Backbone
from noisebox.models.yolc.decode import STRIDE, Regression, cell_boxes

GROUPS = 8
TAPS = 3  # a side of the deformable kernel

# What the heatmap says everywhere at first: objects are rare (focal loss, Lin et al. 2017, section 3.3).
PRIOR_LOGIT = -4.6


class Output(NamedTuple):
    """What the network says of B images: `heatmap` (B, K, H, W), logits at every pixel; `coarse` (B, 4, H/4, W/4), raw
    boxes; `features` (B, C, H/4, W/4), which the refinement looks into. H and W are multiples of 32."""

    heatmap: Tensor
    coarse: Tensor
    features: Tensor

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the regression's grid."""
        height, width = self.coarse.shape[-2:]
        return height, width


class Network(nn.Module):
    """Backbone, heatmap branch and regression branch."""

    def __init__(self, config: YolcConfig, num_classes: int, fetch_weights: bool = True) -> None:
        super().__init__()
        width, per_class = config.hidden_dim, config.heatmap_channels
        self.backbone = Backbone(config.backbone, width, config.pretrained, fetch_weights)
        self.fuse = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.ReLU())
        own = nn.ConvTranspose2d(num_classes * per_class, num_classes, 4, stride=2, padding=1, groups=num_classes)
        nn.init.constant_(own.get_parameter("bias"), PRIOR_LOGIT)
        shared = nn.ConvTranspose2d(width, num_classes * per_class, 4, stride=2, padding=1)
        self.heatmap = nn.Sequential(shared, nn.ReLU(), own)
        self.regression = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU())
        self.coarse = nn.Conv2d(width, 4, 1)
        self.refine = Refinement(width)

    def forward(self, images: Tensor, sizes_hw: Tensor) -> Output:
        """`images`: (B, 3, H, W) in [0, 1]; `sizes_hw`: (B, 2), their sizes without padding."""
        finest, *others = self.backbone(images, sizes_hw)
        # Like HRNet's last stage, all resolutions are brought to the finest and put together.
        fused = finest + sum(F.interpolate(level, finest.shape[-2:]) for level in others)
        fused = self.fuse(fused)
        features = self.regression(fused)
        return Output(self.heatmap(fused).float(), self.coarse(features).float(), features.float())

    def coarse_at(self, output: Output, cells: Tensor) -> Regression:
        """The coarse boxes (B, N, 4) of cells (B, N) of the regression's grid."""
        raw = output.coarse.flatten(2).gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2)
        return Regression(raw, cell_boxes(cells, output.grid_hw[1]))

    def boxes_at(self, output: Output, cells: Tensor) -> tuple[Regression, Regression]:
        """Coarse and refined boxes (B, N, 4) of cells (B, N) of the regression's grid."""
        coarse = self.coarse_at(output, cells)
        around = coarse.boxes_xyxy.detach()
        return coarse, Regression(self.refine(output.features, around), around)


class Refinement(nn.Module):
    """Looks into features at nine places of a coarse box (its corners, the middles of its sides, its centre), by a
    deformable convolution (Dai et al. 2017) whose kernel lies over the box, and says how the box must change.

    At first it changes nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, TAPS, TAPS))
        self.bias = nn.Parameter(torch.zeros(width))
        self.change = nn.Linear(width, 4)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, features: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """Raw numbers (B, N, 4), relative to `boxes_xyxy` (B, N, 4) in pixels; `features` (B, C, h, w)."""
        seen = [self.look(features, boxes) for boxes in torch.split(boxes_xyxy, features.shape[-1], dim=1)]
        with torch.autocast(features.device.type, enabled=False):
            raw: Tensor = self.change(torch.cat(seen, dim=1).relu())
        return raw

    def look(self, features: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """The convolution's output (B, N, C) at N boxes, at most as many as the features have columns.

        Only N places of the map are wanted, and computing all would cost a hundred times as much. So the vertical
        stride leaves a single row of outputs, one for each box, and the offsets lead from there to the box.
        """
        (height, width), count = features.shape[-2:], boxes_xyxy.shape[1]
        side = torch.arange(TAPS, device=features.device) - TAPS // 2
        # The operator reads anywhere in memory at nan; such boxes are told of by the loss, or the evaluation.
        offsets = sampling_places(boxes_xyxy.nan_to_num()) - torch.cartesian_prod(side, side)
        offsets[..., 1] -= torch.arange(count, device=features.device)[:, None]
        offsets = F.pad(offsets.permute(0, 2, 3, 1).flatten(1, 2), (0, width - count))[:, :, None]
        with torch.autocast(features.device.type, enabled=False):
            row: Tensor = deform_conv2d(features, offsets, self.weight, self.bias, stride=(height, 1), padding=1)
        return row[:, :, 0, :count].transpose(1, 2)


def sampling_places(boxes_xyxy: Tensor) -> Tensor:
    """Nine places (..., 9, 2) of each box (..., 4) in pixels, row by row: y, x in the feature map's own coordinates,
    in which a cell's centre is a whole number."""
    x1, y1, x2, y2 = (boxes_xyxy / STRIDE - 0.5).unbind(-1)
    places = [torch.stack((y, x), dim=-1) for y in (y1, (y1 + y2) / 2, y2) for x in (x1, (x1 + x2) / 2, x2)]
    return torch.stack(places, dim=-2)
