"""Every command of `noisebox`, thin: parse, call, print.

Imports wait until a verb runs, and torch until its input is known to be good, so that a mistake is told at once. A verb
lives in the module of its topic, and is added to the application when that is imported here.
"""

import sys

from noisebox.cli import bench, check, data, evaluate, launch, project, report, search, train
from noisebox.cli.app import app
from noisebox.errors import UserError
from noisebox.interrupt import Interrupted, listen

__all__ = ["app", "bench", "check", "data", "evaluate", "main", "project", "report", "search", "train"]


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit code 2, a signal's end is one
    with the code that shells give it."""
    listen()
    try:
        app(standalone_mode=True)
    except Interrupted as end:
        _tell(end)
        raise
    except UserError as error:
        _tell(error)
        sys.exit(2)


def _tell(end: Exception | Interrupted) -> None:
    if launch.may_tell():
        sys.stderr.write(f"noisebox: {end}\n")
