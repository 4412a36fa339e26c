"""The weighted sums of RoIAlign on a GPU, in Triton: each row of the table is read where it lies, and nothing but the
sums is written.

Gradients are summed position by position, in an order that sorting gives, and not by atomic additions, so that the same
training ends at the same bytes. Imported only where there is a GPU to run on; CPUs take PyTorch's `embedding_bag`.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from noisebox.models.diffusiondet.pooling import by_position

SAMPLES_AT_ONCE = 8  # of those that a position's gradient is summed over


@torch.library.custom_op("noisebox::region_sums", mutates_args=())
def region_sums(table: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
    """(R · B², C), of the table's precision, from `table` (positions, C) and for each of R regions, B bins and S
    samples along each axis a place and what it counts: `rows` and `columns` (R, B, S) int64, whose sums are positions,
    and `row_weights` and `column_weights` (R, B, S) float32, whose products are weights. Sums are taken in float32.

    Only the table has a gradient.
    """
    regions, bins, samples = rows.shape
    channels = table.shape[1]
    sums = table.new_empty(regions * bins**2, channels)
    given = [part.contiguous() for part in (table, rows, row_weights, columns, column_weights)]
    _sum_samples[(regions, bins)](
        *(*given, sums, channels, bins, samples),
        *(triton.next_power_of_2(bins), triton.next_power_of_2(channels)),
    )
    return sums


@torch.library.custom_op("noisebox::region_sums_backward", mutates_args=())
def table_gradient(
    gradient: Tensor, positions: int, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor
) -> Tensor:
    """The gradient (positions, C) of the table, from that of the sums (R · B², C); all else as for `region_sums`."""
    _, bins, samples = rows.shape
    channels = gradient.shape[1]
    counts = (row_weights != 0)[:, :, None, :, None] & (column_weights != 0)[:, None, :, None, :]
    position = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    # Samples that count nothing, as those beyond the map, come after all positions.
    order, bounds = by_position(torch.where(counts, position, positions).flatten(), positions)
    total = gradient.new_empty(positions, channels)
    _sum_gradients[(positions,)](
        *(gradient.contiguous(), order, bounds, row_weights.contiguous(), column_weights.contiguous(), total, channels),
        *(bins, samples, SAMPLES_AT_ONCE, triton.next_power_of_2(channels)),
        num_warps=1,  # which has a channel's sum in the registers of one thread
    )
    return total


@region_sums.register_fake
def _(table: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
    return table.new_empty(rows.shape[0] * rows.shape[1] ** 2, table.shape[1])


@table_gradient.register_fake
def _(
    gradient: Tensor, positions: int, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor
) -> Tensor:
    return gradient.new_empty(positions, gradient.shape[1])


def _keep(ctx, inputs, output) -> None:
    table, *places = inputs
    ctx.positions = table.shape[0]
    ctx.save_for_backward(*places)


def _backward(ctx, gradient):
    return table_gradient(gradient, ctx.positions, *ctx.saved_tensors), None, None, None, None


region_sums.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _sum_samples(
    table,
    rows,
    row_weights,
    columns,
    column_weights,
    sums,
    channels,
    BINS: tl.constexpr,
    SAMPLES: tl.constexpr,
    BINS_BLOCK: tl.constexpr,
    CHANNELS_BLOCK: tl.constexpr,
):
    """One row of bins of one region: every program writes (BINS, channels)."""
    region, down = tl.program_id(0).to(tl.int64), tl.program_id(1)
    across, channel = tl.arange(0, BINS_BLOCK), tl.arange(0, CHANNELS_BLOCK)
    inside = (across < BINS)[:, None] & (channel < channels)[None, :]
    total = tl.zeros((BINS_BLOCK, CHANNELS_BLOCK), tl.float32)
    for right in tl.static_range(SAMPLES):
        sample = (region * BINS + across) * SAMPLES + right
        column = tl.load(columns + sample, mask=across < BINS, other=0)
        column_weight = tl.load(column_weights + sample, mask=across < BINS, other=0.0)
        for below in tl.static_range(SAMPLES):
            sample = (region * BINS + down) * SAMPLES + below
            position = tl.load(rows + sample) + column
            values = tl.load(table + position[:, None] * channels + channel[None, :], mask=inside, other=0.0)
            weight = tl.load(row_weights + sample) * column_weight
            total += weight[:, None] * values.to(tl.float32)
    bin = (region * BINS + down) * BINS + across
    tl.store(sums + bin[:, None] * channels + channel[None, :], total.to(sums.dtype.element_ty), mask=inside)


@triton.jit
def _sum_gradients(
    gradient,
    order,
    bounds,
    row_weights,
    column_weights,
    total,
    channels,
    BINS: tl.constexpr,
    SAMPLES: tl.constexpr,
    SAMPLES_BLOCK: tl.constexpr,
    CHANNELS_BLOCK: tl.constexpr,
):
    """One position: every program writes (channels,), summed over the samples that `bounds` finds for it in `order`."""
    position = tl.program_id(0).to(tl.int64)
    first, end = tl.load(bounds + position), tl.load(bounds + position + 1)
    channel = tl.arange(0, CHANNELS_BLOCK)
    summed = tl.zeros((CHANNELS_BLOCK,), tl.float32)
    for start in range(first, end, SAMPLES_BLOCK):
        place = start + tl.arange(0, SAMPLES_BLOCK)
        real = place < end
        # A sample's number is that of its place in (R, bins down, bins across, samples down, samples across).
        sample = tl.load(order + place, mask=real, other=0)
        right, rest = sample % SAMPLES, sample // SAMPLES
        below, bin = rest % SAMPLES, rest // SAMPLES
        across, row = bin % BINS, bin // BINS
        row_weight = tl.load(row_weights + row * SAMPLES + below, mask=real, other=0.0)
        column = (row // BINS * BINS + across) * SAMPLES + right
        weight = row_weight * tl.load(column_weights + column, mask=real, other=0.0)
        inside = real[:, None] & (channel < channels)[None, :]
        values = tl.load(gradient + bin[:, None] * channels + channel[None, :], mask=inside, other=0.0)
        summed += tl.sum(weight[:, None] * values.to(tl.float32), axis=0)
    tl.store(total + position * channels + channel, summed.to(total.dtype.element_ty), mask=channel < channels)
