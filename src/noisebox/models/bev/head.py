"""The pyramid head: a BEV feature seen at several scales, brought back to the grid, and said as classes."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.models.bev.blocks import conv_block


class PyramidHead(nn.Module):
    """Down by 2 from scale to scale, then up again, adding at each scale what was seen there (Lin et al. 2017)."""

    def __init__(self, channels: int, scales: Sequence[int], num_classes: int) -> None:
        """`scales`: the width of each scale, first that of the grid itself."""
        super().__init__()
        finest = scales[0]
        coarser = [nn.Sequential(conv_block(a, b, stride=2), conv_block(b, b)) for a, b in pairwise(scales)]
        self.down = nn.ModuleList([conv_block(channels, finest), *coarser])
        self.lateral = nn.ModuleList(nn.Conv2d(width, finest, 1) for width in scales)
        self.fuse = conv_block(finest, finest)
        self.classify = nn.Conv2d(finest, num_classes, 1)

    def forward(self, bev: Tensor) -> Tensor:
        """Logits (B, classes, rows, columns), float32, from `bev` (B, C, rows, columns)."""
        seen = []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            bev = down(bev)
            seen.append(lateral(bev))
        total = seen.pop()
        while seen:
            finer = seen.pop()
            total = finer + F.interpolate(total, finer.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(self.fuse(total))
        return logits.float()
