"""Categorical diffusion against explicit matrices: products, Bayes' rule by enumeration, limits, and draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.diffusion.categorical import CategoricalDiffusion, one_hot, sample
from noisebox.diffusion.gaussian import GaussianDiffusion, cosine_betas
from noisebox.randomness import uniform

KERNELS = ("mask", "uniform")
BELOW_ONE = 1 - 2.0**-24


def step_by_hand(kernel, num_classes, beta):
    """One step's matrix from the words: keep with probability 1 - beta, else to the mask or to any state alike."""
    states = num_classes + 1
    matrix = np.zeros((states, states))
    for i in range(states):
        matrix[i, i] += 1 - beta
        for j in range(states):
            if kernel == "uniform":
                matrix[i, j] += beta / states
            elif j == num_classes:
                matrix[i, j] += beta
    return matrix


def product_by_hand(kernel, num_classes, timesteps, s, t):
    matrix = np.eye(num_classes + 1)
    for beta in cosine_betas(timesteps)[s + 1 : t + 1].tolist():
        matrix = matrix @ step_by_hand(kernel, num_classes, beta)
    return matrix


def distributions(seed, *shape, zeros=0.3):
    """Random float64 distributions of which a share of the entries is 0."""
    numbers = np.random.default_rng(seed).random((2, *shape))
    weights = torch.tensor(numbers[0] * (numbers[1] > zeros))
    weights[..., 0] += weights.sum(-1) == 0
    return weights / weights.sum(-1, keepdim=True)


@st.composite
def processes(draw):
    """(diffusion, kernel, s, t) of some process with s < t, s = -1 included."""
    kernel, num_classes, timesteps = draw(st.sampled_from(KERNELS)), draw(st.integers(1, 7)), draw(st.integers(1, 12))
    t = draw(st.integers(0, timesteps - 1))
    s = draw(st.integers(-1, t - 1))
    return CategoricalDiffusion(timesteps, num_classes, kernel), kernel, s, t


def tensors(*times):
    return [torch.tensor(time) for time in times]


@given(processes())
@settings(max_examples=60, deadline=None)
def test_matrices_are_the_kernel_and_its_products(case):
    diffusion, kernel, s, t = case
    beta = diffusion.betas[t].item()
    assert np.allclose(diffusion.one_step(torch.tensor(t)), step_by_hand(kernel, diffusion.num_classes, beta))
    expected = product_by_hand(kernel, diffusion.num_classes, diffusion.timesteps, s, t)
    closed = diffusion.transition(*tensors(s, t))
    assert np.allclose(closed, expected, rtol=1e-12, atol=1e-15)
    several = diffusion.transition(torch.tensor([s, t, -1]), torch.tensor([t, t, t]))
    assert torch.equal(several[0], closed)
    assert np.allclose(several[1], np.eye(diffusion.num_classes + 1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_rows_of_every_matrix_sum_to_one(kernel, num_classes):
    diffusion = CategoricalDiffusion(50, num_classes, kernel)
    times = torch.arange(50)
    for matrices in (diffusion.one_step(times), diffusion.transition(torch.full((50,), -1), times)):
        assert matrices.shape == (50, num_classes + 1, num_classes + 1)
        assert (matrices >= 0).all()
        assert torch.allclose(matrices.sum(-1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_the_mask_is_absorbing_and_takes_all(num_classes):
    diffusion = CategoricalDiffusion(1000, num_classes, "mask")
    times = torch.arange(1000)
    cumulative = diffusion.transition(torch.full((1000,), -1), times)
    masked = one_hot(torch.tensor(num_classes), num_classes).double()
    assert (cumulative[:, num_classes] == masked).all()
    assert (diffusion.one_step(times)[:, num_classes] == masked).all()
    assert (cumulative[..., num_classes].diff(dim=0) >= 0).all()
    assert torch.allclose(cumulative[-1], masked.expand_as(cumulative[-1]), atol=1e-6)


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_the_uniform_kernel_forgets_into_equal_chances(num_classes):
    last = CategoricalDiffusion(1000, num_classes, "uniform").transition(*tensors(-1, 999))
    assert torch.allclose(last, torch.full_like(last, 1 / (num_classes + 1)), atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_labels_lose_their_signal_with_the_boxes(kernel):
    boxes, labels = GaussianDiffusion(1000, 2.0), CategoricalDiffusion(1000, 4, kernel)
    assert torch.equal(boxes.alphas_cumprod, labels.alphas_cumprod)
    assert labels.state_dict() == {}


@given(processes(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_marginals_are_rows_of_the_product(case, seed):
    diffusion, kernel, s, t = case
    states = diffusion.num_classes + 1
    x0 = torch.cat((torch.eye(states, dtype=torch.float64), distributions(seed, 5, states))).repeat(2, 1, 1)
    marginal = diffusion.marginal(x0, torch.tensor([t, s]))
    for row, time in enumerate((t, s)):
        product = product_by_hand(kernel, diffusion.num_classes, diffusion.timesteps, -1, time)
        assert np.allclose(marginal[row], x0[row].numpy() @ product, rtol=1e-12, atol=1e-15)


def joint_by_hand(diffusion, kernel, s, t):
    """q(x_s, x_t | x_0) as an array indexed [x_0, x_s, x_t]."""
    of = (kernel, diffusion.num_classes, diffusion.timesteps)
    return product_by_hand(*of, -1, s)[:, :, None] * product_by_hand(*of, s, t)[None]


@given(processes())
@settings(max_examples=60, deadline=None)
def test_the_posterior_is_bayes_rule(case):
    diffusion, kernel, s, t = case
    states = diffusion.num_classes + 1
    joint = joint_by_hand(diffusion, kernel, s, t)
    every = torch.eye(states, dtype=torch.float64)
    # Row of the batch: x_0; proposal: x_t.
    posterior = diffusion.posterior(every.expand(states, -1, -1), every[:, None], *tensors(t, s))
    possible = 0
    for x0 in range(states):
        for x_t in range(states):
            evidence = joint[x0, :, x_t].sum()
            if evidence > 0:
                possible += 1
                assert np.allclose(posterior[x0, x_t], joint[x0, :, x_t] / evidence, rtol=1e-10, atol=1e-14)
    assert possible >= states


@given(processes(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_reverse_step_sums_the_joint_over_x0(case, seed):
    """Equation 4, for each discrete x_t, and its expectation for distributions over x_t."""
    diffusion, kernel, s, t = case
    states = diffusion.num_classes + 1
    joint = joint_by_hand(diffusion, kernel, s, t)
    belief = distributions(seed, 4, states, zeros=0)
    weighted = np.einsum("px,xsy->psy", belief.numpy(), joint)
    reverse = weighted / weighted.sum(1, keepdims=True)
    for x_t in range(states):
        discrete = one_hot(torch.tensor([[x_t] * 4]), diffusion.num_classes).double()
        step = diffusion.posterior(discrete, belief[None], *tensors(t, s))
        assert np.allclose(step[0], reverse[:, :, x_t], rtol=1e-10, atol=1e-14)
    uncertain = distributions(seed + 1, 4, states)
    expected = np.einsum("psy,py->ps", reverse, uncertain.numpy())
    assert np.allclose(diffusion.posterior(uncertain[None], belief[None], *tensors(t, s))[0], expected, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_row_has_its_own_times(kernel):
    diffusion = CategoricalDiffusion(1000, 6, kernel)
    x_t, x0 = distributions(1, 3, 5, 7), distributions(2, 3, 5, 7)
    t, s = torch.tensor([999, 400, 3]), torch.tensor([500, 399, -1])
    together = diffusion.posterior(x_t, x0, t, s)
    for row in range(3):
        assert torch.equal(together[row], diffusion.posterior(x_t[row, None], x0[row, None], t[row], s[row])[0])


@given(processes(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_state_that_x0_excludes_is_the_limit_of_a_vanishing_doubt(case, seed):
    diffusion, _, s, t = case
    states = diffusion.num_classes + 1
    x_t, x0 = distributions(seed, 1, 6, states, zeros=0.7), distributions(seed + 1, 1, 6, states, zeros=0.7)
    exact = diffusion.posterior(x_t, x0, *tensors(t, s))
    doubt = diffusion.posterior(x_t, (x0 + 1e-11) / (1 + states * 1e-11), *tensors(t, s))
    assert torch.allclose(exact.sum(-1), torch.ones((), dtype=torch.float64))
    assert (exact >= 0).all()
    assert torch.allclose(exact, doubt, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("s", "t"), [(-1, 0), (-1, 999), (0, 1), (498, 998), (998, 999)])
def test_single_precision_suffices_at_the_published_size(kernel, s, t):
    diffusion = CategoricalDiffusion(1000, 80, kernel)
    x_t = distributions(3, 2, 500, 81, zeros=0.9)
    x0 = distributions(4, 2, 500, 81, zeros=0.9)
    x0[:, :100] *= 10.0 ** -torch.arange(0, 81, dtype=torch.float64)
    x0 /= x0.sum(-1, keepdim=True)
    exact = diffusion.posterior(x_t, x0, *tensors(t, s))
    single = diffusion.posterior(x_t.float(), x0.float(), *tensors(t, s))
    assert single.dtype == torch.float32
    assert torch.allclose(single.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(single.double(), exact, atol=1e-5)


@given(processes(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_going_back_by_the_posterior_restores_the_marginal(case, seed):
    """Sum over x_t of q(x_t | x_0) q(x_s | x_t, x_0) = q(x_s | x_0)."""
    diffusion, _, s, t = case
    x0 = distributions(seed, 2, 5, diffusion.num_classes + 1)
    time_t, time_s = tensors(t, s)
    back = diffusion.posterior(diffusion.marginal(x0, time_t), x0, time_t, time_s)
    assert torch.allclose(back, diffusion.marginal(x0, time_s), rtol=1e-10, atol=1e-14)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9).filter(any),
    st.floats(0, BELOW_ONE, width=32) | st.sampled_from([0.0, 0.25, 0.5, BELOW_ONE]),
)
@settings(max_examples=200, deadline=None)
def test_draws_invert_the_cumulative_distribution(counts, draw):
    total = sum(counts)
    label = int(sample(torch.tensor(counts, dtype=torch.float64) / total, torch.tensor(draw)))
    assert counts[label] > 0
    # Off the jumps of the distribution by less than the unit in which draws are compared, neighbours are right too.
    below, above = sum(counts[:label]) / total, sum(counts[: label + 1]) / total
    assert below - 1e-9 <= draw < above + 1e-9


def test_draws_at_the_jumps_belong_to_the_state_that_begins_there():
    quarters = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).expand(4, 5)
    assert sample(quarters, torch.tensor([0.0, 0.25 - 2**-24, 0.25, BELOW_ONE])).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_have_the_frequencies_of_the_distribution(kernel):
    diffusion = CategoricalDiffusion(1000, 4, kernel)
    draws = 40_000
    marginal = diffusion.marginal(one_hot(torch.full((1, draws), 2), 4), torch.tensor([450]))
    labels = sample(marginal, uniform((1, draws), 0, "frequencies"))
    frequency = torch.bincount(labels.flatten(), minlength=5) / draws
    p = marginal[0, 0]
    assert ((frequency - p).abs() <= 4 * (p * (1 - p) / draws).sqrt()).all()
    assert (frequency[p == 0] == 0).all()
