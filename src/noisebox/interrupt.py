"""Ending when asked to: SIGTERM, as a scheduler sends it, and SIGINT, a person's Ctrl-C.

A verb ends where it is, with one line and the exit code that shells give to a signal; files are whole or absent all the
same. A training holds the signal back until it has saved what it reached.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A process asked to end: 128 + the signal's number is its exit code, `said` its line."""

    def __init__(self, number: int, said: str = "no file is half-written, run again") -> None:
        super().__init__(128 + number)
        self.said = f"{signal.Signals(number).name}: {said}"

    def __str__(self) -> str:
        return self.said


class Held:
    """What is held back: the number of the signal that came, if one did."""

    number: int | None = None


_held: Held | None = None


def listen() -> None:
    """From now on a signal raises Interrupted; one that whoever started the process had it ignore stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    """A second SIGTERM says what the first did: Slurm sends one to every process, and its srun passes on another."""
    if _held is None or (_held.number is not None and number != signal.SIGTERM):
        raise Interrupted(number)
    _held.number = _held.number or number


@contextmanager
def held_back() -> Iterator[Held]:
    """Inside, the first signal is noted, to be looked for between two steps; a second Ctrl-C ends at once.

    Raises Interrupted on the way out for one that nobody looked for.
    """
    global _held
    outer, _held = _held, Held()
    here = _held
    try:
        yield here
    finally:
        _held = outer
    if here.number is not None:
        raise Interrupted(here.number)


def leave_to_parent(*_: object) -> None:
    """In a process that makes batches ahead: a signal sent to all processes of a job is its parent's to answer."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
