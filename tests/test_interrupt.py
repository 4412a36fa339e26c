"""Signals that come while a training holds them back: a scheduler's, twice, and an impatient person's."""

import signal
from collections.abc import Iterator

import pytest

from noisebox.interrupt import SIGNALS, Interrupted, held_back, listen


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_sigterm_leaves_time_to_save() -> None:
    """Slurm ends a job at its time limit with one SIGTERM to each process, and one more that its srun passes on."""
    steps = []
    with pytest.raises(Interrupted) as ended, held_back() as held:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        steps.append(held.number)
    assert steps == [signal.SIGTERM]
    assert ended.value.code == 143


def test_a_second_ctrl_c_ends_at_once() -> None:
    with pytest.raises(Interrupted) as ended, held_back() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still there")
    assert ended.value.code == 130
