"""Scenes for the BEV family, cast ray by ray: coloured boxes at known places on a road, with labels and depth."""

from typing import Any

import numpy as np
import torch

from noisebox.config.bev import BevConfig, BevLossConfig
from noisebox.models.bev.segmenter import BevSegmenter
from noisebox.randomness import isolated, numpy_generator
from noisebox.structures import BevBatch

CLASSES = ("background", "road", "pavement", "car", "motorbike", "person")
CAMERA_HEIGHT = 1.6
# Half width, height and half length in metres of what stands on the ground, by label.
BODIES = {3: (0.95, 1.5, 2.2), 4: (0.4, 1.3, 1.0), 5: (0.35, 1.8, 0.35)}
COLOURS = np.array(
    [[0.3, 0.5, 0.2], [0.35, 0.35, 0.4], [0.6, 0.6, 0.6], [0.8, 0.1, 0.1], [0.9, 0.7, 0.1], [0.1, 0.2, 0.9]]
)
SKY = np.array([0.6, 0.8, 1.0])
GRID = {"x_min": -8.0, "x_max": 8.0, "z_min": 1.0, "z_max": 17.0, "cell": 1.0}
SMALL = {
    "backbone": "slim",
    "hidden_dim": 16,
    "bev_channels": 16,
    "head_channels": (16, 32),
    "grid": GRID,
    "lift": {"stride": 8, "near": 1.0, "far": 17.0},
    "denoiser": {"downsample": 2, "channels": (16, 32), "layers_per_block": 1, "attention_heads": 2},
}


def make_segmenter(diffusion: Any = None, seed: int = 0, loss: Any = None, **changes: Any) -> BevSegmenter:
    config = BevConfig(**(SMALL | {"diffusion": diffusion} | changes))
    with isolated(seed, "weights"):
        return BevSegmenter(config, BevLossConfig(**(loss or {})), len(CLASSES))


def make_batch(image_ids: list[int], config: BevConfig, size_hw: tuple[int, int] = (64, 96)) -> BevBatch:
    """A scene for each id, determined by the id alone, with lidar on every third pixel."""
    scenes = [_scene(image_id, config, size_hw) for image_id in image_ids]
    images, labels, depth = (torch.from_numpy(np.stack(part)) for part in zip(*scenes, strict=True))
    intrinsics = torch.from_numpy(_intrinsics(size_hw)).float().expand(len(image_ids), 3, 3)
    hit = torch.isfinite(depth) & (torch.arange(size_hw[1]) % 3 == 0)
    depth = depth.masked_fill(~hit, 0).float()[:, None]
    return BevBatch(images.float(), intrinsics, tuple(image_ids), labels, depth, hit[:, None])


def _intrinsics(size_hw):
    height, width = size_hw
    return np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, 0.45 * height], [0, 0, 1]])


def _ground(x):
    """The label of the ground at x: a road, pavements beside it, background beyond."""
    return np.select([np.abs(x) < 4, np.abs(x) < 6.5], [1, 2], 0)


def _scene(image_id, config, size_hw):
    """Image (3, H, W), label map (rows, columns) with 255 out of sight, depth (H, W) metres or infinity."""
    rng, grid = numpy_generator(0, "scene", image_id), config.grid
    bodies = []
    for _ in range(4):
        label = int(rng.integers(3, 6))
        z = rng.uniform(5, grid.z_max - 3)
        bodies.append((label, rng.uniform(-0.4, 0.4) * z, z))
    z, x = np.meshgrid(
        grid.z_max - (np.arange(grid.rows) + 0.5) * grid.cell,
        grid.x_min + (np.arange(grid.columns) + 0.5) * grid.cell,
        indexing="ij",
    )
    labels = _ground(x)
    for label, at_x, at_z in sorted(bodies):
        half_x, _, half_z = BODIES[label]
        labels[(np.abs(x - at_x) < max(half_x, grid.cell / 2)) & (np.abs(z - at_z) < max(half_z, grid.cell / 2))] = (
            label
        )
    labels[np.abs(x) / z > 0.5 / 0.8] = 255

    height, width = size_hw
    pixels = np.stack((*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), np.ones(size_hw)), -1)
    rays = pixels @ np.linalg.inv(_intrinsics(size_hw)).T
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 1] > 0, CAMERA_HEIGHT / rays[..., 1], np.inf)
        image = np.where(
            np.isfinite(depth)[..., None], COLOURS[_ground(np.where(np.isfinite(depth), depth, 0) * rays[..., 0])], SKY
        )
        for label, at_x, at_z in bodies:
            half_x, tall, half_z = BODIES[label]
            low = np.array([at_x - half_x, CAMERA_HEIGHT - tall, at_z - half_z])
            high = np.array([at_x + half_x, CAMERA_HEIGHT, at_z + half_z])
            enter = np.minimum(low / rays, high / rays).max(-1)
            leave = np.maximum(low / rays, high / rays).min(-1)
            seen = (enter < leave) & (enter < depth)
            depth = np.where(seen, enter, depth)
            image = np.where(seen[..., None], COLOURS[label], image)
    return image.transpose(2, 0, 1), labels, depth
