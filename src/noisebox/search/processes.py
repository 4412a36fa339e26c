"""More processes for a search, each `noisebox search` as well: they share the trials through the study."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def companions(file: Path, count: int) -> Iterator[None]:
    """`count` more processes take part in the search of `file` while the block runs; each logs to a file of its own,
    `logs/search/<name>/companion<k>.log`."""
    command = [sys.executable, "-m", "noisebox", "search", str(file), "--companion"]
    none = subprocess.DEVNULL
    started = [
        subprocess.Popen([*command, str(place)], stdin=none, stdout=none, stderr=none) for place in range(1, count + 1)
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
            process.wait()
