"""The collate function of a fixed number of nodes: its rule by hand for any boxes, and through torch's DataLoader."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import CLASSES, make_batch
from torch.utils.data import DataLoader

from noisebox.data.nodes import FixedNodes
from noisebox.errors import UserError
from noisebox.structures import Batch, Targets

box = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
objects = st.lists(st.tuples(box, st.integers(0, 4)), max_size=6)


def batch_of(images: list[list[tuple[tuple[int, ...], int]]]) -> Batch:
    targets = tuple(
        Targets(
            torch.tensor([each for each, _ in image]).reshape(-1, 4).float(),
            torch.tensor([label for _, label in image]).long(),
        )
        for image in images
    )
    sizes = torch.tensor([[20, 30]] * len(images))
    return Batch(
        torch.full((len(images), 3, 32, 32), 51, dtype=torch.uint8), sizes, sizes, tuple(range(len(images))), targets
    )


@given(images=st.lists(objects, min_size=1, max_size=3), count=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_largest_stay_in_their_order_and_the_rest_is_padding(
    images: list[list[tuple[tuple[int, ...], int]]], count: int
) -> None:
    nodes = FixedNodes(count)(batch_of(images))
    for row, image in enumerate(images):
        ranked = sorted(enumerate(image), key=lambda e: (-(e[1][0][2] - e[1][0][0]) * (e[1][0][3] - e[1][0][1]), e[0]))
        expected = [image[place] for place in sorted(place for place, _ in ranked[:count])]
        padding = count - len(expected)
        assert nodes["valid"][row].tolist() == [True] * len(expected) + [False] * padding
        assert nodes["boxes"][row].tolist() == [list(each) for each, _ in expected] + [[0] * 4] * padding
        assert nodes["labels"][row].tolist() == [label for _, label in expected] + [0] * padding
    torch.testing.assert_close(nodes["images"], torch.full((len(images), 3, 32, 32), 51 / 255))
    assert nodes["image_whwh"].tolist() == [[30, 20, 30, 20]] * len(images)


class Scenes:
    """A dataset like `TrainingBatches`: the batch of any step, without an end."""

    def __getitem__(self, step: int) -> Batch:
        return make_batch([2 * step, 2 * step + 1], objects=3)


def test_through_a_data_loader_with_workers() -> None:
    def loaded(workers: int) -> Iterator[dict[str, torch.Tensor]]:
        return iter(
            DataLoader(Scenes(), batch_size=None, sampler=range(3, 6), collate_fn=FixedNodes(5), num_workers=workers)
        )

    for step, (one, other) in enumerate(zip(loaded(0), loaded(2), strict=True), start=3):
        assert one["image_ids"].tolist() == [2 * step, 2 * step + 1]
        assert (one["boxes"].shape, one["labels"].shape) == ((2, 5, 4), (2, 5))
        assert one["valid"].sum(1).tolist() == [3, 3]
        assert one["labels"].max() < CLASSES
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_no_nodes_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="must be 1 or more, not 0"):
        FixedNodes(0)
