"""The faults, one function each: it does the fault to a verb, runs the verb again, and tells what came of both."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

from own_process import processes

from faults.project import (
    CHECKPOINT_EVERY,
    DEPTH,
    EVALUATE,
    ITERATIONS,
    Life,
    Verb,
    Whole,
    interrupt,
    kill,
    lost,
    saved,
    terminate,
)
from noisebox import graph
from noisebox.config import resolve
from noisebox.data.catalog import open_split
from noisebox.data.stream import places_of

ALL_DAMAGED = "last.pth and the one before it damaged"


@dataclass(frozen=True)
class Outcome:
    """What a fault gives: the exit code and the words, iterations lost (the most, of several times; None where a verb
    has none), and how often the verb, run again, ended at the bytes of an undisturbed one."""

    fault: str
    verb: str
    code: int
    said: str
    lost: int | None
    equal: int
    times: int = 1


def outcome(whole: Whole, fault: str, verb: Verb, root: Path, ended: Life, lost_: int) -> Outcome:
    """What a life that has ended gives, once its verb has run again in `root`; one killed says nothing, so the next."""
    code, said = ended.end(), _sentence(ended)
    again = Life(root, verb)
    again.ends_well()
    lost_of_it = lost_ if verb.trains else None
    return Outcome(fault, verb.name, code, said or again.said("going on"), lost_of_it, int(whole.equal(root, verb)))


def _sentence(life: Life) -> str:
    return life.said("noisebox: ").removeprefix("noisebox: ")


def killed(whole: Whole, verb: Verb, fractions: Sequence[float], by_clock: bool = False) -> Outcome:
    """kill -9, each time at this fraction of the verb's operations on files, or of its time."""
    codes, most, equal, said = set(), 0, 0, ""
    for fraction in fractions:
        root = whole.fresh(verb)
        codes.add(_kill_in_time(whole, root, verb, fraction) if by_clock else _kill_at(whole, root, verb, fraction))
        most = max(most, lost(root, verb))
        again = Life(root, verb)
        again.ends_well()
        said = again.said("going on") or said
        equal += whole.equal(root, verb)
    (code,) = codes
    where = "moments" if by_clock else "operations"
    fault = f"kill -9 at {len(fractions)} random {where}"
    return Outcome(fault, verb.name, code, said, most if verb.trains else None, equal, len(fractions))


def _kill_at(whole: Whole, root: Path, verb: Verb, fraction: float) -> int:
    return Life(root, verb, whole.moment(verb, fraction), kill).end()


def _kill_in_time(whole: Whole, root: Path, verb: Verb, fraction: float) -> int:
    """A life that has ended before, on a machine that was busy when it was measured, is followed by a shorter one."""
    seconds, code = fraction * whole.seconds[verb.name], 0
    while code == 0:
        life = Life(root, verb)
        life.process.join(seconds)
        life.process.kill()
        code, seconds = life.end(), seconds / 2
    return code


def asked_to_end(whole: Whole, verb: Verb, deed: Callable[[], None] = terminate, fraction: float = 0.25) -> Outcome:
    """A signal to all processes of the job in the middle of its work."""
    root = whole.fresh(verb)
    life = Life(root, verb, whole.moment(verb, fraction), deed)
    life.end()
    fault = {terminate: "SIGTERM to the job", interrupt: "Ctrl-C"}[deed]
    return outcome(whole, fault, verb, root, life, lost(root, verb))


def damaged_state(whole: Whole, verb: Verb, *, both: bool = False) -> Outcome:
    """Bytes turned in `last.pth` of a training that had ended at a signal, or in the one before it as well."""
    root = whole.fresh(verb)
    assert Life(root, verb, whole.moment(verb, 0.4), terminate).end() == 143
    work, reached = root / verb.folder / "work", saved(root, verb)
    before = saved(root, verb, "previous.pth")
    names = ("last.pth", "previous.pth") if both else ("last.pth",)
    for name in names:
        _turn_bytes(work / name)
    life = Life(root, verb)
    code = life.end()
    if both:
        shutil.rmtree(work)
        return outcome(whole, ALL_DAMAGED, verb, root, life, reached)
    equal, said = whole.equal(root, verb), life.said("damaged")
    return Outcome("last.pth damaged", verb.name, code, said, reached - before, int(equal))


def _turn_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    path.write_bytes(content)


def cut_image(whole: Whole, verb: Verb) -> Outcome:
    """An image cut short: of a training, one of the middle of its first epoch."""
    root = whole.fresh(verb)
    path = root / _an_image(root, verb)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    life = Life(root, verb)
    life.end()
    assert path.relative_to(root).as_posix() in life.said("noisebox: ")
    path.write_bytes(content)
    return outcome(whole, "an image cut short", verb, root, life, lost(root, verb))


def _an_image(root: Path, verb: Verb) -> Path:
    """Of those that the verb reads, relative to `root`."""
    line, split = ("bev", "train") if verb == DEPTH else ("detection", "val" if verb == EVALUATE else "train")
    dataset = {"bev": "world_bev_test", "detection": "world_test"}[line]
    opened = open_split(dataset, split, root, graph.data_manifest(line))
    if verb == DEPTH:
        image: Path = opened.frames[-1].image
    else:
        config = resolve("baseline", 0, "test", root)
        place = places_of(config, 2 * CHECKPOINT_EVERY - 2, len(opened))[0] if split == "train" else -1
        image = opened.images[place].path
    return image.relative_to(root)


def two_at_once(whole: Whole, verb: Verb) -> Outcome:
    """A second process on the same folder while the first is at work there; then the first goes on."""
    root = whole.fresh(verb)
    reached, go_on = processes.Event(), processes.Event()
    first = Life(root, verb, whole.moment(verb, 0.5), partial(_wait, reached, go_on))
    assert reached.wait(600)
    second = Life(root, verb, log="second")
    code, said = second.end(), _sentence(second)
    go_on.set()
    first.ends_well()
    none = 0 if verb.trains else None
    return Outcome("two processes at once", verb.name, code, said, none, int(whole.equal(root, verb)))


def _wait(reached: Event, go_on: Event) -> None:
    reached.set()
    go_on.wait()


def full_disk(whole: Whole, verb: Verb) -> Outcome:
    """A file system that holds three quarters of what the verb makes; then room is made, and it is run again."""
    root = whole.fresh(verb)
    with small_file_system(root / verb.folder, whole.size(verb) * 3 // 4) as mounted:
        life = Life(root, verb)
        life.end()
        taken = lost(root, verb)
        mounted("size=64m")
        return outcome(whole, "a full disk", verb, root, life, taken)


def read_only(whole: Whole, verb: Verb) -> Outcome:
    """A file system that may only be read; root's permissions would let it write in a folder."""
    root = whole.fresh(verb)
    with small_file_system(root / verb.folder, 2**26) as mounted:
        mounted("ro")
        life = Life(root, verb)
        life.end()
        mounted("rw")
        return outcome(whole, "a read-only folder", verb, root, life, 0)


@contextmanager
def small_file_system(place: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Mount one of so many bytes at `place`; yields what mounts it again in another way."""
    place.mkdir(parents=True)

    def mount(how: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", str(place)], check=True, capture_output=True)

    mount(f"size={size}")
    try:
        yield lambda how: mount(f"remount,{how}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def can_mount() -> bool:
    """Whether this process may mount, as root may outside most containers."""
    try:
        with tempfile.TemporaryDirectory() as folder, small_file_system(Path(folder) / "small", 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def engine_killed(whole: Whole, verb: Verb) -> Outcome:
    """The engine alone killed: its job ends well, and what it made is deleted before the job is started anew."""
    root = whole.fresh(verb)
    Life(root, verb).ends_well()
    for path in (root / verb.folder).iterdir():
        if path.is_file():
            path.unlink()
    again = Life(root, verb)
    again.ends_well()
    said = again.said("going on")
    reached = int(said.split()[-1]) if said else 0
    equal = int(whole.equal(root, verb))
    return Outcome("kill -9 of the engine alone", verb.name, -9, said, ITERATIONS - reached, equal)


def clock_set_back(whole: Whole, verb: Verb) -> Outcome:
    """A clock set back by an hour in the middle: to whoever looks, every file is then from the future."""
    root = whole.fresh(verb)
    life = Life(root, verb, whole.moment(verb, 0.4), kill)
    life.end()
    taken = lost(root, verb)
    _from_the_future(root)
    return outcome(whole, "clock set back after kill -9", verb, root, life, taken)


def _from_the_future(root: Path) -> None:
    ahead = time.time() + 3600
    for path in root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (ahead, ahead))
