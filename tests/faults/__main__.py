"""Do every fault, print what each gives, and write docs/faults.md; exit code 1 when one costs more than it may."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

from faults import scenarios
from faults.project import CHECKPOINT_EVERY, DEPTH, DISTIL, EVALUATE, TRAIN, VERBS, Whole, interrupt, make_whole
from faults.scenarios import Outcome
from faults.table import page
from noisebox.randomness import numpy_generator

KILLS = 20
FRAMES = 64  # as many as are shared by processes


def every(whole: Whole) -> Iterator[Outcome]:
    """All faults, the slow ones last."""
    moments = numpy_generator(0, "moments to kill").uniform(0.02, 1, KILLS).tolist()
    for place, verb in enumerate(VERBS):
        yield scenarios.killed(whole, verb, moments[place :: len(VERBS)], by_clock=True)
    for verb in VERBS:
        yield scenarios.asked_to_end(whole, verb)
    yield scenarios.asked_to_end(whole, TRAIN, interrupt)
    yield scenarios.damaged_state(whole, TRAIN)
    yield scenarios.damaged_state(whole, TRAIN, both=True)
    for verb in (TRAIN, EVALUATE, DEPTH):
        yield scenarios.cut_image(whole, verb)
    for verb in VERBS:
        yield scenarios.full_disk(whole, verb)
    for verb in VERBS:
        yield scenarios.two_at_once(whole, verb)
    for verb in VERBS:
        yield scenarios.read_only(whole, verb)
    for verb in (TRAIN, DISTIL):
        yield scenarios.clock_set_back(whole, verb)


def main() -> int:
    if not scenarios.can_mount():
        print("a full disk and a read-only folder need root and the right to mount; run it where those are")
        return 2
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="noisebox-faults-") as folder:
        for outcome in every(make_whole(Path(folder) / "whole", VERBS, FRAMES)):
            outcomes.append(outcome)
            print(f"{outcome.fault}, {outcome.verb}: exit code {outcome.code}, {outcome.said}", flush=True)
    file = ROOT / "docs/faults.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(page(outcomes), encoding="utf-8")
    print(file)
    return int(not all(map(held, outcomes)))


def held(outcome: Outcome) -> bool:
    """Whether a fault cost no more than a checkpoint gives back, and the bytes came out the same."""
    return outcome.equal == outcome.times and (outcome.lost or 0) <= CHECKPOINT_EVERY


if __name__ == "__main__":
    sys.exit(main())
