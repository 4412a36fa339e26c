"""`noisebox`, or `python -m noisebox`: the command line as a process of its own, and the end of that process."""

import atexit
import os
import sys


class _Leaving:
    """Ends the process with its exit code, once all that had to be done at its end has been.

    Python would first take apart what some three thousand modules hold, one object after the other: half a second for
    nothing, in each job of a graph. A bug, which has no code, ends as Python ends it.
    """

    code: int | None = None

    def __call__(self) -> None:
        if self.code is None:
            return
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except OSError:
            return  # nobody reads any more: Python knows how to say so
        os._exit(self.code)


def program() -> None:
    """Run the command line, and end."""
    leaving = _Leaving()
    atexit.register(leaving)  # what is registered first is called last, so the imports come after

    from noisebox.cli import main

    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            leaving.code = end.code or 0
        raise


if __name__ == "__main__":
    program()
