"""Dynamic-k matching against a plain reference with loops, over random boxes, ties and any number of ground truths."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from noisebox.config.diffusiondet import LossConfig
from noisebox.models.diffusiondet.criterion import set_prediction_loss
from noisebox.models.diffusiondet.head import HeadOutput
from noisebox.models.diffusiondet.matcher import (
    PaddedTargets,
    dynamic_k_matches,
    match,
    matching_cost,
    pairwise_iou,
)
from noisebox.structures import Targets

CONFIG = LossConfig()
WHWH = torch.tensor([64.0, 48.0, 64.0, 48.0])


def reference_matches(cost, iou, ota_k):
    """{proposal: gt} of one image from its (P, G) lists of cost and IoU; of equals, the first wins."""
    proposals, objects = range(len(cost)), range(len(cost[0]))
    takers = {p: set() for p in proposals}
    for g in objects:
        k = max(1, int(torch.tensor(sorted((iou[p][g] for p in proposals), reverse=True)[:ota_k]).sum()))
        for p in sorted(proposals, key=lambda p: cost[p][g])[:k]:
            takers[p].add(g)
    chosen = {}
    for p, objects_of_p in takers.items():
        if len(objects_of_p) == 1:
            chosen[p] = next(iter(objects_of_p))
        elif objects_of_p:
            chosen[p] = min(objects, key=lambda g: cost[p][g])
    while (lonely := [g for g in objects if g not in chosen.values()]) and len(chosen) < len(cost):
        free = [p for p in proposals if p not in chosen]
        claims = {}
        for g in lonely:
            claims.setdefault(min(free, key=lambda p: cost[p][g]), []).append(g)
        for p, claimants in claims.items():
            chosen[p] = min(claimants, key=lambda g: cost[p][g])
    return chosen


def reference_cost(logits, box, label, gt, objects):
    """The cost of one pair, from the definition: focal, L1, GIoU, and the two penalties."""
    p = 1 / (1 + math.exp(-logits[label]))
    positive = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8)
    negative = -0.75 * p**2 * math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) / size for a, b, size in zip(box, gt, WHWH.tolist(), strict=True))
    giou = generalized_box_iou(torch.tensor([box]).double(), torch.tensor([gt]).double()).item()
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    def within(other, sizes):
        """Whether the proposal's centre lies within so many box sizes of the object's centre."""
        width, height = other[2] - other[0], other[3] - other[1]
        return (
            abs(cx - (other[0] + other[2]) / 2) < sizes * width and abs(cy - (other[1] + other[3]) / 2) < sizes * height
        )

    inside = within(gt, 0.5) and within(gt, 2.5)
    somewhere = any(within(other, 0.5) or within(other, 2.5) for other in objects)
    return 2 * (positive - negative) + 5 * l1 - 2 * giou + 100 * (not inside) + 10_000 * (not somewhere)


def matches_of(result, image):
    matched, gt_index = result
    return {p: int(gt_index[image, p]) for p in matched[image].nonzero().flatten().tolist()}


whole = st.integers(0, 4)


@st.composite
def crowded_images(draw):
    """Costs and IoUs of a few images with few distinct values, hence many ties, and a different number of gts each."""
    proposals = draw(st.integers(1, 7))
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    most = max(1, *counts)
    shape = (len(counts), proposals, most)
    cost = torch.tensor(draw(st.lists(whole, min_size=math.prod(shape), max_size=math.prod(shape)))).view(shape)
    iou = torch.tensor(draw(st.lists(whole, min_size=math.prod(shape), max_size=math.prod(shape)))).view(shape) / 4
    return cost.float(), iou, counts, draw(st.integers(1, 5))


@given(crowded_images())
@settings(max_examples=150, deadline=None)
def test_matches_equal_the_reference_with_ties_and_more_objects_than_proposals(case):
    cost, iou, counts, ota_k = case
    valid = torch.arange(cost.shape[-1]) < torch.tensor(counts)[:, None]
    result = dynamic_k_matches(cost, iou, valid, ota_k)
    for image, count in enumerate(counts):
        expected = (
            reference_matches(cost[image, :, :count].tolist(), iou[image, :, :count].tolist(), ota_k) if count else {}
        )
        assert matches_of(result, image) == expected


def image_of(generator, objects):
    """Boxes on a coarse grid, so that centres fall on edges and boxes coincide."""
    corner = torch.randint(0, 8, (objects, 2), generator=generator) * 4.0
    size = torch.randint(1, 8, (objects, 2), generator=generator) * 4.0
    return torch.cat((corner, corner + size), dim=1)


@given(seed=st.integers(0, 100_000), counts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_costs_and_matches_from_boxes(seed, counts):
    generator = torch.Generator().manual_seed(seed)
    proposals = torch.stack([image_of(generator, 9) for _ in counts])
    logits = torch.randn(len(counts), 9, 3, generator=generator) * 2
    labels = [torch.randint(0, 3, (count,), generator=generator) for count in counts]
    targets = [Targets(image_of(generator, count), label) for count, label in zip(counts, labels, strict=True)]
    padded = PaddedTargets.of(targets)
    whwh = WHWH.expand(len(counts), 4)
    iou, giou = pairwise_iou(proposals, padded.boxes_xyxy)
    cost = matching_cost(logits, proposals, giou, padded, whwh, CONFIG)
    result = match(logits, proposals, padded, whwh, CONFIG)
    for image, target in enumerate(targets):
        objects = target.boxes_xyxy.tolist()
        assert torch.allclose(iou[image, :, : len(objects)], box_iou(proposals[image], target.boxes_xyxy), atol=1e-6)
        for p, box in enumerate(proposals[image].tolist()):
            for g, gt in enumerate(objects):
                expected = reference_cost(logits[image, p].tolist(), box, int(target.labels[g]), gt, objects)
                assert cost[image, p, g].item() == torch.tensor(expected).float().item() or math.isclose(
                    cost[image, p, g].item(), expected, rel_tol=1e-5, abs_tol=2e-4
                )
        own = cost[image, :, : len(objects)].tolist(), iou[image, :, : len(objects)].tolist()
        expected_matches = reference_matches(*own, CONFIG.ota_k) if objects else {}
        assert matches_of(result, image) == expected_matches


def random_case(counts, stages=1):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(stages, len(counts), 12, 3, generator=generator)
    boxes = torch.stack([torch.stack([image_of(generator, 12) for _ in counts]) for _ in range(stages)])
    targets = [Targets(image_of(generator, n), torch.randint(0, 3, (n,), generator=generator)) for n in counts]
    return logits, boxes, targets, WHWH.expand(len(counts), 4)


def test_neither_the_batch_nor_other_stages_change_a_match():
    counts = (4, 0, 1, 7)
    logits, boxes, targets, whwh = random_case(counts, stages=3)
    together = match(logits, boxes, PaddedTargets.of(targets), whwh, CONFIG)
    for stage in range(3):
        for image, target in enumerate(targets):
            alone = match(
                logits[stage, image, None], boxes[stage, image, None], PaddedTargets.of([target]), whwh[:1], CONFIG
            )
            assert torch.equal(alone.matched[0], together.matched[stage, image])
            assert torch.equal(alone.gt_index[0], together.gt_index[stage, image])


def test_an_image_without_objects_matches_nothing():
    logits, boxes, targets, whwh = random_case((0, 0))
    matched, _ = match(logits, boxes, PaddedTargets.of(targets), whwh, CONFIG)
    assert not matched.any()


def test_every_object_is_served_while_there_are_free_proposals():
    logits, boxes, targets, whwh = random_case((6, 30))
    matched, gt_index = match(logits[0], boxes[0], PaddedTargets.of(targets), whwh, CONFIG)
    assert set(gt_index[0][matched[0]].tolist()) == set(range(6))
    assert matched[1].all()


def test_losses_of_a_batch_without_objects_are_finite_and_reach_every_prediction():
    logits, boxes, targets, whwh = random_case((0, 0), stages=2)
    logits.requires_grad_()
    boxes.requires_grad_()
    terms = set_prediction_loss(HeadOutput(logits, boxes), PaddedTargets.of(targets), whwh, CONFIG)
    sum(terms.values()).backward()
    assert set(terms) == {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"}
    assert terms["loss_bbox"] == 0
    assert terms["loss_giou"] == 0
    assert terms["loss_ce"] > 0
    assert (logits.grad != 0).all()
    assert (boxes.grad == 0).all()


def test_the_loss_is_the_sum_over_matches_divided_by_their_number():
    logits, boxes, targets, whwh = random_case((3, 2))
    padded = PaddedTargets.of(targets)
    terms = set_prediction_loss(HeadOutput(logits, boxes), padded, whwh, CONFIG)
    matched, gt_index = match(logits[0], boxes[0], padded, whwh, CONFIG)
    l1 = giou = 0.0
    for image, proposal in matched.nonzero().tolist():
        goal = targets[image].boxes_xyxy[gt_index[image, proposal]]
        l1 += ((boxes[0, image, proposal] - goal).abs() / WHWH).sum().item()
        giou += 1 - generalized_box_iou(boxes[0, image, proposal, None], goal[None]).item()
    count = int(matched.sum())
    assert math.isclose(terms["loss_bbox"].item(), 5 * l1 / count, rel_tol=1e-5)
    assert math.isclose(terms["loss_giou"].item(), 2 * giou / count, rel_tol=1e-5)
    only_last = set_prediction_loss(
        HeadOutput(logits.repeat(3, 1, 1, 1), boxes.repeat(3, 1, 1, 1)),
        padded,
        whwh,
        CONFIG.model_copy(update={"deep_supervision": False}),
    )
    assert only_last == terms
