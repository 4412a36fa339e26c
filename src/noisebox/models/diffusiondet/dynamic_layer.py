"""The linear layer that makes each proposal's weights, over half of a stage's operations, as CPUs are fast in it.

A product of this shape oneDNN does a fifth to a third faster as a 1×1 convolution than PyTorch does a linear layer. Its
two halves are made apart: cut from one tensor, each would be copied where it is multiplied in bf16, and in training
their gradients would have to be joined again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MANY = 512  # from so many rows on, bf16 is faster as a convolution, too


def halves(layer: nn.Linear, proposals: Tensor) -> tuple[Tensor, Tensor]:
    """`layer(proposals)` of `proposals` (R, C), as its first and its second half, each (R, outputs / 2)."""
    autocast = torch.is_autocast_enabled("cpu")
    # A few rows are multiplied faster than the weights are cast anew, and autocast keeps those of whole layers cast.
    few = autocast and not layer.training and len(proposals) < MANY
    if few or proposals.device.type != "cpu" or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        first, second = layer(proposals).chunk(2, dim=-1)
        return first, second
    dtype = torch.get_autocast_dtype("cpu") if autocast else proposals.dtype
    parameters = (given if layer.training else given.detach() for given in (layer.weight, layer.bias))
    with torch.autocast("cpu", enabled=False):
        first, second = HalvedLinear.apply(proposals.to(dtype), *(given.to(dtype) for given in parameters))
    return first, second


class HalvedLinear(torch.autograd.Function):
    """A linear layer whose output comes in two halves that share no memory."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """`rows` (R, C), `weight` (O, C), `bias` (O,), of one precision, to twice (R, O / 2)."""
        ctx.save_for_backward(rows, weight)
        return tuple(_product(rows, *half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """From those of the halves the gradients of rows and, if they are trained, of weight and bias."""
        rows, weight = ctx.saved_tensors
        weights, of_weight, of_bias = weight.chunk(2), None, None
        of_rows = torch.addmm(first @ weights[0], second, weights[1])
        if ctx.needs_input_grad[1]:
            of_weight, of_bias = torch.empty_like(weight), torch.cat((first.sum(0), second.sum(0)))
            for half, gradient in zip(of_weight.chunk(2), (first, second), strict=True):
                torch.mm(gradient.t(), rows, out=half)
        return of_rows, of_weight, of_bias


def _product(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if rows.dtype == torch.bfloat16 and len(rows) < MANY:
        return F.linear(rows, weight, bias)
    line = rows[None, None].permute(0, 3, 1, 2)  # an image (1, C, 1, R), channels last
    return F.conv2d(line, weight[:, :, None, None], bias).permute(0, 2, 3, 1)[0, 0]
