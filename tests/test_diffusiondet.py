"""DiffusionDet as a whole: it learns, and its results do not depend on batch, order or seeds sampled together."""

from dataclasses import replace

import pytest
import torch
from small_detector import HEIGHT, SMALL, WIDTH, awaken, make_batch, make_detector, opinionated

from noisebox.config import GuidanceConfig, Sampling
from noisebox.config.diffusiondet import FederatedConfig, LossConfig
from noisebox.models import BOX_MONITORS
from noisebox.models.diffusiondet import detector as detector_module
from noisebox.randomness import normal

# Only the last step: uphill on the quality of random weights, rounding would grow from step to step.
GUIDED = GuidanceConfig(scale=0.5, mode="final")


def loss_of(terms):
    return sum(term for name, term in terms.items() if name.startswith("loss_"))


def assert_same(found, expected):
    """Equal detections to 0.1 px and 1e-3 score; of nearly equal scores, either may come first."""
    assert len(found.scores) == len(expected.scores) > 0
    gap = (found.boxes_xyxy[:, None] - expected.boxes_xyxy).abs().amax(-1)
    gap = gap.masked_fill(found.labels[:, None] != expected.labels, torch.inf)
    partner = gap.argmin(1)
    assert partner.unique().numel() == len(partner)
    assert gap.amin(1).max() < 0.1
    assert torch.allclose(found.scores, expected.scores[partner], atol=1e-3, rtol=0)


def test_the_loss_falls_on_one_image():
    model = make_detector().train()
    batch = make_batch([1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        loss = loss_of(model(batch, 0, step))
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
    losses = {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in ("", "_0")}
    assert set(terms) == losses | set(BOX_MONITORS)
    loss_of(terms).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_prior_makes_every_class_rare_at_first():
    model = make_detector()
    assert all(torch.allclose(s.class_logits.bias.sigmoid(), torch.tensor(0.01)) for s in model.head.head_series)


def test_training_noise_belongs_to_image_and_step():
    model = make_detector()
    x_t, t, labels = model.noisy_proposals(make_batch([4, 8, 15]), 0, 7)
    other = model.noisy_proposals(make_batch([15, 4]), 0, 7)
    assert torch.equal(other.x_t, x_t[[2, 0]])
    assert torch.equal(other.t, t[[2, 0]])
    assert labels is None
    assert not torch.equal(model.noisy_proposals(make_batch([4, 8, 15]), 0, 8).x_t, x_t)
    assert not torch.equal(model.noisy_proposals(make_batch([4, 8, 15]), 1, 7).x_t, x_t)


def test_times_are_drawn_evenly_from_the_whole_schedule():
    model = make_detector(num_proposals=1, timesteps=10)
    batch = make_batch(list(range(40)), objects=1)
    t = torch.cat([model.noisy_proposals(batch, 0, step).t for step in range(50)])
    assert t.dtype == torch.int64
    shares = t.bincount(minlength=10) / len(t)
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=4 * 0.3 / len(t) ** 0.5)


@pytest.mark.parametrize("sigmas", [(1.0, 1.0), (2.0, 0.5)])
def test_training_noise_has_the_sigmas_of_the_configuration(sigmas):
    model = make_detector(aniso_noise=dict(zip(("sigma_w", "sigma_h"), sigmas, strict=True)))
    plain, batch = make_detector(), make_batch([4, 8, 15])
    x_t, t, _ = model.noisy_proposals(batch, 0, 7)
    isotropic, same_t, _ = plain.noisy_proposals(batch, 0, 7)
    x0 = plain.diffusion.predict_x0(isotropic.double(), t, noise_of(batch).double())
    implied = plain.diffusion.predict_noise(x_t.double(), t, x0)
    assert torch.equal(t, same_t)
    assert torch.allclose(implied, noise_of(batch).double() * torch.tensor([1.0, 1.0, *sigmas]), atol=1e-3)


def noise_of(batch):
    """The noise of step 7 under seed 0, from its keys."""
    drawn = [normal((SMALL["num_proposals"], 4), 0, "box noise", 7, image_id) for image_id in batch.image_ids]
    return torch.stack(drawn)


def test_monitors_tell_the_median_box_and_move_no_weight():
    model = make_detector().train()
    batch = make_batch([1, 2])
    output = model.look(model.encode(batch), batch, model.noisy_proposals(batch, 0, 0))
    terms = model(batch, 0, 0)
    for side, name in enumerate(BOX_MONITORS):
        extents = [(box[2 + side] - box[side]).item() for box in output.boxes_xyxy[-1].flatten(0, 1)]
        # torch takes the lower of two middle values
        assert terms[name].item() == pytest.approx(sorted(extents)[(len(extents) - 1) // 2])
        assert not terms[name].requires_grad


def start_of(model, batch, monkeypatch):
    """The boxes before noise, relative to the image: x_0 at signal 1."""
    monkeypatch.setattr(model.diffusion, "q_sample", lambda x0, t, noise: x0)
    return (model.noisy_proposals(batch, 0, 0).x_t / model.diffusion.scale + 1) / 2


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
    crowded, sparse = make_batch([1], objects=9), make_batch([2], objects=2)
    counted = [replace(part.targets[0], counted=torch.tensor([True, True, False])) for part in (crowded, sparse)]
    both = replace(make_batch([1, 2]), targets=tuple(counted))
    federated = make_detector(num_proposals=5, loss=LossConfig(federated=FederatedConfig()))
    assert all(torch.isfinite(term) for term in federated(both, 0, 0).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_what_the_head_saw_without_gradient_leaves_no_parameter_without_one(dtype):
    """Self-conditioning looks twice: casts of the first look would cut the second one off from its weights."""
    model = awaken(opinionated(make_detector(label_state=True))).train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        terms = model(make_batch([1, 2]), 0, 0)
        looked = model.training_proposals(model.encode(make_batch([1, 2])), make_batch([1, 2]), 0, 0)
    loss_of(terms).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not torch.equal(looked.labels, model.noisy_proposals(make_batch([1, 2]), 0, 0).labels)


D3PM = {"label_state": True, "label_d3pm": True}
WAYS = {
    "plain, one step": ({}, Sampling(steps=1)),
    "plain": ({}, Sampling(steps=3)),
    "label state": ({"label_state": True}, Sampling(steps=3)),
    "mask": ({**D3PM, "label_kernel": "mask"}, Sampling(steps=3)),
    "uniform": ({**D3PM, "label_kernel": "uniform"}, Sampling(steps=3)),
    "gaussian": ({**D3PM, "label_kernel": "gaussian"}, Sampling(steps=3)),
    "distribution": ({**D3PM, "label_kernel": "uniform", "use_distribution": True}, Sampling(steps=3)),
    "geometry and graph": (
        {
            "geo_feat": {"enabled": True, "schedule": "fade"},
            "geo_bias": {"kind": "mlp", "topk": 6},
            "self_attn": "sdpa",
            "aniso_noise": {"sigma_w": 2.0, "sigma_h": 2.0},
        },
        Sampling(steps=3),
    ),
    "guided": ({"quality_head": True}, Sampling(steps=2, guidance=GUIDED)),
}


@pytest.mark.parametrize("way", WAYS)
def test_detections_do_not_depend_on_batch_order_or_seeds_sampled_together(way, monkeypatch):
    switches, sampling = WAYS[way]
    model = awaken(opinionated(make_detector(**switches)))
    ids = list(range(100, 108))
    batch = make_batch(ids)
    with torch.no_grad():
        together = model.detect(model.encode(batch), batch, [0, 1], sampling)
        for size in (1, 4):
            monkeypatch.setitem(detector_module.PROPOSALS_PER_PASS, "cpu", size * SMALL["num_proposals"])
            order = ids[::-1] if size == 4 else ids[:4]
            for start in range(0, len(order), size):
                part = make_batch(order[start : start + size])
                encoded = model.encode(part)
                for seed in (0, 1):
                    [found] = model.detect(encoded, part, [seed], sampling)
                    for image_id, detections in zip(part.image_ids, found, strict=True):
                        assert_same(detections, together[seed][ids.index(image_id)])


def test_detections_lie_in_the_stored_image_and_fall_in_score():
    model, batch = opinionated(make_detector()), make_batch([1, 2])
    with torch.no_grad():
        found = model.detect(model.encode(batch), batch, [0], Sampling(steps=2))[0]
    limit = torch.tensor([2 * WIDTH, 2 * HEIGHT])
    for detections in found:
        assert (detections.boxes_xyxy >= 0).all()
        assert (detections.boxes_xyxy[:, 2:] <= limit).all()
        assert (detections.boxes_xyxy[:, 2:] > detections.boxes_xyxy[:, :2]).all()
        assert (detections.scores[1:] <= detections.scores[:-1]).all()
        assert detections.boxes_xyxy[:, 2:].max() > WIDTH  # scaled up from the resized image
        assert detections.labels.dtype == torch.int64


@pytest.mark.parametrize("switches", [{}, {"label_state": True, "quality_head": True}])
def test_bf16_trains_and_detects_with_boxes_in_float32(switches):
    model, batch = opinionated(make_detector(**switches)).train(), make_batch([1, 2])
    exact = loss_of(model(batch, 0, 0))
    sampling = Sampling(steps=2, guidance=GUIDED if switches else GuidanceConfig())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_of(model(batch, 0, 0))
        rounded.backward()
        with torch.no_grad():
            found = model.eval().detect(model.encode(batch), batch, [0], sampling)[0][0]
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.1)


def test_a_diverged_run_ends_in_a_loss_that_says_so():
    model = make_detector()
    with torch.no_grad():
        model.head.head_series[0].bboxes_delta.weight.fill_(torch.nan)
    assert torch.isnan(model(make_batch([1]), 0, 0)["loss_bbox"])
