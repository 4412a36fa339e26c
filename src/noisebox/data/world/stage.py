"""The ground while it is being filled: what stands there so far, and where there is still room."""

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from noisebox.data.world import fleet
from noisebox.data.world.scene import Camera, Range, Thing
from noisebox.data.world.street import Random
from noisebox.data.world.traffic import overlap

Footprint = tuple[Range, Range]

MARGIN = 1.0  # metres by which a thing's middle may lie outside the image
GAP = 0.05  # metres, half of what is kept between things
STEEPNESS = 0.15  # of a ray: how far down for each metre ahead; what is seen along flatter ones is not built


@dataclass
class Stage:
    """Objects are only put where the camera looks, and never into one another or into what is `taken`.

    `aspect`: of the image, height to width.
    """

    camera: Camera
    aspect: float
    objects: list[Thing] = field(default_factory=list)
    scenery: list[Thing] = field(default_factory=list)
    taken: list[Footprint] = field(default_factory=list)

    def sees(self, x: float, y: float) -> bool:
        """Whether a point of the ground lies in the image, or little outside."""
        right, down, ahead = self.camera.view(np.array((x, y, 0.0))).tolist()
        half = ahead / (2 * self.camera.focal)
        return bool(ahead > 0 and abs(right) < half + MARGIN and abs(down) < half * self.aspect + MARGIN)

    def reach(self) -> Footprint:
        """The x and y ranges of the ground that the image may show; the ground near a horizon is left out."""
        right, down, ahead = self.camera.axes()
        corners = []
        for across, below in product((-0.5, 0.5), (-self.aspect / 2, self.aspect / 2)):
            ray = [a + (across * r + below * d) / self.camera.focal for r, d, a in zip(right, down, ahead, strict=True)]
            distance = self.camera.position[2] / max(-ray[2], STEEPNESS)
            corners.append([at + distance * way for at, way in zip(self.camera.position[:2], ray[:2], strict=True)])
        (x0, x1), (y0, y1) = ((min(side), max(side)) for side in zip(*corners, strict=True))
        return (x0, x1), (y0, y1)

    def free(self, footprint: Footprint) -> bool:
        return not any(overlap(footprint, other, GAP) for other in self.taken)

    def put(self, rng: Random, category: str, place: tuple[float, float], yaw: float, z: float = 0.0) -> None:
        """Put an object of the category there, unless it is out of sight or something is in its way."""
        if not self.sees(*place):
            return
        thing = replace(fleet.draw(rng, category), position=(*place, z), yaw=yaw)
        if self.free(thing.footprint()):
            self.objects.append(thing)
            self.taken.append(thing.footprint())

    def stand(self, thing: Thing) -> None:
        """Put up scenery that nothing may stand in."""
        self.scenery.append(thing)
        self.taken.append(thing.footprint())
