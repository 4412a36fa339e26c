"""The local scale module against a search by hand: what it counts, joins, grows and leaves out, in input pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.models.yolc.lsm import COLUMNS, DENSEST, ROWS, crowded_regions

SIZE = (100, 160)


def planted(points, size_hw=SIZE, classes=3):
    """A heatmap (1, K, H, W) of 0.9 at points (x, y), in changing classes, and 0.1 elsewhere."""
    heatmap = torch.full((1, classes, *size_hw), 0.1)
    for index, (x, y) in enumerate(points):
        heatmap[0, index % classes, y, x] = 0.9
    return heatmap


def regions_of(heatmap, size_hw=SIZE, threshold=0.3, most=6, least=1):
    return crowded_regions(heatmap, torch.tensor([size_hw]), threshold, most, least)[0].tolist()


def by_hand(heatmap, size_hw, threshold, most):
    """Count, take the densest cells, join neighbours by flooding, and put boxes around them."""
    height, width = size_hw
    counts = {}
    for y in range(height):
        for x in range(width):
            if heatmap[0, :, y, x].max() > threshold:
                cell = (int(y * ROWS / height), int(x * COLUMNS / width))
                counts[cell] = counts.get(cell, 0) + 1
    left = set(sorted(counts, key=lambda cell: (-counts[cell], cell))[:DENSEST])
    groups = []
    while left:
        group, waiting = set(), [min(left)]
        while waiting:
            row, column = waiting.pop()
            if (row, column) in left:
                left.remove((row, column))
                group.add((row, column))
                waiting += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        groups.append(group)
    groups.sort(key=lambda group: (-sum(counts[cell] for cell in group), min(group)))
    boxes = []
    for group in groups[:most]:
        ys = [y for y in range(height) if any(int(y * ROWS / height) == row for row, _ in group)]
        xs = [x for x in range(width) if any(int(x * COLUMNS / width) == column for _, column in group)]
        boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    return boxes


@given(
    seed=st.integers(0, 100_000),
    height=st.integers(10, 41),
    width=st.integers(16, 50),
    count=st.integers(0, 60),
    most=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_regions_are_those_that_a_search_by_hand_finds(seed, height, width, count, most):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(width, (count,), generator=generator).tolist()
    y = torch.randint(height, (count,), generator=generator).tolist()
    heatmap = planted(list(zip(x, y, strict=True)), (height, width))
    assert regions_of(heatmap, (height, width), most=most) == by_hand(heatmap, (height, width), 0.3, most)


def test_a_region_is_in_pixels_of_the_image_and_padding_holds_nothing():
    heatmap = planted([(35, 12), (150, 95)], (128, 192))
    heatmap[..., 100:, :] = heatmap[..., 160:] = 0.9
    assert regions_of(heatmap) == [[30, 10, 40, 20], [150, 90, 160, 100]]


def test_diagonal_neighbours_are_one_region_and_the_fullest_comes_first():
    alone, diagonal = [(5, 5), (6, 5)], [(55, 35), (65, 45), (75, 35)]
    assert regions_of(planted(alone + diagonal)) == [[50, 30, 80, 50], [0, 0, 10, 10]]
    assert regions_of(planted(alone + diagonal), most=1) == [[50, 30, 80, 50]]


def test_one_pixel_counts_once_in_however_many_classes_it_is_seen():
    heatmap = planted([(5, 5), (25, 5), (26, 5)], classes=3)
    heatmap[0, :, 5, 5] = 0.9
    assert regions_of(heatmap) == [[20, 0, 30, 10], [0, 0, 10, 10]]


def test_only_the_densest_cells_count():
    """Sixteen cells in a row, the third of one pixel and the others of two: it falls out and splits the row."""
    points = [(10 * column + offset, 55) for column in range(16) for offset in (0, 1)]
    points.remove((20, 55))
    assert regions_of(planted(points)) == [[30, 50, 160, 60], [0, 50, 20, 60]]


def test_nothing_above_the_threshold_gives_no_region():
    assert regions_of(planted([])) == []
    assert regions_of(planted([(5, 5)]), threshold=0.9) == []


@pytest.mark.parametrize(
    ("point", "expected"),
    [((75, 45), [59, 29, 91, 61]), ((0, 0), [0, 0, 32, 32]), ((159, 99), [128, 68, 160, 100])],
)
def test_a_small_region_grows_about_its_centre_and_stays_in_the_image(point, expected):
    assert regions_of(planted([point]), least=32) == [expected]


def test_a_region_does_not_grow_beyond_an_image_that_is_too_small():
    assert regions_of(planted([(5, 5)], (20, 32)), (20, 32), least=64) == [[0, 0, 32, 20]]


def test_images_of_a_batch_do_not_see_each_other_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heatmaps = torch.cat([planted([(5, 5)]), planted([]), planted([(155, 95), (75, 45)])])
    sizes = torch.tensor([SIZE] * 3)
    together = crowded_regions(heatmaps, sizes, 0.3, 6, 1)
    assert [len(each) for each in together] == [1, 0, 2]
    for row in range(3):
        assert torch.equal(crowded_regions(heatmaps[row, None], sizes[:1], 0.3, 6, 1)[0], together[row])
    assert list(tmp_path.iterdir()) == []
