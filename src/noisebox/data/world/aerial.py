"""The town from above, as a drone sees it: many small things of ten classes, crowded in places and absent elsewhere.

A scene is a function of (seed, split, index) and of the image's shape, and of nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import pi

import numpy as np

from noisebox.data.visdrone import CLASSES
from noisebox.data.world.export import World
from noisebox.data.world.gatherings import car_park, group, square, traffic, yard
from noisebox.data.world.render import Rendering, render
from noisebox.data.world.scene import Camera, Scene, Weather
from noisebox.data.world.scenery import avenue, court, houses, park
from noisebox.data.world.stage import Stage
from noisebox.data.world.street import Random, between, chance, draw_weather, pick
from noisebox.data.world.town import Plot, arms_of, draw_plots, draw_roads, road_surface
from noisebox.randomness import numpy_generator

SAMPLES = 2  # per pixel and axis
MIN_SIDE, MIN_AREA = 2.0, 6.0  # pixels
CROWDED = (car_park, car_park, car_park, square, square, square, square, yard)
EMPTY = (houses, houses, houses, park, park, court)
HAZE = {"day": 4000.0, "dusk": 2500.0, "fog": 900.0}  # by the weather's name; a drone flies where the air is clear


def make_scene(seed: int, split: str, index: int, aspect: float) -> Scene:
    """Scene `index` of a split for images `aspect` times as high as wide."""
    key = (seed, f"aerial {split}", index)
    rng = numpy_generator(seed, "aerial", split, index)
    weather, camera = draw_air(rng), draw_camera(rng)
    stage = Stage(camera, aspect)
    columns, rows = (draw_roads(rng, reach) for reach in stage.reach())
    arms = arms_of(columns, rows)
    stage.scenery.append(road_surface(rng, columns, rows, arms))
    plots = []
    for pavement, parts in draw_plots(rng, columns, rows):
        stage.scenery.append(pavement)
        plots += parts
    for plot, busy in zip(plots, crowded(rng, plots), strict=True):
        use = pick(rng, CROWDED if busy else EMPTY)
        use(rng, plot, stage)
        if use in (park, court) and chance(rng, 0.4):
            group(rng, plot, stage, pick(rng, ("people", "pedestrian")), int(rng.integers(3, 9)))
    traffic(rng, arms, stage)
    for arm in arms:
        avenue(rng, arm, stage)
    return Scene(key, weather, camera, tuple(stage.objects), tuple(stage.scenery))


def draw_aerial_image(seed: int, split: str, index: int, image_size: tuple[int, int]) -> tuple[Scene, Rendering]:
    height, width = image_size
    scene = make_scene(seed, split, index, height / width)
    return scene, render(scene, height, width, samples=SAMPLES)


AERIAL = World("aerial world", "aerial", CLASSES, MIN_SIDE, MIN_AREA, draw_aerial_image)


def draw_air(rng: Random) -> Weather:
    """The street's weather in clearer air; the lights of an evening are the town's alone."""
    weather = draw_weather(rng)
    name = "evening" if weather.name == "dusk" else weather.name
    red, green, blue = weather.ambient
    ambient = (1.45 * red, 1.45 * green, 1.4 * blue) if name == "evening" else weather.ambient
    return replace(weather, name=name, haze=HAZE[weather.name], ambient=ambient)


def draw_camera(rng: Random) -> Camera:
    """Looking at the origin, 54° down or steeper, any way round; the image's middle line shows 62 to 90 m."""
    yaw, pitch, focal = between(rng, -pi, pi), -between(rng, 0.95, 1.48), between(rng, 0.75, 1.0)
    camera = Camera((0.0, 0.0, 0.0), yaw, pitch, focal)
    distance = focal * between(rng, 62, 90)
    x, y, z = (-distance * way for way in camera.axes()[2])
    return replace(camera, position=(x, y, z))


def crowded(rng: Random, plots: Sequence[Plot]) -> list[bool]:
    """Which plots are: of the four nearest to the origin two or three, of the others a quarter."""
    nearest = sorted(range(len(plots)), key=lambda k: plots[k].middle[0] ** 2 + plots[k].middle[1] ** 2)
    fate = rng.permutation(np.array([True, True, False, chance(rng, 0.5)])).tolist()
    fate += [chance(rng, 0.25) for _ in nearest[4:]]
    return [busy for _, busy in sorted(zip(nearest, fate[: len(nearest)], strict=True))]
