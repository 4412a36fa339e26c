"""The DDIM sampler against hand-written loops, with denoisers simple enough to follow."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from noisebox.config import Sampling
from noisebox.config.diffusiondet import SamplerConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.labels import LabelProcess
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey, ScoredBoxes, sampling_times
from noisebox.errors import UserError
from noisebox.randomness import normal, numpy_generator

PROPOSALS = 6
WHWH = torch.tensor([100.0, 80.0, 100.0, 80.0])
SIGMAS = (1.0, 1.0, 2.0, 0.5)
DIFFUSION = GaussianDiffusion(1000, 2.0)


def sampler(diffusion=DIFFUSION, proposals=PROPOSALS, labels=None, **options):
    return BoxSampler(diffusion, SamplerConfig(**options), proposals, labels)


def visited_by(sampler, denoise, keys, steps):
    """The predictions along the trajectories of rows that all belong to one image."""
    return list(sampler.trajectory(denoise, keys, WHWH.expand(len(keys), 4), Sampling(steps=steps)))


def found_by(sampler, denoise, keys, steps):
    return sampler.sample(denoise, keys, WHWH.expand(len(keys), 4), Sampling(steps=steps))


def towards_the_middle(boxes, t, labels):
    """A denoiser whose boxes shrink towards their image's middle third, sure of those whose left edge lies there."""
    goal = torch.tensor([30.0, 25.0, 70.0, 60.0])
    better = boxes + 0.5 * (goal - boxes)
    logits = torch.stack((boxes[..., 0] - 12, boxes[..., 1] - 20), dim=-1) / 4 + t[:, None, None] / 2000
    return Prediction(logits, better)


def trajectory_by_hand(key, steps, eta, renewal, sigmas):
    """DDIM (Song et al. 2021, equation 12) written out in float64 for one row.

    Noise with standard deviations `sigmas` is isotropic in the units x / sigma, in which the equation is used.
    """
    shape, unit = (PROPOSALS, 4), torch.tensor(sigmas, dtype=torch.float64)
    alpha = DIFFUSION.alphas_cumprod.tolist()
    x = unit * normal(shape, key.eval_seed, "sampler start", key.image_id, 0)
    times = torch.linspace(-1, 999, steps + 1).int().tolist()[::-1]
    visited = []
    for step in range(steps):
        t, following = times[step], times[step + 1]
        relative = (x.clamp(-2, 2) / 2 + 1) / 2
        centre, half = relative[:, :2], relative[:, 2:] / 2
        boxes = torch.cat((centre - half, centre + half), 1) * WHWH
        logits, better, _ = towards_the_middle(boxes[None], torch.tensor([t]), None)
        visited.append(Prediction(logits[0], better[0]))
        if step == steps - 1:
            break
        scaled = better[0] / WHWH
        x0 = torch.cat(((scaled[:, :2] + scaled[:, 2:]) / 2, scaled[:, 2:] - scaled[:, :2]), 1)
        x0 = ((x0 * 2 - 1) * 2).clamp(-2, 2)
        x, x0 = x / unit, x0 / unit
        noise = (x - math.sqrt(alpha[t]) * x0) / math.sqrt(1 - alpha[t])
        sigma = eta * math.sqrt((1 - alpha[following]) / (1 - alpha[t]) * (1 - alpha[t] / alpha[following]))
        x = math.sqrt(alpha[following]) * x0 + math.sqrt(1 - alpha[following] - sigma**2) * noise
        x += sigma * normal(shape, key.eval_seed, "sampler step", key.image_id, step)
        if renewal:
            weak = logits[0].sigmoid().amax(1) <= 0.5
            x[weak] = normal(shape, key.eval_seed, "sampler renewal", key.image_id, step).double()[weak]
        x = x * unit
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


@pytest.mark.parametrize("sigmas", [(1.0,) * 4, SIGMAS])
@pytest.mark.parametrize("renewal", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_trajectory_equals_the_one_written_by_hand(steps, eta, renewal, sigmas):
    key, diffusion = RowKey(eval_seed=3, image_id=17), GaussianDiffusion(1000, 2.0, sigmas)
    taken = visited_by(sampler(diffusion, eta=eta, box_renewal=renewal), towards_the_middle, [key], steps)
    by_hand = trajectory_by_hand(key, steps, eta, renewal, sigmas)
    assert len(taken) == len(by_hand) == steps
    for ours, theirs in zip(taken, by_hand, strict=True):
        assert torch.allclose(ours.boxes_xyxy[0].double(), theirs.boxes_xyxy, atol=1e-3)
        assert torch.allclose(ours.logits[0].double(), theirs.logits, atol=1e-3)


def test_sigmas_of_one_are_the_isotropic_sampler_bit_for_bit():
    keys, ones = [RowKey(0, 1), RowKey(4, 2)], GaussianDiffusion(1000, 2.0, (1.0, 1.0, 1.0, 1.0))
    plain, other = (visited_by(sampler(each), towards_the_middle, keys, 6) for each in (DIFFUSION, ones))
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.boxes_xyxy, two.boxes_xyxy)
        assert torch.equal(one.logits, two.logits)


class Watched(GaussianDiffusion):
    """Remembers every x that it was asked to turn into boxes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def to_boxes(self, x, image_whwh):
        self.seen.append(x)
        return super().to_boxes(x, image_whwh)


GOAL = torch.tensor([30.0, 25.0, 70.0, 60.0])


def knows_the_answer(boxes, t, labels):
    return Prediction(torch.full((*boxes.shape[:2], 1), 3.0), GOAL.expand_as(boxes))


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 1.0, 2.0, 2.0), SIGMAS])
def test_with_a_perfect_denoiser_and_no_new_noise_ddim_ends_at_x0(sigmas):
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) sigma ε with one and the same ε all along."""
    diffusion = Watched(1000, 2.0, sigmas)
    visited_by(sampler(diffusion, eta=0.0, box_renewal=False), knows_the_answer, [RowKey(0, 1)], 500)
    x0 = diffusion.from_boxes(GOAL[None, None], WHWH[None])
    times = torch.tensor([time for time, _ in sampling_times(1000, 500)])
    seen = torch.cat(diffusion.seen).double()
    alpha_bar = diffusion.alphas_cumprod[times][:, None, None]
    noise = (seen - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt() / diffusion.sigmas
    assert torch.allclose(noise, noise[:1].expand_as(noise), atol=2e-3)
    start = normal((PROPOSALS, 4), 0, "sampler start", 1, 0).double()
    assert torch.allclose(noise[0], start, atol=1e-3)
    assert (seen[-1] - x0).abs().max() < 0.1 < (seen[0] - x0).abs().max()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_a_perfect_denoiser_every_step_has_the_moments_of_the_marginal(eta):
    diffusion, proposals = Watched(1000, 2.0, SIGMAS), 5000
    visited_by(sampler(diffusion, proposals, eta=eta, box_renewal=False), knows_the_answer, [RowKey(2, 7)], 4)
    x0 = diffusion.from_boxes(GOAL[None, None], WHWH[None])[0, 0]
    for (time, _), x_t in zip(sampling_times(1000, 4), diffusion.seen, strict=True):
        alpha_bar = diffusion.alphas_cumprod[time].item()
        deviation = math.sqrt(1 - alpha_bar) * torch.tensor(SIGMAS)
        error = (x_t[0].mean(0) - math.sqrt(alpha_bar) * x0).abs()
        assert (error < 4 * deviation / math.sqrt(proposals)).all()
        assert x_t[0].std(0).tolist() == pytest.approx(deviation.tolist(), rel=0.05)


def first_half_is_sure(boxes, t, labels):
    sure = torch.arange(PROPOSALS) < PROPOSALS // 2
    return Prediction(torch.where(sure, 4.0, -4.0)[None, :, None].expand(len(boxes), -1, -1), boxes)


def test_renewal_replaces_only_the_weak_and_in_place():
    kept, renewed = (
        visited_by(sampler(eta=0.0, box_renewal=renewal), first_half_is_sure, [RowKey(0, 1)], 2)[1].boxes_xyxy[0]
        for renewal in (False, True)
    )
    half = PROPOSALS // 2
    assert torch.equal(renewed[:half], kept[:half])
    assert (renewed[half:] != kept[half:]).any(1).all()


@pytest.mark.parametrize("sigmas", [(1.0,), SIGMAS])
def test_one_step_is_one_pass_from_the_start_noise(sigmas):
    diffusion = GaussianDiffusion(1000, 2.0, sigmas)
    keys = [RowKey(0, 5), RowKey(1, 5)]
    noise = torch.stack([normal((PROPOSALS, 4), key.eval_seed, "sampler start", 5, 0) for key in keys])
    start = diffusion.to_boxes(noise * torch.tensor(sigmas), WHWH.expand(2, 4))
    passed = towards_the_middle(start, torch.tensor([999, 999]), None)
    [taken] = visited_by(sampler(diffusion), towards_the_middle, keys, 1)
    assert torch.equal(taken.boxes_xyxy, passed.boxes_xyxy)
    assert torch.equal(taken.logits, passed.logits)
    first_of_many = visited_by(sampler(diffusion), towards_the_middle, keys, 20)[0]
    assert torch.equal(first_of_many.boxes_xyxy, passed.boxes_xyxy)


@pytest.mark.parametrize("steps", [1, 4])
def test_rows_do_not_know_of_each_other(steps):
    keys = [RowKey(seed, image) for seed in (0, 1, 2) for image in (7, 3, 9)]
    together = found_by(sampler(), towards_the_middle, keys, steps)
    backwards = found_by(sampler(), towards_the_middle, keys[::-1], steps)[::-1]
    for row, key in enumerate(keys):
        [alone] = found_by(sampler(), towards_the_middle, [key], steps)
        for one, other, third in zip(alone, together[row], backwards[row], strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
    assert not torch.equal(together[0].boxes_xyxy, together[3].boxes_xyxy)


class CountedLabels(LabelProcess):
    """Its state is how many steps a proposal's label has come; `purposes` and `steps` tell how it was asked."""

    def __init__(self):
        super().__init__(1)
        self.purposes, self.steps = [], []

    def start(self, proposals, noise, purpose="label start"):
        self.purposes.append((purpose, noise.keys))
        return torch.zeros(len(noise.keys), proposals, 2)

    def noised(self, labels, t, noise):
        raise AssertionError("sampling does not noise known labels")

    def advance(self, state, logits, t, next_t, noise):
        self.steps.append((t, next_t, noise.keys))
        return state + 1


@pytest.mark.parametrize("renewal", [False, True])
def test_labels_advance_at_each_step_but_the_last_and_only_the_weak_start_anew(renewal):
    labels, carried = CountedLabels(), []

    def denoise(boxes, t, state):
        carried.append(state[..., 0].clone())
        return first_half_is_sure(boxes, t, state)

    keys = [RowKey(6, 1), RowKey(7, 2)]
    visited_by(sampler(labels=labels, box_renewal=renewal), denoise, keys, 4)
    times = sampling_times(1000, 4)
    keyed = [[(6, (1, step)), (7, (2, step))] for step in range(4)]
    assert labels.steps == [(*pair, keyed[step]) for step, pair in enumerate(times[:-1])]
    renewals = [("label renewal", keyed[step]) for step in range(3)] if renewal else []
    assert labels.purposes == [("label start", keyed[0]), *renewals]
    half = PROPOSALS // 2
    for step, state in enumerate(carried):
        assert (state[:, :half] == step).all()
        assert (state[:, half:] == (0 if renewal else step)).all()


def test_without_a_label_process_no_labels_are_given():
    given_labels = []
    visited_by(sampler(), lambda *seen: given_labels.append(seen[2]) or towards_the_middle(*seen), [RowKey(0, 0)], 2)
    assert given_labels == [None, None]


def test_no_gradient_passes_from_one_step_to_the_next():
    weight = torch.tensor(0.5, requires_grad=True)

    def learning(boxes, t, labels):
        assert not boxes.requires_grad
        return Prediction(boxes[..., :1] * weight, boxes * weight)

    first, second = visited_by(sampler(eta=0.0, box_renewal=False), learning, [RowKey(0, 1)], 2)
    (gradient,) = torch.autograd.grad(second.boxes_xyxy.sum(), weight)
    assert gradient.item() == pytest.approx(second.boxes_xyxy.sum().item() / 0.5, rel=1e-5)
    assert first.boxes_xyxy.requires_grad


def one_new_box_a_step(boxes, t, labels):
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
    [found] = found_by(sampler(ensemble=ensemble), one_new_box_a_step, [RowKey(0, 0)], steps)
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
    [found] = found_by(sampler(), lambda *_: Prediction(logits[None], boxes[None]), [RowKey(0, 0)], 1)
    assert torch.equal(found.boxes_xyxy, boxes[[0, 2, 4, 5]])
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert torch.allclose(found.scores, torch.tensor([3.0, 2.5, 2.0, 1.0]).sigmoid())


@pytest.mark.parametrize("far", [0.0, 1e5])
def test_many_classes_and_far_boxes_cost_no_digits(far):
    """The kept boxes are those of each class's own NMS, whatever keeps the classes apart."""
    random = numpy_generator(0, "boxes")
    corners = torch.tensor(random.uniform(0, 800, (400, 2)), dtype=torch.float32)
    sizes = torch.tensor(random.uniform(10, 90, (400, 2)), dtype=torch.float32)
    boxes = torch.cat((corners, corners + sizes), dim=1).repeat(2, 1)
    boxes[400:] += torch.tensor(random.uniform(-6, 6, (400, 4)), dtype=torch.float32)
    boxes[0, 2:] += far
    labels = torch.tensor(random.integers(0, 1203, 400)).repeat(2)
    scores = torch.tensor(random.uniform(0.1, 0.9, 800), dtype=torch.float32)
    found = sampler()._suppress(ScoredBoxes(boxes, scores, labels))
    own = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    kept = torch.cat([rows[nms(boxes[rows], scores[rows], 0.5)] for rows in own])
    assert torch.equal(found.scores, scores[kept].sort(descending=True).values)


def test_only_as_many_class_scores_as_proposals_survive_a_step():
    boxes = torch.arange(PROPOSALS)[:, None] * 12.0 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    logits = torch.stack((torch.arange(PROPOSALS) + 1.0, torch.arange(PROPOSALS) + 1.5), dim=1)
    [found] = found_by(sampler(), lambda *_: Prediction(logits[None], boxes[None]), [RowKey(0, 0)], 1)
    assert found.scores.tolist() == logits.sigmoid().flatten().sort(descending=True).values[:PROPOSALS].tolist()
    assert found.labels.tolist() == [1, 0] * (PROPOSALS // 2)
