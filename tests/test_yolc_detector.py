"""YOLC as a whole: planted boxes are found in their places, by one look or two; it learns; nothing is random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_yolc import CLASSES, SMALL, blank_batch, make_batch, make_yolc, plant
from torch import nn
from torchvision.ops import box_iou

from noisebox.config import GuidanceConfig, Sampling
from noisebox.config.yolc import YolcConfig
from noisebox.errors import UserError
from noisebox.models import BOX_MONITORS
from noisebox.models.yolc.detector import Yolc, fuse
from noisebox.structures import Batch, Detections, Targets

ONCE, TWICE = Sampling(steps=1), Sampling(steps=1, crops=True)
LOSSES = {"loss_heatmap", *(f"loss_{stage}_{kind}" for stage in ("coarse", "refined") for kind in ("gwd", "l1"))}
SIZE, PADDED = (90, 150), (96, 160)


class Seer(nn.Module):
    """In place of the network: answers each call with the next planted output, and reads boxes as the network does."""

    def __init__(self, network, outputs):
        super().__init__()
        self.network, self.outputs, self.asked = network, list(outputs), []

    def forward(self, images, sizes_hw):
        self.asked.append(sizes_hw.tolist())
        return self.outputs.pop(0)

    def boxes_at(self, output, cells):
        return self.network.boxes_at(output, cells)


@pytest.fixture(scope="module")
def trained():
    """Sixty steps on the images 0 to 3, with crops."""
    torch.set_num_threads(1)
    model = make_yolc(crop_canvas=0.5, max_patches_per_img=2, cluster_threshold=0.3).train()
    batch = make_batch(range(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.losses = []
    for step in range(60):
        loss = loss_of(model(batch, 0, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        model.losses.append(loss.item())
    return model.eval()


def loss_of(terms):
    return sum(term for name, term in terms.items() if name.startswith("loss_"))


def scattered(seed, size_hw, count=6):
    """Boxes (count, 4) anywhere in an image, also at its borders, that overlap little and have cells of their own."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    boxes = torch.zeros(0, 4)
    while len(boxes) < count:
        side = 5 + 15 * torch.rand(2, generator=generator)
        corner = torch.rand(2, generator=generator) * torch.tensor([width + 12.0, height + 12.0]) - 6
        corner = corner.clamp(min=0).minimum(torch.tensor([width, height]) - side)
        box = torch.cat((corner, corner + side))[None]
        if len(boxes) == 0 or box_iou(box, boxes).max() < 0.05:
            boxes = torch.cat((boxes, box))
    return boxes


def strong(found, least=0.1):
    kept = found.scores > least
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])


def assert_found(found, boxes, labels, scores, atol=2e-3):
    assert len(found.scores) == len(boxes)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        best = (found.boxes_xyxy - box).abs().amax(1).argmin()
        assert torch.allclose(found.boxes_xyxy[best], box, atol=atol)
        assert found.labels[best] == label
        assert found.scores[best].item() == pytest.approx(score, abs=1e-4)


def assert_same(found, expected):
    """Equal detections to 0.05 px and 1e-3 score; of nearly equal scores, either may come first."""
    assert len(found.scores) == len(expected.scores) > 0
    gap = (found.boxes_xyxy[:, None] - expected.boxes_xyxy).abs().amax(-1)
    gap = gap.masked_fill(found.labels[:, None] != expected.labels, torch.inf)
    partner = gap.argmin(1)
    assert partner.unique().numel() == len(partner)
    assert gap.amin(1).max() < 0.05
    assert torch.allclose(found.scores, expected.scores[partner], atol=1e-3, rtol=0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_one_look_finds_what_was_planted(seed):
    model, batch = make_yolc(), blank_batch(SIZE, PADDED)
    boxes = scattered(seed, SIZE)
    labels, scores = [0, 1, 2, 0, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    output = plant([list(zip(boxes, labels, scores, strict=True))], PADDED)
    (sight,) = model.look(output, batch, crops=False)
    assert_found(strong(sight.found), boxes, labels, scores)
    assert sight.heatmap.shape == SIZE
    assert sight.heatmap.max().item() == pytest.approx(0.9)
    assert_found(strong(sight.coarse), boxes, labels, scores)


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_crop_detect_and_project_back_is_the_identity(seed, share):
    """The first look knows where, but not how large; the second, on enlarged crops, knows both and is surer. Of the two
    only the better is left, at the image's borders too."""
    model, batch = make_yolc(crop_canvas=share, max_patches_per_img=6), blank_batch(SIZE, PADDED)
    boxes = scattered(seed, SIZE)
    labels = [0, 1, 2, 0, 1, 2]
    rough = boxes + torch.tensor([-0.5, 0.5, 0.5, 0.5])
    first = plant([list(zip(rough, labels, [0.5] * 6, strict=True))], PADDED)
    crops = model.crops(batch, model.regions(first.heatmap.sigmoid(), batch))
    seen, shown = set(), []
    for crop in range(len(crops)):
        shown.append([])
        for index, box in enumerate(boxes):
            if crops.whole(box[None], crop).item():
                shown[-1].append((crops.to_canvas(box[None], crop)[0], labels[index], 0.9))
                seen.add(index)
    seer = Seer(model.network, [plant(shown, crops.images.shape[-2:])])
    model.network = seer
    (sight,) = model.look(first, batch, crops=True)
    assert torch.equal(sight.regions_xyxy, crops.regions_xyxy)
    assert seer.asked == [crops.sizes_hw.tolist()]
    expected = [boxes[index] if index in seen else rough[index].clamp(min=0) for index in range(6)]
    limit = torch.tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    expected = [box.minimum(limit) for box in expected]
    assert_found(strong(sight.found), expected, labels, [0.9 if index in seen else 0.5 for index in range(6)])


def test_what_the_second_look_sees_of_a_cut_object_is_not_kept():
    model, batch = make_yolc(), blank_batch(PADDED, PADDED)
    first = plant([[(torch.tensor([70.0, 40.0, 90.0, 56.0]), 1, 0.5)]], PADDED)
    (region,) = crops_of(model, batch, first).regions_xyxy.tolist()
    inside, at_border = torch.tensor([20.0, 20.0, 40.0, 40.0]), torch.tensor([0.0, 50.0, 12.0, 62.0])
    model.network = Seer(model.network, [plant([[(inside, 0, 0.9), (at_border, 2, 0.95)]], PADDED)])
    (sight,) = model.look(first, batch, crops=True)
    assert region[0] > 0
    assert strong(sight.found).labels.tolist() == [0, 1]


def crops_of(model, batch, output):
    return model.crops(batch, model.regions(output.heatmap.sigmoid(), batch))


def test_all_crops_of_a_batch_are_one_pass_and_go_back_to_their_images():
    model, batch = make_yolc(), blank_batch(PADDED, PADDED, images=3)
    there = [torch.tensor([20.0, 20.0, 30.0, 30.0]), torch.tensor([120.0, 60.0, 130.0, 70.0])]
    first = plant([[(there[0], 0, 0.5)], [], [(box, 0, 0.5) for box in there]], PADDED)
    crops = crops_of(model, batch, first)
    assert crops.image.tolist() == [0, 2, 2]
    new = torch.tensor([10.0, 10.0, 34.0, 34.0])
    model.network = Seer(model.network, [plant([[(new, crop, 0.9)] for crop in range(3)], PADDED)])
    sights = model.look(first, batch, crops=True)
    assert len(model.network.asked) == 1
    assert [sorted(strong(sight.found).labels.tolist()) for sight in sights] == [[0, 0], [], [0, 0, 1, 2]]
    for crop in range(3):
        found = strong(sights[crops.image[crop]].found, 0.8)
        box = crops.to_image(new[None], crop)[0]
        assert (found.boxes_xyxy[found.labels == crop] - box).abs().max() < 1e-3


def test_without_a_crowd_there_is_no_second_look():
    model, batch = make_yolc(), blank_batch(PADDED, PADDED)
    first = plant([[(torch.tensor([20.0, 20.0, 30.0, 30.0]), 0, 0.08)]], PADDED)
    model.network = Seer(model.network, [])
    (sight,) = model.look(first, batch, crops=True)
    assert sight.regions_xyxy.shape == (0, 4)
    assert strong(sight.found, 0.05).scores.tolist() == pytest.approx([0.08])


def test_fusion_keeps_the_better_of_two_of_one_class_and_both_of_two():
    config = YolcConfig(**SMALL | {"nms_threshold": 0.5, "max_detections": 3})
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    whole = Detections(box, torch.tensor([0.6]), torch.tensor([1]))
    closer = Detections(
        torch.cat((box + 1, box + 1, box + 8, box + 40)), torch.tensor([0.7, 0.5, 0.3, 0.2]), torch.tensor([1, 2, 1, 1])
    )
    for parts in ([whole, closer], [closer, whole]):
        found = fuse(parts, (30, 30), config)
        assert found.scores.tolist() == pytest.approx([0.7, 0.5, 0.3])
        assert found.labels.tolist() == [1, 2, 1]
        assert found.boxes_xyxy[0].tolist() == [11, 11, 21, 21]


def test_detections_are_clipped_and_in_pixels_of_the_stored_image():
    model = make_yolc()
    blank = blank_batch((96, 160), PADDED)
    batch = Batch(blank.images, blank.sizes_hw, torch.tensor([[48, 320]]), blank.image_ids, blank.targets)
    output = plant([[(torch.tensor([150.0, 80.0, 164.0, 90.0]), 2, 0.9)]], PADDED)
    for found in model.detect(output, batch, [3, 4], ONCE):
        assert strong(found[0]).boxes_xyxy[0].tolist() == pytest.approx([300, 40, 320, 45], abs=1e-3)
        assert strong(found[0]).labels.tolist() == [2]


def test_it_learns(trained):
    assert sum(trained.losses[-5:]) < 0.3 * sum(trained.losses[:5])
    batch = make_batch(range(4))
    (found,) = trained.detect(trained.encode(batch), batch, [0], ONCE)
    for each, target in zip(found, batch.targets, strict=True):
        best = strong(each, 0.3)
        iou = box_iou(best.boxes_xyxy / 2, target.boxes_xyxy)
        assert (iou.amax(0) > 0.5).float().mean() > 0.6


@pytest.mark.parametrize("sampling", [ONCE, TWICE])
def test_an_image_does_not_depend_on_the_batch_it_is_in(trained, sampling):
    batch = make_batch(range(4))
    (together,) = trained.detect(trained.encode(batch), batch, [0], sampling)
    for image_id in range(4):
        alone = make_batch([image_id])
        ((one,),) = trained.detect(trained.encode(alone), alone, [0], sampling)
        assert_same(strong(one, 0.02), strong(together[image_id], 0.02))


@pytest.mark.parametrize("sampling", [ONCE, TWICE])
def test_every_eval_seed_has_the_same_detections_and_nothing_is_drawn(trained, sampling):
    batch, state = make_batch([0, 1]), torch.get_rng_state()
    encoded = trained.encode(batch)
    first, second = trained.detect(encoded, batch, [0, 7], sampling)
    (again,) = trained.detect(encoded, batch, [7], sampling)
    for found in zip(first, second, again, strict=True):
        assert all(torch.equal(found[0].boxes_xyxy, each.boxes_xyxy) for each in found)
        assert all(torch.equal(found[0].scores, each.scores) for each in found)
        assert (found[0].scores.diff() <= 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_second_look_sees_more_than_the_first(trained):
    batch = make_batch([0, 1])
    sights = trained.look(trained.encode(batch), batch, crops=True)
    assert all(0 < len(sight.regions_xyxy) <= 2 for sight in sights)
    once = trained.look(trained.encode(batch), batch, crops=False)
    assert any(not torch.equal(a.found.scores, b.found.scores) for a, b in zip(once, sights, strict=True))
    assert all(torch.equal(a.coarse.boxes_xyxy, b.coarse.boxes_xyxy) for a, b in zip(once, sights, strict=True))


@pytest.mark.parametrize("on_crops", [0, 1])
def test_a_step_reaches_every_parameter_and_leaves_the_global_generator_alone(on_crops):
    model = make_yolc(train_on_crops=on_crops).train()
    state = torch.get_rng_state()
    terms = model(make_batch([1, 2]), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(terms) == LOSSES | set(BOX_MONITORS)
    loss_of(terms).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_terms_are_means_over_images_whatever_the_batch():
    model = make_yolc(crop_canvas=0.5).train()
    together = model(make_batch([1, 2, 3]), 5, 9)
    alone = [model(make_batch([image_id]), 5, 9) for image_id in (1, 2, 3)]
    for name in LOSSES:
        assert together[name].item() == pytest.approx(sum(each[name].item() for each in alone) / 3, rel=1e-3)


def test_the_training_crop_belongs_to_seed_step_and_image():
    model, batch = make_yolc(max_patches_per_img=6).train(), make_batch([1, 2])
    keys = [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3)]
    drawn = [model(batch, seed, step)["loss_heatmap"].item() for seed, step in keys]
    assert [model(batch, seed, step)["loss_heatmap"].item() for seed, step in keys] == drawn
    assert len(set(drawn)) > 1
    plain = make_yolc(train_on_crops=0).train()
    without = {plain(batch, 0, step)["loss_heatmap"].item() for step in range(3)}
    assert len(without) == 1
    assert max(without) < min(drawn)


def test_a_share_of_the_images_is_shown_as_a_crop_too_whatever_batch_they_are_in(monkeypatch):
    """Which ones, is drawn by seed, step and image alone: alone or together, the same are."""
    batch, cut = make_batch(range(4)), Yolc.crops
    shown = []
    monkeypatch.setattr(Yolc, "crops", lambda self, *given: shown.append(cut(self, *given)) or shown[-1])
    model = make_yolc(train_on_crops=0.5, hidden_dim=8).train()
    with torch.no_grad():
        for step in range(30):
            model(batch, 0, step)
        assert 40 < sum(len(crops) for crops in shown) < 80
        together = [set(crops.image.tolist()) for crops in shown[:5]]
        for step, images in enumerate(together):
            for image_id in range(4):
                model(make_batch([image_id]), 0, step)
                assert len(shown[-1]) == (image_id in images)


def test_images_without_objects_cost_only_their_heatmap():
    model, blank = make_yolc().train(), blank_batch(PADDED, PADDED, images=2)
    terms = model(blank, 0, 0)
    assert all(terms[name] == 0 for name in LOSSES - {"loss_heatmap"})
    assert torch.isfinite(loss_of(terms))
    assert all(torch.isnan(terms[name]) for name in BOX_MONITORS)
    loss_of(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    one = blank_batch(PADDED, PADDED)
    seen = make_batch([1])
    mixed = Batch(
        torch.cat((seen.images, one.images)), torch.tensor([PADDED] * 2), torch.tensor([PADDED] * 2), (1, 0),
        (seen.targets[0], Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))),
    )  # fmt: skip
    assert model(mixed, 0, 0)["loss_refined_l1"].item() == pytest.approx(
        model(seen, 0, 0)["loss_refined_l1"].item() / 2
    )


def test_what_lies_in_the_padding_is_not_seen():
    model = make_yolc().eval()
    batch = make_batch([1])
    sizes = torch.tensor([[80, 128]])
    dark = Batch(batch.images.clone(), sizes, sizes, batch.image_ids, batch.targets)
    dark.images[..., 80:, :] = 0
    dark.images[..., 128:] = 0
    bright = Batch(batch.images, sizes, sizes, batch.image_ids, batch.targets)
    one, two = (model.detect(model.encode(each), each, [0], TWICE)[0][0] for each in (dark, bright))
    assert torch.equal(one.boxes_xyxy, two.boxes_xyxy)
    assert (one.boxes_xyxy.amax(0) <= torch.tensor([128, 80, 128, 80])).all()


def test_the_prior_makes_every_class_rare_at_first():
    heatmap = make_yolc().eval().encode(make_batch([1])).heatmap
    assert heatmap.shape == (1, CLASSES, 96, 160)
    assert heatmap.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)


def test_half_precision_trains_and_detects():
    model, batch = make_yolc().train(), make_batch([1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(batch, 0, 0)
        found = model.detect(model.encode(batch), batch, [0], TWICE)
    loss_of(terms).backward()
    full = loss_of(model(batch, 0, 0)).item()
    assert loss_of(terms).item() == pytest.approx(full, rel=0.05)
    assert all(each.boxes_xyxy.dtype == torch.float32 for each in found[0])


def test_hrnet_is_a_backbone():
    model = make_yolc(backbone="hrnet_w18_small").eval()
    batch = make_batch([1], (64, 64))
    with torch.no_grad():
        output = model.encode(batch)
    assert output.heatmap.shape == (1, CLASSES, 64, 64)
    assert output.coarse.shape == (1, 4, 16, 16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(steps=4), "4 sampling steps need a detector that denoises; yolc does not: ask for 1"),
        (Sampling(steps=1, guidance=GuidanceConfig(scale=0.5)), "guidance scale 0.5 needs a detector with a quality"),
    ],
)
def test_what_it_cannot_sample_is_refused_in_one_sentence(sampling, message):
    model, batch = make_yolc(), make_batch([1])
    with pytest.raises(UserError, match=message):
        model.check_sampling(sampling)
    with pytest.raises(UserError, match=message):
        model.detect(model.encode(batch), batch, [0], sampling)
    model.check_sampling(TWICE)


def test_the_backbone_is_a_part_of_its_own():
    model = make_yolc()
    (part,) = model.parts().values()
    assert {id(parameter) for parameter in part} == {id(parameter) for parameter in model.network.backbone.parameters()}
    assert 0 < len(part) < len(list(model.parameters()))
