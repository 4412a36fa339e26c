"""The DDIM sampler against hand-written loops, with denoisers simple enough to follow."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisebox.config import SamplerConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey, sampling_times
from noisebox.errors import UserError
from noisebox.randomness import normal

PROPOSALS = 6
WHWH = torch.tensor([100.0, 80.0, 100.0, 80.0])
DIFFUSION = GaussianDiffusion(1000, 2.0)


def sampler(**options):
    return BoxSampler(DIFFUSION, SamplerConfig(**options), PROPOSALS)


def towards_the_middle(boxes, t):
    """A denoiser whose boxes shrink towards their image's middle third, sure of those whose left edge lies there."""
    goal = torch.tensor([30.0, 25.0, 70.0, 60.0])
    better = boxes + 0.5 * (goal - boxes)
    logits = torch.stack((boxes[..., 0] - 12, boxes[..., 1] - 20), dim=-1) / 4 + t[:, None, None] / 2000
    return Prediction(logits, better)


def trajectory_by_hand(key, steps, eta, renewal):
    """DDIM (Song et al. 2021, equation 12) written out in float64 for one row."""
    shape = (PROPOSALS, 4)
    alpha = DIFFUSION.alphas_cumprod.tolist()
    x = normal(shape, key.eval_seed, "sampler start", key.image_id, 0).double()
    times = torch.linspace(-1, 999, steps + 1).int().tolist()[::-1]
    visited = []
    for step in range(steps):
        t, following = times[step], times[step + 1]
        relative = (x.clamp(-2, 2) / 2 + 1) / 2
        centre, half = relative[:, :2], relative[:, 2:] / 2
        boxes = torch.cat((centre - half, centre + half), 1) * WHWH
        logits, better = towards_the_middle(boxes[None], torch.tensor([t]))
        visited.append(Prediction(logits[0], better[0]))
        if step == steps - 1:
            break
        scaled = better[0] / WHWH
        x0 = torch.cat(((scaled[:, :2] + scaled[:, 2:]) / 2, scaled[:, 2:] - scaled[:, :2]), 1)
        x0 = ((x0 * 2 - 1) * 2).clamp(-2, 2)
        noise = (x - math.sqrt(alpha[t]) * x0) / math.sqrt(1 - alpha[t])
        sigma = eta * math.sqrt((1 - alpha[following]) / (1 - alpha[t]) * (1 - alpha[t] / alpha[following]))
        x = math.sqrt(alpha[following]) * x0 + math.sqrt(1 - alpha[following] - sigma**2) * noise
        x += sigma * normal(shape, key.eval_seed, "sampler step", key.image_id, step)
        if renewal:
            weak = logits[0].sigmoid().amax(1) <= 0.5
            x[weak] = normal(shape, key.eval_seed, "sampler renewal", key.image_id, step).double()[weak]
    return visited


@given(steps=st.integers(1, 1000))
def test_times_are_the_public_ones(steps):
    times = [time for time, _ in sampling_times(1000, steps)]
    exact = [-1 + 1000 * index / steps for index in range(steps, 0, -1)]
    assert times == [math.floor(time + 1e-9) for time in exact]
    assert [following for _, following in sampling_times(1000, steps)] == [*times[1:], -1]


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(UserError, match="1001 sample steps"):
        sampling_times(1000, 1001)


@pytest.mark.parametrize("renewal", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_trajectory_equals_the_one_written_by_hand(steps, eta, renewal):
    key = RowKey(eval_seed=3, image_id=17)
    taken = list(sampler(eta=eta, box_renewal=renewal).trajectory(towards_the_middle, [key], WHWH[None], steps))
    by_hand = trajectory_by_hand(key, steps, eta, renewal)
    assert len(taken) == len(by_hand) == steps
    for ours, theirs in zip(taken, by_hand, strict=True):
        assert torch.allclose(ours.boxes_xyxy[0].double(), theirs.boxes_xyxy, atol=1e-3)
        assert torch.allclose(ours.logits[0].double(), theirs.logits, atol=1e-3)


def test_renewal_replaces_only_the_weak_and_in_place():
    key = RowKey(0, 1)

    def first_half_is_sure(boxes, t):
        sure = torch.arange(PROPOSALS) < PROPOSALS // 2
        return Prediction(torch.where(sure, 4.0, -4.0)[None, :, None], boxes)

    seen = {}
    for renewal in (False, True):
        taken = list(sampler(eta=0.0, box_renewal=renewal).trajectory(first_half_is_sure, [key], WHWH[None], 2))
        seen[renewal] = taken[1].boxes_xyxy[0]
    half = PROPOSALS // 2
    assert torch.equal(seen[True][:half], seen[False][:half])
    assert (seen[True][half:] != seen[False][half:]).any(1).all()


def test_one_step_is_one_pass_from_the_start_noise():
    keys = [RowKey(0, 5), RowKey(1, 5)]
    start = torch.stack([normal((PROPOSALS, 4), key.eval_seed, "sampler start", 5, 0) for key in keys])
    whwh = WHWH.expand(2, 4)
    passed = towards_the_middle(DIFFUSION.to_boxes(start, whwh), torch.tensor([999, 999]))
    [taken] = sampler().trajectory(towards_the_middle, keys, whwh, 1)
    assert torch.equal(taken.boxes_xyxy, passed.boxes_xyxy)
    assert torch.equal(taken.logits, passed.logits)
    first_of_many = next(sampler().trajectory(towards_the_middle, keys, whwh, 20))
    assert torch.equal(first_of_many.boxes_xyxy, passed.boxes_xyxy)


@pytest.mark.parametrize("steps", [1, 4])
def test_rows_do_not_know_of_each_other(steps):
    keys = [RowKey(seed, image) for seed in (0, 1, 2) for image in (7, 3, 9)]
    together = sampler().sample(towards_the_middle, keys, WHWH.expand(len(keys), 4), steps)
    backwards = sampler().sample(towards_the_middle, keys[::-1], WHWH.expand(len(keys), 4), steps)[::-1]
    for row, key in enumerate(keys):
        [alone] = sampler().sample(towards_the_middle, [key], WHWH[None], steps)
        for one, other, third in zip(alone, together[row], backwards[row], strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
    assert not torch.equal(together[0].boxes_xyxy, together[3].boxes_xyxy)


def one_new_box_a_step(boxes, t):
    """At each step all proposals find one box, at a place that tells the step: of four, 60, 40, 20, 0."""
    place = (t // 250 * 20).float()[:, None, None]
    found = torch.cat((place, torch.zeros_like(place), place + 10, torch.full_like(place, 10.0)), -1)
    return Prediction(torch.ones(len(boxes), PROPOSALS, 1) + place / 100, found.expand(-1, PROPOSALS, -1))


@pytest.mark.parametrize(
    ("ensemble", "steps", "places"),
    [
        ("all", 4, [60, 40, 20, 0]),
        ("public", 4, [60, 40, 20]),
        ("none", 4, [0]),
        ("all", 1, [60]),
        ("public", 1, [60]),
        ("none", 1, [60]),
    ],
)
def test_which_steps_an_ensemble_keeps(ensemble, steps, places):
    [found] = sampler(ensemble=ensemble).sample(one_new_box_a_step, [RowKey(0, 0)], WHWH[None], steps)
    assert found.boxes_xyxy[:, 0].tolist() == places
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_duplicates_are_suppressed_within_a_class_only():
    boxes = torch.tensor(
        [
            [-60.0, 0.0, 40.0, 80.0],  # reaches so far left that class offsets could meet the other class
            [-58.0, 0.0, 40.0, 80.0],
            [0.0, 0.0, 100.0, 80.0],
            [2.0, 0.0, 100.0, 80.0],
            [0.0, 0.0, 10.0, 10.0],
            [50.0, 50.0, 60.0, 60.0],
        ]
    )
    logits = torch.tensor([[-9.0, 3.0], [-9.0, 2.9], [2.5, -9.0], [2.4, -9.0], [2.0, -9.0], [-9.0, 1.0]])
    [found] = sampler().sample(lambda *_: Prediction(logits[None], boxes[None]), [RowKey(0, 0)], WHWH[None], 1)
    assert torch.equal(found.boxes_xyxy, boxes[[0, 2, 4, 5]])
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert torch.allclose(found.scores, torch.tensor([3.0, 2.5, 2.0, 1.0]).sigmoid())


def test_only_as_many_class_scores_as_proposals_survive_a_step():
    boxes = torch.arange(PROPOSALS)[:, None] * 12.0 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    logits = torch.stack((torch.arange(PROPOSALS) + 1.0, torch.arange(PROPOSALS) + 1.5), dim=1)
    [found] = sampler().sample(lambda *_: Prediction(logits[None], boxes[None]), [RowKey(0, 0)], WHWH[None], 1)
    assert found.scores.tolist() == logits.sigmoid().flatten().sort(descending=True).values[:PROPOSALS].tolist()
    assert found.labels.tolist() == [1, 0] * (PROPOSALS // 2)
