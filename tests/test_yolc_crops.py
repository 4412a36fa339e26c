"""Crops: their content lies where their geometry says, boxes come back as they went in, and borders cut only once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.models.yolc.crops import MULTIPLE, cut
from noisebox.structures import Batch, Targets

SIZE = (96, 160)


def ramp(size_hw=SIZE):
    """An image whose channels are x, y and 1 at the centre of each pixel."""
    height, width = size_hw
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)))[None]


def batch_of(images, sizes_hw, stored=()):
    """Images without objects, at these sizes without padding."""
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    sizes = torch.tensor(sizes_hw)
    return Batch(images, sizes, sizes, tuple(range(len(images))), (nothing,) * len(images), tuple(stored))


def cut_one(*region, share=1.0, size_hw=SIZE):
    return cut(batch_of(ramp(size_hw), [size_hw]), [torch.tensor([region])], share)


@st.composite
def regions(draw):
    x1, y1 = draw(st.integers(0, SIZE[1] - 8)), draw(st.integers(0, SIZE[0] - 8))
    return x1, y1, draw(st.integers(x1 + 8, SIZE[1])), draw(st.integers(y1 + 8, SIZE[0]))


@given(region=regions(), share=st.sampled_from([0.5, 1.0]), seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_boxes_come_back_as_they_went_in(region, share, seed):
    crops = cut_one(*region, share=share)
    if len(crops) == 0:
        x1, y1, x2, y2 = region
        assert min(96 * share / (y2 - y1), 160 * share / (x2 - x1)) <= 1
        return
    corners = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor([160.0, 96.0, 160.0, 96.0])
    shown = crops.to_canvas(boxes, 0)
    assert torch.allclose(crops.to_image(shown, 0), boxes, atol=1e-3)
    whole = crops.to_canvas(crops.regions_xyxy[0].float(), 0)
    assert torch.allclose(whole, torch.tensor([0, 0, *crops.sizes_hw[0].flip(0).tolist()]).float(), atol=1e-3)


@given(region=regions())
@settings(max_examples=30)
def test_a_crop_shows_what_its_geometry_says(region):
    """Each pixel of the canvas holds the image's coordinates of its centre, which `to_image` must name."""
    crops = cut_one(*region)
    for crop, (height, width) in enumerate(crops.sizes_hw.tolist()):
        x1, y1, x2, y2 = region
        v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres = crops.to_image(torch.stack((u, v, u, v), dim=-1).view(-1, 4), crop)[:, :2].view(height, width, 2)
        # Beyond the centres of the outermost pixels there is nothing to interpolate with.
        expected = torch.stack((centres[..., 0].clamp(x1 + 0.5, x2 - 0.5), centres[..., 1].clamp(y1 + 0.5, y2 - 0.5)))
        canvas = crops.images[crop]
        assert torch.allclose(canvas[:2, :height, :width], expected, atol=1e-2)
        assert torch.equal(canvas[2] != 0, (torch.arange(96)[:, None] < height) & (torch.arange(160) < width))
        assert (height, width) == (96, 160) or 96 in (height, width) or 160 in (height, width)
        assert width / height == pytest.approx((x2 - x1) / (y2 - y1), abs=0.5 * max(1, width) / min(height, width))


def test_the_canvas_is_a_share_of_the_image_and_small_parts_fill_it_most():
    for share, canvas in ((1.0, (96, 160)), (0.5, (64, 96)), (0.1, (32, 32))):
        images = cut_one(10, 20, 26, 36, share=share).images
        assert images.shape == (1, 3, *canvas)
        assert all(side % MULTIPLE == 0 for side in images.shape[-2:])
    assert cut_one(10, 20, 26, 36).sizes_hw.tolist() == [[96, 96]]


def test_a_part_that_would_not_become_larger_is_left_out():
    assert len(cut_one(0, 0, 160, 96)) == 0
    assert len(cut_one(0, 0, 159, 20)) == 1
    assert len(cut_one(0, 0, 96, 20, share=0.5)) == 0
    none = cut(batch_of(ramp(), [SIZE]), [torch.zeros(0, 4, dtype=torch.long)], 1.0)
    assert none.images.shape == (0, 3, 96, 160)
    assert none.regions_xyxy.shape == (0, 4)


def test_crops_know_their_images():
    images = torch.cat((ramp(), 2 * ramp(), 3 * ramp()))
    parts = [
        torch.tensor([[0, 0, 20, 20]]),
        torch.zeros(0, 4, dtype=torch.long),
        torch.tensor([[4, 4, 9, 9], [8, 8, 40, 40]]),
    ]
    crops = cut(batch_of(images, [(96, 160), (96, 150), (90, 160)]), parts, 1.0)
    assert crops.image.tolist() == [0, 2, 2]
    assert crops.within_hw.tolist() == [[96, 160], [90, 160], [90, 160]]
    assert crops.images[:, 2].amax((1, 2)).tolist() == pytest.approx([1, 3, 3])


@given(region=regions(), stored_hw=st.sampled_from([(192, 320), (240, 401), (97, 163), (50, 90)]))
@settings(max_examples=40)
def test_the_stored_pixels_are_shown_and_boxes_come_back_from_them(region, stored_hw):
    """The stored image holds its own coordinates, so that each pixel of the canvas says where in it it was taken; what
    is resized is black, and never looked at."""
    ramps = (ramp(stored_hw)[0] / max(stored_hw)).float()
    crops = cut(batch_of(torch.zeros(1, 3, *SIZE), [SIZE], [ramps]), [torch.tensor([region])], 1.0)
    for crop, (height, width) in enumerate(crops.sizes_hw.tolist()):
        x1, y1, x2, y2 = crops.regions_xyxy[crop].tolist()
        shares = stored_hw[1] / SIZE[1], stored_hw[0] / SIZE[0]
        edges = [x1 * shares[0], y1 * shares[1], x2 * shares[0], y2 * shares[1]]
        assert edges == pytest.approx([round(edge) for edge in edges], abs=1e-3), "whole pixels of the stored image"
        assert (torch.tensor([x1, y1]) <= torch.tensor(region[:2]) + 1e-4).all()
        assert (torch.tensor([x2, y2]) >= torch.tensor(region[2:]) - 1e-4).all()
        assert min(x1, y1) >= 0 and x2 <= SIZE[1] and y2 <= SIZE[0]
        boxes = torch.tensor([[x1, y1, x2, y2], [x1 + 1, y1 + 2, x2 - 3, y2 - 1]])
        assert torch.allclose(crops.to_image(crops.to_canvas(boxes, crop), crop), boxes, atol=1e-3)
        v, u = torch.meshgrid(torch.arange(2, height - 2) + 0.5, torch.arange(2, width - 2) + 0.5, indexing="ij")
        centres = crops.to_image(torch.stack((u, v, u, v), dim=-1).view(-1, 4), crop)[:, :2]
        shown = crops.images[crop, :2, 2 : height - 2, 2 : width - 2].flatten(1).T * max(stored_hw)
        inner = ((centres > torch.tensor([x1, y1]) + 2) & (centres < torch.tensor([x2, y2]) - 2)).all(1)
        assert torch.allclose(shown[inner], (centres * torch.tensor(shares))[inner], atol=0.2)


def test_a_crop_of_stored_pixels_brings_detail_that_the_resized_image_lost():
    """A chequered stored image is grey when halved; a crop as large on the canvas as it is stored has its pixels."""
    pixels = (torch.arange(192)[:, None] + torch.arange(320)) % 2
    stored = (255 * pixels).to(torch.uint8).expand(3, -1, -1)
    crops = cut(batch_of(torch.full((1, 3, *SIZE), 0.5), [SIZE], [stored]), [torch.tensor([[40, 20, 120, 68]])], 1.0)
    assert crops.sizes_hw.tolist() == [[96, 160]]
    assert torch.equal(crops.images[0], stored[:, 40:136, 80:240] / 255)


def test_objects_are_clipped_to_the_crop_and_gone_where_less_than_half_shows():
    crops = cut_one(40, 20, 80, 44)
    boxes = [[50, 30, 60, 40], [36, 30, 48, 40], [30, 30, 46, 40], [100, 30, 110, 40], [50, 14, 60, 26]]
    (shown,) = crops.targets([Targets(torch.tensor(boxes).float(), torch.arange(5))])
    assert shown.labels.tolist() == [0, 1, 4]
    assert crops.scales[0].tolist() == [4, 4, 4, 4]
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    crowds = torch.tensor([[0.0, 0.0, 41.0, 21.0], [90.0, 30.0, 99.0, 40.0]])
    (ignored,) = crops.targets([Targets(*nothing, crowds, torch.tensor([2, 1]))])
    assert ignored.crowds_xyxy.tolist() == [[0, 0, 4, 4]] and ignored.crowd_labels.tolist() == [2]
    assert shown.boxes_xyxy.tolist() == [[40, 40, 80, 80], [0, 40, 32, 80], [40, 0, 80, 24]]


@pytest.mark.parametrize(
    ("box", "whole"),
    [
        ((50, 30, 60, 40), True),
        ((42, 22, 78, 42), True),
        ((40.5, 30, 60, 40), False),
        ((36, 30, 60, 40), False),
        ((50, 30, 79.5, 40), False),
        ((50, 20, 60, 40), False),
        ((50, 30, 60, 43.2), False),
    ],
)
def test_what_reaches_a_crops_border_is_only_a_part(box, whole):
    assert cut_one(40, 20, 80, 44).whole(torch.tensor([box]), 0).tolist() == [whole]


def test_at_the_images_own_border_nothing_is_cut():
    corner = cut_one(120, 60, 160, 96)
    boxes = torch.tensor([[150.0, 80.0, 160.0, 96.0], [121.0, 80.0, 160.0, 96.0], [150.0, 61.0, 160.0, 96.0]])
    assert corner.whole(boxes, 0).tolist() == [True, False, False]
    assert cut_one(0, 0, 40, 24).whole(torch.tensor([[-1.0, 0.0, 12.0, 9.0]]), 0).tolist() == [True]
