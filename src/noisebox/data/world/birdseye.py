"""The street from above, as a map of labels in the camera's frame.

The map's cells are CELL metres wide and lie in the plane of the camera's x (right) and z (ahead); its first row is the
farthest, its first column the leftmost. Whatever stands or lies in the world is laid onto that plane by leaving out its
height in the camera's frame, and what covers the middle of a cell owns the cell, the last of CLASSES first.

Where a cell cannot be known it is IGNORED, by the rule that Roddick and Cipolla (arXiv 2003.13402) made usual for
nuScenes: outside the camera's horizontal field of view, or beyond the farthest lidar return of all in its direction.
What stands behind a car, and before the house behind, is thus labelled.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from noisebox.data.world.scene import KERB, Camera, Polygon, Street

CLASSES = ("background", "road", "pavement", "car", "motorbike", "person")
IGNORED = 255
RIGHT, NEAREST, FARTHEST, CELL = 25.0, 1.0, 50.0, 0.5  # metres: x to either side, z from and to, a cell's side
ROWS, COLUMNS = round((FARTHEST - NEAREST) / CELL), round(2 * RIGHT / CELL)
RAY = 0.02  # width of a direction, in x / z: one metre at the far end, and no less than one firing of the lidar

Floats = NDArray[np.float64]


def cell_middles() -> tuple[Floats, Floats]:
    """The x and z of every cell's middle, both (ROWS, COLUMNS), metres."""
    across = (np.arange(COLUMNS) + 0.5) * CELL - RIGHT
    ahead = FARTHEST - (np.arange(ROWS) + 0.5) * CELL
    x, z = np.meshgrid(across, ahead)
    return x, z


def label_map(street: Street, camera: Camera, feet: Iterable[tuple[str, Floats]]) -> NDArray[np.uint8]:
    """The map (ROWS, COLUMNS) of all there is, seen or not. `feet` says of each object its class and the corners (4, 3)
    of the rectangle under it, in the street's frame, in order around it."""
    areas = [("road", on_level(polygon, 0.0)) for polygon in street.drivable()]
    areas += [("pavement", on_level(polygon, KERB)) for polygon in street.walkways()]
    areas += feet
    x, z = cell_middles()
    labels = np.zeros((ROWS, COLUMNS), dtype=np.uint8)
    for name, corners in areas:
        inside = covers(camera.view(corners)[:, ::2], x, z)
        labels[inside] = np.maximum(labels[inside], CLASSES.index(name))
    return labels


def on_level(polygon: Polygon, height: float) -> Floats:
    return np.column_stack([polygon, np.full(len(polygon), height)])


def covers(corners: Polygon, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Which points a convex polygon (k, 2) covers, in whichever sense its corners go round; its edge belongs to it."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        sides.append((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))
    signed = np.stack(sides)
    inside: NDArray[np.bool_] = np.all(signed >= 0, axis=0) | np.all(signed <= 0, axis=0)
    return inside


def known(focal: float, returns: Floats) -> NDArray[np.bool_]:
    """Which cells can be known, of a camera whose focal length is `focal` image widths and a lidar whose `returns`
    (n, 3) are given in the camera's frame."""
    rays = round(2 * RIGHT / NEAREST / RAY)
    ahead = returns[returns[:, 2] > NEAREST]
    ray = np.floor(ahead[:, 0] / ahead[:, 2] / RAY).astype(np.int64) + rays // 2
    within = (ray >= 0) & (ray < rays)
    farthest = np.zeros(rays)
    np.maximum.at(farthest, ray[within], ahead[within, 2])
    x, z = cell_middles()
    in_view = np.abs(x) <= z / (2 * focal)
    seen: NDArray[np.bool_] = in_view & (z <= farthest[np.floor(x / z / RAY).astype(np.int64) + rays // 2])
    return seen
