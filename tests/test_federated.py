"""A federated loss: which classes count in an image, and that the loss counts these alone."""

import itertools
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from public_detector import empty_config
from torch.nn import functional as F
from torchvision.ops import box_convert, sigmoid_focal_loss

from noisebox.config import resolve
from noisebox.config.diffusiondet import FederatedConfig, LossConfig
from noisebox.data.federated import counted_classes
from noisebox.data.loader import TrainingBatches
from noisebox.errors import UserError
from noisebox.interop.adapter import detector_config
from noisebox.models.diffusiondet.criterion import set_prediction_loss
from noisebox.models.diffusiondet.head import HeadOutput
from noisebox.models.diffusiondet.matcher import PaddedTargets, match
from noisebox.randomness import numpy_generator
from noisebox.structures import Batch, Targets
from noisebox.tasks import open_task

CLASSES, PROPOSALS = 12, 10
WHWH = torch.tensor([64.0, 48.0, 64.0, 48.0])
FEDERATED = LossConfig(federated=FederatedConfig(classes=4))


# Which classes count


@given(
    images=st.lists(st.integers(0, 1000), min_size=1, max_size=30),
    classes=st.integers(1, 40),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)
def test_an_image_counts_its_own_classes_and_others_that_exist(
    images: list[int], classes: int, power: float, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=8))
    random = numpy_generator(data.draw(st.integers(0, 99)), "a draw")
    found = counted_classes(np.array(labels, np.int64), np.array(images), classes, power, random)
    counted, own = set(np.flatnonzero(found).tolist()), set(labels)
    assert found.shape == (len(images),) and own <= counted
    assert all(images[label] for label in counted - own)
    others = {label for label, count in enumerate(images) if count} - own
    assert len(counted) == len(own) + min(len(others), max(0, classes - len(own)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_others_are_drawn_one_after_the_other_without_replacement(power: float) -> None:
    """Two of four besides the image's own: each pair as often as all ways to draw it say."""
    images, draws = np.array([9, 400, 100, 25, 4]), 4000
    weights = {label: float(images[label]) ** power for label in (0, 2, 3, 4)}
    expected: Counter[frozenset[int]] = Counter()
    for first, second in itertools.permutations(weights, 2):
        chance = weights[first] / sum(weights.values()) * weights[second] / (sum(weights.values()) - weights[first])
        expected[frozenset((first, second))] += chance  # type: ignore[assignment]
    drawn = Counter(
        frozenset(np.flatnonzero(counted_classes(np.array([1, 1]), images, 3, power, numpy_generator(k, "draw")))) - {1}
        for k in range(draws)
    )
    for pair, chance in expected.items():
        assert drawn[pair] / draws == pytest.approx(chance, abs=4 * (chance / draws) ** 0.5), pair


@pytest.fixture
def task(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Images are repeated, and cropped so that some objects are not shown."""
    monkeypatch.chdir(datasets)
    overrides = {
        "loss.federated": {"classes": 2}, "solver.batch_size": 4, "solver.accumulate": 2, "solver.repeat_threshold": 1,
        "image.crop": {"likely": 1.0, "short_edges": [60], "least": 20, "most": 30},
    }  # fmt: skip
    return open_task(resolve("baseline", 0, "test", overrides=overrides))


def counted(batch: Batch) -> list[list[bool]]:
    return [target.counted.tolist() for target in batch.targets]


def test_what_an_image_counts_depends_on_seed_step_and_image_alone(task: Any) -> None:
    assert len(task.train) > len({record.id for record in task.train.images})
    seen = set()
    for step in range(6):
        whole = task.batch(step)
        shares = [TrainingBatches(task.train, task.config, rank, 2)[step] for rank in (0, 1)]
        parts = [counted(share.part(slice(row, row + 1))) for row in (0, 1) for share in shares]
        assert list(itertools.chain(*parts)) == counted(whole) == counted(pickle.loads(pickle.dumps(whole)).to("cpu"))
        for target, image_id in zip(whole.targets, whole.image_ids, strict=True):
            own = set(target.labels.tolist())
            assert sum(target.counted) == max(2, len(own)) and all(target.counted[list(own)])
            seen.add((image_id, *target.counted.tolist()))
    assert len(seen) > len({image_id for image_id, *_ in seen}), "another step draws others"


def test_images_of_a_class_are_counted_once_however_often_they_are_shown(task: Any) -> None:
    images = {record.id: set(record.labels[~record.crowd].tolist()) for record in task.train.images}
    expected = [sum(label in labels for labels in images.values()) for label in range(3)]
    assert task.train.images_per_class().tolist() == expected


# The loss


def random_case(seed: int, counts: tuple[int, ...]) -> tuple[HeadOutput, list[Targets], torch.Tensor]:
    """Two stages of predictions, half of them near objects, and objects of images that count four classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(len(counts), 4, 2, generator=generator) * torch.tensor([32.0, 24.0])
    objects = torch.cat((corner, corner + 6 + torch.rand(len(counts), 4, 2, generator=generator) * 20), -1)
    random = numpy_generator(seed, "a case")
    targets = []
    for boxes, count in zip(objects, counts, strict=True):
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        own = torch.from_numpy(counted_classes(labels.numpy(), np.arange(1, CLASSES + 1), 4, 0.5, random))
        targets.append(Targets(boxes[:count], labels, counted=own))
    near = objects[:, torch.arange(PROPOSALS) % 4]
    boxes = near + 4 * torch.rand(2, *near.shape, generator=generator) - 2
    logits = torch.randn(2, len(counts), PROPOSALS, CLASSES, generator=generator)
    return HeadOutput(logits, boxes, None, None), targets, WHWH.expand(len(counts), 4)


@given(seed=st.integers(0, 10**5), counts=st.sampled_from([(1,), (3, 0), (2, 4, 1)]))
@settings(max_examples=20, deadline=None)
def test_the_loss_is_the_sum_over_the_classes_that_count(seed: int, counts: tuple[int, ...]) -> None:
    output, targets, whwh = random_case(seed, counts)
    logits = output.logits.requires_grad_()
    terms = set_prediction_loss(output, PaddedTargets.of(targets), whwh, FEDERATED)
    plain = set_prediction_loss(output, PaddedTargets.of(targets), whwh, LossConfig())
    for stage, suffix in enumerate(("_0", "")):
        predicted = logits[stage].detach(), output.boxes_xyxy[stage]
        matched, gt_index = match(*predicted, PaddedTargets.of(targets), whwh, FEDERATED)
        total = 0.0
        for image, target in enumerate(targets):
            for p, label in itertools.product(range(PROPOSALS), target.counted.nonzero()[:, 0].tolist()):
                hit = bool(matched[image, p]) and int(target.labels[gt_index[image, p]]) == label
                logit = logits[stage, image, p, label].detach()
                total += sigmoid_focal_loss(logit, torch.tensor(float(hit))).item()
        assert terms[f"loss_ce{suffix}"].item() == pytest.approx(2 * total / max(1, int(matched.sum())), rel=1e-4)
        assert all(torch.equal(terms[name], plain[name]) for name in (f"loss_bbox{suffix}", f"loss_giou{suffix}"))
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    for image, target in enumerate(targets):
        assert ((gradient[:, image] != 0) == target.counted).all()


@pytest.mark.parametrize("cls_loss", ["focal", "qfl"])
def test_where_all_classes_count_it_is_the_plain_loss(cls_loss: Any) -> None:
    output, targets, whwh = random_case(3, (2, 3))
    every = [Targets(target.boxes_xyxy, target.labels, counted=torch.ones(CLASSES).bool()) for target in targets]
    plain = LossConfig(cls_loss=cls_loss)
    federated = plain.model_copy(update={"federated": FederatedConfig()})
    expected = set_prediction_loss(output, PaddedTargets.of(targets), whwh, plain)
    terms = set_prediction_loss(output, PaddedTargets.of(every), whwh, federated)
    assert all(torch.equal(terms[name], value) for name, value in expected.items())
    some = set_prediction_loss(output, PaddedTargets.of(targets), whwh, federated)
    assert 0 < some["loss_ce"] < expected["loss_ce"]


def test_given_the_same_classes_it_is_the_public_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public criterion draws for all its images together."""
    cfg = empty_config()
    from detectron2.data import MetadataCatalog
    from diffusiondet import loss as public

    counts = [{"id": label + 1, "image_count": (label + 1) ** 2} for label in range(120)]
    MetadataCatalog.get("federated_train").set(class_image_count=counts)
    changed = {"NUM_CLASSES": 120, "USE_FED_LOSS": True}
    cfg.merge_from_list([word for key, value in changed.items() for word in (f"MODEL.DiffusionDet.{key}", value)])
    cfg.DATASETS.TRAIN = ("federated_train",)
    matcher = public.HungarianMatcherDynamicK(cfg=cfg, cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, use_focal=True)
    criterion = public.SetCriterionDynamicK(
        cfg=cfg, num_classes=120, matcher=matcher, weight_dict={}, eos_coef=0.1, losses=["labels"], use_focal=True
    )
    assert torch.equal(criterion.fed_loss_cls_weights, torch.arange(1.0, 121))
    drawn: list[torch.Tensor] = []
    draw = criterion.get_fed_loss_classes
    monkeypatch.setattr(criterion, "get_fed_loss_classes", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    for seed in range(3):
        output, targets, whwh = random_case(seed, (3, 0, 2))
        logits = torch.randn(1, 3, PROPOSALS, 120, generator=torch.Generator().manual_seed(seed))
        described = [
            {
                "labels": target.labels,
                "boxes": box_convert(target.boxes_xyxy / WHWH, "xyxy", "cxcywh"),
                "boxes_xyxy": target.boxes_xyxy,
                "image_size_xyxy": WHWH,
                "image_size_xyxy_tgt": WHWH.expand(len(target.labels), 4),
            }
            for target in targets
        ]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theirs = criterion({"pred_logits": logits[0], "pred_boxes": output.boxes_xyxy[1]}, described)["loss_ce"]
        mask = F.one_hot(drawn[-1], 121).amax(0)[:120].bool()
        assert mask.sum() == 49, "one of the 50 is the background"
        same = [Targets(target.boxes_xyxy, target.labels, counted=mask) for target in targets]
        said = HeadOutput(logits, output.boxes_xyxy[1:], None, None)
        ours = set_prediction_loss(said, PaddedTargets.of(same), whwh, FEDERATED)["loss_ce"]
        assert ours.item() == pytest.approx(2 * theirs.item(), rel=1e-5)


# Where it is asked for


def test_scale_paper_has_it_on_lvis_for_diffusiondet_alone() -> None:
    def asked(recipe: str, dataset: str) -> Any:
        return resolve(recipe, 0, "paper", ROOT, smoke=True, overrides={"dataset": dataset})

    on_lvis = asked("kitchen_sink", "lvis_v1")
    assert on_lvis.loss.federated == FederatedConfig(classes=50, power=0.5) and on_lvis.loss.cls_loss == "qfl"
    assert on_lvis.solver.repeat_threshold == 0.001
    assert asked("baseline", "coco_2017").loss.federated is None
    assert not hasattr(asked("detr", "lvis_v1").loss, "federated")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"classes": 0}, "override 'loss.federated.classes': input should be greater than or equal to 1, not 0"),
        ({"power": -1}, "override 'loss.federated.power': input should be greater than or equal to 0, not -1"),
        ({"clases": 9}, "override 'loss.federated.clases' does not exist; did you mean 'classes'?"),
        (50, "override 'loss.federated': "),
    ],
)
def test_mistakes_are_told(value: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        resolve("baseline", 0, "test", ROOT, overrides={"loss.federated": value})


def test_a_framework_that_brings_its_own_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"has loss.federated, which draws classes by their images"):
        detector_config("baseline", "test", 0, ROOT, {"loss.federated": {"classes": 2}})
