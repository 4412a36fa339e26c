"""Where objects crowd: car parks, squares, yards, queues before a crossing, zebras; and the few that are elsewhere."""

from collections.abc import Sequence
from math import pi

import numpy as np

from noisebox.data.world import fleet, shapes
from noisebox.data.world.scene import KERB, Thing
from noisebox.data.world.scenery import tree_at
from noisebox.data.world.stage import Stage
from noisebox.data.world.street import PAVINGS, Random, between, chance, pick
from noisebox.data.world.town import LANE, MARK, STOP_LINE, WALK, ZEBRA, Arm, Plot, ground

Shares = tuple[tuple[str, int], ...]  # categories and how often each comes, relative to the others

PARKED: Shares = (("car", 30), ("van", 8), ("truck", 1))
DRIVEN: Shares = (
    ("car", 11), ("van", 3), ("bus", 2), ("truck", 2), ("motor", 3), ("tricycle", 1), ("awning-tricycle", 1),
    ("bicycle", 2),
)  # fmt: skip
NARROW: Shares = (("motor", 4), ("bicycle", 4), ("tricycle", 1), ("awning-tricycle", 1))
HEAVY: Shares = (("truck", 4), ("bus", 3), ("van", 1))
THREE_WHEELED: Shares = (("tricycle", 1), ("awning-tricycle", 1))
RANKS: tuple[tuple[Shares, float], ...] = ((NARROW, 1.45), ((("motor", 1),), 1.0), (THREE_WHEELED, 1.45))  # and metres
LENGTHS = {"bus": 11.6, "truck": 7.3, "car": 4.8, "van": 5.4}  # metres that a vehicle takes in a queue
NARROW_LENGTH = 2.8  # that of the others


def share(rng: Random, shares: Shares) -> str:
    return pick(rng, [category for category, times in shares for _ in range(times)])


def around(rng: Random, spread: float) -> float:
    """A number between -spread and spread, more often a small one."""
    return between(rng, -spread / 2, spread / 2) + between(rng, -spread / 2, spread / 2)


# On plots


def car_park(rng: Random, plot: Plot, stage: Stage) -> None:
    """Rows of marked slots with an aisle before each pair, most of them taken; a drive leads to the road."""
    slot, length, aisle = between(rng, 2.5, 2.8), 5.2, between(rng, 5.6, 6.6)
    share_taken, tone = between(rng, 0.6, 0.97), int(rng.integers(-8, 26))
    columns, rows = int((plot.width - 2) / slot), rows_of(plot.depth, length, aisle)
    start = (plot.width - columns * slot) / 2
    lines = [
        plot.patch((start + k * slot - 0.06, start + k * slot + 0.06), (v, v + length), MARK)
        for v in rows
        for k in range(columns + 1)
    ]
    drive = plot.patch((plot.width / 2 - 3, plot.width / 2 + 3), (-WALK, 0.5))
    stage.scenery.append(
        ground(("asphalt", np.concatenate([plot.whole(), drive])), ("mark", np.concatenate(lines)),
               asphalt=(86 + tone, 87 + tone, 90 + tone))
    )  # fmt: skip
    for v in rows:
        way = 0.0 if chance(rng, 0.5) else pi
        for k in range(columns):
            place = plot.at(start + (k + 0.5) * slot + around(rng, 0.12), v + length / 2 + around(rng, 0.3))
            turn = (way if chance(rng, 0.8) else pi - way) + around(rng, 0.05)
            if chance(rng, share_taken):
                stage.put(rng, share(rng, PARKED), place, plot.yaw(turn), KERB)
    for _ in range(int(rng.integers(0, 5))):
        place = plot.at(between(rng, 1, plot.width - 1), pick(rng, rows) + length + between(rng, 0.5, 2))
        stage.put(rng, "pedestrian", place, between(rng, -pi, pi), KERB)


def rows_of(depth: float, length: float, aisle: float) -> list[float]:
    """Where rows of slots begin, front to back: one, an aisle, two back to back, an aisle, and so on."""
    rows, v, single = [], 0.4, True
    while v + length <= depth - 0.2:
        rows.append(v)
        v += length + (aisle if single else 0.0)
        single = not single
    return rows


def yard(rng: Random, plot: Plot, stage: Stage) -> None:
    """Lorries, coaches and vans side by side, stacks of containers at the back."""
    tone, slot, length = int(rng.integers(-12, 20)), between(rng, 3.5, 4.2), 12.4
    stage.scenery.append(ground(("paving", plot.whole()), paving=(140 + tone, 138 + tone, 130 + tone)))
    columns, kind = int((plot.width - 1) / slot), share(rng, HEAVY)
    for v in rows_of(plot.depth, length, 8.0)[:2]:
        for k in range(columns):
            category = kind if chance(rng, 0.6) else share(rng, HEAVY)
            place = plot.at(1 + (k + 0.5) * slot, v + length / 2 + around(rng, 0.6))
            if chance(rng, 0.7):
                stage.put(rng, category, place, plot.yaw(0.0 if chance(rng, 0.7) else pi), KERB)
    for _ in range(int(rng.integers(2, 7))):
        place = plot.at(between(rng, 2, plot.width - 2), between(rng, plot.depth - 5, plot.depth - 1.5))
        put_container(rng, plot, place, stage)


def put_container(rng: Random, plot: Plot, place: tuple[float, float], stage: Stage) -> None:
    shape = shapes.model(("case", shapes.box((-3.0, -1.2, 0.0), (3.0, 1.2, 2.5))))
    container = Thing("house", shape, (*place, KERB), plot.yaw(), palette={"case": pick(rng, fleet.CARGO)})
    if stage.free(container.footprint()):
        stage.stand(container)


def square(rng: Random, plot: Plot, stage: Stage) -> None:
    """Groups of people who stand or sit, stalls with tricycles, parked motorbikes, trees at the edge."""
    light, dark = pick(rng, PAVINGS), int(rng.integers(8, 22))
    step = between(rng, 3, 5)
    joints = [plot.patch((0, plot.width), (k * step, k * step + 0.15), MARK) for k in range(1, int(plot.depth / step))]
    joints += [plot.patch((k * step, k * step + 0.15), (0, plot.depth), MARK) for k in range(1, int(plot.width / step))]
    red, green, blue = light
    stage.scenery.append(
        ground(("paving", plot.whole()), ("band", np.concatenate(joints)),
               paving=light, band=(red - dark, green - dark, blue - dark))
    )  # fmt: skip
    if chance(rng, 0.75):
        stalls(rng, plot, stage)
    if chance(rng, 0.75):
        rank(rng, plot, stage)
    for _ in range(int(rng.integers(1, 4))):
        group(rng, plot, stage, "pedestrian", int(rng.integers(4, 12)))
    for _ in range(int(rng.integers(1, 3))):
        group(rng, plot, stage, "people", int(rng.integers(3, 8)))
    if chance(rng, 0.4):
        for k in range(int(plot.width / 8)):
            stage.scenery.append(tree_at(rng, plot.at(4 + 8 * k, plot.depth - 2), (4, 6)))


def group(rng: Random, plot: Plot, stage: Stage, category: str, count: int) -> None:
    """So many around one point of the plot."""
    spread = between(rng, 0.5, 0.9) * count**0.5 + 0.8
    u, v = between(rng, 3, plot.width - 3), between(rng, 3, plot.depth - 3)
    for _ in range(count):
        place = plot.at(u + around(rng, spread), v + around(rng, spread))
        stage.put(rng, category, place, between(rng, -pi, pi), KERB)


def stalls(rng: Random, plot: Plot, stage: Stage) -> None:
    """A row of market stalls under awnings, tricycles before some."""
    v, facing = between(rng, 0.25, 0.75) * plot.depth, plot.yaw(pi / 2)
    roof = shapes.loft((-1.3, 2.1, 2.2, 1.2, 1.1), (1.3, 2.4, 2.5, 1.2, 1.1)).all()
    legs = [shapes.box((x, y, 0.0), (x + 0.08, y + 0.08, 2.2)) for x in (-1.1, 1.0) for y in (-1.2, 1.1)]
    table = shapes.box((-0.9, -1.0, 0.0), (0.3, 1.0, 0.8))
    stall = shapes.model(("sign", roof), ("pole", np.concatenate(legs)), ("case", table))
    for k in range(int(rng.integers(2, int(plot.width / 3.4) + 1))):
        u = 2 + 3.2 * k
        palette = {"sign": pick(rng, fleet.AWNINGS), "case": pick(rng, fleet.CARGO)}
        stage.stand(Thing("furniture", stall, (*plot.at(u, v), KERB), facing, palette=palette))
        if chance(rng, 0.6):
            turn = plot.yaw(between(rng, -0.3, 0.3) + (0.0 if chance(rng, 0.5) else pi))
            stage.put(rng, share(rng, THREE_WHEELED), plot.at(u, v - 3.2), turn, KERB)
        if chance(rng, 0.5):
            buyer = pick(rng, ("people", "pedestrian"))
            stage.put(rng, buyer, plot.at(u + around(rng, 1), v + 1.9), plot.yaw(pi), KERB)


def rank(rng: Random, plot: Plot, stage: Stage) -> None:
    """Motorbikes, bicycles or three-wheelers side by side along the front."""
    shares, step = pick(rng, RANKS)
    start, turn = between(rng, 1, 5), around(rng, 0.5)
    for k in range(int(rng.integers(4, 13))):
        if start + k * step < plot.width - 1:
            stage.put(rng, share(rng, shares), plot.at(start + k * step, 1.8), plot.yaw(turn + around(rng, 0.08)), KERB)


# On roads


def queue(rng: Random, arm: Arm, stage: Stage) -> None:
    """Vehicles that wait at the stop line of an arm, the narrow ones in front."""
    front = arm.setback + STOP_LINE + 0.6
    if chance(rng, 0.5):
        for _ in range(int(rng.integers(2, 8))):
            place = arm.at(front + between(rng, -0.3, 2.4), between(rng, 0.6, arm.half - 0.5))
            stage.put(rng, share(rng, NARROW), place, arm.heading + around(rng, 0.15))
        front += 3.2
    for lane in range(arm.lanes):
        at = front + between(rng, 0, 1)
        for _ in range(int(rng.integers(2, 8))):
            category = share(rng, DRIVEN)
            length = LENGTHS.get(category, NARROW_LENGTH)
            at += length / 2
            if at + length / 2 > arm.length:
                break
            place = arm.at(at, (lane + 0.5) * LANE + around(rng, 0.25))
            stage.put(rng, category, place, arm.heading + around(rng, 0.04))
            at += length / 2 + between(rng, 0.9, 2.2)


def moving(rng: Random, arm: Arm, stage: Stage) -> None:
    """A few vehicles that drive away from the crossing, or towards it."""
    for side in (-1, 1):
        for _ in range(int(rng.integers(0, 3))):
            lane = int(rng.integers(arm.lanes)) + 0.5
            place = arm.at(between(rng, arm.setback + 6, arm.length), side * (lane * LANE + around(rng, 0.3)))
            turn = arm.heading + (0.0 if side > 0 else pi) + around(rng, 0.06)
            stage.put(rng, share(rng, DRIVEN), place, turn)


def crossing_people(rng: Random, arm: Arm, stage: Stage) -> None:
    """People on the zebra of an arm, and some who wait for it."""
    low, high = arm.setback + ZEBRA[0], arm.setback + ZEBRA[1]
    for _ in range(int(rng.integers(3, 11))):
        turn = arm.heading + (pi / 2 if chance(rng, 0.5) else -pi / 2) + around(rng, 0.4)
        stage.put(rng, "pedestrian", arm.at(between(rng, low, high), between(rng, -arm.half, arm.half)), turn)


def strollers(rng: Random, arm: Arm, stage: Stage) -> None:
    """Few people on the pavement of an arm; now and then a group that waits for a bus."""
    waiting = int(rng.integers(4, 10)) if chance(rng, 0.15) else 0
    stop = between(rng, arm.setback + 8, arm.length)
    for _ in range(waiting):
        place = arm.at(stop + around(rng, 2.5), arm.half + between(rng, 0.5, WALK - 0.5))
        stage.put(rng, "pedestrian", place, arm.heading - pi / 2 + around(rng, 1.0), KERB)
    for _ in range(int(rng.integers(0, 3))):
        place = arm.at(between(rng, arm.setback + 1, arm.length), arm.half + between(rng, 0.5, WALK - 0.5))
        stage.put(rng, "pedestrian", place, arm.heading + pi * int(rng.integers(2)) + around(rng, 0.3), KERB)


def traffic(rng: Random, arms: Sequence[Arm], stage: Stage) -> None:
    """Queues on some arms, and what is sparse on all of them."""
    for arm in arms:
        if chance(rng, 0.4):
            queue(rng, arm, stage)
        if chance(rng, 0.25):
            crossing_people(rng, arm, stage)
    for arm in arms:
        moving(rng, arm, stage)
        strollers(rng, arm, stage)
