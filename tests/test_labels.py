"""Label states of every kind: chains driven by heads with known answers, frequencies, keys, and the configuration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.config.diffusiondet import DiffusionDetConfig
from noisebox.diffusion.categorical import one_hot
from noisebox.diffusion.labels import distribution_of, label_process
from noisebox.diffusion.sampler import sampling_times
from noisebox.randomness import KeyedRows, normal

K = 4
CATEGORICAL = {
    f"{kernel} {kind}": {"label_d3pm": True, "label_kernel": kernel, **options}
    for kernel in ("mask", "uniform")
    for kind, options in {
        "discrete": {},
        "sampled": {"use_distribution": True},
        "expected": {"use_distribution": True, "label_training": "expected"},
    }.items()
}
KINDS = {"self-conditioned": {}, **CATEGORICAL, "gaussian": {"label_d3pm": True, "label_kernel": "gaussian"}}
DRAWN = [kind for kind in CATEGORICAL if "expected" not in kind]


def process_of(kind):
    process = label_process(DiffusionDetConfig(label_state=True, **KINDS[kind]), K)
    assert process is not None
    return process


def keyed(rows, step=0):
    """Noise for rows (numbers) at a step of sampling or training."""
    return KeyedRows([(7, (row, step)) for row in rows], "cpu")


def sure_of(labels):
    """Logits of a head without doubt; label K is no class at all."""
    return (one_hot(labels, K)[..., :K] * 2 - 1) * 100


def some_labels(rows, proposals):
    return torch.arange(rows * proposals).view(rows, proposals) % (K + 1)


def is_one_hot(state):
    return bool(((state == 0) | (state == 1)).all() and (state.sum(-1) == 1).all())


def chain(process, logits, steps, rows):
    """The states from start to -1 under a head that always answers `logits`, and the times they belong to."""
    state, times = process.start(logits.shape[1], keyed(rows)), sampling_times(1000, steps)
    states = [state]
    for step, (t, next_t) in enumerate(times):
        state = process.advance(state, logits, t, next_t, keyed(rows, step))
        states.append(state)
    return states, [times[0][0], *(next_t for _, next_t in times)]


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_scores_are_shared_out_as_a_distribution(logits):
    scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    distribution = distribution_of(torch.tensor(logits))
    whole = max(1.0, sum(scores))
    expected = [score / whole for score in scores]
    assert distribution[:-1].tolist() == pytest.approx(expected, abs=1e-6)
    assert distribution[-1].item() == pytest.approx(1 - sum(expected), abs=1e-6)
    assert (distribution >= 0).all()
    assert distribution.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sure_head_leads_every_chain_to_its_class(kind, steps):
    process, labels = process_of(kind), some_labels(2, 10)
    states, _ = chain(process, sure_of(labels), steps, range(2))
    assert all(state.shape == (2, 10, K + 1) and state.dtype == torch.float32 for state in states)
    last = (states[-1] / 2.0 + 1) / 2 if kind == "gaussian" else states[-1]
    assert torch.allclose(last, one_hot(labels, K), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_batch_and_keys_repeat(kind):
    process, labels = process_of(kind), some_labels(3, 8)
    t = torch.tensor([900, 500, 20])
    logits = normal((3, 8, K), 0, "logits")
    noised = process.noised(labels, t, keyed(range(3)))
    states, _ = chain(process, logits, 3, range(3))
    order = [2, 0]
    assert torch.equal(process.noised(labels[order], t[order], keyed(order)), noised[order])
    again, _ = chain(process, logits[order], 3, order)
    for state, before in zip(again, states, strict=True):
        assert torch.equal(state, before[order])


@pytest.mark.parametrize("kind", ["uniform discrete", "gaussian"])
def test_steps_purposes_and_rows_draw_apart(kind):
    process = process_of(kind)
    first = process.start(50, keyed([0, 1]))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, process.start(50, keyed([0, 1], step=1)))
    assert not torch.equal(first, process.start(50, keyed([0, 1]), "label renewal"))


def test_self_conditioning_starts_unknown_and_believes_what_is_likelier_than_not():
    process = process_of("self-conditioned")
    unknown = one_hot(torch.full((2, 3), K), K)
    assert process.self_conditioned
    assert torch.equal(process.start(3, keyed(range(2))), unknown)
    assert torch.equal(process.noised(some_labels(2, 3), torch.tensor([0, 9]), keyed(range(2))), unknown)
    logits = torch.tensor([[[-1.0, 0.0, -2.0, -9.0], [3.0, 0.1, 2.9, -1.0], [-5.0, -5.0, -5.0, 0.01]]])
    assert process.advance(unknown[:1], logits, 999, 499, keyed([0])).argmax(-1).tolist() == [[K, 0, 3]]
    assert not any(process_of(kind).self_conditioned for kind in [*CATEGORICAL, "gaussian"])


@pytest.mark.parametrize("kind", CATEGORICAL)
def test_categorical_states_start_at_rest(kind):
    process = process_of(kind)
    state = process.start(20_000, keyed([3]))
    if "mask" in kind:
        assert (state == one_hot(torch.tensor(K), K)).all()
    elif "discrete" in kind:
        assert is_one_hot(state)
        assert state.mean((0, 1)).tolist() == pytest.approx([1 / (K + 1)] * (K + 1), abs=4 * 0.4 / math.sqrt(20_000))
    else:
        assert torch.equal(state, torch.full_like(state, 1 / (K + 1)))


def marginal_by_hand(kind, label, alpha_bar):
    """q(x_t | x_0 = label) written out."""
    weights = [0.0] * K + [1 - alpha_bar] if "mask" in kind else [(1 - alpha_bar) / (K + 1)] * (K + 1)
    weights[label] += alpha_bar
    return torch.tensor(weights)


def assert_frequencies(state, expected):
    """One-hot states (N, P, K + 1) have the frequencies `expected`, within four standard errors."""
    assert is_one_hot(state)
    count = state.shape[0] * state.shape[1]
    error = (state.mean((0, 1)) - expected).abs()
    assert (error <= 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


@pytest.mark.parametrize("label", [1, K])
@pytest.mark.parametrize("kind", CATEGORICAL)
def test_training_states_follow_the_marginal(kind, label):
    process, t = process_of(kind), torch.tensor([600, 100])
    state = process.noised(torch.full((2, 20_000), label), t, keyed(range(2)))
    for row in range(2):
        expected = marginal_by_hand(kind, label, process.diffusion.alphas_cumprod[t[row]].item())
        if "expected" in kind:
            assert torch.allclose(state[row], expected.expand(20_000, -1), atol=1e-6)
        else:
            assert_frequencies(state[row, None], expected)


@pytest.mark.parametrize("kind", CATEGORICAL)
def test_chains_with_the_true_answer_pass_through_the_marginals(kind):
    """A head that knows x_0 makes the reverse step exact: at each visited time the states are those of q(x_t | x_0)."""
    process, label = process_of(kind), 2
    logits = sure_of(torch.full((1, 20_000), label))
    states, times = chain(process, logits, 4, [11])
    alphas = [*process.diffusion.alphas_cumprod.tolist(), 1.0]
    for state, time in zip(states, times, strict=True):
        expected = marginal_by_hand(kind, label, alphas[time])
        if "discrete" in kind:
            assert_frequencies(state, expected)
        else:
            assert torch.allclose(state, expected.expand_as(state), atol=1e-5)


@pytest.mark.parametrize("kernel", ["mask", "uniform"])
def test_carried_distributions_are_the_mean_of_drawn_chains(kernel):
    """One step from a known state under a doubting head: the distribution is what discrete draws scatter about."""
    logits = torch.tensor([0.3, -1.0, -2.0, -0.5]).expand(1, 20_000, K)
    state = process_of(f"{kernel} discrete").start(20_000, keyed([5]))
    drawn = process_of(f"{kernel} discrete").advance(state, logits, 999, 300, keyed([5], step=1))
    carried = process_of(f"{kernel} sampled").advance(state, logits, 999, 300, keyed([5], step=1))
    assert_frequencies(drawn, carried.mean((0, 1)))


def test_unmasked_labels_stay_whatever_the_head_says():
    process, labels = process_of("mask discrete"), some_labels(1, 200)
    state = process.advance(one_hot(labels, K), sure_of((labels + 1) % (K + 1)), 700, 300, keyed([0]))
    known = labels < K
    assert torch.equal(state[known], one_hot(labels, K)[known])


def test_gaussian_states_have_the_moments_of_the_process():
    process, t = process_of("gaussian"), torch.tensor([500])
    state = process.noised(torch.full((1, 20_000), 1), t, keyed([0]))
    alpha_bar = process.diffusion.alphas_cumprod[500].item()
    expected = math.sqrt(alpha_bar) * 2.0 * torch.tensor([-1.0, 1.0, -1.0, -1.0, -1.0])
    deviation = math.sqrt(1 - alpha_bar)
    assert torch.allclose(state.mean(1)[0], expected, atol=4 * deviation / math.sqrt(20_000))
    assert state.std(1)[0].tolist() == pytest.approx([deviation] * (K + 1), rel=0.03)
    start = process.start(20_000, keyed([0]))
    assert start.mean().item() == pytest.approx(0, abs=4 / math.sqrt(start.numel()))
    assert start.std().item() == pytest.approx(1, rel=0.03)


def test_gaussian_steps_follow_the_line_of_one_noise():
    """DDIM without new noise: under the true x_0, noising to t and stepping to s is noising to s."""
    process, labels = process_of("gaussian"), some_labels(2, 6)
    logits, rows = sure_of(labels), keyed(range(2))
    at_800, at_300 = (process.noised(labels, torch.tensor([t, t]), rows) for t in (800, 300))
    assert torch.allclose(process.advance(at_800, logits, 800, 300, keyed(range(2), step=1)), at_300, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_leave_checkpoints_gradients_and_modes_alone(kind):
    process, labels = process_of(kind), some_labels(2, 6)
    assert process.state_dict() == {}
    assert list(process.parameters()) == []
    logits = normal((2, 6, K), 0, "logits").requires_grad_()
    rows, t = keyed(range(2)), torch.tensor([600, 600])
    results = [
        (process.noised(labels, t, rows), process.advance(process.start(6, rows), logits, 999, 499, rows))
        for process in (process.train(), process.eval())
    ]
    assert not any(state.requires_grad for result in results for state in result)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_training_states_are_single_labels(kind):
    state = process_of(kind).noised(some_labels(2, 50), torch.tensor([900, 300]), keyed(range(2)))
    assert is_one_hot(state)


def test_without_label_state_there_is_no_process():
    assert label_process(DiffusionDetConfig(), K) is None
