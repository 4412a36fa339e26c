"""The set-prediction loss's switches against plain loops and limiting cases, and what their gradients pull towards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou, sigmoid_focal_loss

from noisebox.config.diffusiondet import LossConfig
from noisebox.models.diffusiondet import criterion
from noisebox.models.diffusiondet.criterion import quality_focal_loss, set_prediction_loss
from noisebox.models.diffusiondet.head import HeadOutput
from noisebox.models.diffusiondet.matcher import PaddedTargets, match
from noisebox.structures import Targets

PLAIN = LossConfig()
WHWH = torch.tensor([64.0, 48.0, 64.0, 48.0])
PROPOSALS, CLASSES = 10, 3
seeds = st.integers(0, 100_000)
counts_of_objects = st.lists(st.integers(0, 4), min_size=1, max_size=3)


def random_boxes(generator, *shape):
    corner = torch.rand(*shape, 2, generator=generator) * torch.tensor([32.0, 24.0])
    return torch.cat((corner, corner + 4 + torch.rand(*shape, 2, generator=generator) * 24), dim=-1)


def random_case(seed, counts, stages=2):
    """An output with everything that a head may say, the objects of its images, and their sizes.

    Half of the boxes lie close to objects, so that objects have several proposals; the last lies in the image's
    corner, where absent objects are padded.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(counts)
    targets = [
        Targets(random_boxes(generator, count), torch.randint(0, CLASSES, (count,), generator=generator))
        for count in counts
    ]
    boxes = random_boxes(generator, stages, rows, PROPOSALS)
    for image, target in enumerate(targets):
        if len(target.labels):
            near = target.boxes_xyxy[torch.arange(PROPOSALS // 2) % len(target.labels)]
            boxes[:, image, : len(near)] = near + 3 * torch.rand(stages, len(near), 4, generator=generator) - 1.5
    boxes[:, :, -1] = torch.tensor([0.0, 0.0, 1.5, 1.5])
    output = HeadOutput(
        logits=torch.randn(stages, rows, PROPOSALS, CLASSES, generator=generator),
        boxes_xyxy=boxes,
        quality=torch.randn(stages, rows, PROPOSALS, generator=generator),
        attention=torch.randn(rows, PROPOSALS, PROPOSALS, generator=generator).softmax(-1),
    )
    return output, targets, WHWH.expand(rows, 4)


def losses(output, targets, whwh, config=PLAIN, **changes):
    return set_prediction_loss(output, PaddedTargets.of(targets), whwh, config.model_copy(update=changes))


def pairs(output, targets, whwh, stage):
    """(image, proposal, object) of all matched proposals of a stage."""
    matched, gt_index = match(output.logits[stage], output.boxes_xyxy[stage], PaddedTargets.of(targets), whwh, PLAIN)
    return [(image, p, int(gt_index[image, p])) for image, p in matched.nonzero().tolist()]


def plain(output):
    return output._replace(quality=None, attention=None)


def cross_entropy(target, logit):
    probability = 1 / (1 + math.exp(-logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def close(ours, expected):
    return ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_switches_that_are_off_change_nothing():
    output, targets, whwh = random_case(0, (3, 0, 2))
    terms = losses(plain(output), targets, whwh)
    assert set(terms) == {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"}
    with_quality = losses(output, targets, whwh, qfl_beta=7.0, graph_topo_loss_weight=0.0)
    assert set(with_quality) - set(terms) == {"loss_quality", "loss_quality_0"}
    assert all(torch.equal(with_quality[name], value) for name, value in terms.items())


def test_power_zero_is_the_plain_loss_without_an_iou(monkeypatch):
    output, targets, whwh = random_case(1, (3, 1))
    expected = losses(plain(output), targets, whwh)
    monkeypatch.delattr(criterion, "pairwise_iou")
    monkeypatch.delattr(criterion, "iou_and_gap")
    terms = losses(plain(output), targets, whwh, box_loss_iou_weight_power=0.0, graph_topo_loss_weight=1.0)
    assert all(torch.equal(terms[name], value) for name, value in expected.items())


@given(seed=seeds, counts=counts_of_objects, power=st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_box_terms_are_weighted_by_iou_to_the_power(seed, counts, power):
    output, targets, whwh = random_case(seed, counts)
    terms = losses(plain(output), targets, whwh, box_loss_iou_weight_power=power)
    for stage, suffix in enumerate(("_0", "")):
        l1 = giou = 0.0
        matches = pairs(output, targets, whwh, stage)
        for image, p, g in matches:
            box, goal = output.boxes_xyxy[stage, image, p], targets[image].boxes_xyxy[g]
            weight = box_iou(box[None], goal[None]).item() ** power
            l1 += weight * ((box - goal).abs() / WHWH).sum().item()
            giou += weight * (1 - generalized_box_iou(box[None], goal[None]).item())
        assert close(terms[f"loss_bbox{suffix}"], 5 * l1 / max(1, len(matches)))
        assert close(terms[f"loss_giou{suffix}"], 2 * giou / max(1, len(matches)))


def test_the_weight_of_a_box_has_no_gradient_of_its_own():
    """One object, one proposal: the gradient is the plain one times the weight, in every coordinate."""
    target = [Targets(torch.tensor([[10.0, 10.0, 30.0, 40.0]]), torch.tensor([0]))]
    box = torch.tensor([[[[12.0, 8.0, 33.0, 37.0]]]], requires_grad=True)
    gradients = []
    for power in (0.0, 2.0):
        terms = losses(HeadOutput(torch.zeros(1, 1, 1, 1), box), target, WHWH[None], box_loss_iou_weight_power=power)
        gradients.append(torch.autograd.grad(terms["loss_bbox"] + terms["loss_giou"], box)[0])
    iou = box_iou(box.detach()[0, 0], target[0].boxes_xyxy).item()
    assert 0.3 < iou < 0.9
    assert torch.allclose(gradients[1], iou**2 * gradients[0], rtol=1e-5)


@given(seed=seeds, gamma=st.sampled_from([0.0, 1.0, 2.0, 3.5]))
@settings(max_examples=25, deadline=None)
def test_quality_focal_loss_of_perfect_boxes_is_the_focal_loss_without_alpha(seed, gamma):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, 7, generator=generator)).requires_grad_()
    targets = torch.randint(0, 2, (4, 7), generator=generator).float()
    ours = quality_focal_loss(logits, targets, gamma)
    focal = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    assert torch.allclose(ours, focal, rtol=1e-4, atol=1e-6)
    (ours_gradient,) = torch.autograd.grad(ours.sum(), logits)
    (focal_gradient,) = torch.autograd.grad(focal.sum(), logits)
    assert torch.allclose(ours_gradient, focal_gradient, rtol=1e-4, atol=1e-6)


def test_with_predictions_on_their_objects_qfl_is_twice_focal_at_alpha_a_half():
    """Alpha a half weighs objects and background alike by a half: the loss without alpha, halved."""
    output, targets, whwh = random_case(2, (2, 3))
    exact = torch.stack([target.boxes_xyxy[torch.arange(PROPOSALS) % len(target.labels)] for target in targets])
    output = plain(output)._replace(boxes_xyxy=exact.expand(2, -1, -1, -1))
    config = PLAIN.model_copy(update={"focal_alpha": 0.5})
    focal = losses(output, targets, whwh, config)
    qfl = losses(output, targets, whwh, config, cls_loss="qfl", qfl_beta=config.focal_gamma)
    for name in ("loss_ce", "loss_ce_0"):
        assert close(qfl[name], 2 * focal[name].item())


@given(seed=seeds, counts=counts_of_objects, beta=st.sampled_from([0.0, 1.0, 2.0]))
@settings(max_examples=25, deadline=None)
def test_qfl_is_the_papers_sum_over_proposals_and_classes(seed, counts, beta):
    output, targets, whwh = random_case(seed, counts)
    terms = losses(plain(output), targets, whwh, cls_loss="qfl", qfl_beta=beta)
    for stage, suffix in enumerate(("_0", "")):
        matches = pairs(output, targets, whwh, stage)
        quality = {}
        for image, p, g in matches:
            box, goal = output.boxes_xyxy[stage, image, p], targets[image].boxes_xyxy[g]
            quality[image, p, int(targets[image].labels[g])] = box_iou(box[None], goal[None]).item()
        total = 0.0
        for image in range(len(counts)):
            for p in range(PROPOSALS):
                for label in range(CLASSES):
                    target = quality.get((image, p, label), 0.0)
                    logit = output.logits[stage, image, p, label].item()
                    distance = abs(target - 1 / (1 + math.exp(-logit)))
                    total += distance**beta * cross_entropy(target, logit)
        assert close(terms[f"loss_ce{suffix}"], 2 * total / max(1, len(matches)))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_qfl_pulls_the_score_to_the_iou_and_leaves_the_box_alone(beta):
    target = [Targets(torch.tensor([[10.0, 10.0, 30.0, 40.0]]), torch.tensor([0]))]
    box = torch.tensor([[[[12.0, 8.0, 33.0, 37.0]]]], requires_grad=True)
    iou = box_iou(box.detach()[0, 0], target[0].boxes_xyxy).item()
    for score in (0.02, iou - 0.05, iou, iou + 0.05, 0.98):
        logit = torch.full((1, 1, 1, 1), math.log(score / (1 - score)), requires_grad=True)
        loss = losses(HeadOutput(logit, box), target, WHWH[None], cls_loss="qfl", qfl_beta=beta)["loss_ce"]
        gradient, of_box = torch.autograd.grad(loss, (logit, box), allow_unused=True)
        assert of_box is None
        if score == iou:
            assert loss.item() == pytest.approx(0, abs=1e-6)
        else:
            assert loss.item() > 1e-3
            assert gradient.sign().item() == math.copysign(1, score - iou)


@given(seed=seeds, counts=counts_of_objects)
@settings(max_examples=25, deadline=None)
def test_quality_is_held_against_the_best_iou_with_any_object(seed, counts):
    output, targets, whwh = random_case(seed, counts)
    terms = losses(output, targets, whwh, quality_weight=3.0)
    for stage, suffix in enumerate(("_0", "")):
        total = 0.0
        for image, target in enumerate(targets):
            for p in range(PROPOSALS):
                box = output.boxes_xyxy[stage, image, p]
                best = max((box_iou(box[None], goal[None]).item() for goal in target.boxes_xyxy), default=0.0)
                total += cross_entropy(best, output.quality[stage, image, p].item())
        assert close(terms[f"loss_quality{suffix}"], 3 * total / (len(counts) * PROPOSALS))


def test_the_gradient_pushes_quality_towards_the_iou_and_leaves_boxes_alone():
    output, targets, whwh = random_case(4, (2, 0, 3), stages=3)
    quality, boxes = output.quality.requires_grad_(), output.boxes_xyxy.requires_grad_()
    terms = losses(output, targets, whwh)
    total = sum(value for name, value in terms.items() if name.startswith("loss_quality"))
    gradient, of_boxes = torch.autograd.grad(total, (quality, boxes), allow_unused=True)
    assert of_boxes is None
    for image, target in enumerate(targets):
        iou = box_iou(boxes[:, image].detach().flatten(0, 1), target.boxes_xyxy)
        best = iou.amax(-1).view(3, PROPOSALS) if len(target.labels) else torch.zeros(3, PROPOSALS)
        assert torch.equal(gradient[:, image].sign(), (quality[:, image].sigmoid() - best).sign())


@given(seed=seeds, counts=counts_of_objects)
@settings(max_examples=25, deadline=None)
def test_graph_loss_is_the_cross_entropy_with_who_shares_an_object(seed, counts):
    output, targets, whwh = random_case(seed, counts)
    terms = losses(output, targets, whwh, graph_topo_loss_weight=3.0)
    matches = pairs(output, targets, whwh, stage=1)
    total = 0.0
    for image, i, g in matches:
        friends = [j for other, j, own in matches if other == image and own == g]
        assert i in friends
        total -= sum(math.log(output.attention[image, i, j].item()) for j in friends) / len(friends)
    assert close(terms["loss_graph"], 3 * total / max(1, len(matches)))
    assert "loss_graph_0" not in terms


def adjacency_of(output, targets, whwh):
    """(N, P, P): 1 where two proposals of the last stage are matched to one object."""
    adjacency = torch.zeros_like(output.attention)
    matches = pairs(output, targets, whwh, stage=-1)
    for image, i, g in matches:
        for other, j, own in matches:
            if image == other and g == own:
                adjacency[image, i, j] = 1
    return adjacency


def test_attention_that_agrees_with_the_graph_costs_least():
    output, targets, whwh = random_case(5, (3, 2))
    adjacency = adjacency_of(output, targets, whwh)
    degree = adjacency.sum(-1, keepdim=True)
    assert degree.max() > 1

    def cost(attention):
        terms = losses(output._replace(attention=attention), targets, whwh, graph_topo_loss_weight=1.0)
        return terms["loss_graph"].item()

    matched = degree[..., 0] > 0
    agreeing, disagreeing = adjacency / degree.clamp(min=1), (1 - adjacency) / (PROPOSALS - degree)
    entropy = degree[matched].log().mean().item()  # of the adjacency itself: no attention costs less
    assert cost(agreeing) == pytest.approx(entropy, abs=1e-5)
    uniform = torch.full_like(adjacency, 1 / PROPOSALS)
    assert cost(uniform) == pytest.approx(math.log(PROPOSALS), rel=1e-5)
    assert cost(agreeing) < cost((agreeing + uniform) / 2) < cost(uniform) < cost(disagreeing) < math.inf


def test_descent_on_the_graph_loss_makes_attention_the_graph():
    output, targets, whwh = random_case(6, (3, 2))
    adjacency = adjacency_of(output, targets, whwh)
    attention_logits = torch.zeros_like(adjacency, requires_grad=True)
    optimizer = torch.optim.SGD([attention_logits], lr=20.0)
    for _ in range(200):
        optimizer.zero_grad()
        said = output._replace(attention=attention_logits.softmax(-1))
        losses(said, targets, whwh, graph_topo_loss_weight=1.0)["loss_graph"].backward()
        optimizer.step()
    learned = attention_logits.detach().softmax(-1)
    matched = adjacency.sum(-1) > 0
    assert torch.allclose(learned[matched], (adjacency / adjacency.sum(-1, keepdim=True))[matched], atol=0.02)
    assert torch.equal(learned[~matched], torch.full_like(learned[~matched], 1 / PROPOSALS))


def test_edges_that_a_sparse_graph_lacks_cost_a_finite_amount():
    output, targets, whwh = random_case(5, (3, 2))
    attention = torch.eye(PROPOSALS).expand(2, -1, -1).clone().requires_grad_()
    term = losses(output._replace(attention=attention), targets, whwh, graph_topo_loss_weight=1.0)["loss_graph"]
    assert 0 < term.item() < 50
    (gradient,) = torch.autograd.grad(term, attention)
    assert gradient.isfinite().all()


def test_everything_on_is_finite_for_empty_images_and_collapsed_boxes_and_only_the_last_stage_remains_without_deep():
    output, targets, whwh = random_case(7, (0, 2))
    output.boxes_xyxy[:, :, :5, 2:] = output.boxes_xyxy[:, :, :5, :2]
    wanted = [tensor.requires_grad_() for tensor in output]
    switches = {"cls_loss": "qfl", "box_loss_iou_weight_power": 0.5, "graph_topo_loss_weight": 1.0}
    terms = losses(output, targets, whwh, **switches)
    assert all(term.isfinite() for term in terms.values())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(sum(terms.values()), wanted))
    shallow = losses(output, targets, whwh, **switches, deep_supervision=False)
    assert set(shallow) == {"loss_ce", "loss_bbox", "loss_giou", "loss_quality", "loss_graph"}
    assert all(torch.equal(value, terms[name]) for name, value in shallow.items())
    nothing = losses(*random_case(8, (0, 0)), **switches)
    assert nothing["loss_graph"] == nothing["loss_bbox"] == nothing["loss_giou"] == 0
