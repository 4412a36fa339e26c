"""Quality guidance against gradients known in closed form and by finite differences, and its refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import awaken, make_batch, make_detector, opinionated, random_boxes
from torch.nn import functional as F

from noisebox.config import GuidanceConfig, Sampling
from noisebox.config.diffusiondet import SamplerConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey, sampling_times
from noisebox.errors import UserError
from noisebox.randomness import normal

PROPOSALS, SCALE = 8, 2.0
WHWH = torch.tensor([100.0, 80.0, 100.0, 80.0])
KEYS = [RowKey(0, 5), RowKey(3, 9)]
# What the stand-in holds for quality grows with the box's centre x and its height, in pixels.
SLOPE = torch.tensor([0.03, 0.0, 0.0, -0.05])


class Watched(GaussianDiffusion):
    """Remembers every x that it was asked to turn into boxes, and never clamps one, so that gradients are simple."""

    def __init__(self):
        super().__init__(1000, SCALE)
        self.seen = []

    def clamp(self, x):
        return x

    def to_boxes(self, x, image_whwh):
        self.seen.append(x.detach())
        return super().to_boxes(x, image_whwh)


def quality_of(boxes):
    x1, y1, x2, y2 = boxes.unbind(-1)
    return SLOPE[0] * (x1 + x2) / 2 + SLOPE[3] * (y2 - y1)


def judge(boxes, t, labels):
    """A denoiser that leaves boxes as they are, with scores of its own and the quality above."""
    logits = torch.stack((boxes[..., 1], -boxes[..., 0]), dim=-1) / 20
    return Prediction(logits, boxes, quality_of(boxes))


def gradient_at(x):
    """d log sigmoid(quality) / dx by hand: a pixel is `size / (2 scale)` of x."""
    pixels = (x / SCALE + 1) / 2 * WHWH
    quality = SLOPE[0] * pixels[..., 0] + SLOPE[3] * pixels[..., 3]
    return torch.sigmoid(-quality)[..., None] * SLOPE * WHWH / (2 * SCALE)


def seen_under(guidance, steps=1, denoise=judge, keys=KEYS, **options):
    """Every x that the denoiser met, in order, and the predictions of the steps."""
    diffusion = Watched()
    sampler = BoxSampler(diffusion, SamplerConfig(**options), PROPOSALS)
    sampling = Sampling(steps=steps, guidance=guidance)
    with torch.no_grad():
        predictions = list(sampler.trajectory(denoise, keys, WHWH.expand(len(keys), 4), sampling))
    return diffusion.seen, predictions


def start_of(image, seed=0):
    return normal((PROPOSALS, 4), seed, "sampler start", image, 0)


def start():
    return torch.stack([start_of(key.image_id, key.eval_seed) for key in KEYS])


@given(scale=st.floats(0.01, 5), count=st.integers(1, 4), normalise=st.booleans())
@settings(max_examples=25)
def test_langevin_steps_follow_the_gradient_by_hand(scale, count, normalise):
    """k steps are k single ones in a row, each from where the one before led."""
    guidance = GuidanceConfig(scale=scale, langevin_steps=count, normalise=normalise)
    seen, _ = seen_under(guidance)
    x = start()
    assert len(seen) == count + 1
    for x_t in seen:
        assert torch.allclose(x_t, x, rtol=1e-5, atol=1e-5)
        gradient = gradient_at(x)
        x = x + scale * (gradient / gradient.norm(dim=-1, keepdim=True) if normalise else gradient)


@given(scale=st.floats(0.01, 5))
@settings(max_examples=10)
def test_a_normalised_move_is_as_long_as_the_scale(scale):
    (before, after), _ = seen_under(GuidanceConfig(scale=scale))
    assert torch.allclose((after - before).norm(dim=-1), torch.full((2, PROPOSALS), scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topk", [1, 3, PROPOSALS, 100])
def test_only_the_most_certain_proposals_move(topk):
    (before, after), _ = seen_under(GuidanceConfig(scale=0.1, topk=topk))
    boxes = Watched().to_boxes(start(), WHWH.expand(2, 4))
    certainty = judge(boxes, None, None).logits.amax(-1)
    for row in range(2):
        order = sorted(range(PROPOSALS), key=lambda proposal: -certainty[row, proposal])
        moved = (after[row] != before[row]).any(-1)
        assert set(moved.nonzero().flatten().tolist()) == set(order[:topk])


@pytest.mark.parametrize(("mode", "guided"), [("final", [False, False, True]), ("all", [True, True, True])])
def test_which_steps_are_guided(mode, guided):
    times, expected = [], []
    guidance = GuidanceConfig(scale=0.1, mode=mode, langevin_steps=2)
    seen_under(guidance, 3, lambda boxes, t, labels: times.append(t[0].item()) or judge(boxes, t, labels))
    for (time, _), climbs in zip(sampling_times(1000, 3), guided, strict=True):
        expected += [time] * (3 if climbs else 1)
    assert times == expected


def test_guidance_of_the_final_step_leaves_the_steps_before_alone():
    _, plain = seen_under(GuidanceConfig(), 3)
    _, final = seen_under(GuidanceConfig(scale=0.5, mode="final"), 3)
    _, always = seen_under(GuidanceConfig(scale=0.5, mode="all"), 3)
    for step in range(3):
        assert torch.equal(final[step].boxes_xyxy, plain[step].boxes_xyxy) == (step < 2)
        assert not torch.equal(always[step].boxes_xyxy, plain[step].boxes_xyxy)
    one_final, one_always = (seen_under(GuidanceConfig(scale=0.5, mode=mode), 1)[1][0] for mode in ("final", "all"))
    assert torch.equal(one_final.boxes_xyxy, one_always.boxes_xyxy)


def test_the_next_step_starts_from_where_guidance_led():
    """DDIM by hand from the moved x, which this denoiser takes for x_0 as it is."""
    seen, _ = seen_under(GuidanceConfig(scale=0.3, mode="all"), 2, eta=0.0, box_renewal=False)
    first, moved, then, _ = seen
    assert (moved - first).abs().max() > 0.1
    alpha, following = (Watched().alphas_cumprod[t].item() for t in (999, 499))
    noise = (moved - math.sqrt(alpha) * moved) / math.sqrt(1 - alpha)
    assert torch.allclose(then, math.sqrt(following) * moved + math.sqrt(1 - following) * noise, atol=1e-4)


@pytest.mark.parametrize("mode", ["final", "all"])
def test_rows_do_not_know_of_each_other(mode):
    guidance = GuidanceConfig(scale=0.2, mode=mode, langevin_steps=2, topk=3)
    _, together = seen_under(guidance, 3)
    for row, key in enumerate(KEYS):
        _, alone = seen_under(guidance, 3, keys=[key])
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one.boxes_xyxy[0], all_.boxes_xyxy[row])


class Clamped(Watched):
    clamp = GaussianDiffusion.clamp


def test_where_quality_is_flat_a_box_stays():
    """Beyond its bounds x is clamped, and nothing depends on it any more: there is no direction, and no NaN."""
    diffusion, image = Clamped(), next(image for image in range(100) if start_of(image)[0, 0] > SCALE)
    sampler = BoxSampler(diffusion, SamplerConfig(), PROPOSALS)

    def judge_centre(boxes, t, labels):
        return Prediction(boxes[..., :1], boxes, (boxes[..., 0] + boxes[..., 2]) / 100)

    sampling = Sampling(steps=1, guidance=GuidanceConfig(scale=0.5))
    list(sampler.trajectory(judge_centre, [RowKey(0, image)], WHWH[None], sampling))
    before, after = diffusion.seen
    inside = start_of(image)[:, 0].abs() < SCALE
    moved = torch.zeros(PROPOSALS, 4).index_put((inside,), torch.tensor([0.5, 0.0, 0.0, 0.0]))
    assert torch.allclose(after[0], before[0] + moved, atol=1e-6)


OTHERWISE = {"mode": "final", "langevin_steps": 3, "normalise": False, "topk": 2}


@pytest.mark.parametrize("quality_head", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_scale_zero_is_no_guidance_bit_for_bit(quality_head, steps):
    model, batch = opinionated(make_detector(quality_head=quality_head)), make_batch([1, 2])
    encoded = model.encode(batch)
    plain = model.detect(encoded, batch, [0, 1], Sampling(steps=steps))
    zero = model.detect(encoded, batch, [0, 1], Sampling(steps=steps, guidance=GuidanceConfig(scale=0.0, **OTHERWISE)))
    for one, other in zip(itertools.chain(*plain), itertools.chain(*zero), strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)


def test_guidance_changes_what_a_detector_finds():
    model, batch = opinionated(make_detector(quality_head=True)), make_batch([1, 2])
    encoded = model.encode(batch)
    found = [
        model.detect(encoded, batch, [0], Sampling(steps=2, guidance=guidance))[0][0].scores[:5].tolist()
        for guidance in (GuidanceConfig(), GuidanceConfig(scale=0.3), GuidanceConfig(scale=0.3, mode="final"))
    ]
    assert found[0] != found[1] != found[2] != found[0]


def test_without_a_quality_head_guidance_is_refused_in_one_sentence():
    model, batch = make_detector().eval(), make_batch([1])
    sampling = Sampling(steps=1, guidance=GuidanceConfig(scale=0.1))
    told = "quality guidance needs a detector with a quality head, which this one lacks: train it with a recipe that "
    for ask in (
        lambda: model.check_sampling(sampling),
        lambda: model.detect(model.encode(batch), batch, [0], sampling),
        lambda: seen_under(sampling.guidance, denoise=lambda *seen: judge(*seen)._replace(quality=None)),
    ):
        with pytest.raises(UserError, match=told) as refusal:
            ask()
        assert "\n" not in str(refusal.value)
        assert ". " not in str(refusal.value)
    model.check_sampling(Sampling(steps=1))
    make_detector(quality_head=True).check_sampling(sampling)


SWITCHES = [
    {},
    {"geo_feat": {"enabled": True}, "geo_bias": {"kind": "mlp", "topk": 6}, "self_attn": "sdpa"},
    {"label_state": True, "label_d3pm": True, "use_distribution": True, "aniso_noise": {"sigma_w": 2.0}},
]


def judged(switches):
    """A real head of one stage, its denoiser for image 1, and a state (x, t, labels) of boxes within the image.

    Where a sample leaves the image or a box changes its level of the pyramid, the predicted quality jumps.
    """
    model, batch = awaken(make_detector(quality_head=True, num_heads=1, **switches).eval(), 0.2), make_batch([1])
    whwh = batch.image_whwh
    with torch.no_grad():
        denoise = model.denoiser(model.encode(batch), torch.tensor([0]), whwh)
    x = model.diffusion.from_boxes(0.8 * random_boxes(1, 20) + 0.1 * whwh[:, None], whwh)
    return model, denoise, whwh, (x, torch.tensor([300]), model.noisy_proposals(batch, 0, 0).labels)


def log_quality(model, denoise, whwh, x, t, labels):
    """Of each proposal, (20,) float64."""
    with torch.no_grad():
        return F.logsigmoid(denoise(model.diffusion.to_boxes(x, whwh), t, labels).quality.double())[0]


@pytest.mark.parametrize("switches", SWITCHES)
def test_the_gradient_of_a_real_head_is_that_of_finite_differences(switches):
    model, denoise, whwh, (x, t, labels) = judged(switches)
    scale, h = 1e-2, 5e-4
    guidance = GuidanceConfig(scale=scale, normalise=False)
    gradient = (model.sampler._climb(denoise, x, t, labels, whwh, guidance) - x) / scale
    agree = 0
    for proposal in range(20):
        along = torch.zeros_like(x)
        along[0, proposal] = F.normalize(gradient[0, proposal], dim=-1)
        above, below = (log_quality(model, denoise, whwh, x + sign * h * along, t, labels).sum() for sign in (1, -1))
        agree += ((above - below) / (2 * h)).item() == pytest.approx(gradient[0, proposal].norm().item(), rel=0.05)
    assert agree >= 16  # the others lie next to a kink or jump


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_small_step_raises_the_predicted_quality(switches, normalise):
    model, denoise, whwh, (x, t, labels) = judged(switches)
    guidance = GuidanceConfig(scale=2e-3, langevin_steps=2, normalise=normalise)
    with torch.no_grad():
        climbed = model.sampler._climb(denoise, x, t, labels, whwh, guidance)
    before, after = (log_quality(model, denoise, whwh, each, t, labels) for each in (x, climbed))
    assert after.sum() > before.sum()
    assert (after > before).sum() >= 15
    assert not climbed.requires_grad


def test_guidance_leaves_no_gradient_behind():
    model, batch = opinionated(make_detector(quality_head=True)), make_batch([1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        [[found]] = model.detect(
            model.encode(batch), batch, [0], Sampling(steps=2, guidance=GuidanceConfig(scale=0.3, langevin_steps=2))
        )
    assert len(found.scores) > 0
    assert torch.isfinite(found.boxes_xyxy).all()
    assert not found.boxes_xyxy.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
