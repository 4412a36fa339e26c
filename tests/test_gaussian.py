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


@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 1.0, 2.0, 0.5)])
@pytest.mark.parametrize("t", [0, 400, 999])
def test_q_sample_has_the_moments_of_the_marginal(t, sigmas):
    """q(x_t | x_0) = N(sqrt(alpha_bar) x_0, (1 - alpha_bar) sigma²), Ho et al. 2020, equation 4, for sigma 1."""
    diffusion, draws = GaussianDiffusion(1000, SCALE, sigmas), 20_000
    x0 = torch.tensor([[[-2.0, -0.5, 0.5, 2.0]]]).expand(1, draws, 4)
    x_t = diffusion.q_sample(x0, torch.tensor([t]), normal((1, draws, 4), 0, "moments", t))
    alpha_bar = diffusion.alphas_cumprod[t].item()
    deviation = math.sqrt(1 - alpha_bar) * torch.tensor(sigmas).expand(4)
    error = (x_t.mean(1) - math.sqrt(alpha_bar) * x0[:, 0]).abs()[0]
    assert (error < 4 * deviation / math.sqrt(draws)).all()
    assert x_t.std(1).flatten().tolist() == pytest.approx(deviation.tolist(), rel=0.03)


@pytest.mark.parametrize("sigmas", [(1.0,) * 4, (1.0, 1.0, 2.0, 0.5)])
def test_snr_is_the_ratio_that_q_sample_shows(sigmas):
    diffusion, draws = GaussianDiffusion(1000, SCALE, sigmas), 20_000
    t = torch.tensor([10, 500, 900])
    noise = normal((3, draws, 4), 0, "snr")
    above, below = (diffusion.q_sample(torch.full_like(noise, sign), t, noise) for sign in (1.0, -1.0))
    signal, added = (above - below) / 2, (above + below) / 2
    measured = signal.square().mean(1) / added.var(1)
    assert torch.allclose(diffusion.snr(t).float(), measured, rtol=0.05, atol=0)
    assert (diffusion.snr(t)[0] > diffusion.snr(t)[1]).all()


def test_sigmas_of_one_are_isotropic_noise_bit_for_bit():
    plain, ones = GaussianDiffusion(1000, SCALE), GaussianDiffusion(1000, SCALE, (1.0, 1.0, 1.0, 1.0))
    x0, noise = normal((2, 64, 50, 4), 0, "isotropic")
    t = torch.arange(64) * 15
    x_t = plain.q_sample(x0, t, noise)
    assert torch.equal(ones.q_sample(x0, t, noise), x_t)
    assert torch.equal(ones.predict_noise(x_t, t, x0), plain.predict_noise(x_t, t, x0))
    assert torch.equal(ones.predict_x0(x_t, t, noise), plain.predict_x0(x_t, t, noise))
    assert torch.equal(ones.snr(t), plain.snr(t).expand(-1, 4))


def test_each_coordinate_knows_its_own_sigma_alone():
    plain, wide = GaussianDiffusion(1000, SCALE), GaussianDiffusion(1000, SCALE, (1.0, 1.0, 2.0, 0.5))
    x0, noise = normal((2, 3, 5, 4), 0, "coordinates")
    t = torch.tensor([3, 500, 900])
    assert torch.equal(wide.q_sample(x0, t, noise)[..., :2], plain.q_sample(x0, t, noise)[..., :2])
    twice_and_half = noise * torch.tensor([1.0, 1.0, 2.0, 0.5])
    assert torch.allclose(wide.q_sample(x0, t, noise), plain.q_sample(x0, t, twice_and_half), rtol=0, atol=1e-6)


@given(
    t=st.integers(0, 999), seed=st.integers(0, 10_000), sigmas=st.tuples(*[st.floats(0.1, 10)] * 4) | st.just((1.0,))
)
@settings(max_examples=30, deadline=None)
def test_predictions_invert_q_sample(t, seed, sigmas):
    diffusion = GaussianDiffusion(1000, SCALE, sigmas)
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


def test_the_schedule_is_no_part_of_a_checkpoint():
    assert GaussianDiffusion(1000, SCALE, (1.0, 1.0, 2.0, 2.0)).state_dict() == {}
