"""DiffusionDet as a whole: it learns, and its results do not depend on batch, order or seeds sampled together."""

import pytest
import torch

from noisebox.config import DiffusionDetConfig, LossConfig
from noisebox.models.diffusiondet import detector as detector_module
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.randomness import isolated, numpy_generator
from noisebox.structures import Batch, Targets

HEIGHT, WIDTH = 64, 96
SMALL = DiffusionDetConfig(
    backbone="slim",
    hidden_dim=32,
    dim_dynamic=8,
    num_heads=2,
    dim_feedforward=64,
    attention_heads=4,
    num_proposals=20,
)


def make_detector(**changes):
    with isolated(0, "weights"):
        return DiffusionDet(SMALL.model_copy(update=changes), LossConfig(), num_classes=3)


def make_batch(image_ids, objects=3):
    """Images of one size, each with coloured rectangles on noise, determined by its id alone."""
    images, targets = [], []
    for image_id in image_ids:
        rng = numpy_generator(0, "scene", image_id)
        image = torch.from_numpy(rng.uniform(0, 0.3, (3, HEIGHT, WIDTH))).float()
        corner = rng.integers(0, (WIDTH - 40, HEIGHT - 40), (objects, 2))
        boxes = torch.from_numpy(numpy_generator(0, "sizes", image_id).integers(12, 40, (objects, 2)) + corner).float()
        boxes = torch.cat((torch.from_numpy(corner).float(), boxes), dim=1)
        labels = torch.from_numpy(rng.integers(0, 3, objects))
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[label, y1:y2, x1:x2] = 1.0
        images.append(image)
        targets.append(Targets(boxes.reshape(-1, 4), labels))
    sizes = torch.tensor([[HEIGHT, WIDTH]] * len(images))
    return Batch(torch.stack(images), sizes, sizes * 2, tuple(image_ids), tuple(targets))


def opinionated_detector(**changes):
    """Random weights whose class scores spread around one half, so that renewal and NMS have something to decide."""
    model = make_detector(**changes).eval()
    batch = make_batch([1, 2])
    boxes = torch.rand(2, 50, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=2).values.flatten(2) * WIDTH
    last = model.head.head_series[-1].class_logits
    with torch.no_grad():
        logits, _ = model.head(model.encode(batch), boxes, torch.tensor([500, 500]), torch.arange(2))
        centre, spread = logits[-1].flatten(0, 1).mean(0), logits[-1].flatten(0, 1).std(0)
        last.weight.mul_(2 / spread[:, None])
        last.bias.copy_((last.bias - centre) * 2 / spread - 1.5)
    return model


def assert_same(found, expected):
    """Equal detections to 0.01 px and 1e-4 score; of nearly equal scores, either may come first."""
    assert len(found.scores) == len(expected.scores) > 0
    gap = (found.boxes_xyxy[:, None] - expected.boxes_xyxy).abs().amax(-1)
    gap = gap.masked_fill(found.labels[:, None] != expected.labels, torch.inf)
    partner = gap.argmin(1)
    assert partner.unique().numel() == len(partner)
    assert gap.amin(1).max() < 0.01
    assert torch.allclose(found.scores, expected.scores[partner], atol=1e-4, rtol=0)


def test_the_loss_falls_on_one_image():
    model = make_detector().train()
    batch = make_batch([1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        loss = sum(model(batch, 0, step).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_step_reaches_every_parameter_and_leaves_the_global_generator_alone():
    model = make_detector().train()
    state = torch.get_rng_state()
    terms = model(make_batch([1, 2]), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(terms) == {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in ("", "_0")}
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_prior_makes_every_class_rare_at_first():
    model = make_detector()
    assert all(torch.allclose(s.class_logits.bias.sigmoid(), torch.tensor(0.01)) for s in model.head.head_series)


def test_training_noise_belongs_to_image_and_step():
    model = make_detector()
    x, t = model.noisy_boxes(make_batch([4, 8, 15]), 0, 7)
    other_x, other_t = model.noisy_boxes(make_batch([15, 4]), 0, 7)
    assert torch.equal(other_x, x[[2, 0]])
    assert torch.equal(other_t, t[[2, 0]])
    assert not torch.equal(model.noisy_boxes(make_batch([4, 8, 15]), 0, 8)[0], x)
    assert not torch.equal(model.noisy_boxes(make_batch([4, 8, 15]), 1, 7)[0], x)


def start_of(model, batch, monkeypatch):
    """The boxes before noise, relative to the image: x_0 at signal 1."""
    monkeypatch.setattr(model.diffusion, "q_sample", lambda x0, t, noise: x0)
    x0, _ = model.noisy_boxes(batch, 0, 0)
    return (x0 / model.diffusion.scale + 1) / 2


def test_objects_come_first_among_placeholders(monkeypatch):
    model, batch = make_detector(), make_batch([1])
    start = start_of(model, batch, monkeypatch)
    boxes = batch.targets[0].boxes_xyxy / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    known = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
    assert torch.allclose(start[0, :3], known, atol=1e-6)
    assert (start[0, 3:, 2:] > 0).all()


def test_an_image_without_objects_starts_from_one_box_over_it_but_matches_nothing(monkeypatch):
    model = make_detector().train()
    batch = make_batch([1, 2], objects=0)
    terms = model(batch, 0, 0)
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["loss_bbox"] == 0
    assert torch.allclose(start_of(model, batch, monkeypatch)[:, 0], torch.tensor([0.5, 0.5, 1.0, 1.0]))


def test_of_more_objects_than_proposals_a_random_choice_is_shown(monkeypatch):
    model, batch = make_detector(num_proposals=5), make_batch([1], objects=9)
    assert all(torch.isfinite(term) for term in model(batch, 0, 0).values())
    start = start_of(model, batch, monkeypatch)[0]
    sizes = (batch.targets[0].boxes_xyxy[:, 2:] - batch.targets[0].boxes_xyxy[:, :2]) / torch.tensor([WIDTH, HEIGHT])
    same = torch.isclose(start[:, None, 2:], sizes, atol=1e-6).all(-1)
    assert same.any(1).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_detections_do_not_depend_on_batch_order_or_seeds_sampled_together(steps, monkeypatch):
    model = opinionated_detector()
    ids = list(range(100, 116))
    batch = make_batch(ids)
    with torch.no_grad():
        together = model.detect(model.encode(batch), batch, [0, 1], steps)
        for size in (1, 4):
            monkeypatch.setattr(detector_module, "PROPOSALS_PER_PASS", size * SMALL.num_proposals)
            order = ids[::-1] if size == 4 else ids[:5]
            for start in range(0, len(order), size):
                part = make_batch(order[start : start + size])
                encoded = model.encode(part)
                for seed in (0, 1):
                    [found] = model.detect(encoded, part, [seed], steps)
                    for image_id, detections in zip(part.image_ids, found, strict=True):
                        assert_same(detections, together[seed][ids.index(image_id)])


def test_detections_lie_in_the_stored_image_and_fall_in_score():
    model, batch = opinionated_detector(), make_batch([1, 2])
    with torch.no_grad():
        found = model.detect(model.encode(batch), batch, [0], 2)[0]
    limit = torch.tensor([2 * WIDTH, 2 * HEIGHT])
    for detections in found:
        assert (detections.boxes_xyxy >= 0).all()
        assert (detections.boxes_xyxy[:, 2:] <= limit).all()
        assert (detections.boxes_xyxy[:, 2:] > detections.boxes_xyxy[:, :2]).all()
        assert (detections.scores[1:] <= detections.scores[:-1]).all()
        assert detections.boxes_xyxy[:, 2:].max() > WIDTH  # scaled up from the resized image
        assert detections.labels.dtype == torch.int64


def test_bf16_trains_and_detects_with_boxes_in_float32():
    model, batch = opinionated_detector().train(), make_batch([1, 2])
    exact = model(batch, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, 0, 0)
        sum(rounded.values()).backward()
        with torch.no_grad():
            found = model.eval().detect(model.encode(batch), batch, [0], 2)[0][0]
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert sum(rounded.values()).item() == pytest.approx(sum(exact.values()).item(), rel=0.1)


def test_a_diverged_run_ends_in_a_loss_that_says_so():
    model = make_detector()
    with torch.no_grad():
        model.head.head_series[0].bboxes_delta.weight.fill_(torch.nan)
    assert torch.isnan(model(make_batch([1]), 0, 0)["loss_bbox"])
