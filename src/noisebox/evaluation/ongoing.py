"""How far an evaluation has come, kept on the disk: one that was killed goes on from there, to the same bytes.

Of short evaluations nothing is kept. Each process has a file of its own, for each measures batches of its own.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from noisebox import graph, processes
from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.evaluation.measuring import Asked, Taken
from noisebox.files import hashes_of, sha256
from noisebox.training.checkpoint import load_checkpoint, save_checkpoint

SECONDS_BETWEEN = 60.0
SHARE = 0.05  # of the time, which saving may take

log = logging.getLogger("noisebox")


def place_in(folder: Path) -> Path:
    """The file of this process, of a pass whose results will lie in `folder`."""
    return folder / ".ongoing" / f"{processes.number()}.pth"


def facts_of(checkpoint: Path, config: RunConfig) -> dict[str, Any]:
    """What the answers of a checkpoint depend on besides the images."""
    code = hashes_of(graph.code_files("evaluate", config.family), Path())
    return {"checkpoint": sha256(checkpoint), "config": config.model_dump(mode="json"), "code": code}


class Ongoing:
    """A pass over a split as `file` has it; without one nothing is kept. As a context it removes the file at the end of
    what it is for, if that ends well."""

    def __init__(self, file: Path | None = None, facts: dict[str, Any] | None = None) -> None:
        """`facts` are what the answers depend on: a pass of others is not gone on with."""
        self.file, self._facts = file, (facts or {}) | {"processes": processes.count()}
        self._saved, self._pause = time.monotonic(), SECONDS_BETWEEN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.file is not None:
            for path in (self.file, self.file.with_name(f"{self.file.name}.sha256")):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # where another process has its own there, or nothing was kept
                self.file.parent.rmdir()

    def begin(self, asked: Asked, restore: Callable[[Any], None], **further: Any) -> Taken:
        """What was taken before, of a pass that was asked the same, and `further` facts; `restore` is given what was
        kept of it."""
        self._facts["asked"] = [[sampling.model_dump(), list(seeds)] for sampling, seeds in asked.items()]
        self._facts |= further
        state = self._read()
        if state is None:
            return Taken(sampled=[0.0] * len(asked))
        restore(state["kept"])
        taken = Taken(**state["taken"])
        log.info("%s: going on after %d images", self.file, taken.images)
        return taken

    def _read(self) -> dict[str, Any] | None:
        if self.file is None or not self.file.exists():
            return None
        try:
            state = load_checkpoint(self.file)
        except UserError:
            log.warning("%s is damaged: the evaluation starts anew", self.file)
            return None
        return state if state.get("facts") == self._facts else None

    def note(self, taken: Taken, kept: Callable[[], Any]) -> None:
        """Save, if it is time again; `kept` gives what `restore` will want, in tensors and plain values."""
        started = time.monotonic()
        if self.file is not None and started - self._saved >= self._pause:
            save_checkpoint(self.file, {"facts": self._facts, "taken": asdict(taken), "kept": kept()})
            self._saved = time.monotonic()
            self._pause = max(SECONDS_BETWEEN, (self._saved - started) / SHARE)
