"""`noisebox merge`: the way out where git leaves conflicts in what the engines write: dvc.lock, data.dvc, the report.

An entry of dvc.lock is one claim: this came out of that. So entries are merged whole, and .gitattributes keeps git from
joining their lines. Of a file in conflict git has three versions: the common ancestor's, ours and theirs.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx
from dvc.utils.serialize import dumps_yaml, parse_yaml

from noisebox import graph
from noisebox.engines import repository
from noisebox.errors import UserError
from noisebox.files import write_text

LOCK = "dvc.lock"
BASE, OURS, THEIRS = "1", "2", "3"  # as git numbers the versions of a file in conflict

Entries = Mapping[str, Any]  # of a dvc.lock, by the stage's name


def merge(root: Path) -> list[str]:
    """Settle the conflicts in what the engines write and `git add` it; returns what was said.

    A stage that one side alone made is as that side has it. Of a stage that both made, each from something else, the
    entry stays that was made from what the merged tree holds; where neither was, ours stays, and the engines see that
    it is stale. Files in reports/ are as their entry that stays has them.

    Raises UserError when other files are in conflict, since what they say decides, and where there is no repository.
    """
    conflicts = _conflicts(root)
    reports = {path for path in conflicts if path.startswith(f"{graph.REPORTS}/")}
    if by_hand := sorted(conflicts.keys() - reports - {LOCK, graph.DATA_PIN}):
        raise UserError(
            f"{', '.join(by_hand)}: these conflicts are yours to solve; do that, `git add` the files, and run "
            "`noisebox merge` again for what the engines write"
        )
    if not conflicts:
        return [f"no conflicts in {LOCK}, {graph.DATA_PIN} or the report"]
    with repository(root) as repo, repo.lock:
        for path, versions in conflicts.items():
            _take(root, path, OURS if OURS in versions else THEIRS)
        said = list(_merge_lock(root, repo, conflicts)) if LOCK in conflicts else []
    _git(root, "add", "--all", "--", *conflicts)
    if reports:
        said.append(f"{graph.REPORTS}/: each file in conflict is as its stage in {LOCK} has it")
    return [*said, "now: git commit, dvc pull, noisebox sync, and then either engine"]


def _merge_lock(root: Path, repo: Any, conflicts: Mapping[str, set[str]]) -> Iterator[str]:
    """Write the merged dvc.lock, and take data.dvc and each file in reports/ from that side which its stages are from;
    yields what was done."""
    locks = {version: _read_lock(root, version) for version in conflicts[LOCK]}
    base, ours, theirs = (locks.get(version, {}).get("stages", {}) for version in (BASE, OURS, THEIRS))
    merged, contested = three_way(base, ours, theirs)
    stale = _settle(repo, merged, {name: [side[name] for side in (ours, theirs) if name in side] for name in contested})
    write_text(root / LOCK, dumps_yaml({**locks.get(THEIRS, {}), **locks.get(OURS, {}), "stages": merged}))
    for path in (path for path, versions in conflicts.items() if path != LOCK and THEIRS in versions):
        if _behind(path, merged) == _behind(path, theirs) != _behind(path, ours):
            _take(root, path, THEIRS)
    new = sum(entry != ours.get(name) for name, entry in merged.items())
    yield f"{LOCK}: {len(merged)} stages, {new} of them from theirs"
    if stale:
        yield f"made on both sides, not known to fit the merge, and so ours until made anew: {', '.join(stale)}"


def _behind(path: str, entries: Entries) -> dict[str, Any]:
    """The entries of the stages that a file is from; data.dvc belongs to the stages `data`."""
    if path == graph.DATA_PIN:
        return {name: entry for name, entry in entries.items() if name.partition("@")[0] == "data"}
    return {
        name: entry
        for name, entry in entries.items()
        if any(path == out["path"] or path.startswith(f"{out['path']}/") for out in entry.get("outs", []))
    }


def three_way(base: Entries, ours: Entries, theirs: Entries) -> tuple[dict[str, Any], list[str]]:
    """Merge entry by entry: what one side alone added, changed or removed counts.

    Returns the entries, and the names of those that each side changed in its own way; these are ours for now, or
    theirs where we have none.
    """
    merged, contested = {}, []
    for name in dict.fromkeys([*ours, *theirs]):
        before, here, there = base.get(name), ours.get(name), theirs.get(name)
        if here != there and before not in (here, there):
            contested.append(name)
            entry = here or there
        else:
            entry = there if here == before else here
        if entry is not None:
            merged[name] = entry
    return merged, contested


def _settle(repo: Any, merged: dict[str, Any], contested: Mapping[str, Sequence[Any]]) -> list[str]:
    """Enter of each contested stage the candidate that the merged tree would give; returns the stages without one."""
    stale = []
    for stage in reversed(list(networkx.topological_sort(repo.index.graph))):  # what a stage depends on comes first
        if stage.cmd and stage.name in contested:
            made = {
                out["path"]: None if name in stale else out.get("md5")
                for name, entry in merged.items()
                for out in entry.get("outs", [])
            }
            fitting = [entry for entry in contested[stage.name] if _is_current(stage, entry, made)]
            merged[stage.name] = (fitting or contested[stage.name])[0]
            stale += [] if fitting else [stage.name]
    return stale


def _is_current(stage: Any, entry: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether an entry was made by the stage's command from its dependencies: from what the merged lock says of those
    that stages make, from the working tree's of others. Of a folder that stages fill it cannot be told; then it is not.
    """
    was = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])} | entry.get("params", {})
    now: dict[str, Any] = {}
    for dep in stage.deps:
        path = dep.def_path
        if path in made:
            now[path] = made[path]
        elif dep.exists and not any(out.startswith(f"{path}/") for out in made):
            now[path] = dep.get_hash().value
    return bool(entry["cmd"] == stage.cmd and was == now)


def _read_lock(root: Path, version: str) -> dict[str, Any]:
    return dict(parse_yaml(_git(root, "show", f":{version}:./{LOCK}"), LOCK))


def _conflicts(root: Path) -> dict[str, set[str]]:
    """The versions that git has of each file in conflict, by path below `root`."""
    found: dict[str, set[str]] = {}
    for line in _git(root, "ls-files", "--unmerged", "-z").split("\0")[:-1]:
        facts, path = line.split("\t", maxsplit=1)
        found.setdefault(path, set()).add(facts.split()[-1])
    return found


def _take(root: Path, path: str, version: str) -> None:
    """Put a version of a file in conflict into the working tree."""
    _git(root, "checkout", {OURS: "--ours", THEIRS: "--theirs"}[version], "--", path)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
