"""`noisebox diagnose` and `noisebox show-bev` by the command line: verdicts that were planted, maps of the model."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bev_reported import LABELS, write_evaluation
from conftest import ROOT, edit_yaml
from PIL import Image

from noisebox import graph
from noisebox.config import RunConfig, Sampling, resolve
from noisebox.config.experiment import BevLine
from noisebox.data.bev import WORLD_CLASSES, WORLD_VERSION
from noisebox.data.bev_loader import evaluation_batches
from noisebox.data.catalog import prepare_dataset
from noisebox.errors import UserError
from noisebox.evaluation import ongoing
from noisebox.evaluation.bev import evaluate, measure
from noisebox.evaluation.ongoing import Ongoing
from noisebox.models import build_model
from noisebox.report.bev_pictures import read_maps
from noisebox.structures import BevBatch
from noisebox.tasks.bev import BevTask
from noisebox.training.checkpoint import load_model, save_checkpoint

pytest_plugins = ("reported_fixtures",)
CommandLine = Callable[..., tuple[int, str, str]]

# Of label values 0 background, 1 road, 2 car, how many cells were predicted as each.
HEALTHY = {"0": [500, 20, 5], "1": [30, 300, 0], "2": [2, 0, 33], "255": [400, 100, 0]}
PLANTED = {
    "fine": HEALTHY,
    "collapsed": {"0": [600, 0, 0], "1": [330, 0, 0], "2": [35, 0, 1]},
    "labels out of range": {**HEALTHY, "7": [0, 9, 0]},
    "classes never predicted": {**HEALTHY, "0": [525, 0, 0], "2": [30, 5, 0], "1": [30, 300, 0]},
    "nothing labelled": {"255": [50, 3, 9]},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verdict", PLANTED)
def test_a_planted_verdict_is_told(here: Path, command_line: CommandLine, verdict: str) -> None:
    write_evaluation(here, "lss", 2, {(0, 1): 40.0}, cells=PLANTED[verdict])
    code, said, _ = command_line("diagnose", "lss", "--seed", 2)
    assert code == (0 if verdict == "fine" else 1)
    assert f"verdict: {verdict}\n" in said
    assert "\x1b" not in said and "│" not in said
    assert said.startswith("lss seed2, 1 sampling step, eval seed 0\n")


def test_the_tables_of_a_diagnosis(here: Path, command_line: CommandLine) -> None:
    """By hand: of 890 cells that count 532 are said to be background, and 500 of the 557 that are or are said to be."""
    write_evaluation(here, "lss", 0, {(0, 1): 40.0}, cells=HEALTHY)
    _, said, _ = command_line("diagnose", "lss")
    rows = [line.split() for line in said.splitlines()]
    assert ["background", "58.99", "59.78", "89.77"] in rows
    assert ["car", "3.93", "4.27", "82.50"] in rows
    assert ["road", "9.1", "90.9", "0.0"] in rows
    assert "mIoU 85.99, accuracy 93.60 (0–100)\n36.0 % of all cells count nowhere\n" in said


def test_a_diagnosis_is_of_all_eval_seeds_at_the_steps_asked_for(here: Path, command_line: CommandLine) -> None:
    folder = write_evaluation(here, "diffbev", 0, {(seed, steps): 40.0 for steps in (1, 5) for seed in (0, 3)})
    content = json.loads((folder / "confusion.json").read_text())
    for entry, cells in zip(content["counts"], ([9, 0, 0], [7, 1, 1], [0, 9, 0], [3, 6, 0]), strict=True):
        entry["cells"] = {"0": cells, "1": [0, 1, 0]}
    (folder / "confusion.json").write_text(json.dumps(content))
    assert "diffbev seed0, 5 sampling steps, eval seeds 0, 3\n" in command_line("diagnose", "diffbev")[1]
    for steps, row in ((1, ["88.9", "5.6", "5.6"]), (5, ["16.7", "83.3", "0.0"])):
        _, said, _ = command_line("diagnose", "diffbev", "--steps", steps)
        assert ["background", *row] in [line.split() for line in said.splitlines()]
    code, _, error = command_line("diagnose", "diffbev", "--steps", 2)
    assert (code, "has no counts at 2 sampling steps, but at 1, 5" in error) == (2, True)


def test_what_cannot_be_diagnosed(here: Path, command_line: CommandLine) -> None:
    shutil.copytree(ROOT / "params", here / "params")
    code, _, error = command_line("diagnose", "baseline")
    assert (code, "baseline detects boxes; noisebox diagnose is for lineages of family bev" in error) == (2, True)
    code, _, error = command_line("diagnose", "lss", "--seed", 1)
    assert (code, "noisebox evaluate lss --seed 1" in error) == (2, True)
    folder = write_evaluation(here, "lss", 1, {(0, 1): 40.0}, labels={**LABELS, "ignore_index": 300})
    code, _, error = command_line("diagnose", "lss", "--seed", 1)
    assert code == 2
    assert f"{folder.relative_to(here)}/confusion.json: ignore_index: " in error


# Maps of the model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with checkpoints of lss and diffbev at scale `test`, untrained."""
    root = tmp_path_factory.mktemp("bev")
    shutil.copytree(ROOT / "params", root / "params")
    edit_yaml(root / graph.dataset_file("world_bev_test"), val=2)
    edit_yaml(root / graph.EXPERIMENT, scale="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        prepare_dataset("world_bev_test", manifest_file=graph.data_manifest("bev"))
        for lineage in ("lss", "diffbev"):
            config = resolve(lineage, 0, "test")
            _save(config, BevTask(config).classes)
        yield root


def _save(config: RunConfig, classes: tuple[str, ...]) -> None:
    """Weights as they were drawn, but for the fusion, which starts at zero and would hide what is denoised, and the
    last layer, whose bias would hide all else."""
    state = build_model(config, len(classes)).state_dict()
    rng = torch.Generator().manual_seed(0)
    for name in ("diffusion.fusion.output.weight", "head.classify.weight"):
        if name in state:
            state[name] = torch.randn(state[name].shape, generator=rng)
    state["head.classify.bias"].zero_()
    path = Path(graph.checkpoint(config.lineage, config.seed))
    path.parent.mkdir(parents=True)
    content = {"model": state, "config": config.model_dump(mode="json"), "classes": list(classes), "iteration": 1}
    save_checkpoint(path, content)
    (path.parent / "metrics.csv").write_text("mode,phase,step,loss,lr,mIoU\n")
    (path.parent / "run.json").write_text(json.dumps({"iterations": 1}))


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def drives(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """The label maps, by split, of a copy of the repository where the dataset is the user's, to be changed in place."""
    root = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(root)
    definition = {"kind": "nuscenes", "root": "data/world_bev_test", "version": WORLD_VERSION, "size": [64, 80]}
    definition |= {"classes": list(WORLD_CLASSES)}
    (root / graph.dataset_file("world_bev_test")).write_text(yaml.safe_dump(definition))
    prepare_dataset("world_bev_test", manifest_file=graph.data_manifest("bev"))
    return {split: sorted(Path("data/world_bev_test/ann_bev_dir", split).iterdir()) for split in ("train", "val")}


def change(path: Path, into: Callable[[np.ndarray], np.ndarray]) -> None:
    with Image.open(path) as image:
        changed = into(np.array(image))
    Image.fromarray(changed).save(path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_map_of_another_size_than_the_grid_is_named_before_a_training(
    drives: dict[str, list[Path]], split: str, command_line: CommandLine
) -> None:
    """Turned over, it has as many cells as the grid."""
    change(drives[split][1], lambda labels: np.ascontiguousarray(labels.T))
    for verb in ("train", "evaluate"):
        code, _, said = command_line(verb, "lss")
        assert code == 2
        assert f"{drives[split][1]} has 100 rows and 98 columns, but model.grid has 98 and 100" in said
    change(drives[split][1], lambda labels: labels[:50, :50])
    with pytest.raises(UserError, match="has 50 rows and 50 columns"):
        BevTask(resolve("lss", 0, "test"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_value_that_means_nothing_is_named_with_its_file(drives: dict[str, list[Path]], split: str) -> None:
    """Also where the map was changed after it was described, then as soon as it is read."""
    task = BevTask(resolve("lss", 0, "test", overrides={"loss.depth_weight": 0}))
    path = drives[split][1]
    change(path, lambda labels: np.where(labels == 0, 77, labels).astype(np.uint8))
    with pytest.raises(UserError, match=rf"{path} has the value 77; 0 to 5 fit, .* model\.labels\.ignore_index 255"):
        list(task.batches(0, 4) if split == "train" else evaluation_batches(task.val, task.config))
    prepare_dataset("world_bev_test", manifest_file=graph.data_manifest("bev"))
    with pytest.raises(UserError, match=rf"{path} has the value 77"):
        BevTask(task.config)
    change(path, lambda labels: np.where(labels == 77, 0, labels).astype(np.uint8))
    BevTask(task.config)


def test_maps_shown_are_those_of_the_evaluation(project: Path, command_line: CommandLine) -> None:
    """Images 3 and 1 alone, in another batch, get the noise that they have among all."""
    checkpoint = Path(graph.checkpoint("diffbev", 0))
    model, config, state = load_model(checkpoint)
    protocol = {"eval_seeds": [4], "sample_steps": [2]}
    line = BevLine(pictures=[0, 1, 2, 3], protocol=protocol)
    evaluate(model, config, checkpoint, line, BevTask(config).val, state["classes"])
    every = {sample.place: sample for sample in read_maps(Path("evals/diffbev/seed0/maps.npz")).samples}
    how = ("--steps", 2, "--eval-seed", 4)
    code, said, _ = command_line("show-bev", "lss", "diffbev", "--indices", 3, 1, "--out", "some", *how)
    assert (code, said.split()) == (0, ["some/sample_0003.png", "some/sample_0001.png"])
    shown = read_maps(Path("some/diffbev.npz"))
    assert (shown.eval_seed, shown.sample_step, [sample.place for sample in shown.samples]) == (4, 2, [3, 1])
    for sample in shown.samples:
        for part in ("name", "image", "truth", "predicted"):
            assert np.array_equal(getattr(sample, part), getattr(every[sample.place], part)), part
    baseline = read_maps(Path("some/lss.npz"))
    assert (baseline.eval_seed, baseline.sample_step) == (0, 1)
    command_line("show-bev", "diffbev", "--indices", 3, "--out", "other", "--steps", 2, "--eval-seed", 5)
    (other,) = read_maps(Path("other/diffbev.npz")).samples
    assert len(np.unique(other.predicted)) > 2
    assert not np.array_equal(other.predicted, every[3].predicted)


def test_the_cells_of_an_eval_seed_that_is_listed_twice_count_once(project: Path) -> None:
    checkpoint = Path(graph.checkpoint("diffbev", 0))
    model, config, state = load_model(checkpoint)
    split, grid = BevTask(config).val, config.model.grid
    line = BevLine(protocol={"eval_seeds": [4, 0, 4], "sample_steps": [1]})
    evaluate(model, config, checkpoint, line, split, state["classes"])
    content = json.loads(Path("evals/diffbev/seed0/confusion.json").read_text())
    cells = {entry["eval_seed"]: sum(map(sum, entry["cells"].values())) for entry in content["counts"]}
    assert cells == dict.fromkeys((4, 0), len(split) * grid.rows * grid.columns)


def test_damaged_weights_are_told_with_the_image(project: Path) -> None:
    model, config, _ = load_model(Path(graph.checkpoint("lss", 0)))
    with torch.no_grad():
        next(model.head.parameters()).view(-1)[0] = torch.nan
    split = BevTask(config).val
    with pytest.raises(
        UserError, match=rf"lss, .*: scores of a map's cells are not finite.*image {split.frames[0].stem}, 1"
    ):
        measure(model, split, config, {Sampling(steps=1): [0]})


def test_a_measurement_goes_on_to_the_same_counts_and_maps(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ongoing, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(ongoing, "SHARE", math.inf)  # saved after every batch
    model, config, _ = load_model(Path(graph.checkpoint("diffbev", 0)))
    config, split = config.model_copy(update={"eval_batch_size": 1}), BevTask(config).val
    asked, pictured = {Sampling(steps=2): [4, 0]}, (3, 0)
    whole = measure(model, split, config, asked, pictured=pictured)
    seen: list[int] = []

    def encode(batch: BevBatch, encode: Callable[[BevBatch], Any] = model.encode) -> Any:
        if len(seen) == 2:
            seen.append(-1)
            raise InterruptedError
        seen.extend(batch.image_ids)
        return encode(batch)

    monkeypatch.setattr(model, "encode", encode)
    for _ in range(2):
        with suppress(InterruptedError):
            again = measure(model, split, config, asked, pictured=pictured, ongoing=Ongoing(Path("work/0.pth")))
    measure(model, split, config, asked, pictured=(1,), ongoing=Ongoing(Path("work/0.pth")))
    assert seen[-4:] == [0, 1, 2, 3], "other maps were not kept"
    del seen[-4:]
    assert seen == [0, 1, -1, 2, 3]
    assert all(np.array_equal(again.counts[key], counts) for key, counts in whole.counts.items())
    assert again.metrics == whole.metrics
    for key, maps in whole.maps.items():
        assert maps.keys() == again.maps[key].keys() == {0, 3}
        assert all(np.array_equal(again.maps[key][place], map_) for place, map_ in maps.items())


def test_what_cannot_be_shown_is_told_and_nothing_is_written(project: Path, command_line: CommandLine) -> None:
    for arguments, sentence in {
        ("lss", "--indices", "0", "9"): "world_bev_test/val has no image 9; it has 4, counted from 0",
        ("lss", "--indices", "one"): "--indices takes whole numbers from 0 on",
        ("lss", "3"): "'3' is no lineage",
        ("7", "--indices", "3"): "show-bev needs a lineage and an image",
        ("lss+diffbev", "--indices", "0"): "noisebox train lss+diffbev --seed 0",
    }.items():
        code, _, error = command_line("show-bev", *arguments, "--out", "never")
        assert (code, sentence in error) == (2, True), (arguments, error)
    assert not Path("never").exists()


@pytest.mark.parametrize("verb", ["predict", "show"])
def test_where_boxes_are_drawn_maps_are_refused(
    project: Path, tmp_path: Path, command_line: CommandLine, verb: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    code, _, error = command_line(verb, "lss", "--images", tmp_path / "image.png", "--out", "never")
    assert code == 2
    assert "runs/lss/seed0/model_final.pth segments maps and detects no boxes: use noisebox show-bev" in error
    assert not Path("never").exists()
