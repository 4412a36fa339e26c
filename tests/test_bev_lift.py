"""Lift and splat against loops over points: where each stands on the ground, and what each cell sums up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from noisebox.config.bev import BevGridConfig, LiftConfig
from noisebox.models.bev.lift import frustum_cells, splat
from noisebox.randomness import normal, uniform

GRID = BevGridConfig()


def camera(focal, centre_u):
    return torch.tensor([[focal, 0, centre_u], [0, focal, 40.0], [0, 0, 1]])


def test_the_grid_and_the_bins_of_the_published_settings():
    assert (GRID.rows, GRID.columns, LiftConfig().bins) == (98, 100, 49)


@given(
    focal=st.floats(30, 400),
    centre_u=st.floats(0, 96),
    stride=st.sampled_from([4, 8, 16]),
    cell=st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_cells_equal_a_loop_over_bins_and_columns(focal, centre_u, stride, cell):
    lift, grid = LiftConfig(stride=stride, near=1.0, far=21.0, step=2.0), BevGridConfig(z_max=16.0, cell=cell)
    cells = frustum_cells(camera(focal, centre_u)[None], 6, lift, grid)
    beside = grid.rows * grid.columns
    for depth_bin in range(lift.bins):
        z = 1.0 + 2.0 * depth_bin + 1.0
        for j in range(6):
            x = z * ((j + 0.5) * stride - centre_u) / focal
            row, column = math.floor((16.0 - z) / cell), math.floor((x + 25.0) / cell)
            on_grid = 0 <= row < grid.rows and 0 <= column < grid.columns
            expected = row * grid.columns + column if on_grid else beside
            edge = abs((x + 25.0) / cell - round((x + 25.0) / cell)) < 1e-4  # float32 may fall on either side
            assert int(cells[0, depth_bin, j]) == expected or edge


@pytest.mark.parametrize(("x", "z"), [(-20.0, 40.5), (0.1, 2.5), (3.3, 9.5), (20.0, 30.5), (-1.2, 1.5), (0.3, 49.5)])
def test_a_place_on_the_ground_is_found_through_its_pixel(x, z):
    """Row 0 is the farthest row, column 0 the leftmost: a point's pixel must bring it back to its own cell."""
    lift = LiftConfig(stride=4)
    cells = frustum_cells(camera(300.0, 402.0)[None], 201, lift, GRID)
    u = 300.0 * x / z + 402.0
    cell = int(cells[0, math.floor(z - 1.0), math.floor(u / 4)])
    row, column = divmod(cell, GRID.columns)
    assert 50.0 - (row + 1) * 0.5 <= z <= 50.0 - row * 0.5
    slack = 2.0 * z / 300.0  # half a feature cell, in metres at that depth
    assert -25.0 + column * 0.5 - slack <= x <= -25.0 + (column + 1) * 0.5 + slack


def test_a_resized_image_with_its_intrinsics_sees_the_same_places():
    matrix = camera(120.0, 80.0)
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ matrix
    fine = frustum_cells(matrix[None], 10, LiftConfig(stride=16), GRID)
    coarse = frustum_cells(half[None], 10, LiftConfig(stride=8), GRID)
    assert torch.equal(fine, coarse)


def test_autocast_moves_no_point():
    matrix = camera(120.3, 79.7)[None]
    exact = frustum_cells(matrix, 10, LiftConfig(stride=16), GRID)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frustum_cells(matrix, 10, LiftConfig(stride=16), GRID), exact)


def small_splat_case(seed, channels=3):
    grid = BevGridConfig(x_min=-3.0, x_max=3.0, z_min=1.0, z_max=6.0, cell=1.0)
    depth = uniform((2, 4, 2, 3), seed, "depth").double()
    context = normal((2, channels, 2, 3), seed, "context").double()
    cells = (uniform((2, 4, 3), seed, "cells") * (grid.rows * grid.columns + 1)).long()
    return depth, context, cells, grid


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_splat_equals_a_loop_over_points(seed):
    depth, context, cells, grid = small_splat_case(seed)
    expected = torch.zeros(2, 3, grid.rows * grid.columns, dtype=torch.float64)
    for image in range(2):
        for depth_bin in range(4):
            for i in range(2):
                for j in range(3):
                    cell = int(cells[image, depth_bin, j])
                    if cell < grid.rows * grid.columns:
                        expected[image, :, cell] += depth[image, depth_bin, i, j] * context[image, :, i, j]
    assert torch.allclose(splat(depth, context, cells, grid).flatten(2), expected, rtol=1e-12, atol=1e-12)


def test_autocast_rounds_no_sum():
    depth, context, cells, grid = small_splat_case(2)
    depth, context = depth.float(), context.float()
    exact = splat(depth, context, cells, grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(splat(depth, context, cells, grid), exact)


def test_the_splat_has_the_gradient_of_the_sum_it_is():
    depth, context, cells, grid = small_splat_case(1)
    inputs = (depth.requires_grad_(), context.requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: splat(*given, cells, grid), inputs)


def test_a_grid_or_bins_that_do_not_come_out_are_refused():
    with pytest.raises(ValidationError, match=r"z from 1 to 50 m is no whole number of cells of 0.4 m"):
        BevGridConfig(cell=0.4)
    with pytest.raises(ValidationError, match="x from 25 to -25 m is no whole number"):
        BevGridConfig(x_min=25.0, x_max=-25.0)
    with pytest.raises(ValidationError, match="no whole number of bins of 2 m"):
        LiftConfig(step=2.0)
