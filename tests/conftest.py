"""A copy of the project at scale `test`, for tests that run the graph."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

# Small products over several threads, in several processes at once, mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test reads a clock, and none is repeated with other examples by chance.
settings.register_profile("noisebox", deadline=None, derandomize=True)
settings.load_profile("noisebox")

ROOT = Path(__file__).parent.parent
PARTS = (
    *("Snakefile", "dvc.yaml", ".dvcignore", ".gitattributes", ".gitignore"),
    *("workflow", "profiles", "params", "src", "code", "imported/README.md"),
)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """How many threads share a sum is part of its result: what a test sets is not left to the next."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch:
        torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # SQLite's connections may still be open


def fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1024))


@pytest.fixture
def toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Family `toy`, whose detector trains in milliseconds, among the families."""
    from toy_detector import register

    register(monkeypatch.setitem)


def edit_yaml(path: Path, **changes: object) -> None:
    """Set dotted keys (`solver__max_iter=3`) of a YAML file."""
    content = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = content
        for key in parents:
            place = place[key]
        place[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def small_experiment() -> dict[str, Any]:
    """`baseline` and `baseline+finetune` at scale `test`: what each key of params/experiment.yaml then says."""
    stages = yaml.safe_load((ROOT / "params/experiment.yaml").read_text())["parents"]
    lineages = ["baseline", "baseline+finetune"]
    return {
        "scale": "test",
        "train_seeds": [0, 1],
        "recipes": ["baseline", "finetune"],
        "scratch": ["baseline"],
        "parents": {recipe: [] for recipe in stages} | {"finetune": ["baseline"]},
        "lineages": lineages,
        "asked": {lineage: ["main"] for lineage in lineages},
        "protocols": {"main": {"eval_seeds": [0, 1], "sample_steps": [1, 2]}},
        "ablations": {},
        "searches": {},
        "tuned": [],
        "pictures": {"images": 6, "lineages": lineages},
        "data": ["detection"],
        "detr__recipes": [],
        "detr__scratch": [],
        "detr__parents": {"detr_finetune": []},
        "detr__lineages": [],
        "bev__recipes": [],
        "bev__scratch": [],
        "bev__parents": {"diffbev": []},
        "bev__depth_gt": [],
        "bev__lineages": [],
        "bev__searches": {},
        "aerial__recipes": [],
        "aerial__scratch": [],
        "aerial__parents": {"yolc_finetune": [], "yolc_kd": []},
        "aerial__lineages": [],
        "aerial__searches": {},
    }


def run(root: Path, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command in a project; by default it must succeed."""
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("checkout") / "project")


@pytest.fixture
def project(checkout: Path, tmp_path: Path) -> Path:
    """A fresh checkout at scale `test`, with its own git and DVC repositories, nothing made yet."""
    return shutil.copytree(checkout, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="session")
def new_project() -> Callable[[Path], Path]:
    return make_project


def make_project(root: Path) -> Path:
    root.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, root / part, symlinks=True, ignore=ignored)
        else:
            (root / part).parent.mkdir(exist_ok=True)
            shutil.copy(source, root / part)
    edit_yaml(root / "params/experiment.yaml", **small_experiment())
    run(root, "git", "init", "-q", "-b", "main")
    run(root, "git", "config", "user.email", "test@example.invalid")
    run(root, "git", "config", "user.name", "test")
    run(root, "dvc", "init", "-q")
    run(root, "dvc", "config", "core.analytics", "false")
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "start")
    return root


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params/, the datasets of scale `test`, and the depth that BEV trains on."""
    from noisebox import graph
    from noisebox.config import load_scale
    from noisebox.data.catalog import open_split, prepare_dataset
    from noisebox.data.depth_stage import make_depth

    root = tmp_path_factory.mktemp("datasets")
    shutil.copytree(ROOT / "params", root / "params")
    edit_yaml(root / "params/experiment.yaml", **small_experiment())
    for line in graph.LINE_NAMES:
        dataset = load_scale("test", root).dataset_of(line)
        prepare_dataset(dataset, root, manifest_file=graph.data_manifest(line))
        if line == "bev":
            make_depth(open_split(dataset, "train", root, graph.data_manifest(line)), "train", root, workers=1)
    return root
