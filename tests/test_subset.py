"""What of a dataset a training sees: subsets that are the same for every seed, and iterations counted in epochs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import content, write
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from noisebox.config import resolve
from noisebox.config.families import SECTIONS
from noisebox.data.coco import read_split
from noisebox.errors import UserError
from noisebox.tasks import Task, open_task, repeated, trained_on

RECIPES = {"diffusiondet": "baseline", "detr": "detr", "yolc": "yolc", "bev": "lss"}


@dataclass(frozen=True)
class Numbers:
    """A split whose images are numbers."""

    held: tuple[int, ...]
    name: str = "numbers/train"

    def __len__(self) -> int:
        return len(self.held)

    def only(self, places: list[int]) -> "Numbers":
        return Numbers(tuple(self.held[place] for place in places))


def chosen(count: int, **solver: object) -> tuple[int, ...]:
    overrides = {f"solver.{key}": value for key, value in solver.items()}
    return trained_on(Numbers(tuple(range(count))), resolve("baseline", 0, "test", ROOT, overrides=overrides)).held


@given(count=st.integers(1, 300), seed=st.integers(0, 5), data=st.data())
def test_a_subset_is_drawn_once_in_order_and_lies_in_every_larger_one(
    count: int, seed: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, count))
    drawn = chosen(count, subset_size=size, subset_seed=seed)
    assert len(set(drawn)) == size and list(drawn) == sorted(drawn)
    assert set(drawn) <= set(chosen(count, subset_size=data.draw(st.integers(size, count)), subset_seed=seed))
    assert chosen(count, subset_size=size, subset_seed=seed, overfit=True) == tuple(range(size))


def test_a_subset_depends_on_its_own_seed_alone() -> None:
    drawn = {chosen(200, subset_size=20, subset_seed=seed) for seed in range(4)}
    assert len(drawn) == 4
    assert chosen(200, subset_size=20) == chosen(200, subset_size=20, batch_size=8, base_lr=0.5)
    with pytest.raises(UserError, match=r"^solver.subset_size 21 is more than numbers/train has: 20 images$"):
        chosen(20, subset_size=21)


@pytest.mark.parametrize("family", SECTIONS)
def test_every_familys_task_trains_on_the_subset(family: str, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(datasets)

    def opened(seed: int = 0, **solver: object) -> Task:
        overrides = {"image.flip": 0} | {f"solver.{key}": value for key, value in solver.items()}
        return open_task(resolve(RECIPES[family], seed, "test", overrides=overrides))

    whole = opened(epochs=1.5, batch_size=4)
    assert whole.config.solver.iterations == -(-3 * whole.images // 8)
    some = [opened(seed, epochs=1.5, batch_size=4, subset_size=3, subset_seed=1) for seed in (0, 1)]
    assert (some[0].images, some[0].config.solver.iterations, some[0].config.solver.epochs) == (3, 2, 1.5)
    shown = [set(images_of(task.batches(0, 6))) for task in (whole, *some)]
    assert len(shown[0]) == min(24, whole.images) and len(shown[1]) == 3
    assert shown[1] == shown[2]
    first = opened(overfit=True, subset_size=3, batch_size=2)
    stream = images_of(first.batches(0, 6))
    assert len(set(stream)) == 3 and stream == stream[:3] * 4
    assert first.val is first.train


def images_of(batches: Iterable[Any]) -> list[bytes]:
    """Every image of some batches, in order."""
    return [image.numpy().tobytes() for batch in batches for image in batch.images]


def test_an_image_with_a_rare_class_is_repeated(tmp_path: Path) -> None:
    """Of ten images nine have a dog, four of them a cat too, the last one nothing: with t = 0.5, r of a cat's image is
    the square root of 0.5 / 0.4; a crowd of cows makes no cow."""
    coco = content(10)
    boxes = [(k, 7) for k in range(9)] + [(k, 2) for k in range(4)] + [(8, 5)]
    coco["annotations"] = [
        {"id": place, "image_id": 10 + k, "category_id": label, "bbox": [4, 6, 10, 20], "iscrowd": int(label == 5)}
        for place, (k, label) in enumerate(boxes)
    ]
    split = read_split("signs/train", *write(tmp_path, "train", coco))
    rare = 1.25**0.5
    assert split.repeat_factors(0.5).tolist() == pytest.approx([rare] * 4 + [1.0] * 6)
    assert split.repeat_factors(0.4).tolist() == [1.0] * 10
    places = repeated(np.array([1.0, 2.5, 1.0, 3.0]), 0)
    assert places in ([0, 1, 1, 2, 3, 3, 3], [0, 1, 1, 1, 2, 3, 3, 3])
    many = repeated(np.full(2000, rare), 1)
    assert many != repeated(np.full(2000, rare), 2) and many == repeated(np.full(2000, rare), 1)
    assert set(many) == set(range(2000)) and abs(len(many) / 2000 - rare) < 0.03


@pytest.mark.parametrize("family", ["diffusiondet", "bev"])
def test_a_task_repeats_what_is_rare(family: str, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(datasets)
    config = resolve(RECIPES[family], 0, "test", overrides={"solver.repeat_threshold": 1.0, "solver.epochs": 1})
    if family == "bev":
        with pytest.raises(UserError, match="repeat_threshold counts objects by class, and a map has none"):
            open_task(config)
        return
    task: Any = open_task(config)
    assert task.images == len(task.train) > 8 and {record.id for record in task.train.images} == set(range(1, 9))
    assert task.config.solver.iterations == -(-task.images // 2)
    assert len(task.val) == 4
