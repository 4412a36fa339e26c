"""Attention between proposals: two implementations, one result; and a bias that does what its numbers say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebox.models.diffusiondet.attention import attend
from noisebox.randomness import isolated

WIDTH, HEADS = 12, 3


def module_and_proposals(rows=2, count=6, seed=0):
    with isolated(seed, "attention test"):
        module = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        torch.nn.init.normal_(module.in_proj_bias)
        torch.nn.init.normal_(module.out_proj.bias)
        return module, torch.randn(rows, count, WIDTH)


def bias_of(kind, rows, count, seed=0):
    if kind is None:
        return None
    heads = HEADS if kind == "by head" else 1
    bias = 2 * torch.randn(rows, heads, count, count, generator=torch.Generator().manual_seed(seed))
    if kind == "sparse":
        far = (torch.arange(count)[:, None] - torch.arange(count)).abs() > 1
        bias = bias.masked_fill(far, -torch.inf)
    return bias


def by_hand(module, x, bias):
    """One proposal at a time, one head at a time, in float64: (attended, weights) of one row (P, C)."""
    size = WIDTH // HEADS
    projected = x.double() @ module.in_proj_weight.double().T + module.in_proj_bias.double()
    query, key, value = projected.split(WIDTH, dim=-1)
    gathered, weights = torch.zeros_like(query), torch.zeros(len(x), len(x), dtype=torch.float64)
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            exponentials = []
            for j in range(len(x)):
                added = 0.0 if bias is None else bias[min(head, len(bias) - 1), i, j].item()
                exponentials.append(math.exp((query[i, own] @ key[j, own]).item() / math.sqrt(size) + added))
            for j, exponential in enumerate(exponentials):
                gathered[i, own] += exponential / sum(exponentials) * value[j, own]
                weights[i, j] += exponential / sum(exponentials) / HEADS
    return gathered @ module.out_proj.weight.double().T + module.out_proj.bias.double(), weights


@pytest.mark.parametrize("implementation", ["mha", "sdpa"])
@pytest.mark.parametrize("kind", [None, "shared", "by head", "sparse"])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_attention(implementation, kind, training):
    module, proposals = module_and_proposals()
    module.train(training)
    bias = bias_of(kind, 2, 6)
    with torch.no_grad():
        attended, weights = attend(module, proposals, bias, implementation, True)
        unweighed, none = attend(module, proposals, bias, implementation, False)
    assert none is None
    for row in range(2):
        expected, expected_weights = by_hand(module, proposals[row], None if bias is None else bias[row])
        assert torch.allclose(attended[row].double(), expected, atol=1e-5)
        assert torch.allclose(unweighed[row].double(), expected, atol=1e-5)
        assert torch.allclose(weights[row].double(), expected_weights, atol=1e-5)
    if kind == "sparse":
        assert (weights[bias[:, 0] == -torch.inf] == 0).all()


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 3),
    count=st.integers(1, 20),
    kind=st.sampled_from([None, "shared", "by head", "sparse"]),
    want_weights=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_both_implementations_agree_in_outputs_and_gradients(seed, rows, count, kind, want_weights):
    results = []
    for implementation in ("mha", "sdpa"):
        module, proposals = module_and_proposals(rows, count, seed)
        bias = bias_of(kind, rows, count, seed)
        inputs = [proposals] if bias is None else [proposals, bias]
        wanted = [tensor.requires_grad_() for tensor in inputs] + list(module.parameters())
        attended, weights = attend(module, proposals, bias, implementation, want_weights)
        goal = torch.linspace(-1, 1, attended.numel()).view_as(attended)
        loss = (attended * goal).mean()
        if weights is not None:
            assert torch.allclose(weights.sum(-1), torch.ones(rows, count))
            # A smooth function of the weights that is not constant on their simplex.
            loss = loss + (weights * torch.linspace(0, 1, count)).square().mean()
        results.append((attended, weights, torch.autograd.grad(loss, wanted)))
    (ours, our_weights, our_gradients), (theirs, their_weights, their_gradients) = results
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert (our_weights is None) == (their_weights is None) == (not want_weights)
    if want_weights:
        assert torch.allclose(our_weights, their_weights, rtol=0, atol=1e-5)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_without_bias_and_weights_mha_is_the_modules_own_call_bit_for_bit(training, gradients):
    module, proposals = module_and_proposals(rows=3, count=40)
    module.train(training)
    with torch.set_grad_enabled(gradients):
        attended, weights = attend(module, proposals, None, "mha", False)
        own, _ = module(proposals, proposals, proposals, need_weights=False)
    assert weights is None
    assert torch.equal(attended, own)


@pytest.mark.parametrize("implementation", ["mha", "sdpa"])
def test_a_proposal_that_sees_itself_alone_gathers_its_own_value(implementation):
    module, proposals = module_and_proposals()
    alone = torch.zeros(6, 6).masked_fill(~torch.eye(6, dtype=torch.bool), -torch.inf).expand(2, 1, 6, 6)
    attended, weights = attend(module, proposals, alone, implementation, True)
    value = proposals @ module.in_proj_weight[2 * WIDTH :].T + module.in_proj_bias[2 * WIDTH :]
    assert torch.allclose(attended, module.out_proj(value), atol=1e-5)
    assert torch.equal(weights, torch.eye(6).expand(2, 6, 6))


@pytest.mark.parametrize("implementation", ["mha", "sdpa"])
@pytest.mark.parametrize("want_weights", [True, False])
def test_a_float_bias_serves_half_precision(implementation, want_weights):
    module, proposals = module_and_proposals()
    bias = bias_of("sparse", 2, 6)
    exact, _ = attend(module, proposals, bias, implementation, want_weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = attend(module, proposals, bias, implementation, want_weights)
    assert torch.allclose(rounded.float(), exact, atol=0.05)
