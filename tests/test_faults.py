"""A short version of `make faults`: each fault once, at a moment told by what the process does."""

import pytest
from faults import scenarios
from faults.project import CHECKPOINT_EVERY, DEPTH, EVALUATE, TRAIN, Whole, interrupt, make_whole
from faults.scenarios import Outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return make_whole(tmp_path_factory.mktemp("faults") / "whole", (TRAIN, EVALUATE, DEPTH), 4)


def held(outcome: Outcome, code: int, *words: str) -> None:
    """It ended so, said so, lost no more than a checkpoint gives back, and came to the same bytes."""
    assert outcome.code == code, outcome
    assert all(word in outcome.said for word in words), outcome
    assert outcome.lost is None or outcome.lost <= CHECKPOINT_EVERY, outcome
    assert outcome.equal == outcome.times, outcome


def test_kill_9(whole: Whole) -> None:
    held(scenarios.killed(whole, TRAIN, [0.55]), -9, "going on after iteration")
    held(scenarios.killed(whole, EVALUATE, [0.7]), -9)
    held(scenarios.killed(whole, DEPTH, [0.5]), -9)


def test_a_signal_saves_and_ends(whole: Whole) -> None:
    asked = scenarios.asked_to_end(whole, TRAIN)
    held(asked, 143, "SIGTERM: runs/baseline/seed0 is saved at iteration", "run again to go on")
    assert asked.lost == 0
    asked = scenarios.asked_to_end(whole, TRAIN, interrupt)
    held(asked, 130, "SIGINT: runs/baseline/seed0 is saved at iteration")
    assert asked.lost == 0
    for verb in (EVALUATE, DEPTH):
        held(scenarios.asked_to_end(whole, verb), 143, "SIGTERM: no file is half-written, run again")


def test_a_damaged_state(whole: Whole) -> None:
    held(scenarios.damaged_state(whole, TRAIN), 0, "last.pth is damaged or missing; going on from the")


def test_an_image_cut_short(whole: Whole) -> None:
    for verb in (TRAIN, EVALUATE, DEPTH):
        held(scenarios.cut_image(whole, verb), 2)


def test_two_processes_at_once(whole: Whole) -> None:
    held(scenarios.two_at_once(whole, TRAIN), 2, "is being trained by process")
    for verb in (EVALUATE, DEPTH):
        held(scenarios.two_at_once(whole, verb), 2, "is being made by process")


@pytest.mark.skipif(not scenarios.can_mount(), reason="mounting needs root and the right to mount")
def test_a_disk_that_is_full_or_read_only(whole: Whole) -> None:
    for verb in (TRAIN, EVALUATE, DEPTH):
        held(scenarios.full_disk(whole, verb), 2, "the disk is full", verb.folder, "free some space and run again")
        held(scenarios.read_only(whole, verb), 2, "cannot be written (Read-only file system)")


def test_an_engine_killed_alone(whole: Whole) -> None:
    outcome = scenarios.engine_killed(whole, TRAIN)
    held(outcome, -9, "going on after iteration")
    assert outcome.lost == 0


def test_a_clock_set_back(whole: Whole) -> None:
    held(scenarios.clock_set_back(whole, TRAIN), -9, "going on after iteration")
