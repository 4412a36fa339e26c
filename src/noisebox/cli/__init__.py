"""Every command of `noisebox`, thin: parse, call, print.

Imports wait until a verb runs, and torch until its input is known to be good, so that a mistake is told at once. A verb
lives in the module of its topic, and is added to the application when that is imported here.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from noisebox.cli import (
    bench,
    check,
    data,
    detectron2,
    evaluate,
    export,
    imports,
    interop_checkpoints,
    launch,
    project,
    report,
    search,
    train,
)
from noisebox.cli.app import app
from noisebox.errors import UserError
from noisebox.interrupt import Interrupted, leave_to_parent, listen

__all__ = [
    "app",
    "bench",
    "check",
    "data",
    "detectron2",
    "evaluate",
    "export",
    "imports",
    "interop_checkpoints",
    "main",
    "project",
    "report",
    "search",
    "told",
    "train",
]

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # what no code of ours can mend


def main() -> None:
    """Run the command line."""
    listen()
    with told():
        sys.exit(app(standalone_mode=launch.launched() == 1))  # of several processes one tells a mistake of the words


@contextmanager
def told() -> Iterator[None]:
    """Inside, a user's mistake, what the memory or the disk is too small for, or a file that the user may not use, is
    one sentence on standard error and exit code 2; a signal's end is one with the code that shells give it."""
    try:
        yield
    except Interrupted as end:
        _tell(str(end))
        raise
    except UserError as error:
        _tell(str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        first, *_ = str(error).partition("\n")
        _tell(f"this does not fit the memory: {first}; lower the batch size, the image size, proposals or width")
        sys.exit(2)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        _tell(f"{error.filename or 'a file'} cannot be used ({error.strerror}); mend that and run again")
        sys.exit(2)
    except typer.TyperException as error:
        _tell(error.format_message())
        sys.exit(error.exit_code)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's and NumPy's own error, PyTorch's on a GPU, and on a CPU, where it has no class of its own, its words."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _tell(end: str) -> None:
    if launch.launched() > 1:
        leave_to_parent()  # the launcher ends the others by a signal, which may find this one on its way out
    if launch.may_tell():
        sys.stderr.write(f"noisebox: {end}\n")
