"""The one exception that means "the user can mend this", and the words that help to mend it.

The command line prints a UserError as one sentence and exits with code 2; any other exception is a bug.
"""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the user's input, in one sentence: what is wrong, where (file, key or image id), what would fit."""


def what_fits(name: str, known: Sequence[str], otherwise: str) -> str:
    """The end of a complaint about an unknown name: the nearest known one, or all of them after `otherwise`."""
    near = difflib.get_close_matches(name, known, 1) or [each for each in known if each.startswith(name)]
    return f"did you mean {near[0]!r}?" if near else f"{otherwise}: {', '.join(known) or 'none'}"
