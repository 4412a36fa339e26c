"""The embedded data: procedural worlds, 3D scenes from which images and boxes are taken."""

from noisebox.data.world.aerial import AERIAL
from noisebox.data.world.export import STREET, Annotation, World, annotate, write_world
from noisebox.data.world.nuscenes_export import write_nuscenes_world
from noisebox.data.world.render import Rendering, render
from noisebox.data.world.scene import CLASSES, Scene
from noisebox.data.world.traffic import make_scene

WORLDS = {"world": STREET, "world_aerial": AERIAL}  # by a dataset's `kind`

__all__ = [
    "AERIAL",
    "CLASSES",
    "STREET",
    "WORLDS",
    "Annotation",
    "Rendering",
    "Scene",
    "World",
    "annotate",
    "make_scene",
    "render",
    "write_nuscenes_world",
    "write_world",
]
