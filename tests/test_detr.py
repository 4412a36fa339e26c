"""DETR: its matching against brute force, its loss against hand and against transformers' own, and what padding and the
batch may change."""

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import CLASSES, make_batch
from transformers import DetrConfig as TransformersConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from noisebox.config import Sampling
from noisebox.config.detr import DetrConfig, DetrLossConfig
from noisebox.errors import UserError
from noisebox.models import BOX_MONITORS
from noisebox.models.detr.criterion import Objects, Output, match, matching_cost, set_prediction_loss
from noisebox.models.detr.detector import Detr, pixel_mask
from noisebox.randomness import isolated, torch_generator
from noisebox.structures import Batch, Detections, Targets
from noisebox.training.step import is_loss

ONCE = Sampling(steps=1)
SMALL = {
    "backbone": "slim",
    "stride": 8,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "attention_heads": 4,
    "dim_feedforward": 64,
    "num_queries": 7,
}


def make_detr(seed: int = 0, loss: DetrLossConfig | None = None, **changes: Any) -> Detr:
    with isolated(seed, "weights"):
        return Detr(DetrConfig(**(SMALL | changes)), loss or DetrLossConfig(), CLASSES)


def said(seed: int, layers: int, images: int, queries: int) -> Output:
    """What a decoder might say."""
    generator = torch_generator(seed, "said")
    logits = torch.randn(layers, images, queries, CLASSES + 1, generator=generator) * 2
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.4 + 0.1
    return Output(logits, boxes)


def objects_of(seed: int, counts: tuple[int, ...]) -> Objects:
    """Ground truth of images with so many objects."""
    generator, total = torch_generator(seed, "objects"), sum(counts)
    labels = torch.randint(CLASSES, (total,), generator=generator)
    return Objects(labels, torch.rand(total, 4, generator=generator) * 0.4 + 0.1, counts)


def giou(one: list[float], other: list[float]) -> float:
    """Of two boxes given by centre, width and height."""
    (a, b, c, d), (e, f, g, h) = ((x - w / 2, y - v / 2, x + w / 2, y + v / 2) for x, y, w, v in (one, other))
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
    return shared / union - (hull - union) / hull


# Matching


@given(st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(1, 5))
@settings(max_examples=40)
def test_matches_cost_least_of_all_permutations(seed: int, counts: list[int], queries: int) -> None:
    config = DetrLossConfig(class_weight=1.5, l1_weight=3.0, giou_weight=2.5)
    output, objects = said(seed, 2, len(counts), queries), objects_of(seed, tuple(counts))
    matches = match(output, objects, config)
    cost = matching_cost(output, objects, config)
    starts = np.cumsum([0, *counts])
    for layer, image in itertools.product(range(2), range(len(counts))):
        own = matches.image == image
        found, goals = matches.query[layer, own].tolist(), matches.object[layer, own].tolist()
        assert len(found) == len(set(found)) == len(set(goals)) == min(queries, counts[image])
        assert all(starts[image] <= goal < starts[image + 1] for goal in goals)
        table = cost[layer, image, :, starts[image] : starts[image + 1]].double().numpy()
        table = table if queries >= counts[image] else table.T
        columns = range(table.shape[1])
        least = min(
            sum(table[row, column] for row, column in zip(rows, columns, strict=True))
            for rows in itertools.permutations(range(table.shape[0]), len(columns))
        )
        total = sum(float(cost[layer, image, q, g].double()) for q, g in zip(found, goals, strict=True))
        assert total == pytest.approx(least, abs=1e-5)


def test_a_pair_costs_what_the_loss_weighs() -> None:
    output, objects = said(3, 1, 2, 4), objects_of(3, (1, 2))
    cost = matching_cost(output, objects, DetrLossConfig(class_weight=1.5, l1_weight=3.0, giou_weight=2.5))
    for image, query, goal in itertools.product(range(2), range(4), range(3)):
        logits, box = output.logits[0, image, query], output.boxes[0, image, query].tolist()
        probability = float((logits - logits.logsumexp(0)).exp()[objects.labels[goal]])
        other = objects.boxes[goal].tolist()
        l1 = sum(abs(a - b) for a, b in zip(box, other, strict=True))
        expected = 3.0 * l1 - 1.5 * probability - 2.5 * giou(box, other)
        assert float(cost[0, image, query, goal]) == pytest.approx(expected, abs=1e-5)


def test_what_is_not_finite_is_matched_last_and_seen_in_the_loss() -> None:
    output, objects = said(1, 1, 1, 3), objects_of(1, (2,))
    output.boxes[0, 0, 1] = torch.nan
    config = DetrLossConfig()
    assert match(output, objects, config).query[0].tolist() == [0, 2]
    output.boxes[:] = torch.nan
    assert torch.isnan(set_prediction_loss(output, objects, config)["loss_bbox"])


# Loss


def test_the_loss_is_that_of_hand() -> None:
    """Two queries, one object: the first query is near it."""
    logits = torch.tensor([[[[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]]])
    goal = [0.5, 0.4, 0.2, 0.4]
    objects = Objects(torch.tensor([0]), torch.tensor([goal]), (1,))
    config = DetrLossConfig(class_weight=3.0, eos_coefficient=0.25)
    terms = set_prediction_loss(Output(logits, boxes), objects, config)
    e = np.e
    classes = [-np.log(e**2 / (e**2 + 3)), -np.log(e / (e + 3))]
    assert float(terms["loss_ce"]) == pytest.approx(3 * (classes[0] + 0.25 * classes[1]) / 1.25, rel=1e-5)
    assert float(terms["loss_bbox"]) == pytest.approx(5 * 0.1, rel=1e-5)
    assert float(terms["loss_giou"]) == pytest.approx(2 * (1 - 0.3 / 0.5), rel=1e-5)  # of a hull that the union fills
    assert list(terms) == ["loss_ce", "loss_bbox", "loss_giou"]


@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0, 0), (1, 1, 1)])
def test_the_loss_is_that_of_transformers(counts: tuple[int, ...]) -> None:
    output, objects = said(5, 3, 3, 6), objects_of(5, counts)
    config = DetrLossConfig(l1_weight=4.0, giou_weight=3.0, eos_coefficient=0.2)
    theirs = TransformersConfig(
        num_labels=CLASSES, class_cost=1, bbox_cost=4, giou_cost=3, bbox_loss_coefficient=4, giou_loss_coefficient=3,
        eos_coefficient=0.2, auxiliary_loss=True, decoder_layers=3,
    )  # fmt: skip
    labels = [
        {"class_labels": label, "boxes": box}
        for label, box in zip(objects.labels.split(counts), objects.boxes.split(counts), strict=True)
    ]
    total, each, _ = ForObjectDetectionLoss(
        output.logits[-1], labels, "cpu", output.boxes[-1], theirs, output.logits, output.boxes
    )
    terms = set_prediction_loss(output, objects, config)
    assert float(sum(terms.values())) == pytest.approx(float(total), rel=1e-4)
    weights = {"loss_ce": 1.0, "loss_bbox": 4.0, "loss_giou": 3.0}
    assert terms.keys() == {name for name in each if "cardinality" not in name}
    for name, term in terms.items():
        kind = "_".join(name.split("_")[:2])
        assert float(term) == pytest.approx(weights[kind] * float(each[name]), rel=1e-4, abs=1e-6), name
    last = set_prediction_loss(output, objects, config.model_copy(update={"auxiliary_loss": False}))
    assert last == {name: terms[name] for name in ("loss_ce", "loss_bbox", "loss_giou")}


def test_images_without_objects_teach_that_there_is_nothing() -> None:
    model = make_detr()
    nothing = replace(make_batch([1, 2]), targets=(Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),) * 2)
    terms = model(nothing, 0, 0)
    assert terms["loss_bbox"].item() == terms["loss_giou"].item() == 0 < terms["loss_ce"].item()
    sum(term for name, term in terms.items() if is_loss(name)).backward()
    gradient = model.network.class_labels_classifier.bias.grad
    assert gradient is not None and gradient[-1] < 0 < gradient[:-1].min()


# The detector


@pytest.mark.parametrize("stride", [8, 32])
def test_shapes_and_names(stride: int) -> None:
    model, batch = make_detr(stride=stride), make_batch([1, 2])
    output = model.encode(batch)
    assert output.logits.shape == (3, 2, 7, CLASSES + 1) and output.boxes.shape == (3, 2, 7, 4)
    assert (output.boxes > 0).all() and (output.boxes < 1).all()
    terms = model(batch, 0, 0)
    kinds = ("loss_ce", "loss_bbox", "loss_giou")
    assert set(terms) == {*BOX_MONITORS, *(f"{kind}{layer}" for kind in kinds for layer in ("", "_0", "_1"))}
    width = (output.boxes[-1, ..., 2] * 96).flatten().sort().values
    assert float(terms["median_box_width"]) == pytest.approx(float(width[(len(width) - 1) // 2]))
    sum(term for name, term in terms.items() if is_loss(name)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    ((first, _), (again, _)) = model.detect(output, batch, [0, 3], ONCE)
    assert first is again and (first.scores.diff() <= 0).all()
    assert len(first.labels) == 7 and first.labels.max() < CLASSES
    limit = torch.tensor([192.0, 128.0, 192.0, 128.0])  # stored twice as large
    assert (first.boxes_xyxy >= 0).all() and (first.boxes_xyxy <= limit).all()


def test_boxes_are_brought_to_the_stored_image_best_first() -> None:
    model, batch = make_detr(), make_batch([1])
    boxes = torch.tensor([[[[0.5, 0.5, 0.5, 0.5], [0.0, 0.25, 0.5, 0.25], [0.25, 0.75, 0.1, 0.1]]]])
    logits = torch.tensor([[[[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 9.0]]]])
    ((found,),) = model.detect(Output(logits, boxes), batch, [0], ONCE)
    assert found.labels.tolist() == [1, 0, 2]
    expected = [[0, 16, 48, 48], [48, 32, 144, 96], [38.4, 89.6, 57.6, 102.4]]
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor(expected))
    torch.testing.assert_close(found.scores, logits[0, 0, [1, 0, 2]].softmax(-1)[..., :3].max(-1).values)


def detections(model: Detr, batch: Batch) -> list[Detections]:
    with torch.no_grad():
        (found,) = model.eval().detect(model.encode(batch), batch, [0], ONCE)
    return found


def assert_alike(one: Detections, other: Detections) -> None:
    assert one.labels.tolist() == other.labels.tolist()
    torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


def test_an_image_is_detected_the_same_whatever_lies_beside_it() -> None:
    model = make_detr(seed=1)
    together = detections(model, make_batch([3, 4, 5]))
    for image, found in zip([3, 4, 5], together, strict=True):
        assert_alike(detections(model, make_batch([image]))[0], found)
    assert together[0].boxes_xyxy.tolist() != together[1].boxes_xyxy.tolist()


def test_what_lies_in_the_padding_is_not_seen() -> None:
    """The transformer's mask leaves out the cells that lie in it, whatever the backbone says there."""
    model, batch = make_detr(seed=1), make_batch([3, 4])
    smaller = replace(batch, sizes_hw=torch.tensor([[40, 96], [64, 72]]))
    network = model.network.model
    (features, mask), *_ = network.backbone(smaller.images, pixel_mask(smaller))
    assert mask.sum((1, 2)).tolist() == [5 * 12, 8 * 9]
    expected = detections(model, smaller)
    noise = torch.randn(features.shape, generator=torch_generator(0, "padding")) * ~mask[:, None]
    network.backbone.register_forward_hook(lambda *_: [(features + noise, mask)])
    for one, other in zip(detections(model, smaller), expected, strict=True):
        assert_alike(one, other)


def test_it_says_the_same_under_every_seed_and_touches_no_global_generator() -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]

    before = states()
    model, batch = make_detr(), make_batch([1, 2])
    assert model.deterministic
    terms, others = model.train()(batch, 0, 0), model(batch, 1, 7)
    assert all(torch.equal(terms[name], others[name]) for name in terms)
    assert states() == before
    again = make_detr()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (Sampling(steps=5), "5 sampling steps need a detector that denoises; detr does not"),
        (Sampling(steps=1, guidance={"scale": 0.5}), r"guidance scale 0\.5 needs a detector with a quality head"),
        (Sampling(steps=1, crops=True), "crops need a detector that finds where objects crowd"),
    ],
)
def test_it_refuses_what_only_others_can(sampling: Sampling, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_detr().check_sampling(sampling)
