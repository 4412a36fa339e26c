"""The run folder while it is being made: who may write it, and how finished files get out of `work/`.

Both engines delete a job's declared files before they start it, so what a killed training goes on from lies in
`work/`, which no engine knows. Every file there can be made again from `work/last.pth`, so publishing may be cut off
anywhere and repeated; `work/` itself goes last, in one step.

An engine that was killed before it noted that a job had ended deletes what the job published, too. So a run of the
graph's keeps second names of its files in `.finished/`, from which they come back, until an engine has noted it.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisebox import graph, processes
from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.files import clear_unfinished, only_here, read_json, read_yaml, remove_folder, second_name, sha256
from noisebox.training.checkpoint import UnreadableError, load_checkpoint, save_checkpoint
from noisebox.training.provenance import difference

WORK = "work"
LOCK = "lock"
LAST = "last.pth"
PREVIOUS = "previous.pth"  # the `last.pth` before

log = logging.getLogger("noisebox")


@contextmanager
def claimed(run: Path) -> Iterator[Path]:
    """Yield `run/work` for this process, and those it shares a training with, alone; the kernel lets go of the claim
    however the first of them ends.

    Raises UserError when another process holds it, or the folder cannot be written.
    """
    with processes.held_by_the_first(only_here(run / WORK / LOCK, f"{run} is being trained")):
        if processes.first():
            clear_unfinished(run)
            clear_unfinished(run / WORK)
        yield run / WORK


def reopen(run: Path, best: str) -> None:
    """Let a finished training be gone on with: its full state, the weights that were best so far and those of epochs,
    as `work/` has them while it is under way."""
    if (run / LAST).exists() and not (run / WORK / LAST).exists():
        _put_into_work(run, [run / best, *run.glob(graph.EPOCHS), run / LAST])


def take_back(run: Path) -> None:
    """Let `work/` have a finished training again, to publish it anew, if some of its files are gone; if none are, it is
    to be trained anew. Either way what was kept of it goes."""
    kept = run / graph.FINISHED
    if not kept.is_dir():
        return
    paths = [path for path in kept.iterdir() if path.name != LOCK]  # which a kill may have left there
    if not all((run / path.name).exists() for path in paths):
        log.warning("%s was trained to its end before, but no engine had noted it", run)
        _put_into_work(run, paths)
    remove_folder(kept)


def _put_into_work(run: Path, paths: list[Path]) -> None:
    """Let `work/` have these files as well, last.pth last: once that is there, the rest is believed to be."""
    for path in sorted(paths, key=lambda path: path.name == LAST):
        second_name(path, run / WORK / path.name)


def keep_foreign(run: Path) -> None:
    """Raises UserError where a training in `run` would replace or delete files that are no run's, such as what another
    framework trained there."""
    taken = [name for name in (*graph.RUN_FILES, *graph.BEST.values()) if (run / name).exists()]
    taken += [WORK] if (run / WORK).is_dir() and any((run / WORK).iterdir()) else []
    if taken and not _is_run(run):
        raise UserError(f"{run} holds {taken[0]}, which no training of noisebox made and this one would replace")


def _is_run(run: Path) -> bool:
    return any((run / name).exists() for name in ("run.json", f"{WORK}/{LOCK}", f"{WORK}/config.yaml"))


def keep_others(run: Path, config: RunConfig, parent: Path | None) -> None:
    """Raises UserError where a finished run of another configuration, or that started from another checkpoint than
    `parent`, or what is no run, lies in `run`."""
    if (
        run.is_dir()
        and any(not path.is_dir() for path in run.rglob("*"))  # a training that was refused leaves an empty work/
        and not _is_run(run)
    ):
        raise UserError(f"{run} holds other files than a run's; name an empty or a new folder with --output-dir")
    if (run / "config.yaml").exists() and (parent is None or parent.is_file()):  # what is none is told of later
        origin = read_json(run / "run.json")["parent"]
        before = {"config": read_yaml(run / "config.yaml"), "parent": origin and origin["sha256"]}
        now = {"config": config.model_dump(mode="json"), "parent": parent and sha256(parent)}
        differs = difference(before, now)
        if differs:
            raise UserError(
                f"{run} holds a finished run, of which {differs}: name another --output-dir, or add --if-changed fresh "
                "to replace it"
            )


def save_last(work: Path, state: dict[str, Any]) -> None:
    """Write `last.pth`; the one before it stays beside it as `previous.pth`, should the new one be damaged later."""
    if (work / LAST).exists():
        second_name(work / LAST, work / PREVIOUS)
    save_checkpoint(work / LAST, state)


def load_last(work: Path) -> dict[str, Any] | None:
    """What `save_last` wrote last and is not damaged; None where it wrote nothing.

    Raises UserError when there is nothing but damaged ones: they are the user's to give up.
    """
    states = [path for path in (work / LAST, work / PREVIOUS) if path.exists()]
    for path in states:
        try:
            state = load_checkpoint(path)
        except UnreadableError:
            raise
        except UserError:
            continue
        if path.name == PREVIOUS:
            log.warning("%s is damaged or missing; going on from the checkpoint before it", work / LAST)
            path.replace(work / LAST)
        return state
    if states:
        named = f"{' and '.join(map(str, states))} {'is' if len(states) == 1 else 'are'}"
        raise UserError(f"{named} damaged, so there is nothing to go on from; delete {work} to start anew")
    return None


def clear(work: Path) -> None:
    """Empty `work/` but for the lock. The states go first: without one nothing else there is believed."""
    for name in (PREVIOUS, LAST):
        (work / name).unlink(missing_ok=True)
    for path in work.iterdir():
        if path.name != LOCK:
            path.unlink()


def publish(run: Path, names: Iterable[str], *, keep: bool = False) -> None:
    """Put every file of `names`, and the checkpoints of epochs, from `run/work` into its place in `run`, then remove
    `run/work`, or `keep` it as `run/.finished` where that takes no space."""
    work = run / WORK
    of_epochs = [path.name for path in work.glob(f"{graph.EPOCHS}*")]
    for path in run.glob(f"{graph.EPOCHS}*"):
        if path.name not in of_epochs:  # of the training before
            path.unlink()
    for name in (*names, *of_epochs):
        os.utime(work / name)  # newer than every input, however long ago it was written
        second_name(work / name, run / name)
    if keep and (work / LAST).samefile(run / LAST):
        (work / PREVIOUS).unlink(missing_ok=True)
        work.rename(run / graph.FINISHED)
        (run / graph.FINISHED / LOCK).unlink()
    else:
        remove_folder(work)
