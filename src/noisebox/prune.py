"""`noisebox prune`: free the space of checkpoints that only serve to go on, where DVC holds their bytes.

Of a finished run these are last.pth, best.pth, or what its line calls that, and checkpoints of epochs; model_final.pth,
which results stand on, always stays. A file goes only when its bytes were found in DVC's cache or in a remote, so it
can be had back. What killed processes left in a run's folder goes too, unless a training could go on from it.
"""

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import file_digest, md5
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo

from noisebox import graph
from noisebox.errors import UserError
from noisebox.files import sha256
from noisebox.training.folder import LOCK, PREVIOUS, WORK

GOING_ON = ("last.pth", *dict.fromkeys(graph.best_checkpoint(line) for line in graph.LINE_NAMES))
CACHED = "`dvc checkout` brings it back"
SHARED = "`dvc pull` brings it back"
UNNAMED = "DVC holds it, but dvc.lock no longer names it"
LEFTOVER = "left by killed processes"
SECOND_NAMES = "second names of the run's files"


class Seen(NamedTuple):
    """What a file was like: its size in bytes, and under how many names it is there."""

    path: str
    inode: int
    size: int
    names: int
    modified_ns: int


@dataclass(frozen=True)
class Item:
    """A file or folder that may go, why, and what its files were like when that was found out."""

    path: Path
    why: str
    seen: tuple[Seen, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.seen)

    def is_as_seen(self) -> bool:
        """Whether no file came, went or was written since; other names of a file may have gone."""
        return [file._replace(names=0) for file in _seen(self.path)] == [file._replace(names=0) for file in self.seen]


@dataclass
class Plan:
    """What may go, and in sentences what stays and why."""

    items: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes that removing all items frees; what stays under another name is not freed."""
        files = [file for item in self.items for file in item.seen]
        going = Counter(file.inode for file in files)
        return sum({file.inode: file.size for file in files if going[file.inode] == file.names}.values())


def plan_of(root: Path) -> Plan:
    """Look at every finished run below `root`; nothing is deleted.

    Raises UserError when there is no DVC repository, because then nothing could be had back.
    """
    found = Plan()
    try:
        with Repo(str(root)) as repo:
            store, named = _Store(repo), _named(repo)
            for run in sorted(root.glob(graph.run_folder("*", "*"))):
                if (run / "model_final.pth").exists():
                    _look_at(run, store, named, found)
            found.kept += [f"remote {name!r} could not be asked: {error}" for name, error in store.silent.items()]
    except NotDvcRepoError:
        raise UserError(
            "no DVC repository here, so nothing could be had back and nothing is deleted (`dvc init` makes one)"
        ) from None
    except DvcException as error:
        raise UserError(f"DVC cannot read this repository: {error}") from None
    return found


def _named(repo: Repo) -> dict[Path, str]:
    """The MD5 that dvc.lock has of each output, by absolute path."""
    outs = [out for stage in repo.index.stages if stage.cmd for out in stage.outs]
    return {Path(out.fs_path): out.hash_info.value for out in outs if out.hash_info}


def _look_at(run: Path, store: "_Store", named: Mapping[Path, str], found: Plan) -> None:
    """Enter into the plan what of a finished run may go and what stays."""
    work, finished = run / WORK, run / graph.FINISHED
    if _is_locked(work) or not _is_published(work):
        found.kept.append(f"{run}: a training is under way or can go on from {WORK}/")
        return
    if not _is_published(finished):
        found.kept.append(f"{run}: some of its files are in {graph.FINISHED}/ alone")
        return
    found.items += [Item(path, LEFTOVER, _seen(path)) for path in (*run.glob(".writing-*"), work) if path.exists()]
    found.items += [Item(finished, SECOND_NAMES, _seen(finished))] if finished.exists() else []
    for path in (*(run / name for name in GOING_ON if (run / name).is_file()), *sorted(run.glob(graph.EPOCHS))):
        seen, digest = _seen(path), _md5(path)
        cached = store.cached(digest)
        if cached and cached.samefile(path):
            continue  # a link to the cache takes no space
        if cached or store.in_a_remote(digest):
            is_named = named.get(path.parent.resolve() / path.name) == digest
            found.items.append(Item(path, (CACHED if cached else SHARED) if is_named else UNNAMED, seen))
        else:
            found.kept.append(f"{path}: DVC does not hold its bytes")


class _Store:
    """Where DVC keeps content by its MD5: the local cache, and the remotes."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.silent: dict[str, str] = {}  # remotes that could not be asked, and why

    def cached(self, digest: str) -> Path | None:
        """The file of the local cache that really has the content, if there is one."""
        path = Path(self.repo.cache.local.oid_to_path(digest))
        return path if path.is_file() and _md5(path) == digest else None

    def in_a_remote(self, digest: str) -> bool:
        return any(self._has(name, digest) for name in self.repo.config["remote"] if name not in self.silent)

    def _has(self, remote: str, digest: str) -> bool:
        try:
            return bool(self.repo.cloud.get_remote_odb(remote).exists(digest))
        except Exception as error:  # every kind of remote fails in its own library's way
            self.silent[remote] = " ".join(str(error).split())
            return False


def _is_locked(work: Path) -> bool:
    """Whether a process is training there."""
    try:
        descriptor = os.open(work / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # it is another user's, who may be training
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_published(folder: Path) -> bool:
    """Whether everything in a folder that a training could go on with, if it is there, stands in the run's folder as
    well, byte for byte."""
    pairs = [(path, folder.parent / path.name) for path in folder.glob("*") if path.name not in (LOCK, PREVIOUS)]
    return all(path.is_file() and twin.is_file() and _equal(path, twin) for path, twin in pairs)


def _equal(path: Path, other: Path) -> bool:
    return path.samefile(other) or sha256(path) == sha256(other)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, lambda: md5(usedforsecurity=False)).hexdigest()


def _seen(path: Path) -> tuple[Seen, ...]:
    """A file, or every file in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.as_posix(), file.lstat()) for file in files if not file.is_dir()]
    return tuple(Seen(name, stat.st_ino, stat.st_size, stat.st_nlink, stat.st_mtime_ns) for name, stat in stats)


def remove(plan: Plan) -> Iterator[str]:
    """Delete what is planned, but for what has changed meanwhile or may not be deleted, which is said."""
    for item in plan.items:
        try:
            if not item.path.exists() or not item.is_as_seen():
                yield f"{item.path} has changed meanwhile and stays"
            elif item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink()
        except OSError as error:
            yield f"{item.path} cannot be deleted ({error.strerror}) and stays"


def size_in_words(count: int) -> str:
    """Bytes as `1.3 GB`."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
