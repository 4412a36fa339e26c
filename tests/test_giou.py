"""The loss of pairs against torchvision's, with its gradient."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from noisebox.models.giou import giou_loss


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_it_is_torchvision_s_with_its_gradient(seed, pairs):
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, so that boxes touch, coincide, and have no area.
    corners = torch.randint(0, 8, (2, pairs, 2, 2), generator=generator).sort(dim=2).values
    boxes, goals = corners.flatten(2).double()
    boxes.requires_grad_()
    losses = [loss(boxes, goals) for loss in (giou_loss, generalized_box_iou_loss)]
    assert torch.allclose(*losses, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss.sum(), boxes)[0] for loss in losses)
    # Relative to the gradients of boxes without an area, which are as large as the inverse of the least area.
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max())
