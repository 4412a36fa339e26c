"""The embedded data: a procedural street world, a 3D scene from which images and boxes are taken."""

from noisebox.data.world.export import Annotation, annotate, write_world
from noisebox.data.world.render import Rendering, render
from noisebox.data.world.scene import CLASSES, Scene
from noisebox.data.world.traffic import make_scene

__all__ = ["CLASSES", "Annotation", "Rendering", "Scene", "annotate", "make_scene", "render", "write_world"]
