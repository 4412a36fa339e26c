"""The ten VisDrone classes as things of the world: models for those that the street has not, and one of each, drawn.

A `pedestrian` stands or walks, `people` sit; who rides is part of what is ridden.
"""

from functools import lru_cache

import numpy as np

from noisebox.data.visdrone import CLASSES
from noisebox.data.world import shapes
from noisebox.data.world.scene import Thing
from noisebox.data.world.shapes import Colour, Model, Point, Quads, box, limb, loft, mirrored, wheel
from noisebox.data.world.street import SIGNS, Random, between, chance, pick
from noisebox.data.world.traffic import CLOTHES, HAIRS, HELMETS, PAINTS, SKINS, TROUSERS

CARGO: tuple[Colour, ...] = (
    (214, 216, 214), (196, 178, 140), (60, 90, 140), (150, 60, 50), (70, 110, 80), (128, 104, 76), (96, 98, 102),
)  # fmt: skip
LIVERIES: tuple[Colour, ...] = (
    (212, 60, 44), (230, 178, 50), (44, 110, 170), (60, 140, 84), (222, 224, 222), (226, 120, 40),
)  # fmt: skip
AWNINGS: tuple[Colour, ...] = (
    (200, 52, 48), (50, 96, 170), (54, 130, 80), (222, 176, 60), (120, 70, 130), (206, 206, 200),
)  # fmt: skip


def draw(rng: Random, category: str) -> Thing:
    """One of CLASSES, standing at the origin and looking along +y."""
    clothes = {
        "top": pick(rng, CLOTHES),
        "trousers": pick(rng, TROUSERS),
        "skin": pick(rng, SKINS),
        "hair": pick(rng, HAIRS),
        "helmet": pick(rng, HELMETS),
        "bag": pick(rng, CLOTHES),
    }
    paint = {"paint": pick(rng, PAINTS), "case": pick(rng, CARGO), "sign": pick(rng, AWNINGS)}
    stretch = between(rng, 0.95, 1.06)
    scale = (between(rng, 0.96, 1.04), stretch, between(rng, 0.96, 1.04))
    match category:
        case "pedestrian":
            shape = shapes.person(int(rng.integers(-2, 3)), chance(rng, 0.25), chance(rng, 0.2))
            tall = between(rng, 0.68, 0.82) if chance(rng, 0.1) else between(rng, 0.94, 1.08)
            scale = (1.15 * tall, 1.15 * tall, tall)
        case "people":
            shape = seated()
        case "bicycle":
            shape = bicycle()
        case "car":
            shape = shapes.car(pick(rng, ("sedan", "sedan", "hatchback", "suv")))
        case "van":
            shape = shapes.car("van")
            scale = (scale[0] * 1.08, stretch * 1.08, scale[2] * 1.1)
        case "truck":
            shape = truck(pick(rng, ("box", "box", "flatbed", "tipper")))
        case "tricycle":
            shape = tricycle(awning=False)
        case "awning-tricycle":
            shape = tricycle(awning=True)
        case "bus":
            shape, paint["paint"] = bus(), pick(rng, LIVERIES)
        case "motor":
            shape = shapes.motorbike(pick(rng, shapes.MOTORBIKE_STYLES), ridden=chance(rng, 0.6))
            paint["case"] = pick(rng, SIGNS)
        case _:
            raise ValueError(f"{category!r} is none of {CLASSES}")
    return Thing(category, shape, (0.0, 0.0, 0.0), 0.0, scale, clothes | paint)


def both_sides(*parts: tuple[str, Quads]) -> list[tuple[str, Quads]]:
    """Parts and their mirror images in the plane x = 0."""
    return [(material, mirrored(quads, sign)) for material, quads in parts for sign in (-1, 1)]


def wheels(half: float, radius: float, *axles: float) -> list[tuple[str, Quads]]:
    """A wheel at each end of every axle, `half` metres off the middle."""
    return [part for y in axles for x in (-half, half) for part in wheel((x, y, radius), radius, 0.7 * radius, 8)]


# Vehicles


@lru_cache
def truck(style: str) -> Model:
    """A lorry 7 m long: a cab, and behind it a box, a flatbed with a load, or the open body of a tipper."""
    half, deck, rear, gate = 1.15, 0.95, -3.6, 1.55  # half the width; height of the bed; where it begins and ends
    cab = loft((1.7, 0.45, 2.35, half - 0.03, half - 0.1), (3.1, 0.45, 2.3, half - 0.03, half - 0.12),
               (3.55, 0.45, 1.3, half - 0.05, half - 0.1))  # fmt: skip
    parts = [
        ("paint", cab.all()),
        ("glass", shapes.shifted(cab.tops[1:], y=0.02, z=0.02)),
        ("glass", box((-half + 0.02, 2.2, 1.45), (half - 0.02, 2.95, 2.05))),
        ("trim", box((-0.5, rear, 0.5), (0.5, 1.7, deck - 0.1))),
        ("metal", box((-half, rear, deck - 0.12), (half, gate, deck))),
        *wheels(half - 0.2, 0.48, -2.5, 2.4),
        *both_sides(("headlight", box((0.5, 3.5, 0.7), (0.95, 3.6, 0.92)))),
        *both_sides(("taillight", box((0.6, rear - 0.05, 0.7), (1.0, rear, 0.9)))),
    ]
    if style == "box":
        parts += [
            ("case", box((-half - 0.05, rear, deck), (half + 0.05, gate, 3.3))),
            ("trim", box((-half - 0.06, -1.1, 3.25), (half + 0.06, -1.0, 3.31))),
        ]
        return shapes.model(*parts)
    high = 1.35 if style == "flatbed" else 1.95
    parts += both_sides(("paint", box((half - 0.08, rear, deck), (half, gate, high))))
    parts += [("paint", box((-half, y, deck), (half, y + 0.08, high))) for y in (rear, gate - 0.08)]
    if style == "tipper":
        return shapes.model(*parts, ("case", loft((rear + 0.1, deck, 1.5, half - 0.1, half - 0.2),
                                                  (-1.0, deck, 1.9, half - 0.1, 0.3),
                                                  (gate - 0.1, deck, 1.4, half - 0.1, half - 0.2)).all()))  # fmt: skip
    loads = [((-0.9, -3.2), (0.1, -1.9), 1.9), ((0.0, -1.8), (0.95, -0.2), 1.7), ((-0.85, -0.9), (-0.1, 1.1), 2.0)]
    return shapes.model(*parts, *(("case", box((*low, deck), (*far, top))) for low, far, top in loads))


@lru_cache
def bus() -> Model:
    """A city bus 11.4 m long with windows all around, hatches and an air conditioner on its roof."""
    half, end, roof = 1.25, 5.7, 3.0
    hatches = [box((-0.4, y, roof), (0.4, y + 0.8, roof + 0.1)) for y in (-4.4, 2.6)]
    parts = [
        ("paint", box((-half, -end, 0.35), (half, end, 1.25))),
        ("glass", box((-half + 0.02, -end + 0.05, 1.25), (half - 0.02, end - 0.02, 2.45))),
        ("paint", box((-half, -end, 2.45), (half, end, roof - 0.1))),
        ("band", box((-half + 0.15, -end + 0.2, roof - 0.1), (half - 0.15, end - 0.2, roof))),
        ("metal", box((-0.75, -1.8, roof), (0.75, 0.8, roof + 0.22))),
        ("trim", np.concatenate(hatches)),
        *wheels(half - 0.14, 0.5, -3.4, 3.3),
        *both_sides(("headlight", box((0.7, end, 0.6), (1.1, end + 0.04, 0.82)))),
        *both_sides(("taillight", box((0.7, -end - 0.04, 0.8), (1.1, -end, 1.1)))),
    ]
    pillars = [box((half - 0.05, y, 1.25), (half + 0.01, y + 0.15, 2.45)) for y in (-4.2, -2.1, 0.0, 2.1, 4.2)]
    return shapes.model(*parts, *both_sides(("paint", np.concatenate(pillars))))


@lru_cache
def tricycle(awning: bool) -> Model:
    """A cargo tricycle 2.9 m long with its driver; with an awning, roofed from end to end over two benches."""
    rider = shapes.rider(0.72, (0.33, 0.42, 1.02), upright=True)
    driver = [(material, shapes.shifted(quads, y=0.3)) for material, quads in rider]
    parts = [
        *wheel((0.0, 1.1, 0.28), 0.28, 0.12, 8),
        *wheels(0.48, 0.28, -0.85),
        ("paint", loft((0.35, 0.35, 0.6, 0.3, 0.3), (0.95, 0.5, 0.95, 0.22, 0.14)).all()),
        ("trim", box((-0.4, -0.2, 0.3), (0.4, 0.7, 0.42))),
        ("trim", limb((-0.36, 0.78, 1.02), (0.36, 0.78, 1.02), 0.035, 0.035, 4)),
        ("headlight", box((-0.08, 1.0, 0.8), (0.08, 1.06, 0.94))),
        *driver,
    ]
    if awning:
        posts = [limb((0.5, y, 0.5), (0.5, y, 1.85), 0.03, 0.03, 4) for y in (-1.35, 0.75)]
        return shapes.model(
            *parts,
            ("paint", box((-0.58, -1.45, 0.38), (0.58, -0.2, 0.72))),
            ("seat", box((-0.5, -1.4, 0.72), (0.5, -0.95, 0.95))),
            *both_sides(("pole", np.concatenate(posts))),
            (
                "sign",
                loft((-1.5, 1.8, 1.9, 0.66, 0.55), (-0.3, 1.8, 1.98, 0.66, 0.5), (0.95, 1.8, 1.9, 0.64, 0.5)).all(),
            ),
        )
    sides = both_sides(("paint", box((0.55, -1.45, 0.55), (0.6, 0.0, 0.98))))
    ends = [("paint", box((-0.6, y, 0.55), (0.6, y + 0.05, 0.98))) for y in (-1.45, -0.05)]
    load = [box((-0.5, -1.3, 0.55), (0.1, -0.6, 1.15)), box((0.0, -0.55, 0.55), (0.5, -0.15, 1.0))]
    return shapes.model(*parts, *sides, *ends, ("case", np.concatenate(load)))


@lru_cache
def bicycle() -> Model:
    """A bicycle with its rider, a basket before the handlebar."""
    return shapes.model(
        *wheel((0.0, -0.52, 0.33), 0.33, 0.06, 10),
        *wheel((0.0, 0.55, 0.33), 0.33, 0.06, 10),
        ("paint", limb((0.0, -0.52, 0.33), (0.0, -0.2, 0.82), 0.03, 0.03, 4)),
        ("paint", limb((0.0, -0.2, 0.8), (0.0, 0.42, 0.86), 0.035, 0.035, 4)),
        ("paint", limb((0.0, 0.55, 0.33), (0.0, 0.4, 0.98), 0.03, 0.03, 4)),
        ("trim", limb((-0.3, 0.4, 1.0), (0.3, 0.4, 1.0), 0.03, 0.03, 4)),
        ("metal", box((-0.17, 0.46, 0.72), (0.17, 0.76, 0.98))),
        *shapes.rider(0.88, (0.27, 0.34, 1.03), upright=True),
    )


# People


@lru_cache
def seated() -> Model:
    """Someone who sits on a stool, the legs ahead."""
    seat: Point = (0.1, -0.1, 0.5)
    side = [
        ("trousers", limb(seat, (0.13, 0.36, 0.52), 0.09, 0.08)),
        ("trousers", limb((0.13, 0.36, 0.52), (0.13, 0.42, 0.08), 0.07, 0.05)),
        ("shoes", box((0.07, 0.36, 0.0), (0.18, 0.62, 0.1))),
        ("top", limb((0.22, -0.1, 0.98), (0.27, 0.02, 0.72), 0.06, 0.05)),
        ("top", limb((0.27, 0.02, 0.72), (0.18, 0.28, 0.64), 0.05, 0.04)),
    ]
    return shapes.model(
        ("seat", box((-0.2, -0.3, 0.0), (0.2, 0.1, 0.43))),
        ("top", shapes.torso((-0.12, 0.45), (-0.1, 1.02), 0.18, 0.22, 0.24)),
        ("skin", shapes.ellipsoid((0.0, -0.06, 1.2), (0.1, 0.11, 0.135))),
        ("hair", shapes.ellipsoid((0.0, -0.085, 1.24), (0.108, 0.115, 0.11))),
        *both_sides(*side),
    )
