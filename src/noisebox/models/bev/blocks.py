"""The block that the BEV family's convolutional parts are made of."""

import math

from torch import nn


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 × 3 convolution, GroupNorm (it never looks at the batch) with at most 32 groups of at least 4 channels where
    the width allows, ReLU."""
    groups = math.gcd(outputs, max(1, outputs // 4), 32)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True)
    )
