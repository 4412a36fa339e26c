"""3×3 convolutions by Winograd's algorithm F(4×4, 3×3) (Lavin and Gray 2016): a quarter of the products.

Of a map, tiles of 4×4 results are taken from the 6×6 positions that they depend on. Transformed, both those and the
kernel have 36 places, which multiply each for itself; so of each place there is one matrix product over channels, and
the transforms, too, are matrix products. It rounds more coarsely, and PyTorch does not take it on a CPU.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from noisebox.models.folding import FoldedConv2d

Matrix = Sequence[Sequence[float]]

TILE, PATCH = 4, 6
FEWEST_CHANNELS, FEWEST_TILES = 256, 256  # of fewer, the transforms cost more than the products save

# One dimension's transforms of data, kernel and answer, for polynomials evaluated at 0, 1, -1, 2, -2 and infinity.
_DATA: Matrix = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_KERNEL: Matrix = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_ANSWER: Matrix = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def use_winograd(*models: nn.Module) -> None:
    """Let the models' convolutions that fit take the algorithm where it pays: on a CPU in float32, of large maps.

    In place, so weights keep their names.
    """
    for module in itertools.chain.from_iterable(model.modules() for model in models):
        taking = TAKING.get(type(module))
        if isinstance(module, nn.Conv2d) and taking and _fits(module):
            module.__class__ = taking  # they come from libraries that ask for no other class


def _fits(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    channels = min(layer.in_channels, layer.out_channels)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and channels >= FEWEST_CHANNELS


class WinogradConv2d(nn.Conv2d):
    """A 3×3 convolution with stride and padding 1."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tiles = input.shape[0] * -(-input.shape[2] // TILE) * -(-input.shape[3] // TILE)
        plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if plain or input.device.type != "cpu" or input.dtype != torch.float32 or tiles < FEWEST_TILES:
            maps: Tensor = super()._conv_forward(input, weight, bias)
            return maps
        maps = convolve(input, weight)
        return maps if bias is None else maps + bias[:, None, None]


class WinogradFoldedConv2d(FoldedConv2d, WinogradConv2d):
    """The same with a frozen norm in its weights."""


TAKING: dict[type[nn.Module], type[WinogradConv2d]] = {nn.Conv2d: WinogradConv2d, FoldedConv2d: WinogradFoldedConv2d}


def convolve(maps: Tensor, weight: Tensor) -> Tensor:
    """`maps` (N, C, H, W) with `weight` (O, C, 3, 3), padded by 1, to (N, O, H, W), channels last.

    In float32 a result is within 2e-5 of the largest of the map.
    """
    found: Tensor = Winograd.apply(maps, weight)
    return found


class Winograd(torch.autograd.Function):
    """The convolution, and its gradients by the transposed transforms."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        """As `convolve`."""
        ctx.save_for_backward(maps, weight)
        count, _, height, width = maps.shape
        outputs, answer, kernels = len(weight), _both(_ANSWER, maps), _of_kernel(weight)
        images = _padded(maps)
        down, across = images.shape[1] // TILE - 1, images.shape[2] // TILE - 1
        results = maps.new_empty(count, down, TILE, across, TILE, outputs)
        for image, result in zip(images, results, strict=True):
            tiles = answer @ torch.bmm(_of_patches(image), kernels).flatten(1)
            result.copy_(tiles.view(TILE, TILE, down, across, outputs).permute(2, 0, 3, 1, 4))
        return _cropped(results.flatten(3, 4).flatten(1, 2), height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """From that of the result those of maps and weight, each only where it is asked for."""
        maps, weight = ctx.saved_tensors
        outputs, channels = weight.shape[:2]
        height, width = maps.shape[2:]
        answer, data, kernels = _both(_ANSWER, maps), _both(_DATA, maps), _of_kernel(weight)
        images = _padded(maps)
        of_images = torch.zeros_like(images) if ctx.needs_input_grad[0] else None
        of_kernels = torch.zeros_like(kernels) if ctx.needs_input_grad[1] else None
        down, across = images.shape[1] // TILE - 1, images.shape[2] // TILE - 1
        whole = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, -width % TILE, 0, -height % TILE))
        for index, of_result in enumerate(whole.reshape(-1, down, TILE, across, TILE, outputs)):
            tiles = of_result.permute(1, 3, 0, 2, 4).reshape(TILE**2, -1)
            of_products = (answer.t() @ tiles).view(PATCH**2, -1, outputs)
            if of_kernels is not None:
                of_kernels.baddbmm_(_of_patches(images[index]).transpose(1, 2), of_products)
            if of_images is not None:
                of_patches = data.t() @ torch.bmm(of_products, kernels.transpose(1, 2)).flatten(1)
                _add_patches(of_images[index], of_patches.view(PATCH, PATCH, down, across, channels))
        of_maps = None if of_images is None else _cropped(of_images[:, 1:, 1:], height, width)
        return of_maps, None if of_kernels is None else _from_kernel(of_kernels)


def _both(transform: Matrix, like: Tensor) -> Tensor:
    """A transform of rows and columns alike, as one matrix over the places of both."""
    matrix = like.new_tensor(transform)
    return torch.kron(matrix, matrix)


def _of_kernel(weight: Tensor) -> Tensor:
    """`weight` (O, C, 3, 3) transformed: (36, C, O)."""
    outputs, channels = weight.shape[:2]
    return (_both(_KERNEL, weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(PATCH**2, channels, outputs)


def _from_kernel(of_kernels: Tensor) -> Tensor:
    """The gradient (O, C, 3, 3) of a weight from that of the transformed, (36, C, O)."""
    of_weight = _both(_KERNEL, of_kernels).t() @ of_kernels.flatten(1)
    return of_weight.view(3, 3, *of_kernels.shape[1:]).permute(3, 2, 0, 1)


def _padded(maps: Tensor) -> Tensor:
    """`maps` (N, C, H, W) to (N, 4 · (tiles down + 1), 4 · (tiles across + 1), C): a zero before, the rest after."""
    count, channels, height, width = maps.shape
    padded = maps.new_zeros(count, height + -height % TILE + TILE, width + -width % TILE + TILE, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = maps.permute(0, 2, 3, 1)
    return padded


def _cropped(maps: Tensor, height: int, width: int) -> Tensor:
    """The first `height` rows and `width` columns of `maps` (N, rows, columns, C), as (N, C, H, W)."""
    return maps[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _of_patches(image: Tensor) -> Tensor:
    """The patches of a padded `image` (rows, columns, C), one every 4 positions, transformed: (36, tiles, C)."""
    patches = image.unfold(0, PATCH, TILE).unfold(1, PATCH, TILE).permute(3, 4, 0, 1, 2)
    return (_both(_DATA, image) @ patches.reshape(PATCH**2, -1)).view(PATCH**2, -1, image.shape[-1])


def _add_patches(image: Tensor, patches: Tensor) -> None:
    """Add `patches` (6, 6, tiles down, tiles across, C) to a padded `image` where they were taken from; they overlap by
    2, so each lies in four blocks of 4×4."""
    down, across, channels = patches.shape[2:]
    blocks = image.view(down + 1, TILE, across + 1, TILE, channels)
    for row in (0, 1):
        for column in (0, 1):
            part = patches[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)].permute(2, 0, 3, 1, 4)
            blocks[row : down + row, : part.shape[1], column : across + column, : part.shape[3]] += part
