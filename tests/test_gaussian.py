"""The box diffusion against its closed forms: schedule, moments of q(x_t | x_0), inversions, and the box space."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.diffusion.gaussian import GaussianDiffusion, cosine_betas
from noisebox.randomness import normal

SCALE = 2.0


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion(1000, SCALE)


@given(timesteps=st.integers(1, 2000))
@settings(max_examples=20, deadline=None)
def test_signal_follows_the_cosine_until_the_last_step_is_capped(timesteps):
    """Nichol and Dhariwal 2021, equation 17: alpha_bar(t) = f(t) / f(0), f(t) = cos²((t/T + s) / (1 + s) · π/2)."""
    diffusion = GaussianDiffusion(timesteps, SCALE)

    def f(t):
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([f(t + 1) / f(0) for t in range(timesteps)], dtype=torch.float64)
    uncapped = diffusion.betas < 0.999
    assert int((~uncapped).sum()) <= 2
    assert torch.allclose(diffusion.alphas_cumprod[uncapped], expected[uncapped], rtol=1e-10, atol=0)
    assert diffusion.betas.dtype == torch.float64
    assert (diffusion.betas > 0).all()
    assert (diffusion.betas <= 0.999).all()


def test_known_values_of_the_thousand_step_schedule():
    betas = cosine_betas(1000)
    assert betas[0].item() == pytest.approx(4.12842e-5, rel=1e-4)
    assert betas[-1].item() == 0.999
    assert torch.cumprod(1 - betas, 0)[499].item() == pytest.approx(0.4938, abs=1e-4)


@pytest.mark.parametrize("t", [0, 400, 999])
def test_q_sample_has_the_moments_of_the_marginal(diffusion, t):
    """q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar), Ho et al. 2020, equation 4."""
    draws = 20_000
    x0 = torch.tensor([[[-2.0, -0.5, 0.5, 2.0]]]).expand(1, draws, 4)
    x_t = diffusion.q_sample(x0, torch.tensor([t]), normal((1, draws, 4), 0, "moments", t))
    alpha_bar = diffusion.alphas_cumprod[t].item()
    deviation = math.sqrt(1 - alpha_bar)
    error = (x_t.mean(1) - math.sqrt(alpha_bar) * x0[:, 0]).abs().max().item()
    assert error < 4 * deviation / math.sqrt(draws)
    assert x_t.std(1).flatten().tolist() == pytest.approx([deviation] * 4, rel=0.03)


@given(t=st.integers(0, 999), seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_predictions_invert_q_sample(t, seed):
    diffusion = GaussianDiffusion(1000, SCALE)
    x0, noise = normal((2, 3, 5, 4), seed, "inversion").double()
    times = torch.tensor([t, 999 - t, t])
    x_t = diffusion.q_sample(x0, times, noise)
    assert torch.allclose(diffusion.predict_noise(x_t, times, x0), noise, atol=1e-8)
    assert torch.allclose(diffusion.predict_x0(x_t, times, noise), x0, atol=1e-8)
    assert torch.allclose(diffusion.predict_x0(x_t, times, diffusion.predict_noise(x_t, times, x0)), x0, atol=1e-8)


@given(seed=st.integers(0, 10_000), width=st.integers(8, 2000), height=st.integers(8, 2000))
@settings(max_examples=30, deadline=None)
def test_boxes_survive_the_diffusion_space(seed, width, height):
    diffusion = GaussianDiffusion(1000, SCALE)
    whwh = torch.tensor([[width, height, width, height]], dtype=torch.float32)
    corners = torch.rand(1, 6, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=2).values
    boxes = corners.flatten(2) * whwh[:, None]
    x = diffusion.from_boxes(boxes, whwh)
    assert x.abs().max() <= SCALE + 1e-5
    assert torch.allclose(diffusion.to_boxes(x, whwh), boxes, atol=1e-3)


def test_the_whole_image_and_nothing_are_the_corners_of_the_space(diffusion):
    whwh = torch.tensor([[200.0, 100.0, 200.0, 100.0]])
    whole = torch.tensor([[[0.0, 0.0, 200.0, 100.0]]])
    assert diffusion.from_boxes(whole, whwh).tolist() == [[[0.0, 0.0, SCALE, SCALE]]]
    beyond = torch.tensor([[[0.0, 0.0, 50.0, -50.0]]])
    assert diffusion.to_boxes(beyond, whwh).tolist() == [[[0.0, 50.0, 200.0, 50.0]]]


def test_the_schedule_is_no_part_of_a_checkpoint(diffusion):
    assert diffusion.state_dict() == {}
