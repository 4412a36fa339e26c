"""Suppression of many rows at once against torchvision's, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from noisebox.config.diffusiondet import SamplerConfig
from noisebox.diffusion import suppression
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.sampler import BoxSampler, ScoredBoxes
from noisebox.diffusion.suppression import kept_boxes


def sorted_rows(rows, boxes, classes, seed):
    """Boxes on a grid of whole numbers, so that IoUs are exact and many are equal; scores fall strictly."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (rows, boxes, 2), generator=generator)
    size = torch.randint(1, 9, (rows, boxes, 2), generator=generator)
    labels = torch.randint(0, classes, (rows, boxes), generator=generator)
    return torch.cat((corner, corner + size), -1).float(), labels


def kept_by_torchvision(boxes_xyxy, labels, threshold):
    scores = torch.arange(len(labels), 0, -1).float()
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[batched_nms(boxes_xyxy, scores, labels, threshold)] = True
    return kept


# No quotient of small whole numbers: what happens exactly at the threshold is up to rounding.
THRESHOLDS = (0.1501, 0.3501, 0.6301)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(0, 10_000), st.sampled_from(THRESHOLDS))
def test_it_keeps_what_torchvision_keeps(rows, boxes, classes, seed, threshold):
    boxes_xyxy, labels = sorted_rows(rows, boxes, classes, seed)
    kept = kept_boxes(boxes_xyxy, labels, threshold)
    for row in range(rows):
        assert torch.equal(kept[row], kept_by_torchvision(boxes_xyxy[row], labels[row], threshold))


@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_where_blocks_end_makes_no_difference(monkeypatch, block):
    boxes_xyxy, labels = sorted_rows(3, 50, 2, 5)
    whole = kept_boxes(boxes_xyxy, labels, 0.3501)
    monkeypatch.setattr(suppression, "BLOCK", block)
    assert torch.equal(kept_boxes(boxes_xyxy, labels, 0.3501), whole)


def test_a_chain_of_boxes_is_resolved_from_its_best_end():
    """Each overlaps its neighbours alone: every other one stays, however long the chain."""
    left = torch.arange(30.0)
    chain = torch.stack((left, torch.zeros(30), left + 2, torch.ones(30)), -1)[None]
    kept = kept_boxes(chain, torch.zeros(1, 30, dtype=torch.int64), 0.3)
    assert torch.equal(kept[0], torch.arange(30) % 2 == 0)


def test_rows_suppressed_together_give_what_each_gives_alone():
    """What a GPU does, done here: boxes in any order, of few scores, so that many are equal."""
    generator = torch.Generator().manual_seed(3)
    boxes_xyxy, labels = sorted_rows(4, 60, 3, 11)
    scores = torch.randint(0, 8, (4, 60), generator=generator) / 8
    sampler = BoxSampler(GaussianDiffusion(1000, 2.0), SamplerConfig(nms_threshold=THRESHOLDS[1]), 60)
    rows = ScoredBoxes(boxes_xyxy, scores, labels)
    together = sampler._suppress_together(rows)
    for found, row in zip(together, zip(*rows, strict=True), strict=True):
        alone = sampler._suppress(ScoredBoxes(*row))
        assert torch.equal(found.scores, alone.scores)
        assert as_set(found) == as_set(alone)


def as_set(found: ScoredBoxes) -> set[tuple[float, ...]]:
    return {(*box, score, label) for box, score, label in zip(*(part.tolist() for part in found), strict=True)}
