"""Where one frame lies in another: a unit quaternion and a translation, as the nuScenes tables keep them."""

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from noisebox.data.world.shapes import Point

Quaternion = tuple[float, float, float, float]  # w, x, y, z


def rotation_about(axis: str, angle: float) -> Quaternion:
    """The quaternion that turns by `angle` radians about the axis "x", "y" or "z", rounded as everything in the world
    is, so that the last bit of a platform's library does not matter."""
    part = round(sin(angle / 2), 9)
    return (round(cos(angle / 2), 9), *(part if name == axis else 0.0 for name in "xyz"))  # type: ignore[return-value]


def product(one: Quaternion, other: Quaternion) -> Quaternion:
    """The rotation that turns by `other` first, then by `one` (Hamilton's product)."""
    (a, b, c, d), (e, f, g, h) = one, other
    return (
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    )


@dataclass(frozen=True)
class Pose:
    """A frame within another: its orientation, and where its origin lies, metres."""

    rotation: Quaternion
    translation: Point

    def axes(self) -> tuple[Point, Point, Point]:
        """Its x, y and z unit vectors in the outer frame."""
        w, x, y, z = self.rotation
        return (
            (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
            (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
            (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
        )

    def out(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (…, 3) of this frame in the outer one."""
        x, y, z = (points[..., axis, None] for axis in range(3))
        right, left, up = (np.array(axis) for axis in self.axes())
        moved: NDArray[np.float64] = x * right + y * left + z * up + np.array(self.translation)
        return moved

    def into(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (…, 3) of the outer frame in this one."""
        x, y, z = (points[..., axis] - self.translation[axis] for axis in range(3))
        return np.stack([a[0] * x + a[1] * y + a[2] * z for a in self.axes()], axis=-1)

    def __matmul__(self, inner: "Pose") -> "Pose":
        """Where `inner`, which is given in this frame, lies in the outer one."""
        x, y, z = self.out(np.array(inner.translation)).tolist()
        return Pose(product(self.rotation, inner.rotation), (x, y, z))
