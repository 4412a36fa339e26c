"""Python's collector of garbage, held back where there is none to find: it looks at everything again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_alone(*, stays: bool = False) -> Iterator[None]:
    """Inside, no garbage is looked for; what `stays` as long as the process, as imports do, is not looked at later."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if stays:
            gc.freeze()
        if was_enabled:
            gc.enable()
