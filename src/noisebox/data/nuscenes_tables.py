"""The tables of a nuScenes root, read row by row: memory does not grow with the millions of rows that are not kept.

Any fault is told in one sentence, with table and token.
"""

import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisebox.errors import UserError

QUATERNION_TOLERANCE = 1e-3  # by which a quaternion's squared length may differ from 1

Row = dict[str, Any]
Matrix = NDArray[np.float64]
_GAP = re.compile(r"[\s,]*")  # between two rows


@dataclass(frozen=True)
class Table:
    """One table of a version; knows how to name a faulty row."""

    folder: Path
    name: str

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def rows(self) -> Iterator[Row]:
        """Every row, each an object with a token; raises UserError when the table is missing or no list of such."""
        text, decode = text_of(self.file), json.JSONDecoder().raw_decode
        try:
            at = _next(text, 0)
            at = _next(text, at + 1) if text[at] == "[" else len(text)
            while text[at] != "]":
                row, at = decode(text, at)
                if type(row) is not dict or type(row.get("token")) is not str:
                    raise UserError(f"{self.file}: every row must be an object with a token")
                yield row
                at = _next(text, at)
        except IndexError:
            raise UserError(f"{self.file} is cut short, or no list of rows") from None
        except ValueError as error:
            raise UserError(f"{self.file} is not valid JSON: {error}") from None

    def by_token(self, wanted: Container[str] | None = None) -> dict[str, Row]:
        """All rows, or the wanted ones, by their token; raises UserError when a token comes twice."""
        found: dict[str, Row] = {}
        for row in self.rows():
            token = row["token"]
            if wanted is None or token in wanted:
                if token in found:
                    raise self.faulty(row, "comes twice")
                found[token] = row
        return found

    def faulty(self, row: Row, complaint: str) -> UserError:
        return UserError(f"{self.file}: token {row['token']!r} {complaint}")

    def text(self, row: Row, key: str) -> str:
        """A text that is not empty."""
        value = row.get(key)
        if type(value) is not str or not value:
            raise self.faulty(row, f"needs a text as {key!r}")
        return value

    def whole(self, row: Row, key: str, least: int = 0) -> int:
        """A whole number."""
        value = row.get(key)
        if type(value) is not int or value < least:
            raise self.faulty(row, f"needs a whole number from {least} up as {key!r}")
        return value

    def numbers(self, row: Row, key: str, *shape: int) -> Matrix:
        """Finite numbers, in nested lists of this shape."""
        try:
            array = np.array(row.get(key), np.float64)
        except (ValueError, TypeError):
            array = np.empty(0)
        if array.shape != shape or not np.isfinite(array).all():
            raise self.faulty(row, f"needs {' × '.join(map(str, shape))} finite numbers as {key!r}")
        return array

    def link(self, row: Row, key: str, target: Container[str]) -> str:
        """The token `row` holds as `key`, which must be among those of the table it names."""
        token = self.text(row, key)
        if token not in target:
            raise self.faulty(row, f"has {key} {token!r}, which {key.removesuffix('_token')}.json does not list")
        return token

    def pose(self, row: Row) -> Matrix:
        """The row's pose, (4, 4): a turn by its quaternion (w, x, y, z), then a shift by its translation in metres."""
        w, x, y, z = quaternion = self.numbers(row, "rotation", 4)
        length = quaternion @ quaternion
        if not abs(length - 1) < QUATERNION_TOLERANCE:
            raise self.faulty(row, f"has a rotation of length {length**0.5:.4g}; a quaternion's must be 1")
        pose = np.eye(4)
        pose[:3, :3] += np.array(
            [
                [-y * y - z * z, x * y - w * z, x * z + w * y],
                [x * y + w * z, -x * x - z * z, y * z - w * x],
                [x * z - w * y, y * z + w * x, -x * x - y * y],
            ]
        ) * (2 / length)
        pose[:3, 3] = self.numbers(row, "translation", 3)
        return pose


def _next(text: str, at: int) -> int:
    """Where the next row or bracket begins, from `at` on."""
    gap = _GAP.match(text, at)
    assert gap is not None
    return gap.end()


def missing(path: Path) -> str:
    """The complaint about a path that does not exist; names the one that differs from it in letter case only."""
    found = Path(path.absolute().anchor)
    for part in path.absolute().parts[1:]:
        if not (found / part).exists():
            twins = [entry for entry in found.iterdir() if entry.name.lower() == part.lower()] if found.is_dir() else []
            if not twins:
                return f"{path} does not exist"
            part = min(twins).name
        found /= part
    return f"{path} does not exist, but {found} does; mind the letter case"


def text_of(file: Path) -> str:
    """The content of a file; raises UserError when it is missing or no text."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(missing(file)) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
