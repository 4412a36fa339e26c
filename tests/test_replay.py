"""Passes of the head that a GPU replays: the same detections as without, whatever changes between them."""

import copy
from dataclasses import replace

import pytest
import torch
from small_detector import awaken, make_batch, make_detector, opinionated

from noisebox.config import Sampling
from noisebox.evaluation.measuring import autocast
from noisebox.models.diffusiondet import replay
from noisebox.models.diffusiondet.replay import ReplayedHead

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
HYBRID = {"label_state": True}


def padded(batch, height, width):
    """The batch with more padding: a larger pyramid."""
    images = torch.zeros(len(batch), 3, height, width)
    images[..., : batch.images.shape[2], : batch.images.shape[3]] = batch.images
    return replace(batch, images=images)


def found_by(model, batch, steps, precision="fp32"):
    with torch.no_grad(), autocast("cuda", precision):
        return model.detect(model.encode(batch), batch, [0, 1], Sampling(steps=steps))


def assert_same(found, expected):
    for of_seed, wanted in zip(found, expected, strict=True):
        for ours, theirs in zip(of_seed, wanted, strict=True):
            assert len(theirs.scores)
            assert torch.equal(ours.boxes_xyxy, theirs.boxes_xyxy)
            assert torch.equal(ours.scores, theirs.scores)


@on_a_gpu
@pytest.mark.parametrize("switches", [{}, HYBRID])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replays_say_what_the_head_says(switches, precision, monkeypatch):
    model = awaken(opinionated(make_detector(**switches))).cuda()
    replays = []
    recorded = ReplayedHead._recorded
    monkeypatch.setattr(ReplayedHead, "_recorded", lambda *given: replays.append(1) or recorded(*given))
    batches = [
        make_batch([1, 2]).to("cuda"),
        padded(make_batch([3, 4]), 96, 160).to("cuda"),
        make_batch([5]).to("cuda"),
    ]
    for step in range(3):
        for batch in batches:
            replayed = found_by(model, batch, 4, precision)
            with monkeypatch.context() as patch:
                patch.setattr(replay, "MOST_PROPOSALS", 0)
                assert_same(replayed, found_by(model, batch, 4, precision))
        with torch.no_grad():  # as an optimiser does
            for parameter in model.parameters():
                parameter.add_(1e-3 * (step + 1))
    assert len(replays) >= 2


@on_a_gpu
def test_a_copy_has_weights_of_its_own():
    model = opinionated(make_detector()).cuda()
    batch = make_batch([1]).to("cuda")
    before = found_by(model, batch, 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    changed = found_by(other, batch, 3)
    assert_same(found_by(model, batch, 3), before)
    assert not torch.equal(changed[0][0].scores[:5], before[0][0].scores[:5])
    moved = model.cpu().cuda()
    assert_same(found_by(moved, batch, 3), before)


def test_a_copy_of_a_detector_replays_its_own_head():
    model = make_detector()
    other = copy.deepcopy(model)
    assert other._replayed._head is other.head
    assert model._replayed._head is model.head
