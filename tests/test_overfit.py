"""Every family learns a few images by heart: targets, losses and decoding agree; what does not learn is told why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_files
import pytest
import yaml

from noisebox.config import resolve
from noisebox.data.catalog import prepare_dataset
from noisebox.tasks import open_task, with_batch_size
from noisebox.training import batch_size
from noisebox.training.overfit import Memory, overfit

pytest_plugins = ("reported_fixtures",)

# Enough rays, and depths on each, to fill the map's cells.
FINE_LIFT = {
    "solver.subset_size": 1, "solver.batch_size": 1, "solver.max_iter": 280, "solver.base_lr": 1e-2,
    "model.lift": {"stride": 4, "step": 1}, "model.hidden_dim": 16, "model.bev_channels": 16,
    "model.head_channels": [16, 32],
}  # fmt: skip
SOLVER = {
    "solver.overfit": True, "solver.decay_at": [0.85], "solver.warmup_iters": 10, "solver.log_every": 20,
    "solver.checkpoint_every": 1000,  # none on the way: they take as long as the training
}  # fmt: skip
# Recipe: what lets its family at scale `test` learn in seconds.
FAMILIES: dict[str, dict[str, Any]] = {
    "baseline": {
        "dataset": "signs", "solver.subset_size": 2, "solver.max_iter": 400, "solver.base_lr": 1e-3,
        "model.hidden_dim": 64, "model.dim_dynamic": 16, "model.dim_feedforward": 128, "model.num_proposals": 40,
        "model.pooler_resolution": 5, "model.sampling_ratio": 1,
    },
    "detr": {
        "dataset": "signs", "solver.subset_size": 2, "solver.max_iter": 200, "solver.base_lr": 1e-3,
        "model.hidden_dim": 64, "model.dim_feedforward": 128,
    },
    "yolc": {
        "solver.subset_size": 1, "solver.batch_size": 1, "solver.max_iter": 200, "solver.base_lr": 5e-3,
        "solver.clip_norm": 10.0, "model.hidden_dim": 16, "model.heatmap_channels": 2, "model.train_on_crops": 0,
    },
    "lss": FINE_LIFT,
    "diffbev": FINE_LIFT,
}  # fmt: skip


@pytest.fixture
def here(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the datasets of scale `test`, and in place of the street `signs`: two images with one
    bright sign each, whose category ids are far from 0 and 1."""
    for name in ("params", "data"):
        shutil.copytree(datasets / name, tmp_path / name)
    (tmp_path / "depth_gt").symlink_to(datasets / "depth_gt")
    monkeypatch.chdir(tmp_path)
    boxes = {1: (7, [8.0, 10.0, 40.0, 36.0]), 2: (2, [50.0, 20.0, 32.0, 38.0])}
    coco = {
        "images": [{"id": key, "file_name": f"{key}.png", "width": 96, "height": 64} for key in boxes],
        "annotations": [
            {"id": key, "image_id": key, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
            for key, (category, bbox) in boxes.items()
        ],
        "categories": [{"id": 7, "name": "stop"}, {"id": 2, "name": "yield"}],
    }
    files = {}
    for split in ("train", "val"):
        annotations, images = coco_files.write(tmp_path / "signs", split, coco)
        files[split] = {"images": str(images), "annotations": str(annotations)}
    (tmp_path / "params/datasets/signs.yaml").write_text(yaml.safe_dump({"kind": "coco", **files}))
    return tmp_path


@pytest.mark.parametrize("recipe", FAMILIES)
def test_every_family_knows_by_heart_what_it_was_shown(recipe: str, here: Path) -> None:
    overrides = {**SOLVER, **FAMILIES[recipe]}
    if "dataset" in overrides:
        prepare_dataset(overrides["dataset"])
    task = open_task(resolve(recipe, 0, "test", smoke=True, overrides=overrides))
    memory = overfit(task, here / "run")
    assert memory.learnt, memory
    assert memory.enough >= 90


def test_what_is_not_learnt_is_told_with_what_to_check(
    here: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    code, said, _ = command_line("overfit", "baseline", "--images", 2, "--iters", 4)
    assert code == 1
    first, term, *others, last = said.splitlines()
    assert first.startswith("baseline: only AP50 ") and first.endswith(" on the 2 images shown; check")
    assert term.startswith("- loss_") and " stayed high: " in term
    assert [line.split(":")[0] for line in others] == [
        "- category mapping", "- box frame and scale", "- learning rate", "- time",
    ]  # fmt: skip
    assert "peaked at 0.001; try --set solver.base_lr=0.003 and 0.000333" in said
    assert last == "tries/baseline/overfit/model_final.pth" and (here / last).exists()


def test_the_batch_size_may_be_auto(
    here: Path, command_line: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("overfit", "baseline", "--images", 2, "--iters", 1, "--set", "solver.batch_size=auto")
    code, _, told = command_line(*asked)
    assert code == 2 and "solver.batch_size auto needs device cuda" in told
    monkeypatch.setattr(batch_size, "with_largest_batch", lambda task, run: with_batch_size(task, 1))
    code, said, _ = command_line(*asked)
    assert code == 1 and said.startswith("batch_size auto: 1\nbaseline: only AP50 ")


def test_the_term_that_fell_least_is_named() -> None:
    memory = Memory("AP50", 12.0, 90.0, {"loss_ce": (2.0, 0.1), "loss_box": (8.0, 6.0), "loss_giou": (1.0, 0.7)})
    assert not memory.learnt and memory.stuck == "loss_box"
