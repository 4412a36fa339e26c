"""From a scene to a picture: a z-buffer in NumPy, with the instance and the depth of every sample.

Corners are rounded to 1/16 of a sample and spans are found in integers, so which sample belongs to which face does not
depend on the platform. Pictures are smoothed by averaging the samples of a pixel, SAMPLES × SAMPLES unless a world asks
for others; instances and depths are kept by sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from noisebox.data.world.scene import Camera, Faces, Scene, Weather
from noisebox.randomness import numpy_generator

SAMPLES = 4  # per pixel and axis; a power of two, so boxes in pixels are exact
NEAR = 0.25  # metres; nothing nearer is drawn
SUBPIXEL = 16
DEPTH_BITS, FACE_BITS = 36, 24  # of a z-buffer entry
SKY = -1  # in place of a face, where there is none
CORNERS = 5  # of a quad cut by the near plane
CHUNK, BAND = 16_000, 32  # samples rasterised and rows of samples painted at a time: what fits a processor's cache

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Colours = NDArray[np.float32]


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of a scene.

    `image`: (H, W, 3) uint8 RGB. By sample, (H × samples, W × samples): `instances` int32, k + 1 for `objects[k]` and 0
    elsewhere; `depth` float32, metres along the optical axis, inf for the sky. `alone`: (objects + 1,) int64, how many
    samples each instance would cover within the image if nothing stood before it.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    depth: NDArray[np.float32]
    alone: Ints

    @property
    def samples(self) -> int:
        """Samples per pixel and axis."""
        return len(self.instances) // len(self.image)


@dataclass(frozen=True)
class Projected:
    """Faces as the camera sees them: `index` (m,) into the scene's faces, `corners` (CORNERS, m, 2) in 1/SUBPIXEL of a
    sample, `plane` (m, 3): inverse depth at sample centre (x, y) is plane · (x, y, 1), `bounds` (m, 2) its extremes."""

    index: Ints
    corners: Ints
    plane: Floats
    bounds: Floats


class Runs(NamedTuple):
    """Horizontal runs of samples inside faces, (r,) each: which face of a Projected, row, first column, length."""

    face: Ints
    row: Ints
    start: Ints
    length: Ints


def render(scene: Scene, height: int, width: int, camera: Camera | None = None, samples: int = SAMPLES) -> Rendering:
    """Render `scene` at `height` × `width` pixels through its own camera, or another one.

    `samples` per pixel and axis, a power of two.
    """
    camera = camera or scene.camera
    faces = scene.faces()
    rows, columns = height * samples, width * samples
    seen = project(faces.vertices, camera, rows, columns)
    nearest, alone = z_buffer(seen, faces, rows, columns, len(scene.objects) + 1)
    shadow = shadow_mask(faces, scene.weather, camera, rows, columns)
    picture, glow, instances, depth = paint(scene, camera, faces, nearest, shadow, samples)
    return Rendering(develop(scene, picture, glow), instances, depth, alone)


# Geometry


def project(vertices: Floats, camera: Camera, rows: int, columns: int) -> Projected:
    """Project the faces (n, 4, 3) that look at the camera and may touch the image."""
    focal = camera.focal * columns
    corners = camera.view(vertices.transpose(1, 0, 2))  # (4, n, 3): reducing over the first axis is quick
    normal = np.cross(corners[2] - corners[0], corners[3] - corners[1])
    offset = dot(normal, corners[0])
    x, y, z = (corners[..., axis] for axis in range(3))
    reach_x, reach_y = z * (columns / 2 / focal), z * (rows / 2 / focal)
    outside = [side.all(axis=0) for side in (z < NEAR, x > reach_x, -x > reach_x, y > reach_y, -y > reach_y)]
    index = np.flatnonzero(~np.any(outside, axis=0) & (offset < -1e-9))
    corners = np.concatenate([corners[:, index], corners[3:, index]])
    for face in np.flatnonzero((corners[..., 2] < NEAR).any(axis=0)):
        corners[:, face] = cut_near(corners[:4, face])
    inverse = 1.0 / corners[..., 2]
    flat = corners[..., :2] * (inverse * focal)[..., None] + np.array([columns / 2, rows / 2])
    # Sample (row, column) looks along ((column + 1/2 - columns/2) / focal, (row + 1/2 - rows/2) / focal, 1).
    plane = normal[index] / offset[index, None]
    slope = plane[:, :2] / focal
    base = plane[:, 2] + slope[:, 0] * (0.5 - columns / 2) + slope[:, 1] * (0.5 - rows / 2)
    bounds = np.stack([inverse.min(axis=0), inverse.max(axis=0)], axis=1)
    whole = np.rint(flat * SUBPIXEL).astype(np.int64)
    return Projected(index, whole, np.column_stack([slope, base]), bounds)


def dot(one: Floats, other: Floats) -> Floats:
    """Dot products over the last axis of 3, added in a fixed order."""
    products: Floats = one[..., 0] * other[..., 0] + one[..., 1] * other[..., 1] + one[..., 2] * other[..., 2]
    return products


def cut_near(corners: Floats) -> Floats:
    """The part of a quad (4, 3) beyond the near plane, as (CORNERS, 3), its last corner repeated to fill up."""
    kept: list[Floats] = []
    for k in range(4):
        start, end = corners[k - 1], corners[k]
        if (start[2] < NEAR) != (end[2] < NEAR):
            share = (NEAR - start[2]) / (end[2] - start[2])
            kept.append(np.array([*(start[:2] + share * (end[:2] - start[:2])), NEAR]))
        if end[2] >= NEAR:
            kept.append(end)
    return np.array(kept + [kept[-1]] * (CORNERS - len(kept)))


def runs_of(seen: Projected, rows: int, columns: int) -> Runs:
    """The runs of samples whose centres lie in each face; a centre on a shared edge belongs to one side only."""
    half = SUBPIXEL // 2
    y = seen.corners[..., 1]
    first = np.clip(-((half - y.min(axis=0)) // SUBPIXEL), 0, rows)
    last = np.clip(-((half - y.max(axis=0)) // SUBPIXEL), 0, rows)
    count = np.maximum(last - first, 0)
    face = np.repeat(np.arange(len(seen.index)), count)
    row = np.arange(len(face)) - np.repeat(np.cumsum(count) - count - first, count)
    centre = row * SUBPIXEL + half
    left = np.full(len(face), columns, dtype=np.int64)
    right = np.zeros(len(face), dtype=np.int64)
    for k in range(CORNERS):
        (x0, y0), (x1, y1) = seen.corners[k - 1].T, seen.corners[k].T
        upward = y1 < y0
        x0, y0, x1, y1 = (np.where(upward, a, b) for a, b in ((x1, x0), (y1, y0), (x0, x1), (y0, y1)))
        crossing = np.flatnonzero((y0[face] <= centre) & (centre < y1[face]))
        which = face[crossing]
        rise = (y1 - y0)[which]
        run = (x0[which] - half) * rise + (centre[crossing] - y0[which]) * (x1 - x0)[which]
        column = np.clip(-(-run // (rise * SUBPIXEL)), 0, columns)
        left[crossing] = np.minimum(left[crossing], column)
        right[crossing] = np.maximum(right[crossing], column)
    kept = np.flatnonzero(right > left)
    return Runs(face[kept], row[kept], left[kept], (right - left)[kept])


def spread(begin: Ints, step: Ints, length: Ints) -> Ints:
    """`begin[k] + step[k] * (0 … length[k] - 1)` for every k, end to end (exact: what overflows comes back)."""
    offset = np.cumsum(length) - length
    return np.repeat(begin - step * offset, length) + np.repeat(step, length) * np.arange(int(length.sum()))


def pieces(length: Ints) -> Iterator[slice]:
    """Slices of the runs, each of about CHUNK samples."""
    ends = np.cumsum(length)
    cuts = [0, *np.searchsorted(ends, np.arange(CHUNK, int(length.sum()), CHUNK)).tolist(), len(length)]
    return (slice(a, b) for a, b in pairwise(cuts) if b > a)


def z_buffer(seen: Projected, faces: Faces, rows: int, columns: int, instances: int) -> tuple[Ints, Ints]:
    """The nearest face of every sample, as (rows, columns) of inverse depth << FACE_BITS | face, 0 where there is none;
    and how many samples each of `instances` covers on its own."""
    face, row, start, length = runs_of(seen, rows, columns)
    # Inverse depth is linear along a run. Its ends are kept within the face's own, which a rounded edge may overstep.
    slope, rise, base = seen.plane[face].T
    low, high = seen.bounds[face].T
    begin, end = (
        (np.minimum(np.maximum(base + rise * row + slope * x, low), high) * (1 << DEPTH_BITS)).astype(np.int64)
        for x in (start, start + length - 1)
    )
    step = (end - begin) // np.maximum(length - 1, 1)
    entry, entry_step, sample = (begin << FACE_BITS) | seen.index[face], step << FACE_BITS, row * columns + start
    owner = faces.instances[seen.index[face]]
    nearest = np.zeros(rows * columns, dtype=np.int64)
    covered: list[list[Ints]] = [[] for _ in range(instances)]
    for part in pieces(length):
        samples = spread(sample[part], np.ones_like(step[part]), length[part])
        np.maximum.at(nearest, samples, spread(entry[part], entry_step[part], length[part]))
        if owner[part].any():
            for instance in np.unique(owner[part]):
                covered[instance].append(samples[np.repeat(owner[part] == instance, length[part])])
    covered[0] = []
    return nearest.reshape(rows, columns), count_distinct(covered, rows * columns)


def count_distinct(covered: list[list[Ints]], size: int) -> Ints:
    """How many distinct samples, numbered below `size`, each list of arrays holds."""
    counts = np.zeros(len(covered), dtype=np.int64)
    mark = np.zeros(size, dtype=np.bool_)
    for instance, parts in enumerate(covered):
        if parts:
            samples = np.concatenate(parts)
            within = slice(int(samples.min()), int(samples.max()) + 1)
            mark[samples] = True
            counts[instance] = np.count_nonzero(mark[within])
            mark[within] = False
    return counts


def shadow_mask(faces: Faces, weather: Weather, camera: Camera, rows: int, columns: int) -> NDArray[np.bool_]:
    """Where the shadows lie that things throw on the level they stand on."""
    sun = np.array(weather.sun)
    corners, foot = faces.vertices[faces.casts], faces.foot[faces.casts]
    lit = dot(np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]), sun) > 0
    fall = corners[lit, :, 2] - foot[lit, None]
    flat = corners[lit] - (fall / sun[2])[..., None] * sun
    mask = np.zeros(rows * columns, dtype=np.bool_)
    runs = runs_of(project(flat, camera, rows, columns), rows, columns)
    sample = runs.row * columns + runs.start
    for part in pieces(runs.length):
        mask[spread(sample[part], np.ones_like(sample[part]), runs.length[part])] = True
    return mask.reshape(rows, columns)


# Light


def light_of(faces: Faces, weather: Weather) -> Floats:
    """The colour (n, 3) of each face under the sun and the sky, 0 … 255 and above."""
    p, q = faces.vertices[:, 2] - faces.vertices[:, 0], faces.vertices[:, 3] - faces.vertices[:, 1]
    normal = np.cross(p, q)
    normal = normal / np.maximum(np.sqrt(dot(normal, normal)), 1e-12)[:, None]
    sunny = np.maximum(dot(normal, np.array(weather.sun)), 0.0)[:, None]
    sky = (0.8 + 0.2 * normal[:, 2] + 0.08 * normal[:, 0])[:, None]
    lit = faces.colours * (sky * np.array(weather.ambient) + sunny * np.array(weather.sunlight))
    shining = faces.emits & weather.lights
    return np.where(shining[:, None], faces.colours * 1.1, lit)


def paint(
    scene: Scene, camera: Camera, faces: Faces, nearest: Ints, shadow: NDArray[np.bool_], samples: int
) -> tuple[Colours, Colours, NDArray[np.int32], NDArray[np.float32]]:
    """The image (H, W, 3) without grain and the part of it that shines, both averaged over each pixel's samples; and
    each sample's instance and depth."""
    weather = scene.weather
    rows, columns = nearest.shape
    horizon, zenith = (np.array(part, dtype=np.float32) for part in (weather.horizon, weather.zenith))
    table = np.append(light_of(faces, weather), [weather.horizon], axis=0).astype(np.float32).T.copy()
    ground, emits = np.append(faces.ground, False), np.append(faces.emits, False)
    owner = np.append(faces.instances, 0).astype(np.int32)
    clouds = cloud_map(scene, rows, columns)
    focal = np.float32(camera.focal * columns)
    across = ((np.arange(columns) + (0.5 - columns / 2)).astype(np.float32) / focal)[None, :]
    down = ((np.arange(rows) + (0.5 - rows / 2)).astype(np.float32) / focal)[:, None]
    picture = np.empty((3, rows // samples, columns // samples), dtype=np.float32)
    glow = np.zeros_like(picture)
    instances, depths = np.empty((rows, columns), dtype=np.int32), np.empty((rows, columns), dtype=np.float32)
    for top in range(0, rows, BAND):
        band = slice(top, top + BAND)
        pixels = slice(top // samples, (top + BAND) // samples)
        face, depth = decode(nearest[band])
        instances[band], depths[band] = owner[face], depth
        light = np.where(shadow[band] & ground[face], np.float32(weather.shadow), np.float32(1))
        if weather.name == "dusk":
            light *= np.where(emits[face], np.float32(1), headlights(across, down[band], depth))
        clear = 1 / (1 + depth / np.float32(weather.haze)) ** 2
        light *= clear
        empty = face == SKY
        blue = blueness(weather, camera, across, down[band], clouds[band]) * empty if empty.any() else np.float32(0)
        for channel in range(3):  # plane by plane: rows of three are slow to work on
            plane = table[channel][face] * light
            plane += horizon[channel] * (1 - clear)
            plane += (zenith[channel] - horizon[channel]) * blue
            np.minimum(plane, 255, out=plane)
            picture[channel, pixels] = average(plane, samples)
            if weather.lights:
                glow[channel, pixels] = average(plane * emits[face], samples)
    return picture.transpose(1, 2, 0), glow.transpose(1, 2, 0), instances, depths


def decode(nearest: Ints) -> tuple[Ints, NDArray[np.float32]]:
    """Face (SKY where there is none) and depth in metres (inf there) of z-buffer entries."""
    face = np.where(nearest > 0, nearest & ((1 << FACE_BITS) - 1), SKY)
    with np.errstate(divide="ignore"):
        return face, np.float32(1 << DEPTH_BITS) / (nearest >> FACE_BITS).astype(np.float32)


def headlights(across: Colours, down: Colours, depth: NDArray[np.float32]) -> Colours:
    """How much brighter the ego vehicle's headlights make what they hit: wide, below the horizon, to some 20 m."""
    beam = 1 / (1 + (across * 3) ** 2) / (1 + (np.maximum(-down, 0) * 14) ** 2)
    light: Colours = 1 + np.float32(1.3) * beam / (1 + (depth / np.float32(14)) ** 2)
    return light


def blueness(weather: Weather, camera: Camera, across: Colours, down: Colours, clouds: NDArray[np.uint8]) -> Colours:
    """How far the sky has gone from the horizon's colour to the zenith's, 0 … 1; clouds keep the horizon's."""
    right, below, ahead = (np.float32(axis[2]) for axis in camera.axes())
    height = np.clip((right * across + below * down + ahead) * np.float32(2.2), 0, 1)
    share: Colours = np.clip(height - np.float32(weather.clouds / 255) * clouds * np.minimum(height * 3, 1), 0, 1)
    return share


def cloud_map(scene: Scene, rows: int, columns: int) -> NDArray[np.uint8]:
    """How much cloud there is in each direction of the image, 0 … 255, smooth."""
    coarse = numpy_generator(scene.key[0], "world-clouds", *scene.key[1:]).integers(0, 256, (10, 6)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))


def average(plane: Colours, samples: int) -> Colours:
    """The mean (h, w) of each pixel's samples, added in a fixed order."""
    lines = sum((plane[k::samples] for k in range(1, samples)), plane[::samples])
    total = sum((lines[:, k::samples] for k in range(1, samples)), lines[:, ::samples])
    mean: Colours = total * np.float32(1 / samples**2)
    return mean


def develop(scene: Scene, picture: Colours, glow: Colours) -> NDArray[np.uint8]:
    """Let the lights bloom, add the sensor's grain, round."""
    height, width, _ = picture.shape
    pixels = np.rint(picture).astype(np.int64)
    if scene.weather.lights:
        shine = Image.fromarray(np.rint(glow).astype(np.uint8))
        for radius in (width / 110, width / 50):
            blur = ImageFilter.BoxBlur(radius)
            pixels += np.asarray(shine.filter(blur).filter(blur).filter(blur)).astype(np.int64) * 2 // 3
    grain = numpy_generator(scene.key[0], "world-grain", *scene.key[1:]).integers(-2, 3, (2, height, width, 1))
    image: NDArray[np.uint8] = np.clip(pixels + grain.sum(axis=0), 0, 255).astype(np.uint8)
    return image
