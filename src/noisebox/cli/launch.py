"""Several processes for one verb: started by --processes, or by a launcher such as torchrun, and joined here.

A launched process knows by its environment how many there are and which it is. The first one speaks, logs and shows
progress; how all of them ended is told by whichever comes to it first.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import typer

from noisebox.errors import UserError

T = TypeVar("T")
Processes = Annotated[
    int | None,
    typer.Option(
        help="So many processes of this machine share the work, on GPUs each has one.",
        min=1,
        show_default="resources.processes of the scale",
    ),
]


def launched() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def speaks() -> bool:
    """Whether this process is the first."""
    return launched() == 1 or os.environ["RANK"] == "0"


may_tell: Callable[[], bool] = speaks  # how a verb ended; among processes that have joined, only once


@contextmanager
def shared(processes: int | None, scale: str | None = None, before: Callable[[], None] | None = None) -> Iterator[None]:
    """Run a verb's work in `processes`, by default as many as the scale says (by default the experiment's), or those
    that a launcher started.

    Where they are yet to be started, this process does what comes `before`, which may take longer than processes wait
    for each other, starts them, waits, and exits as they did. Raises UserError when a launcher started another number.
    """
    global may_tell
    world = launched()
    if world == 1:
        wanted = processes or _of_the_scale(scale)
        if wanted > 1:
            if before:
                before()
            raise typer.Exit(start(wanted))
        yield
        return
    if processes not in (None, world):
        raise UserError(f"--processes {processes}, but {world} were started by a launcher; leave it out")
    if not speaks():
        os.environ["NOISEBOX_PROGRESS"] = "none"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of how gradients are exchanged, in every process

    from noisebox.processes import joined

    with joined() as may_tell:
        yield


def in_turn(work: Callable[[], T]) -> T:
    """What `work` gives, done by the first process before the others do it, too."""
    if launched() == 1:
        return work()

    from noisebox import processes

    return processes.in_turn(work)


def _of_the_scale(scale: str | None) -> int:
    from noisebox.config import load_experiment, load_scale

    return load_scale(scale or load_experiment().scale).resources.processes


def start(processes: int) -> int:
    """Run this very command in so many processes; returns the exit code of the first that failed, as a shell tells it,
    or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the processes speak for themselves
    here = LaunchConfig(
        1, 1, processes, run_id="here", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(here, sys.executable)("-m", "noisebox", *sys.argv[1:])
    except ChildFailedError as failed:
        code = int(failed.get_first_failure()[1].exitcode)
        return code if code > 0 else 128 - code
    except SignalException as end:
        return 128 + int(end.sigval)
    return 0
