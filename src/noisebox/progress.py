"""Progress on stderr: a bar for a person at a terminal, a plain line every few seconds for a log file."""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """`with Progress(label, total) as progress: progress.advance(1, loss=3.2)`.

    `done` units were finished before this process; speed and ETA count only what it does itself. The environment
    variable NOISEBOX_PROGRESS=plain gives lines at a terminal too, NOISEBOX_PROGRESS=none nothing.
    """

    def __init__(self, label: str, total: int = 0, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._before = done
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        form = os.environ.get("NOISEBOX_PROGRESS")
        self._silent = form == "none"
        if sys.stderr.isatty() and form not in ("plain", "none"):
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count `count` more units as done and show the figures, such as the loss, beside them."""
        self.done += count
        now = time.monotonic()
        note = self._note(now - self._started, figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=note)
        elif not self._silent and (self.done >= self.total or now - self._printed >= SECONDS_BETWEEN_LINES):
            self._printed = now
            print(f"{self.label}  {self.done}/{self.total}  {note}", file=sys.stderr, flush=True)

    def skip(self, count: int) -> None:
        """Count `count` more units as finished before this process."""
        self.done += count
        self._before += count

    def at(self, done: int, total: int) -> None:
        """`done` of `total` units are finished; a smaller `done` than before opens a new phase."""
        if done < self.done:
            self._started, self._before, self.done = time.monotonic(), done, done
        self.total = total
        self.advance(done - self.done)

    def _note(self, elapsed: float, figures: dict[str, float]) -> str:
        pace = elapsed / max(1, self.done - self._before)
        parts = [f"{name} {value:.3g}" for name, value in figures.items()]
        return "  ".join([*parts, f"{pace:.2g} s/it", f"ETA {clock(pace * (self.total - self.done))}"])

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, note="")


def clock(seconds: float) -> str:
    """`1:05` or `2:01:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
