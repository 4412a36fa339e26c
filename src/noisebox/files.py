"""Files that are either whole or absent: atomic writes, and the hashes that name their content."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from noisebox.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the final name; on success it takes the final place in one step.

    The temporary file keeps its name and lies in a folder of its own beside the target, because some formats
    (`torch.save`'s archive) write the file's own stem into their bytes.

    Raises UserError when the disk is full or the place cannot be written; the old file is left as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        temporary = folder / path.name
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UserError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full: {path} could not be written; free some space and run again to go on")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"{path} cannot be written ({error.strerror}); give write access to {path.parent}")
    return error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with the keys in the order given."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping.

    Raises UserError when the file is missing, is no YAML, or holds something other than a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}")
    return content


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_unfinished(folder: Path) -> None:
    """Remove what killed writers left behind in `folder`."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
