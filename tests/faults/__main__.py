"""Do every fault, print what each gives, and write docs/faults.md; exit code 1 when one costs more than it may."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from conftest import ROOT

from faults import scenarios
from faults.project import CHECKPOINT_EVERY, DEPTH, DISTIL, EVALUATE, TRAIN, VERBS, Whole, interrupt, make_whole
from faults.scenarios import Outcome
from faults.table import page
from noisebox.randomness import numpy_generator

KILLS = 20
FRAMES = 16  # of cameras, for depth ground truth


def every() -> Iterator[Callable[[Whole], Outcome]]:
    """All faults."""
    moments = numpy_generator(0, "moments to kill").uniform(0.02, 1, KILLS).tolist()
    for place, verb in enumerate(VERBS):
        mine = moments[place :: len(VERBS)]
        yield partial(scenarios.killed, verb=verb, fractions=mine, by_clock=True)
    for verb in VERBS:
        yield partial(scenarios.asked_to_end, verb=verb)
    yield partial(scenarios.asked_to_end, verb=TRAIN, deed=interrupt)
    yield partial(scenarios.damaged_state, verb=TRAIN)
    yield partial(scenarios.damaged_state, verb=TRAIN, both=True)
    for fault in (scenarios.cut_image, scenarios.full_disk, scenarios.two_at_once, scenarios.read_only):
        for verb in (TRAIN, EVALUATE, DEPTH):
            yield partial(fault, verb=verb)
    for verb in (TRAIN, DISTIL):
        yield partial(scenarios.engine_killed, verb=verb)
    yield partial(scenarios.clock_set_back, verb=TRAIN)


def main() -> int:
    if not scenarios.can_mount():
        print("a full disk and a read-only folder need root and the right to mount; run it where those are")
        return 2
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="noisebox-faults-") as folder:
        whole = make_whole(Path(folder) / "whole", VERBS, FRAMES)
        for fault in every():
            outcome = fault(whole)
            outcomes.append(outcome)
            print(f"{outcome.fault}, {outcome.verb}: exit code {outcome.code}, {outcome.said}", flush=True)
    file = ROOT / "docs/faults.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(page(outcomes), encoding="utf-8")
    print(file)
    return int(not all(map(held, outcomes)))


def held(outcome: Outcome) -> bool:
    """Whether a fault cost no more than a checkpoint gives back, if it left one, and the bytes came out the same."""
    cheap = (outcome.lost or 0) <= CHECKPOINT_EVERY or outcome.fault == scenarios.ALL_DAMAGED
    return outcome.equal == outcome.times and cheap


if __name__ == "__main__":
    sys.exit(main())
