"""Random crops in training: the part that is shown, its boxes, and that nothing else changes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisebox.config import ImageConfig, resolve
from noisebox.config.run import CropConfig
from noisebox.data.transforms import View, cropped, shown, targets_in, training_view
from noisebox.errors import UserError
from noisebox.structures import Targets

sides = st.integers(8, 900)


@given(sides, sides, st.integers(0, 10**6))
def test_a_part_lies_in_the_image_and_is_as_large_as_asked(height: int, width: int, seed: int) -> None:
    config = CropConfig(likely=1, short_edges=[100, 200], least=60, most=90)
    part = cropped(height, width, config, np.random.default_rng(seed))
    assert part is not None
    top, left, part_height, part_width = part
    assert 0 <= top < top + part_height <= height and 0 <= left < left + part_width <= width
    sizes = []
    for edge in (100, 200):  # in the pixels of the image at that short edge
        scale = edge / min(height, width)
        sizes.append(all(60 - scale <= side * scale <= 90 + scale for side in (part_height, part_width)))
    assert any(sizes)


def test_parts_are_as_likely_as_asked_and_without_them_views_are_as_before() -> None:
    plain = ImageConfig(train_short_edges=[32, 48], max_edge=80)
    halves = plain.model_copy(update={"crop": CropConfig(short_edges=[40], least=20, most=30)})
    drawn = [(training_view(60, 80, each, 0, step, 7)) for step in range(400) for each in (plain, halves)]
    whole, perhaps = drawn[::2], drawn[1::2]
    parts = [view.crop is not None for view in perhaps]
    assert 160 <= sum(parts) <= 240
    assert all(a == b for a, b, part in zip(whole, perhaps, parts, strict=True) if not part)
    assert [view.flip for view in whole] == [view.flip for view in perhaps]


def test_pixels_and_boxes_are_those_of_the_part() -> None:
    image = torch.arange(3 * 8 * 10, dtype=torch.uint8).reshape(3, 8, 10)
    view = View(4, 5, flip=True, crop=(2, 3, 4, 5))
    assert torch.equal(shown(image, view), image[:, 2:6, 3:8].flip(-1))
    boxes = torch.tensor([[4.0, 3.0, 6.0, 5.0], [0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 2.0, 2.0]])
    targets = Targets(boxes, torch.tensor([0, 1, 2]), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    found = targets_in(view, targets, (8, 10))
    assert found.labels.tolist() == [0, 1]  # the third lies outside
    assert found.boxes_xyxy.tolist() == [[2.0, 1.0, 4.0, 3.0], [4.0, 0.0, 5.0, 1.0]]
    twice = targets_in(View(8, 10, crop=view.crop), targets, (8, 10))
    assert twice.boxes_xyxy.tolist() == [[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 2.0, 2.0]]


def test_a_family_that_needs_whole_images_refuses_them() -> None:
    crops = {"image.crop": {"likely": 1.0}}
    assert resolve("baseline", 0, "demo", overrides=crops).image.crop == CropConfig(likely=1.0)
    with pytest.raises(UserError, match=r"image.crop: this family sees whole images in training"):
        resolve("yolc", 0, "demo", overrides=crops)
