"""A try that learns from depth makes its ground truth first: one command, to the losses of the graph's three."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, edit_yaml
from nuscenes_root import SCENES, VERSION, write_root
from PIL import Image

from noisebox import graph
from noisebox.cli import launch
from noisebox.data import depth
from noisebox.data.nuscenes import Frame, read_nuscenes
from noisebox.errors import UserError

pytest_plugins = ("reported_fixtures",)

CommandLine = Callable[..., tuple[int, str, str]]
FOLDER = graph.depth_folder("train", "mini")
SMALL = depth.DepthSettings(36, 64)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: params/, and a miniature nuScenes root as dataset `mini`."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    edit_yaml(tmp_path / "params/experiment.yaml", scale="test", bev__pictures=[0])
    define(tmp_path, "mini", "nuscenes", SCENES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def define(here: Path, name: str, folder: str, scenes: dict[str, int]) -> None:
    """A dataset, and its root with label maps in a folder; of the same first scenes, roots hold the same."""
    root = write_root(here / folder, scenes)
    for split in ("train", "val"):
        for image in (root / "samples/CAM_FRONT").glob("*.jpg"):
            labels = np.arange(9800, dtype=np.uint8).reshape(98, 100) % 3
            (root / "ann_bev_dir" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(root / "ann_bev_dir" / split / f"{image.stem}.png")
    definition = {"kind": "nuscenes", "root": folder, "version": VERSION, "size": [36, 64]}
    path = here / graph.dataset_file(name)
    path.write_text(yaml.safe_dump({**definition, "classes": ["ground", "road", "car"]}))


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.npz")}


def test_one_command_comes_to_the_losses_of_three(here: Path, command_line: CommandLine) -> None:
    code, said, _ = command_line("train", "lss", "--scale", "test", "--dataset", "mini")
    assert code == 0 and f"{FOLDER}: 2 files, " in said and not (here / "depth_gt").exists()
    assert not (here / graph.data_manifest("bev")).exists()
    tried = (here / "tries/lss/test-mini-seed0/metrics.csv").read_bytes()
    assert b"Ldepth" in tried
    (here / "depth_gt/val").mkdir(parents=True)  # of another dataset
    code, said, _ = command_line("evaluate", "lss", "--scale", "test", "--dataset", "mini")
    assert (code, said) == (0, "tries/lss/test-mini-seed0/evaluation/results.tsv\n")
    assert (here / said.strip()).exists()
    made_by_try = {path.name: path.read_bytes() for path in (here / FOLDER).glob("*.npz")}
    edit_yaml(here / "params/scales/test.yaml", families__bev__dataset="mini")
    for command in (("data", "bev"), ("depth-gt", "--split", "train"), ("train", "lss")):
        assert command_line(*command)[0] == 0
    assert (here / graph.run_folder("lss", 0) / "metrics.csv").read_bytes() == tried
    assert {path.name: path.read_bytes() for path in (here / "depth_gt/train").glob("*.npz")} == made_by_try
    shutil.rmtree(here / "tries")
    assert command_line("train", "lss", "--iters", 2)[0] == 0
    assert not (here / "tries/depth_gt").exists(), "of this dataset the graph has made it"


def test_it_is_made_once_and_again_where_it_would_be_other(
    here: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = read_nuscenes(here / "nuscenes", VERSION).frames("train")
    first, last = (frame.stem for frame in frames)
    made: list[str] = []
    make, broken = depth._make, {last}

    def making(frame: Frame, folder: Path, settings: depth.DepthSettings) -> Path:
        if frame.stem in broken:
            raise UserError("the disk is full")
        made.append(frame.stem)
        return make(frame, folder, settings)

    monkeypatch.setattr(depth, "_make", making)

    def made_by_smoke() -> list[str]:
        made.clear()
        code, said, _ = command_line("smoke", "lss", "--dataset", "mini")
        assert code == (2 if broken else 0)
        assert said.splitlines()[-1:] == ([] if broken else ["tries/lss/mini-seed0/smoke.tsv"])
        assert stems(here / FOLDER) == (set() if broken else {first, last})
        return sorted(made)

    assert made_by_smoke() == [first]
    broken.clear()
    assert made_by_smoke() == [last], "what was made before stays"
    assert made_by_smoke() == []
    edit_yaml(here / graph.dataset_file("mini"), max_depth=20)
    assert made_by_smoke() == [first, last]
    points = np.fromfile(frames[0].sweep, np.float32)
    (points * 0.9).astype(np.float32).tofile(frames[0].sweep)
    assert command_line("data", "--dataset", "mini")[0] == 0
    assert made_by_smoke() == [first, last], "the tables say the same, and the sweep is as long as before"
    (here / FOLDER / f"{first}.npz").unlink()
    assert made_by_smoke() == [first, last]


def test_the_graphs_is_taken_only_where_it_has_every_frame(here: Path, command_line: CommandLine) -> None:
    edit_yaml(here / "params/scales/test.yaml", families__bev__dataset="mini")
    for command in (("data", "bev"), *(("depth-gt", "--split", split) for split in ("train", "val"))):
        assert command_line(*command)[0] == 0
    define(here, "more", "larger", {**SCENES, "scene-0553": 1, "scene-0916": 1})
    graphs, tries = stems(here / "depth_gt/train"), here / graph.depth_folder("train", "more")
    code, said, told = command_line("train", "lss", "--dataset", "more", "--iters", 2)
    assert code == 0, told
    assert f"{graph.depth_folder('train', 'more')}: 3 files, " in said
    assert graphs < stems(tries) and stems(here / "depth_gt/train") == graphs
    assert command_line("evaluate", "lss", "--dataset", "more")[0] == 0
    maps = np.load(here / "tries/lss/more-seed0/evaluation/maps.npz")
    assert maps["depth_0"].any(), "of the image that is shown, if not of all, the graph has made it"


def test_nothing_of_a_dataset_before_is_published(here: Path, command_line: CommandLine) -> None:
    """Its making was killed, and so left files in the folder that this one's grow in."""
    define(here, "more", "larger", {**SCENES, "scene-0553": 1})
    depth.make_depth_gt(read_nuscenes(here / "larger", VERSION).frames("train"), here / "depth_gt/work/train", SMALL)
    edit_yaml(here / "params/scales/test.yaml", families__bev__dataset="mini")
    for command in (("data", "bev"), ("depth-gt", "--split", "train")):
        assert command_line(*command)[0] == 0
    frames = read_nuscenes(here / "nuscenes", VERSION).frames("train")
    assert stems(here / "depth_gt/train") == {frame.stem for frame in frames}
    assert len((here / "depth_gt/train.tsv").read_text().splitlines()) == 1 + len(frames)


def test_it_is_there_before_other_processes_start(
    here: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, set[str]]] = []
    monkeypatch.setattr(launch, "start", lambda count: started.append((count, stems(here / FOLDER))) or 0)
    command = ("train", "lss", "--dataset", "mini", "--processes", 2)
    assert command_line(*command)[0] == 0
    ((count, there),) = started
    assert count == 2 and len(there) == 2


def test_without_lidar_or_depth_in_the_loss(here: Path, command_line: CommandLine) -> None:
    """A root without sweeps is told; one that nobody looks at need not be made."""
    assert command_line("train", "lss", "--dataset", "mini", "--iters", 2, "--set", "loss.depth_weight=0")[0] == 0
    assert not (here / "tries/depth_gt").exists()
    shutil.rmtree(here / "tries")
    shutil.rmtree(here / "nuscenes/samples/LIDAR_TOP")
    code, _, complaint = command_line("train", "lss", "--dataset", "mini")
    assert code == 2 and "LIDAR_TOP" in complaint and complaint.count("\n") == 1
    assert not list(here.glob("tries/depth_gt/**/*.npz"))
