"""Files that are either whole or absent: atomic writes, who may make them, and the hashes that name their content."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from noisebox.errors import UserError


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path with the final name; on success it takes the final place in one step.

    The temporary file keeps its name and lies in a folder of its own beside the target, because some formats
    (`torch.save`'s archive) write the file's own stem into their bytes. A file that is one of thousands, and is looked
    at before it is taken for whole, need not be `durable`: only after a power cut may it be there without its content.

    Raises UserError when the disk is full or the place cannot be written; the old file is left as it was.
    """
    try:
        make_folder(path.parent)
        folder = Path(tempfile.mkdtemp(prefix=_unfinished(path.name), dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        temporary = folder / path.name
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path, first_stays: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder of the final name; on success it takes the final place, and what lay there goes.

    Raises UserError when the disk is full or the place cannot be written; the old folder is left as it was. With
    `first_stays` the old folder goes at once, and OSError is raised where another process fills the place meanwhile.
    """
    try:
        make_folder(folder.parent)
        staging = Path(tempfile.mkdtemp(prefix=_unfinished(folder.name), dir=folder.parent))
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        temporary = staging / folder.name
        temporary.mkdir()
        if first_stays and os.path.lexists(folder):
            folder.rename(staging / "stale")
        yield temporary
        if not first_stays and os.path.lexists(folder):
            folder.rename(staging / "stale")
        temporary.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> UserError | OSError:
    """What to raise where a file could not be written: a sentence, if its cause is one that a user can mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full: {path} could not be written; free some space and run again to go on")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"{path} cannot be written ({error.strerror}); give write access to {path.parent}")
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
        return UserError(f"{path} cannot be written ({error.strerror}); choose another place")
    return error


def unreadable(path: Path, error: OSError) -> UserError:
    """What to raise where a file that is there could not be read."""
    return UserError(f"{path} cannot be read ({error.strerror})")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there; raises UserError where one of them is a file, or
    takes nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}: {error.filename}); choose another place") from None
    except OSError as error:
        raise unwritable(folder, error) from error


def second_name(path: Path, other: Path) -> None:
    """Let `other` be the file at `path` as well, or a copy where the file system has no hard links, in one step."""
    with atomic_path(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


class BusyError(UserError):
    """Another process is at it."""


@contextmanager
def only_here(lock: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the file `lock` for this process alone; the kernel lets go of it however the process ends. Where another one
    holds it, wait for that, unless `busy` says what it does.

    Raises BusyError when another process holds it and `busy` is given, UserError when it cannot be written.
    """
    descriptor = None
    while descriptor is None:
        descriptor = _lock(lock, busy)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(lock, descriptor):  # then nobody else may take it away
                lock.unlink()
        os.close(descriptor)


def _lock(lock: Path, busy: str | None) -> int | None:
    """`lock`, open, locked and naming this process; None when the one who held it took it away meanwhile."""
    descriptor = None
    try:
        make_folder(lock.parent)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        # A record lock: unlike flock's it is not inherited by the loader's workers, which may outlive a kill.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        if _is_at(lock, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            locked, descriptor = descriptor, None
            return locked
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode() if descriptor is not None else ""
        raise BusyError(f"{busy} by process {holder}; wait until it ends, or end it") from None
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{lock.parent} cannot be written ({error.strerror}); mend that and run again") from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


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
    content = _parsed(path, "YAML", parsed_yaml)
    return {} if content is None else _mapping(path, content)


def parsed_yaml(text: str) -> Any:
    """What a YAML text says; a key that comes twice is an error. Raises yaml.YAMLError or ValueError."""
    return deepcopy(_yaml(text))


@lru_cache
def _yaml(text: str) -> Any:
    """What a text says. It is kept, because a check of the whole experiment asks for the same few files hundreds of
    times, and parsing takes most of its time."""
    return yaml.load(text, Loader=_OneOfEachKey)


class _OneOfEachKey(yaml.SafeLoader):
    """YAML as it is meant: of a key that comes twice the safe loader takes the last, without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it was written: once it is merged into another, its own keys stand beside those merged in."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} comes twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON mapping.

    Raises UserError when the file is missing, is no JSON, or holds something other than a mapping.
    """
    return _mapping(path, _parsed(path, "JSON", json.loads))


def _parsed(path: Path, form: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except RecursionError:
        raise UserError(f"{path} is not valid {form}: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # what is no UTF-8 is a ValueError
        raise UserError(f"{path} is not valid {form}: {' '.join(str(error).split())}") from None


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, not a {type(content).__name__}")
    return content


VARIABLE = re.compile(r"\$(\w+|\{\w+\})", re.ASCII)
DATASETS = ("NOISEBOX_DATASETS", "DETECTRON2_DATASETS")  # environment variables, the first that is set counts


def datasets_folder() -> tuple[str | None, str]:
    """Where published datasets lie, with the environment variable that says so; `datasets` where none does."""
    return next(((name, value) for name in DATASETS if (value := os.environ.get(name))), (None, "datasets"))


def expanded(path: str, root: Path) -> Path:
    """A path that a user wrote: it counts from `root`, and `~` and `$NAME` stand for what they name.

    `$NOISEBOX_DATASETS` stands for the folder of datasets whether it is set or not: where it is not, for Detectron2's,
    and where that is not set either, for `datasets` below `root`. Raises UserError where another variable is not set.
    """
    known = {**os.environ, DATASETS[0]: datasets_folder()[1]}

    def value_of(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if name not in known:
            raise UserError(f"the environment variable {name}, in {path}, is not set")
        return known[name]

    return root / Path(VARIABLE.sub(value_of, path)).expanduser()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(names: Iterable[str], root: Path) -> dict[str, str]:
    """The SHA-256 of those of the files below `root` that are there."""
    return {name: sha256(root / name) for name in names if (root / name).exists()}


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it at once: cut off, this leaves what `clear_unfinished` finds."""
    removed = folder.with_name(f"{_unfinished(folder.name)}removed")
    folder.rename(removed)
    shutil.rmtree(removed)


def discard_folder(folder: Path) -> None:
    """Remove a folder that is of no more use, if it is there and may be removed."""
    with suppress(OSError):
        remove_folder(folder)


def clear_unfinished(folder: Path, *names: str) -> None:
    """Remove what killed writers left in `folder`, of all files or of those named; nobody may be writing these now."""
    for leftover in folder.glob(".writing-*"):
        if not names or leftover.name.startswith(tuple(map(_unfinished, names))):
            shutil.rmtree(leftover, ignore_errors=True)


def _unfinished(name: str) -> str:
    """How the folder begins in which a file of that name grows."""
    return f".writing-{name[:100]}-"
