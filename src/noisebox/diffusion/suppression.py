"""Suppression of duplicates in many rows at once, for GPUs.

The usual kernel walks through the boxes of one row by one thread, and waits for the host after each row. Here a row is
cut into blocks, all rows go through their blocks together, and within a block the greedy rule is solved as what it is:
a triangular system of yes and no, whose only solution repeated substitution finds.
"""

import torch
from torch import Tensor

BLOCK = 512  # boxes; bounds the memory of the overlaps of one block with all before it


def kept_boxes(boxes_xyxy: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Which of `boxes_xyxy` (N, D, 4) with `labels` (N, D) greedy non-maximum suppression keeps in each of N rows:
    (N, D) bool. Boxes are sorted, the best first; one goes when its IoU with a kept better one of its label is above
    `threshold`."""
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for start in range(0, labels.shape[1], BLOCK):
        before, block = slice(0, start), slice(start, start + BLOCK)
        candidates = torch.ones_like(kept[:, block])
        if start > 0:  # else ONNX would be asked for the largest of nothing
            candidates = ~_any_kept(kept[:, before], _duplicates(boxes_xyxy, labels, before, block, threshold))
        kept[:, block] = _settled(candidates, _duplicates(boxes_xyxy, labels, block, block, threshold).triu(1))
    return kept


def _settled(candidates: Tensor, within: Tensor) -> Tensor:
    """Which of C `candidates` (N, C) the greedy rule keeps, where each may beat later ones, by `within` (N, C, C)."""

    def improved(solution: Tensor) -> Tensor:
        return candidates & ~_any_kept(solution, within)

    def step(solution: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
        return better.clone(), improved(better)  # as an operation, a loop wants copies

    def unsettled(solution: Tensor, better: Tensor) -> Tensor:
        return (solution != better).any()

    solution, better = candidates.clone(), improved(candidates)
    if torch.compiler.is_exporting():  # where a loop must be an operation
        settled: Tensor = torch.while_loop(unsettled, step, (solution, better))[1]  # type: ignore[no-untyped-call]
        return settled
    while unsettled(solution, better):
        solution, better = step(solution, better)
    return better


def _any_kept(kept: Tensor, duplicates: Tensor) -> Tensor:
    """(N, C): whether any of the `kept` (N, R) makes a duplicate of each of C boxes, by `duplicates` (N, R, C)."""
    return (kept[..., None] & duplicates).any(1)


def _duplicates(boxes_xyxy: Tensor, labels: Tensor, ours: slice, theirs: slice, threshold: float) -> Tensor:
    """(N, R, C) bool: whether two boxes of a row have one label and overlap by more than the threshold."""
    a, b = boxes_xyxy[:, ours, None], boxes_xyxy[:, None, theirs]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b))
    same = labels[:, ours, None] == labels[:, None, theirs]
    return (overlap / (area_a + area_b - overlap) > threshold) & same
