"""Where a run comes from: the fingerprint that decides whether it may be gone on with, and the record in `run.json`."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from noisebox import graph, processes
from noisebox.config import RunConfig
from noisebox.files import hashes_of, sha256, write_json

# Keys that no weight of the result depends on, so that a training may go on when they change.
HARMLESS = (
    "config.solver.log_every",  # which rows metrics.csv has
    "config.solver.checkpoint_every",  # how much a kill can cost
    "config.solver.checkpoint_epochs",  # what is kept beside
    "config.solver.eval_every",  # which steps are measured, and may be the best
    "config.eval_batch_size",  # measured alike, but for rounding
    "config.workers",  # who makes the batches
    "config.image.cache_mib",  # where images wait
    "config.smoke.iterations",  # another run
    "config.smoke.images",
    "processes",  # who computes which part of a batch: the same, but for rounding
)
# Tracked files that an engine rewrites while it runs, so that a commit without them is still what computes.
REWRITTEN = (graph.REPORTS, "dvc.lock")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "noisebox")


def fingerprint(family: str, parent: Path | None, teacher: Path | None, data_hash: str, root: Path) -> dict[str, Any]:
    """What the bytes of a training's result depend on besides its configuration: the hashes of the parent's and the
    teacher's checkpoints, of the data and of each file of code behind `noisebox train`, and how many processes share
    it."""
    return {
        "parent": sha256(parent) if parent else None,
        "teacher": sha256(teacher) if teacher else None,
        "data": data_hash,
        "code": hashes_of(graph.code_files("train", family, root), root),
        "processes": processes.count(),
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The dotted names of what differs between two fingerprints, those that matter first."""
    old, new = _flat(before), _flat(now)
    changed = [name for name in {**new, **old} if name not in old or name not in new or old[name] != new[name]]
    return sorted(changed, key=lambda name: name in HARMLESS)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In a few words what differs between two fingerprints; None when they are equal."""
    old, new = _flat(before), _flat(now)
    changed = changes(before, now)
    if not changed:
        return None
    first = changed[0]
    words = f"{first} changed"
    if first.startswith(("config.", "processes")):
        words = f"{first.removeprefix('config.')} was {old.get(first)}, is now {new.get(first)}"
    return words + (f", and {len(changed) - 1} more" if changed[1:] else "")


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return flat


class Record:
    """`run.json`: facts that are the same however often the run was interrupted, and under `timing` those that are not.

    It is written with every checkpoint, so that a resumed run knows what it has taken before.
    """

    def __init__(self, path: Path, facts: dict[str, Any], resumed: bool) -> None:
        self.path, self.facts, self._started = path, facts, time.monotonic()
        self._before = _timing(path) if resumed else {}
        self._resumed = self._before.get("resumed", 0) + resumed

    def write(self) -> None:
        here = time.monotonic() - self._started
        total = self._before.get("wall_s_total", 0.0) + here
        written = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        timing = {"wall_s": round(here, 3), "wall_s_total": round(total, 3), "resumed": self._resumed}
        write_json(self.path, {**self.facts, "timing": {**timing, "written": written}})


def _timing(path: Path) -> dict[str, Any]:
    try:
        timing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["timing"]
    except (OSError, ValueError, KeyError):
        return {}
    return timing


def environment(config: RunConfig, root: Path) -> dict[str, Any]:
    """Commit, packages and hardware, for `run.json`."""
    return {
        "git_commit": _git(root, "rev-parse", "--verify", "HEAD"),
        "git_dirty": _changed(root),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": {
            "cpu": _cpu(),
            "instructions": torch.backends.cpu.get_cpu_capability(),  # by which torch chooses kernels: AVX2, AVX512
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if config.device == "cuda" else None,
        },
        "threads": config.threads,
        "processes": processes.count(),
    }


def _changed(root: Path) -> bool:
    """Whether a tracked file is other than in the commit, but for those that engines rewrite."""
    without = [f":(exclude){name}" for name in REWRITTEN]
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", *without))


def _git(root: Path, *command: str) -> str | None:
    """What git answers; None outside a repository, before its first commit, or where there is no git."""
    try:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    names = Path("/proc/cpuinfo")
    if sys.platform == "linux" and names.exists():
        for line in names.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
