"""What a spinning lidar measures of a scene: every ray cast against every face, exactly.

The rays of one firing lie in a half-plane that contains the lidar's axis. A face cuts that half-plane in a segment, so
it is hit by the rays whose slopes lie between those of the segment's ends. Faces are thus drawn column by column, as a
rasteriser draws them row by row, and nothing is approximated.
"""

from dataclasses import dataclass
from math import cos, pi, radians, sin

import numpy as np
from numpy.typing import NDArray

from noisebox.data.world.pose import Pose
from noisebox.data.world.render import Floats, Ints, dot, spread
from noisebox.data.world.scene import Faces

RINGS, LOWEST, HIGHEST = 32, -30.67, 10.67  # beams and the elevations of the outer ones, degrees: nuScenes' lidar
COLUMNS = 480  # firings in one turn
NEAREST, FARTHEST = 1.0, 100.0  # metres; other returns are lost
SLACK = 1e-6  # columns; a face that begins within it is tested, not believed

ELEVATIONS = [radians(LOWEST + (HIGHEST - LOWEST) * ring / (RINGS - 1)) for ring in range(RINGS)]
RISE = np.array([(round(cos(angle), 9), round(sin(angle), 9)) for angle in ELEVATIONS])  # a ray's way out and up
SLOPES = RISE[:, 1] / RISE[:, 0]


@dataclass(frozen=True)
class Sweep:
    """The returns of one turn, by firing and then by ring.

    `points` (n, 3) float64 metres in the lidar's frame (x right, y ahead, z up); `intensity` (n,) whole numbers in
    0 … 255; `rings` (n,), 0 the lowest; `faces` (n,) that were hit.
    """

    points: Floats
    intensity: Ints
    rings: Ints
    faces: Ints

    def records(self) -> NDArray[np.float32]:
        """The rows (n, 5) of a nuScenes sweep: x, y, z, intensity, ring."""
        return np.column_stack([self.points, self.intensity, self.rings]).astype("<f4")


def cast(faces: Faces, lidar: Pose, first_azimuth: float) -> Sweep:
    """The sweep of a lidar at the pose `lidar` in the scene's frame, whose first firing looks `first_azimuth` radians
    to the left of its x axis. It is taken in one moment."""
    corners = lidar.into(faces.vertices.transpose(1, 0, 2))
    normal = np.cross(corners[2] - corners[0], corners[3] - corners[1])
    index = np.flatnonzero((dot(normal, corners[0]) < -1e-9) & ~out_of_sight(corners))
    corners = corners[:, index]
    directions = firings(first_azimuth)
    face, column = columns_touched(corners, first_azimuth)
    segments, cut = cut_by_firing(corners, face, directions[column])
    ray, distance, hit = rays_hit(segments, column[cut], face[cut])
    nearest = np.full(COLUMNS * RINGS, np.inf)
    np.minimum.at(nearest, ray, distance)
    owner = np.zeros(COLUMNS * RINGS, dtype=np.int64)
    first = distance == nearest[ray]
    owner[ray[first]] = index[hit[first]]
    returned = np.flatnonzero((nearest >= NEAREST) & (nearest <= FARTHEST))
    firing, ring = np.divmod(returned, RINGS)
    unit = np.column_stack([directions[firing] * RISE[ring, :1], RISE[ring, 1]])
    owner = owner[returned]
    return Sweep(unit * nearest[returned, None], brightness(faces, owner, normal[owner], unit), ring, owner)


def firings(first_azimuth: float) -> Floats:
    """The horizontal direction (COLUMNS, 2) of each firing, anticlockwise seen from above."""
    turns = [first_azimuth + 2 * pi * column / COLUMNS for column in range(COLUMNS)]
    return np.array([(round(cos(angle), 9), round(sin(angle), 9)) for angle in turns])


def out_of_sight(corners: Floats) -> NDArray[np.bool_]:
    """Which faces (corners (4, n, 3)) lie wholly above the highest ring's cone or below the lowest one's."""
    x, y, z = (corners[..., axis] for axis in range(3))
    reach = np.sqrt(x * x + y * y)
    outside: NDArray[np.bool_] = (z > reach * SLOPES[-1]).all(axis=0) | (z < reach * SLOPES[0]).all(axis=0)
    return outside


def columns_touched(corners: Floats, first_azimuth: float) -> tuple[Ints, Ints]:
    """Pairs (face, column) of all firings that may meet each face, all of them for one around the lidar's axis."""
    angle = np.arctan2(corners[..., 1], corners[..., 0])
    steps = (np.roll(angle, -1, axis=0) - angle + pi) % (2 * pi) - pi
    around = np.abs(steps.sum(axis=0)) > pi
    swept = np.concatenate([np.zeros((1, len(around))), np.cumsum(steps[:3], axis=0)])
    scale = COLUMNS / (2 * pi)
    begin = (angle[0] - first_azimuth) * scale
    first = np.ceil(begin + swept.min(axis=0) * scale - SLACK).astype(np.int64)
    last = np.floor(begin + swept.max(axis=0) * scale + SLACK).astype(np.int64)
    count = np.where(around, COLUMNS, last - first + 1)
    return np.repeat(np.arange(len(count)), count), spread(first, np.ones_like(first), count) % COLUMNS


def cut_by_firing(corners: Floats, face: Ints, direction: Floats) -> tuple[Floats, Ints]:
    """The segments (2, m, 2) in which faces cut the half-planes of the firings that look along `direction`, as distance
    from the axis and height; and which of the pairs (face, direction) they belong to."""
    x, y, height = (corners[..., axis][:, face] for axis in range(3))
    outward = direction[:, 0] * x + direction[:, 1] * y
    sideways = direction[:, 0] * y - direction[:, 1] * x
    ends = np.full((2, len(face), 2), np.nan)
    for k in range(4):
        for end, before, after in ((0, k - 1, k), (1, k, k - 1)):  # an edge is cut alike from both of its faces
            crossing = np.flatnonzero((sideways[before] < 0) & (sideways[after] >= 0))
            start, stop = sideways[before][crossing], sideways[after][crossing]
            share = start / (start - stop)
            for axis, value in enumerate((outward, height)):
                low, high = value[before][crossing], value[after][crossing]
                ends[end, crossing, axis] = low + share * (high - low)
    kept = np.flatnonzero(~np.isnan(ends).any(axis=(0, 2)) & (ends[..., 0] > 0).any(axis=0))
    return from_the_axis(ends[:, kept]), kept


def from_the_axis(ends: Floats) -> Floats:
    """Segments (2, m, 2) without what lies behind the lidar's axis."""
    behind = ends[..., 0] < 0
    run, rise = (ends[1] - ends[0]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        height = ends[0, :, 1] - ends[0, :, 0] * rise / run
    at_axis = np.stack([np.zeros_like(height), height], axis=-1)
    return np.where(behind[..., None], at_axis, ends)


def rays_hit(segments: Floats, column: Ints, face: Ints) -> tuple[Ints, Floats, Ints]:
    """Every ray (column × RINGS + ring) that meets one of the segments (2, m, 2), how far away, and the face."""
    with np.errstate(divide="ignore"):
        slope = segments[..., 1] / segments[..., 0]  # infinite on the axis, straight above or below
    first = np.searchsorted(SLOPES, slope.min(axis=0))
    count = np.searchsorted(SLOPES, slope.max(axis=0)) - first
    met = np.repeat(np.arange(len(face)), count)
    ring = spread(first, np.ones_like(first), count)
    (run, rise), (start_out, start_up) = (segments[1] - segments[0])[met].T, segments[0][met].T
    # The ray s · (out, up) meets the line start + u · (run, rise) where s = (start × line) / (ray × line).
    away = (start_out * rise - start_up * run) / (RISE[ring, 0] * rise - RISE[ring, 1] * run)
    return column[met] * RINGS + ring, away, face[met]


def brightness(faces: Faces, face: Ints, normal: Floats, unit: Floats) -> Ints:
    """How much of a ray along `unit` comes back: what is light and faces the lidar shines most."""
    red, green, blue = faces.colours[face].T
    against = -dot(normal, unit) / np.sqrt(dot(normal, normal))
    bright: Ints = np.clip(np.rint((0.3 * red + 0.59 * green + 0.11 * blue) * against), 0, 255).astype(np.int64)
    return bright
