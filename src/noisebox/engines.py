"""What keeps the two engines of one opinion: `record` tells DVC what Snakemake made, `sync` tells Snakemake what DVC
says is up to date. Neither ever declares a stale file current."""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import networkx
import yaml
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml, parse_yaml

from noisebox import graph
from noisebox.errors import UserError
from noisebox.files import discard_folder, read_json, read_yaml, write_text

LONG_AGO = 1_000_000_000  # older than any input, so Snakemake makes it again
GREEDILY = ("--scheduler", "greedy")  # one job at a time needs no solver of linear programs, which is slow to load


class NoRepositoryError(UserError):
    """The project is in git only."""


def record(root: Path, made: Iterable[str], current: Iterable[str] = ()) -> list[str]:
    """Commit to DVC the stages whose outputs Snakemake just made, or found current; returns what was said.

    Snakemake goes by time, so what it finds current may be stale: such a stage is committed only if DVC does not know
    these outputs, which then come of a run that was cut off before it was recorded. Stages that Snakemake did not look
    at stay as they are. The embedded data is committed where it is what data.dvc pins, and pinned where data.dvc speaks
    of another dataset. What finished runs kept until they were noted goes.
    """
    finished = {Path(path).as_posix() for path in made if path}
    there = finished | {Path(path).as_posix() for path in current if path}
    try:
        with repository(root) as repo:
            said = _record_stages(repo, root, finished, there)
            if any(graph.data_manifest(line) in there for line in graph.LINE_NAMES):
                said += _record_data(repo, root)
    except NoRepositoryError as error:
        said = [f"nothing recorded: {error}"]
    for path in there:
        if path.endswith("/model_final.pth"):
            discard_folder((root / path).with_name(graph.FINISHED))  # most went when the run was evaluated
    return said


def _record_stages(repo: Repo, root: Path, finished: set[str], there: set[str]) -> list[str]:
    """Commit the stages whose outputs are all `there`, but for those that were not `finished` now and are stale."""
    with repo.lock:
        stages = [stage for stage in _jobs(repo) if _outputs(stage, root) and _outputs(stage, root) <= there]
        whole = [stage for stage in stages if _present(stage, root) == _outputs(stage, root)]
        found = [stage for stage in whole if not _outputs(stage, root) & finished]
        stale = [stage for stage in found if _is_stale(stage)]
        new = [stage for stage in whole if stage not in stale and _is_new(stage)]
        for stage in new:
            stage.save()
            stage.commit(relink=False)  # a file linked anew would look newer than what was made from it
        lost = [stage for stage in new if any(out.use_cache and out.changed_cache() for out in stage.outs)]
        kept = [stage for stage in new if stage not in lost]
        _dump(kept)
    said = [f"recorded {len(kept)} of {len(stages)} finished stages with DVC"] if kept else []
    if lost:
        names = ", ".join(stage.addressing for stage in lost)
        said.append(f"not recorded, as DVC's cache did not take all of it: {names}; make room, run snakemake again")
    if stale:
        names = ", ".join(stage.addressing for stage in stale)
        said.append(f"current by time, but stale to DVC: {names}; after `noisebox sync` Snakemake makes these anew")
    return said


def _record_data(repo: Repo, root: Path) -> list[str]:
    """Bring the embedded datasets under data.dvc, unless data.dvc pins other bytes for them."""
    manifests = [root / graph.data_manifest(line) for line in graph.LINE_NAMES]
    named = [str(read_json(path)["dataset"]) for path in manifests if path.is_file()]
    folders = [graph.dataset_folder(name) for name in named if (root / graph.dataset_folder(name)).is_dir()]
    pin = root / graph.DATA_PIN
    if not folders:
        return []
    pinned = read_yaml(pin)["outs"] if pin.exists() else []
    if [out["path"] for out in pinned if "md5" in out] != folders:  # without one, pinning was cut off
        outs = [{"path": folder, "hash": "md5"} for folder in folders]
        write_text(pin, yaml.safe_dump({"outs": outs}, sort_keys=False))
        repo.commit(graph.DATA_PIN, force=True, relink=False)
        return [f"{graph.DATA_PIN} now pins {', '.join(folders)}"]
    if any(repo.stage.load_one(graph.DATA_PIN).changed_entries()):
        return [f"data/ differs from what {graph.DATA_PIN} pins; left as it is"]
    repo.commit(graph.DATA_PIN, force=True, relink=False)
    return []


def sync(root: Path) -> list[str]:
    """Let Snakemake see as current what DVC says is current, with everything it was made from, and nothing else.

    DVC writes restored files with fresh modification times in any order. Current outputs are touched in the graph's
    order and noted in Snakemake's records; outputs of stale stages are dated long ago, so that they are made again.
    """
    with repository(root) as repo, lock_repo(repo):  # so that DVC reads its files once
        changed = {name for name, changes in repo.status().items() if not _is_pruned(changes)}
        jobs = _jobs(repo)
        current: list[Any] = []
        stale: list[Any] = []
        for stage in jobs:
            ancestry = {stage, *networkx.descendants(repo.index.graph, stage)}
            is_current = not any(each.addressing in changed for each in ancestry if each.cmd)
            (current if is_current else stale).append(stage)
        fresh = sorted(min(_present(stage, root)) for stage in current if _present(stage, root))
        old = sorted(path for stage in stale for path in _present(stage, root))
    for path in old:
        os.utime(root / path, (LONG_AGO, LONG_AGO), follow_symlinks=False)  # a link leads into DVC's cache
    if old:
        _snakemake(root, "--cleanup-metadata", *old)  # its exit code complains of files without a record
    if fresh:
        touched = _snakemake(root, "--touch", "--forceall", "--no-hooks", "--cores", "1", *GREEDILY, *fresh)
        if touched.returncode:
            raise UserError(f"snakemake could not take over what DVC restored: {' '.join(touched.stderr.split())}")
    said = [f"{len(current)} of {len(jobs)} stages are up to date"]
    return said + ([f"to be made again: {', '.join(stage.addressing for stage in stale)}"] if stale else [])


def _jobs(repo: Repo) -> list[Any]:
    """The stages of dvc.yaml, that is without data.dvc."""
    return [stage for stage in repo.index.stages if stage.cmd]


def _outputs(stage: Any, root: Path) -> set[str]:
    """Paths below `root`, as they are called: a file, or a folder on the way, may be a link to elsewhere."""
    return {Path(os.path.relpath(out.fs_path, root.resolve())).as_posix() for out in stage.outs}


def _present(stage: Any, root: Path) -> set[str]:
    """Those outputs that lie where they should: a pruned run lacks some."""
    return {path for path in _outputs(stage, root) if (root / path).exists()}


def _is_new(stage: Any) -> bool:
    """Whether DVC lacks what the stage made: in its lock file, or, as in a fresh clone with that file, in its cache."""
    return any(stage.changed_entries()) or any(out.use_cache and out.changed_cache() for out in stage.outs)


def _is_stale(stage: Any) -> bool:
    """Whether DVC knows what the stage made, and knows it to be made from something else."""
    of_deps, of_outs, of_command = stage.changed_entries()
    return not of_outs and bool(of_deps or of_command)


def _is_pruned(changes: list[Any]) -> bool:
    """Whether a stage's status says that outputs were deleted, and nothing else."""
    return all(
        isinstance(change, dict)
        and change.keys() == {"changed outs"}
        and set(change["changed outs"].values()) == {"deleted"}
        for change in changes
    )


def _dump(stages: list[Any]) -> None:
    """Write the stages into their lock file, all at once; DVC itself writes over it, for seconds where it is large."""
    for file, group in groupby(stages, key=lambda stage: stage.dvcfile):
        path = Path(file.path).with_suffix(".lock")
        lock: dict[str, Any] = {"schema": "2.0"}
        if path.exists():
            lock |= parse_yaml(path.read_text(encoding="utf-8"), path.name)
        made = [to_lockfile(stage) for stage in group]
        entries = {name: entry for each in (lock.get("stages", {}), *made) for name, entry in each.items()}
        write_text(path, dumps_yaml({**lock, "stages": entries}))


@contextmanager
def repository(root: Path) -> Any:
    """The DVC repository of `root`; what DVC cannot do with it is told as a UserError."""
    try:
        with Repo(str(root)) as repo:
            yield repo
    except NotDvcRepoError:
        raise NoRepositoryError("no DVC repository here (`dvc init` makes one)") from None
    except LockError as error:
        raise UserError(f"DVC is at work in this repository; wait for it to end ({error})") from None
    except DvcException as error:
        raise UserError(f"dvc.yaml or dvc.lock could not be read: {error}") from None


def _snakemake(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Snakemake for its bookkeeping alone."""
    command = [sys.executable, "-m", "snakemake", "--quiet", "progress", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
