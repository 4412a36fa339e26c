"""Distillation of YOLC: each term by its words, nothing to learn from oneself, a teacher who stays as they are."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small_yolc import CLASSES, blank_batch, make_batch, make_yolc, plant
from torch.distributions import Bernoulli, kl_divergence

from noisebox.config.yolc import YolcConfig, YolcDistillConfig
from noisebox.errors import UserError
from noisebox.models.yolc.detector import Yolc
from noisebox.models.yolc.distillation import PLACES, box_error, heatmap_error
from noisebox.models.yolc.heatmap import peaks
from noisebox.training.distill import Lesson

KD = ("loss_kd_global_hm", "loss_kd_global_coarse", "loss_kd_local_refine")
CONFIG = YolcDistillConfig(min_patch_size=32, max_patches_per_img=2)
KL = CONFIG.model_copy(update={"heatmap_loss": "kl", "temperature": 3.0})


def make_teacher(seed=9, **changes):
    """Not trained, but with peaks above the threshold of crowds and refined boxes unlike the coarse ones."""
    model = make_yolc(seed, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.network.refine.change.weight.normal_(std=0.05, generator=generator)
        model.network.heatmap[-1].weight.mul_(4)
        model.network.heatmap[-1].bias.fill_(-2.5)
    return model.eval()


def bytes_of(model):
    written = io.BytesIO()
    torch.save(model.state_dict(), written)
    return written.getvalue()


def kd_of(terms):
    return {name: terms[name].item() for name in KD}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_the_heatmaps_error_is_what_its_words_say(kind, temperature):
    generator = torch.Generator().manual_seed(0)
    said, goal = 3 * torch.randn(2, 2, CLASSES, 8, 10, generator=generator)
    sizes = torch.tensor([[8, 10], [5, 7]])
    config = CONFIG.model_copy(update={"heatmap_loss": kind, "temperature": temperature})
    found = heatmap_error(said, goal, sizes, config)
    for row, (height, width) in enumerate(sizes.tolist()):
        ours, theirs = said[row, :, :height, :width].double(), goal[row, :, :height, :width].double()
        if kind == "mse":
            expected = (ours.sigmoid() - theirs.sigmoid()).square().mean()
        else:
            both = (Bernoulli(logits=each / temperature) for each in (theirs, ours))
            expected = temperature**2 * kl_divergence(*both).mean()
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4)
    assert heatmap_error(said, said, sizes, config).tolist() == [0, 0]


@given(seed=st.integers(0, 100_000), sure=st.sampled_from([0.01, 1.0]))
@settings(max_examples=20)
def test_the_error_of_boxes_weighs_them_by_the_teachers_certainty(seed, sure):
    generator = torch.Generator().manual_seed(seed)
    boxes, goals = 100 * torch.rand(2, 3, 5, 4, generator=generator)
    certainty = sure * torch.rand(3, 5, generator=generator)
    for row in range(3):
        total = weight = 0.0
        for index in range(5):
            pairs = zip(boxes[row, index].tolist(), goals[row, index].tolist(), strict=True)
            error = sum(((one - two) / 4) ** 2 for one, two in pairs) / 4
            total += certainty[row, index].item() * error
            weight += certainty[row, index].item()
        expected = total / max(1, weight)
        assert box_error(boxes, goals, certainty)[row].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", [CONFIG, KL])
def test_from_an_equal_teacher_there_is_exactly_nothing_to_learn(config):
    teacher = make_teacher()
    student = copy.deepcopy(teacher).train()
    batch = make_batch([1, 2])
    assert kd_of(student.distil(teacher, batch, 0, 0, config)) == dict.fromkeys(KD, 0.0)
    other = make_yolc(1).train().distil(teacher, batch, 0, 0, config)
    assert all(value > 0 for value in kd_of(other).values())


def test_boxes_are_compared_decoded_at_the_teachers_peaks_and_terms_are_means_over_images():
    teacher, student, batch = make_teacher(), make_yolc(1), make_batch([1, 2, 3])
    config = CONFIG.model_copy(update={"kd_weight_global_coarse": 2.0, "kd_weight_local_refine": 0.5})
    terms = student.train().distil(teacher, batch, 0, 0, config)
    coarse = refined = 0.0
    with torch.no_grad():
        for image_id in (1, 2, 3):
            alone = make_batch([image_id])
            lesson, said = teacher.encode(alone), student.encode(alone)
            coarse += error_by_hand(student, teacher, said, lesson, alone.sizes_hw, 0)
            crops = student.crops(alone, teacher.regions(lesson.heatmap.sigmoid(), alone, config))
            assert 0 < len(crops) <= 2
            errors = []
            for crop in range(len(crops)):
                image, size = crops.images[crop, None], crops.sizes_hw[crop, None]
                both = (student.network(image, size), teacher.network(image, size))
                errors.append(error_by_hand(student, teacher, *both, size, 1))
            refined += sum(errors) / len(errors)
    assert terms["loss_kd_global_coarse"].item() == pytest.approx(2 * coarse / 3, rel=1e-3)
    assert terms["loss_kd_local_refine"].item() == pytest.approx(0.5 * refined / 3, rel=1e-3)


def error_by_hand(student, teacher, said, lesson, size, stage):
    """At each of the teacher's peaks its box and the student's, one stage's, in units of a cell."""
    total = weight = 0.0
    scores, _, pixels = peaks(lesson.heatmap, size, PLACES)
    for score, (x, y) in zip(scores[0].tolist(), pixels[0].tolist(), strict=True):
        cell = torch.tensor([[y // 4 * lesson.grid_hw[1] + x // 4]])
        ours = student.network.boxes_at(said, cell)[stage].boxes_xyxy
        theirs = teacher.network.boxes_at(lesson, cell)[stage].boxes_xyxy
        total += score * ((ours - theirs) / 4).square().mean().item()
        weight += score
    return total / max(1, weight)


def test_without_crops_the_local_term_is_zero_and_the_gradient_finite():
    teacher, student = make_yolc(9).eval(), make_yolc(1).train()
    batch = make_batch([1, 2])
    terms = student.distil(teacher, batch, 0, 0, CONFIG)
    assert terms["loss_kd_local_refine"].item() == 0
    sum(term for name, term in terms.items() if name.startswith("loss_")).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_an_image_without_crops_counts_as_zero(monkeypatch):
    teacher, student = make_teacher(), make_yolc(1).train()
    batch = make_batch([1, 2])
    both = student.distil(teacher, batch, 0, 0, CONFIG)["loss_kd_local_refine"].item()
    regions = Yolc.regions

    def only_the_first(self, heatmaps, shown, limits=None):
        found = regions(self, heatmaps, shown, limits)
        return [found[0], *(each[:0] for each in found[1:])] if limits else found

    first = student.distil(teacher, make_batch([1]), 0, 0, CONFIG)["loss_kd_local_refine"].item()
    monkeypatch.setattr(Yolc, "regions", only_the_first)
    assert student.distil(teacher, batch, 0, 0, CONFIG)["loss_kd_local_refine"].item() == pytest.approx(
        first / 2, rel=1e-3
    )
    assert both > first / 2


@pytest.mark.parametrize("teachers", [True, False])
def test_crops_are_those_of_the_teachers_heatmap_unless_the_students_are_asked(teachers, monkeypatch):
    student, teacher, batch = make_yolc(), make_yolc(1), blank_batch((96, 160), (96, 160))
    place = {student: torch.tensor([20.0, 20.0, 30.0, 30.0]), teacher: torch.tensor([120.0, 60.0, 130.0, 70.0])}
    monkeypatch.setattr(Yolc, "encode", lambda self, _: plant([[(place[self], 0, 0.9)]], (96, 160)))
    cut = []
    original = Yolc.crops
    monkeypatch.setattr(
        Yolc, "crops", lambda self, batch, regions: cut.append(regions) or original(self, batch, regions)
    )
    student.distil(teacher, batch, 0, 0, CONFIG.model_copy(update={"use_teacher_crop": teachers}))
    (x1, y1, x2, y2) = cut[0][0][0].tolist()
    box = place[teacher if teachers else student]
    assert x1 <= box[0] < box[2] <= x2
    assert y1 <= box[1] < box[3] <= y2


@pytest.mark.parametrize("most", [1, 2])
def test_the_lesson_has_its_own_limits_for_crops(most):
    teacher, student = make_teacher(), make_yolc(1, max_patches_per_img=6, min_patch_size=8).train()
    seen = []
    for model in (teacher, student):
        model.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    student.distil(teacher, make_batch([1, 2]), 0, 0, CONFIG.model_copy(update={"max_patches_per_img": most}))
    whole = [sizes for sizes in seen if sizes.tolist() == [[96, 160]] * 2]
    assert len(whole) == 2
    assert max(len(sizes) for sizes in seen) <= 2 * most


def test_the_teacher_stays_as_it_is_and_the_student_comes_closer():
    teacher, student = make_teacher(max_patches_per_img=4), make_yolc(1).train()
    teacher.train()
    before = bytes_of(teacher)
    lesson = Lesson(student, teacher, CONFIG.model_copy(update={"kd_weight_global_hm": 100.0}))
    assert not any(parameter is other for parameter in lesson.parameters() for other in teacher.parameters())
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=5e-3)
    history = []
    for step in range(12):
        terms = lesson(make_batch([1, 2]), 0, step)
        optimizer.zero_grad()
        sum(terms[name] for name in KD).backward()
        optimizer.step()
        history.append(kd_of(terms))
    assert bytes_of(teacher) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(history[-1][name] < 0.75 * history[0][name] for name in KD)


@pytest.mark.parametrize("changes", [{"hidden_dim": 8, "heatmap_channels": 1}, {"backbone": "resnet18"}])
def test_a_smaller_student_or_one_of_another_backbone_learns_as_well(changes):
    teacher = make_teacher(hidden_dim=32)
    student = make_yolc(1, **changes).train()
    student.check_teacher(teacher)
    terms = student.distil(teacher, make_batch([1], (64, 96)), 0, 0, CONFIG)
    assert all(0 < value < float("inf") for value in kd_of(terms).values())
    plain = student(make_batch([1], (64, 96)), 0, 0)
    assert terms.keys() - plain.keys() == set(KD)
    assert all(torch.equal(terms[name], plain[name]) for name in plain)


def test_a_teacher_of_other_classes_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="its heatmaps are of 5 classes, the student's of 3, and they are compared"):
        make_yolc().check_teacher(make_yolc(classes=5))


def test_settings_that_say_nothing_or_too_much_are_refused():
    with pytest.raises(ValidationError, match=r"temperature 2\.0 acts on heatmap_loss kl alone"):
        YolcDistillConfig(temperature=2.0)
    with pytest.raises(ValidationError, match="max_patches_per_img"):
        YolcDistillConfig(max_patches_per_img=7)
    with pytest.raises(ValidationError, match="hidden_dim"):
        YolcConfig(hidden_dim=20)
