"""The run folder while it is being made: who may write it, and how finished files get out of `work/`.

Both engines delete a job's declared files before they start it, so what a killed training goes on from lies in
`work/`, which no engine knows. Every file there can be made again from `work/last.pth`, so publishing may be cut off
anywhere and repeated; `work/` itself goes last, in one step.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noisebox import graph
from noisebox.errors import UserError
from noisebox.files import atomic_path, clear_unfinished

WORK = "work"
LOCK = "lock"


@contextmanager
def claimed(run: Path) -> Iterator[Path]:
    """Yield `run/work` for this process alone; the kernel lets go of the claim however the process ends.

    Raises UserError when another process holds it, or the folder cannot be written.
    """
    descriptor = None
    while descriptor is None:
        descriptor = _lock(run)
    try:
        clear_unfinished(run)
        clear_unfinished(run / WORK)
        yield run / WORK
    finally:
        os.close(descriptor)


def _lock(run: Path) -> int | None:
    """`work/lock`, open, locked and naming this process; None when another one finished and took `work/` away."""
    lock = run / WORK / LOCK
    descriptor = None
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        # A record lock: unlike flock's it is not inherited by the loader's workers, which may outlive a kill.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.stat()):
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            locked, descriptor = descriptor, None
            return locked
    except BlockingIOError:
        holder = lock.read_text()
        raise UserError(f"{run} is being trained by process {holder}; wait until it ends, or end it") from None
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}); mend that and run again") from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return None


def clear(work: Path) -> None:
    """Empty `work/` but for the lock. `last.pth` goes first: without it nothing else there is believed."""
    (work / "last.pth").unlink(missing_ok=True)
    for path in work.iterdir():
        if path.name != LOCK:
            path.unlink()


def publish(run: Path, names: Iterable[str]) -> None:
    """Put every file of `names`, and the checkpoints of epochs, from `run/work` into its place in `run`, then remove
    `run/work`."""
    work = run / WORK
    of_epochs = [path.name for path in work.glob(f"{graph.EPOCHS}*")]
    for path in run.glob(f"{graph.EPOCHS}*"):
        if path.name not in of_epochs:  # of the training before
            path.unlink()
    for name in (*names, *of_epochs):
        with atomic_path(run / name) as temporary:
            try:
                os.link(work / name, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(work / name, temporary)
            os.utime(temporary)  # newer than every input, however long ago it was written
    removed = run / ".writing-removed"  # a name that `clear_unfinished` knows, should the next line not be reached
    work.rename(removed)
    shutil.rmtree(removed)
