"""Batches: pure functions of (seed, step), views that carry their boxes along, padding that depends on nothing else."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import HEIGHT, WIDTH, content, write
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from noisebox.config import ImageConfig, RunConfig, resolve
from noisebox.data.coco import CocoSplit, ImageRecord, read_image, read_split
from noisebox.data.loader import TrainingBatches, evaluation_batches, training_loader
from noisebox.data.transforms import View, resized, resized_hw, shown, targets_in, training_view
from noisebox.errors import UserError
from noisebox.structures import Batch, Targets

IMAGES = 7


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Seven images, two of them upright; image 12 holds two boxes, of which one is a crowd."""
    coco = content(IMAGES)
    for upright in (1, 5):
        coco["images"][upright] |= {"width": HEIGHT, "height": WIDTH}
    coco["annotations"] = coco["annotations"][:6]
    coco["annotations"][2]["iscrowd"] = 1
    file, images = write(tmp_path_factory.mktemp("signs"), "train", coco)
    return read_split("signs/train", file, images)


@pytest.fixture
def config() -> RunConfig:
    return changed(
        resolve("baseline", 5, "test", Path(__file__).parent.parent), image={"train_short_edges": [40, 48, 56]}
    )


def changed(config: RunConfig, **sections: Any) -> RunConfig:
    """The configuration with some keys changed, given as `section={key: value}` or `key=value`."""
    updates = {
        name: getattr(config, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return config.model_copy(update=updates)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one.targets, other.targets, strict=True)
    return (
        one.image_ids == other.image_ids
        and torch.equal(one.images, other.images)
        and torch.equal(one.sizes_hw, other.sizes_hw)
        and torch.equal(one.original_hw, other.original_hw)
        and all(torch.equal(value, vars(b)[name]) for a, b in pairs for name, value in vars(a).items())
        and len(one.stored) == len(other.stored)
        and all(torch.equal(a, b) for a, b in zip(one.stored, other.stored, strict=True))
    )


def test_images_without_an_object_teach_nothing(split: CocoSplit, config: RunConfig) -> None:
    empty = [place for place, record in enumerate(split.images) if not (~record.crowd).any()]
    assert 0 < len(empty) < len(split)
    with pytest.raises(UserError, match=r"train\.json: no image to train on has an object of the dataset's classes"):
        TrainingBatches(split.only(empty), config)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 2000), st.integers(1, 2000))
def test_resizing_keeps_the_limits(height: int, width: int, short: int, long: int) -> None:
    new = resized_hw(height, width, short, long)
    assert max(new) <= max(long, 1) and min(new) <= short
    assert min(new) == short or max(new) == long
    if min(new) > 20:
        assert new[0] / new[1] == pytest.approx(height / width, rel=0.06)


def test_published_sizes() -> None:
    """COCO's commonest sizes under short edge 800, long edge at most 1333."""
    assert resized_hw(480, 640, 800, 1333) == (800, 1067)
    assert resized_hw(427, 640, 800, 1333) == (800, 1199)
    assert resized_hw(640, 360, 800, 1333) == (1333, 750)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(24, 90), width=st.integers(24, 90), flip=st.booleans(),
    x=st.integers(6, 30), y=st.integers(6, 20), side=st.integers(8, 22),
)  # fmt: skip
def test_boxes_move_with_their_pixels(height: int, width: int, flip: bool, x: int, y: int, side: int) -> None:
    """A white square on black, shown in any view, still fills its box: the picture is the judge."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[:, y : y + side, x : x + side] = 255
    targets = Targets(torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32), torch.tensor([1]))
    view = View(height, width, flip)
    seen, moved = shown(image, view), targets_in(view, targets, (HEIGHT, WIDTH))
    assert seen.shape == (3, height, width) and seen.dtype == torch.uint8
    x1, y1, x2, y2 = moved.boxes_xyxy[0].tolist()
    white = seen[0].float() / 255
    assert (x2 - x1) * (y2 - y1) == pytest.approx(white.sum().item(), rel=0.03)
    mass = white / white.sum()
    centre_x = (mass.sum(0) * (torch.arange(width) + 0.5)).sum().item()
    centre_y = (mass.sum(1) * (torch.arange(height) + 0.5)).sum().item()
    assert centre_x == pytest.approx((x1 + x2) / 2, abs=0.15) and centre_y == pytest.approx((y1 + y2) / 2, abs=0.15)


def test_a_view_of_the_same_size_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.25, 2, 3, 4], [5, 5, 5.0005, 9], [20, 10, 30, 20]])
    targets = targets_in(View(20, 30), Targets(boxes, torch.tensor([0, 1, 2])), (20, 30))
    assert torch.equal(shown(image, View(20, 30)), image)
    assert torch.equal(targets.boxes_xyxy, boxes[[0, 2]]) and targets.labels.tolist() == [0, 2], "a sliver is dropped"
    assert type(targets.boxes_xyxy) is torch.Tensor


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.integers(3, 60), st.integers(3, 90), st.integers(3, 90), st.integers(0, 2**32 - 1))
def test_the_order_of_pixels_in_memory_changes_no_bit(
    rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    """Images are resized as they were decoded, pixel after pixel, and become float32 channel after channel."""
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8))
    image, view = pixels.permute(2, 0, 1), View(height, width, flip=True)
    seen = shown(image, view)
    assert torch.equal(seen, shown(image.contiguous(), view))
    padded, sizes = seen[None].contiguous(memory_format=torch.channels_last), torch.tensor([[height, width]])
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    scaled = Batch(padded, sizes, sizes, (0,), (nothing,)).to("cpu").images
    assert scaled.is_contiguous() and torch.equal(scaled[0], F.to_dtype(seen, torch.float32, scale=True))


def test_views_are_drawn_from_their_key() -> None:
    config = ImageConfig(train_short_edges=[10, 20, 30], max_edge=100, flip=0.25)
    views = [training_view(50, 60, config, 0, step, 3) for step in range(400)]
    assert views == [training_view(50, 60, config, 0, step, 3) for step in range(400)]
    assert views != [training_view(50, 60, config, 0, step, 4) for step in range(400)]
    assert views != [training_view(50, 60, config, 1, step, 3) for step in range(400)]
    assert np.mean([view.flip for view in views]) == pytest.approx(0.25, abs=0.07)
    shares = np.bincount([view.height // 10 for view in views], minlength=4)[1:] / 400
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)
    assert not any(training_view(50, 60, ImageConfig(flip=0), 0, step, 3).flip for step in range(50))


def test_a_step_is_a_function_of_seed_and_step(split: CocoSplit, config: RunConfig) -> None:
    batches = TrainingBatches(split, config)
    forward = [batches[step] for step in range(6)]
    again = TrainingBatches(split, config)
    assert all(same(again[step], forward[step]) for step in (5, 0, 3, 3))
    other = TrainingBatches(split, changed(config, seed=6))
    assert not all(same(other[step], forward[step]) for step in range(6))


@pytest.mark.parametrize("batch_size", [2, 3, 10])
def test_an_epoch_shows_every_image_once(split: CocoSplit, config: RunConfig, batch_size: int) -> None:
    batches = TrainingBatches(split, changed(config, solver={"batch_size": batch_size}))
    stream = [image_id for step in range(3 * IMAGES) for image_id in batches[step].image_ids]
    epochs = [tuple(stream[k : k + IMAGES]) for k in range(0, len(stream), IMAGES)]
    assert all(sorted(epoch) == [10 + k for k in range(IMAGES)] for epoch in epochs)
    assert len(set(epochs)) > 1, "epochs are shuffled anew"


def test_a_batch_is_what_its_docstring_says(split: CocoSplit, config: RunConfig) -> None:
    batches = TrainingBatches(split, changed(config, solver={"batch_size": IMAGES}, image={"flip": 0.0}))
    assert batches[0].images.dtype == torch.uint8
    batch = batches[0].to("cpu")
    assert batch.images.shape[0] == IMAGES and batch.images.dtype == torch.float32 and batch.images.is_contiguous()
    assert all(edge % 32 == 0 for edge in batch.images.shape[2:])
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    records = {record.id: record for record in split.images}
    for k, image_id in enumerate(batch.image_ids):
        record, (height, width) = records[image_id], batch.sizes_hw[k].tolist()
        assert batch.original_hw[k].tolist() == [record.height, record.width]
        assert batch.images[k, :, :height, :width].min() > 0
        assert batch.images[k, :, height:].sum() == batch.images[k, :, :, width:].sum() == 0
        expected = record.boxes_xyxy[~record.crowd] * np.tile([width / record.width, height / record.height], 2)
        assert batch.targets[k].boxes_xyxy.numpy() == pytest.approx(expected, abs=1e-3)
        assert batch.targets[k].labels.tolist() == record.labels[~record.crowd].tolist()
    with_crowd = batch.targets[batch.image_ids.index(12)]
    assert len(with_crowd.labels) == 1, "a crowd is no object"
    record, (height, width) = records[12], batch.sizes_hw[batch.image_ids.index(12)].tolist()
    expected = record.boxes_xyxy[record.crowd] * np.tile([width / record.width, height / record.height], 2)
    assert with_crowd.crowds_xyxy.numpy() == pytest.approx(expected, abs=1e-3)
    assert with_crowd.crowd_labels.tolist() == record.labels[record.crowd].tolist()
    assert batch.stored == ()


def test_a_family_that_looks_closer_gets_the_stored_images_mirrored_as_they_are_shown(
    split: CocoSplit, config: RunConfig
) -> None:
    closer = changed(config, family="yolc", solver={"batch_size": IMAGES}, image={"train_short_edges": [16]})
    records, seen = {record.id: record for record in split.images}, []
    for image in ({"flip": 0.0}, {"flip": 1.0}):
        batches = TrainingBatches(split, changed(closer, image=image))
        batch = batches[0]
        for row, image_id in enumerate(batch.image_ids):
            pixels = torch.from_numpy(read_image(records[image_id])).permute(2, 0, 1)
            seen.append(batch.stored[row])
            assert torch.equal(seen[-1], pixels.flip(-1) if image["flip"] else pixels)
            height, width = batch.sizes_hw[row].tolist()
            again = shown(batch.stored[row], View(height, width))
            torch.testing.assert_close(batch.images[row, :, :height, :width].int(), again.int(), rtol=0, atol=5)
        assert same(joined(halves(batch)), batch)
        kept = {image.data_ptr() for image in batches._images._kept.values()}
        assert image["flip"] or {image.data_ptr() for image in batch.stored} <= kept, "shared with the cache"
    assert not all(torch.equal(pixels, pixels.flip(-1)) for pixels in seen)
    for evaluated in evaluation_batches(split, closer):
        for image_id, stored in zip(evaluated.image_ids, evaluated.stored, strict=True):
            assert torch.equal(stored, torch.from_numpy(read_image(records[image_id])).permute(2, 0, 1))


def halves(batch: Batch) -> list[Batch]:
    middle = len(batch) // 2
    return [batch.part(slice(0, middle)), batch.part(slice(middle, None))]


def test_devices_and_parts_share_one_batch(split: CocoSplit, config: RunConfig) -> None:
    config = changed(config, solver={"batch_size": 12, "accumulate": 2})
    for step in range(3):
        whole = TrainingBatches(split, config)[step]
        shares = [TrainingBatches(split, config, rank, 3)[step] for rank in range(3)]
        assert same(joined(halves(whole)), whole)
        for part, own in zip(halves(whole), zip(*map(halves, shares), strict=True), strict=True):
            assert same(joined(list(own)), part) and [len(each) for each in own] == [2] * 3
    with pytest.raises(UserError, match=r"batch_size 12 cannot be shared by 5 devices.* a multiple of 10"):
        TrainingBatches(split, config, 0, 5)


def joined(parts: list[Batch]) -> Batch:
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.sizes_hw for part in parts]),
        torch.cat([part.original_hw for part in parts]),
        sum((part.image_ids for part in parts), ()),
        sum((part.targets for part in parts), ()),
        sum((part.stored for part in parts), ()),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_changes_no_number_and_no_global_state(split: CocoSplit, config: RunConfig, workers: int) -> None:
    batches = TrainingBatches(split, config)
    expected = [batches[step] for step in range(2, 5)]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    loaded = list(training_loader(batches, 2, 5, workers))
    evaluated = list(evaluation_batches(split, changed(config, workers=workers)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())
    assert len(loaded) == 3 and all(same(a, b) for a, b in zip(loaded, expected, strict=True))
    assert sum(len(batch) for batch in evaluated) == IMAGES
    assert list(training_loader(batches, 5, 5, workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_stays_one_sentence(split: CocoSplit, config: RunConfig, workers: int) -> None:
    gone = [dataclasses.replace(record, path=record.path.with_name("gone.png")) for record in split.images]
    batches = TrainingBatches(dataclasses.replace(split, images=tuple(gone)), config)
    with pytest.raises(UserError, match=r"^image \d+: .*gone\.png cannot be read \(No such file or directory\)$"):
        next(iter(training_loader(batches, 0, 2, workers)))


def test_evaluation_does_not_depend_on_the_batch_size(split: CocoSplit, config: RunConfig) -> None:
    config = changed(config, image={"eval_short_edge": 40, "max_edge": 100})

    def shown(batch_size: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for batch in evaluation_batches(split, changed(config, eval_batch_size=batch_size)):
            assert len(batch) <= batch_size and len({tuple(size) for size in batch.sizes_hw.tolist()}) == 1
            for k, image_id in enumerate(batch.image_ids):
                yield image_id, batch.images[k], batch.targets[k].boxes_xyxy

    one, four, many = (list(shown(size)) for size in (1, 4, 16))
    assert [image_id for image_id, _, _ in one] == [10, 12, 13, 14, 16, 11, 15]
    for others in (four, many):
        for (a, image, boxes), (b, other_image, other_boxes) in zip(one, others, strict=True):
            assert a == b and torch.equal(image, other_image) and torch.equal(boxes, other_boxes)


def test_the_cache_keeps_to_its_budget(split: CocoSplit, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole split takes 63 KiB, so 0 MiB decode every image at each use, 1 MiB each image once; with one short edge
    it is resized once as well."""
    decoded: list[int] = []

    def counted(record: ImageRecord) -> NDArray[np.uint8]:
        decoded.append(record.id)
        return read_image(record)

    def resizing(image: torch.Tensor, view: View) -> torch.Tensor:
        made.append(view)
        return resized(image, view)

    made: list[View] = []
    monkeypatch.setattr("noisebox.data.loader.read_image", counted)
    monkeypatch.setattr("noisebox.data.loader.resized", resizing)
    for edges, resizes in (([40, 48, 56], (0, 0)), ([48], (IMAGES, 4 * IMAGES))):
        seen = []
        for budget, expected, expected_resizes in ((1, IMAGES, resizes[0]), (0, 4 * IMAGES, resizes[1])):
            decoded.clear(), made.clear()
            image = {"cache_mib": budget, "train_short_edges": edges}
            batches = TrainingBatches(split, changed(config, image=image, solver={"batch_size": IMAGES}))
            seen.append([batches[step] for step in range(4)])
            assert (len(decoded), len(made)) == (expected, expected_resizes)
        assert all(same(a, b) for a, b in zip(*seen, strict=True))
