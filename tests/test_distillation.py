"""Distillation: what a student is held to, who stays as they are, what it costs, and what is refused or resumed."""

import copy
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import make_batch, make_detector, opinionated, small_config
from torchvision.ops import generalized_box_iou
from toy_detector import ToyDetector, register, toy_batch, toy_batches, toy_config

from noisebox.config import RunConfig, Sampling, smoke_config
from noisebox.config.diffusiondet import DistillConfig, LossConfig, SamplerConfig
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey, sampling_times
from noisebox.errors import UserError
from noisebox.models import Detector, build_model
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.models.diffusiondet.distillation import imitation, sampler_terms, taught
from noisebox.structures import Batch
from noisebox.training.checkpoint import load_checkpoint, save_checkpoint
from noisebox.training.loop import train
from noisebox.training.smoke import smoke
from noisebox.training.step import Trainer, is_loss

CLASSES = ("car", "person", "dog")
CONSISTENCY = DistillConfig(kind="consistency")
TWENTY_TO_ONE = DistillConfig(kind="sampler", teacher_steps=20)
FOUR_TO_TWO = DistillConfig(kind="sampler", teacher_steps=4, student_steps=2)
WHWH = torch.tensor([64.0, 48.0, 64.0, 48.0])
KEYS = [RowKey(5, 1), RowKey(5, 2)]


def saved(path: Path, config: RunConfig, classes: tuple[str, ...] = CLASSES) -> Path:
    """A checkpoint of the untrained detector of a configuration."""
    weights = build_model(config, len(classes)).state_dict()
    described = {"config": config.model_dump(mode="json"), "classes": list(classes), "iteration": 0}
    save_checkpoint(path, {"model": weights, **described})
    return path


def scenes(start: int, stop: int) -> Iterator[Batch]:
    return (make_batch([2 * step, 2 * step + 1]) for step in range(start, stop))


def loss_of(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([term for name, term in terms.items() if is_loss(name)]).sum()


def head_calls(model: DiffusionDet) -> list[int]:
    """The times t at which the head is asked from now on."""
    asked: list[int] = []
    model.head.register_forward_pre_hook(lambda _, arguments: asked.append(int(arguments[2][0])))
    return asked


def imitation_by_hand(prediction: Prediction, lesson: Prediction, loss: LossConfig, top_k: int) -> tuple[float, float]:
    """One image and proposal after the other, in float64."""
    box = cls = total = 0.0
    for row in range(len(lesson.logits)):
        target = lesson.logits[row].double().sigmoid()
        order = sorted(range(len(target)), key=lambda proposal: -target[proposal].max().item())
        for proposal in order[:top_k]:
            certainty = target[proposal].max().item()
            ours, goal = (each.boxes_xyxy[row, proposal].double() for each in (prediction, lesson))
            giou = 1 - generalized_box_iou(ours[None], goal[None]).item()
            l1 = ((ours - goal).abs() / WHWH).sum().item()
            box += certainty * (loss.l1_weight * l1 + loss.giou_weight * giou)
            for logit, p in zip(prediction.logits[row, proposal].double(), target[proposal], strict=True):
                q = logit.sigmoid()
                cls += (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).item()
            total += certainty
    return box / max(total, 1), loss.class_weight * cls / max(total, 1)


def random_prediction(generator: torch.Generator, proposals: int) -> Prediction:
    corner = torch.rand(2, proposals, 2, generator=generator) * torch.tensor([40.0, 24.0])
    boxes = torch.cat((corner, corner + 2 + torch.rand(2, proposals, 2, generator=generator) * 20), dim=-1)
    return Prediction(3 * torch.randn(2, proposals, 3, generator=generator), boxes)


@given(seed=st.integers(0, 100_000), proposals=st.integers(1, 12), top_k=st.integers(1, 10) | st.none())
@settings(max_examples=40)
def test_imitation_is_the_sum_over_the_teachers_most_certain_proposals(
    seed: int, proposals: int, top_k: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, lesson = random_prediction(generator, proposals), random_prediction(generator, proposals)
    config = LossConfig(l1_weight=4.0, giou_weight=3.0, class_weight=1.5)
    counted = top_k or max(1, proposals // 5)
    ours = [term.item() for term in imitation(prediction, lesson, WHWH.expand(2, 4), config, top_k)]
    assert ours == pytest.approx(imitation_by_hand(prediction, lesson, config, counted), rel=1e-4, abs=1e-5)


def test_of_the_others_neither_box_nor_score_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, lesson = random_prediction(generator, 8), random_prediction(generator, 8)
    logits, boxes = prediction.logits.clone().requires_grad_(), prediction.boxes_xyxy.clone().requires_grad_()
    box, cls = imitation(Prediction(logits, boxes), lesson, WHWH.expand(2, 4), LossConfig(), 3)
    gradients = torch.autograd.grad(box + cls, (logits, boxes))
    best = lesson.logits.amax(-1).topk(3).indices.sort().values
    for gradient in gradients:
        counted = (gradient != 0).any(-1)
        assert [row.nonzero().flatten().tolist() for row in counted] == best.tolist()


@pytest.mark.parametrize("certainty", [-20.0, 0.0, 30.0])
def test_imitation_of_itself_is_exactly_zero_even_for_boxes_without_an_area(certainty: float) -> None:
    same = random_prediction(torch.Generator().manual_seed(1), 6)
    same.boxes_xyxy[:, 0, 2:] = same.boxes_xyxy[:, 0, :2]
    same = same._replace(logits=same.logits + certainty)
    assert [term.item() for term in imitation(same, same, WHWH.expand(2, 4), LossConfig(), 6)] == [0.0, 0.0]


def test_the_gradient_of_imitation_leads_to_the_lesson() -> None:
    generator = torch.Generator().manual_seed(2)
    prediction, lesson = random_prediction(generator, 4), random_prediction(generator, 4)
    logits, boxes = prediction.logits.clone().requires_grad_(), prediction.boxes_xyxy.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits, boxes], lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        sum(imitation(Prediction(logits, boxes), lesson, WHWH.expand(2, 4), LossConfig(), 4)).backward()
        optimizer.step()
    assert torch.allclose(logits.sigmoid(), lesson.logits.sigmoid(), atol=0.02)
    assert torch.allclose(boxes, lesson.boxes_xyxy, atol=0.5)


SWITCHED = {"label_state": True, "label_d3pm": True, "use_distribution": True, "quality_head": True}


@pytest.mark.parametrize("switches", [{}, {"label_state": True}, SWITCHED])
@pytest.mark.parametrize("config", [CONSISTENCY, DistillConfig(kind="sampler")])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(config: DistillConfig, switches: dict[str, Any]) -> None:
    teacher = opinionated(make_detector(**switches))
    student = copy.deepcopy(teacher).train()
    terms = student.distil(teacher, make_batch([1, 2]), 0, 0, config)
    losses = {name: term.item() for name, term in terms.items() if is_loss(name)}
    named = "consistency" if config.kind == "consistency" else "sampler_distill"
    # Not exactly 0: without gradients, attention takes another kernel.
    assert losses == {f"loss_{named}_box": pytest.approx(0, abs=1e-3), f"loss_{named}_cls": pytest.approx(0, abs=1e-5)}
    other = make_detector(seed=1, **switches).train().distil(teacher, make_batch([1, 2]), 0, 0, config)
    assert all(other[name] > 0.01 for name in losses)


@pytest.mark.parametrize("steps", [1, 3])
def test_equal_trajectories_end_at_the_lesson(steps: int) -> None:
    """Of equal weights and step counts, the student's last prediction is the teacher's: only steps before it cost."""
    teacher, batch = opinionated(make_detector()), make_batch([1, 2])
    student = copy.deepcopy(teacher).train()
    lesson = taught(teacher, batch, KEYS, steps)
    last = taught(student, batch, KEYS, steps)
    assert torch.allclose(last.boxes_xyxy, lesson.boxes_xyxy, atol=0.05)
    assert torch.allclose(last.logits, lesson.logits, atol=1e-3)
    earlier = taught(teacher, batch, KEYS, steps + 1)
    assert not torch.allclose(earlier.boxes_xyxy, lesson.boxes_xyxy, atol=0.5)


def test_sampler_terms_are_the_mean_over_the_students_steps() -> None:
    """With the student as its own teacher each step's lesson is known: imitation of the last step by all, stage by
    stage."""
    model, batch = opinionated(make_detector()), make_batch([1, 2])
    config = DistillConfig(kind="sampler", teacher_steps=3, student_steps=3, box_weight=2.0, cls_weight=0.5, top_k=7)
    visited: list[list[Prediction]] = []
    model.head.register_forward_hook(
        lambda _, __, said: visited.append(list(map(Prediction, said.logits, said.boxes_xyxy)))
    )
    terms = sampler_terms(model, model, batch, 0, 4, config)
    whwh = batch.image_whwh
    teachers, own = visited[:3], visited[3:]
    pairs = [
        imitation(said, lesson, whwh, model.loss, 7)
        for each in own
        for said, lesson in zip(each, teachers[-1], strict=True)
    ]
    assert len(pairs) == 3 * 2
    box, cls = (sum(term.item() for term in column) / len(pairs) for column in zip(*pairs, strict=True))
    assert terms["loss_sampler_distill_box"].item() == pytest.approx(2 * box, rel=1e-4)
    assert terms["loss_sampler_distill_cls"].item() == pytest.approx(cls / 2, rel=1e-4)


@pytest.mark.parametrize("config", [CONSISTENCY, TWENTY_TO_ONE, FOUR_TO_TWO])
def test_who_samples_how_often(config: DistillConfig) -> None:
    teacher, student = make_detector(seed=1).eval(), make_detector().train()
    asked, own = head_calls(teacher), head_calls(student)
    student.distil(teacher, make_batch([1, 2]), 0, 0, config)
    if config.kind == "consistency":
        t = student.noisy_proposals(make_batch([1]), 0, 0).t.item()
        assert asked == own == [t]
    else:
        assert asked == [time for time, _ in sampling_times(1000, config.teacher_steps)]
        assert own == [time for time, _ in sampling_times(1000, config.student_steps)]


def test_both_begin_at_the_same_noise_which_belongs_to_image_step_and_seed() -> None:
    teacher, student = make_detector(seed=1).eval(), make_detector().train()
    started: list[torch.Tensor] = []
    for model in (teacher, student):
        model.head.register_forward_pre_hook(lambda _, arguments: started.append(arguments[1].detach()))
    for images, seed, step in (([1, 2], 0, 0), ([2], 0, 0), ([1, 2], 0, 1), ([1, 2], 1, 0)):
        student.distil(teacher, make_batch(images), seed, step, DistillConfig(kind="sampler"))
    assert all(torch.equal(a, b) for a, b in zip(started[::2], started[1::2], strict=True))
    first, alone, later, other = started[::2]
    assert torch.equal(alone[0], first[1])
    assert not torch.equal(later, first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("kind", ["consistency", "sampler"])
def test_supervision_adds_the_weighted_loss_against_ground_truth(kind: str) -> None:
    teacher, student, batch = make_detector(seed=1).eval(), make_detector().train(), make_batch([1, 2])
    alone, half, whole = (
        student.distil(teacher, batch, 0, 0, DistillConfig(kind=kind, supervision=weight)) for weight in (0.0, 0.5, 1.0)
    )
    assert not any(name.startswith("loss_ce") for name in alone)
    added = set(whole) - set(alone)
    assert added == {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in ("", "_0")}
    assert all(half[name].item() == pytest.approx(whole[name].item() / 2) for name in added)
    assert all(torch.equal(alone[name], whole[name]) for name in alone)
    if kind == "consistency":
        plain = student(batch, 0, 0)
        assert all(whole[name].item() == pytest.approx(plain[name].item()) for name in added)


@pytest.mark.parametrize("kind", ["consistency", "sampler"])
def test_supervision_holds_the_attention_to_ground_truth_where_the_loss_asks_for_it(kind: str) -> None:
    batch, config = make_batch([1, 2]), DistillConfig(kind=kind, supervision=0.5)
    teacher, student = make_detector(seed=1).eval(), make_detector().train()
    plain = student.distil(teacher, batch, 0, 0, config)
    student.loss = student.loss.model_copy(update={"graph_topo_loss_weight": 3.0})
    asked = student.distil(teacher, batch, 0, 0, config)
    assert set(asked) - set(plain) == {"loss_graph"} and asked["loss_graph"] > 0
    assert all(asked[name].item() == pytest.approx(plain[name].item(), rel=1e-5) for name in plain)


@pytest.mark.parametrize("config", [CONSISTENCY, DistillConfig(kind="sampler", teacher_steps=3)])
def test_the_teacher_stays_as_it_is(config: DistillConfig) -> None:
    run = small_config(distill=config, ema_decay=0.5)
    teacher = build_model(run.model_copy(update={"seed": 9}), 3).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = build_model(run, 3)
    trainer = Trainer(run, student, teacher)
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for step, batch in enumerate(scenes(0, 3)):
        trainer.update(batch, step)
        trainer._model.train()
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not all(torch.equal(tensor, start[name]) for name, tensor in student.state_dict().items())
    theirs = {id(parameter) for parameter in teacher.parameters()}
    trained = {id(parameter) for group in trainer._optimizer.param_groups for parameter in group["params"]}
    assert not theirs & trained
    assert trained == {id(parameter) for parameter in student.parameters()}
    assert not theirs & {id(parameter) for parameter in trainer._model.parameters()}
    state = trainer.state_dict()
    assert state["model"].keys() == state["ema"].keys() == start.keys()


@pytest.fixture
def old_objects_left_out() -> Iterator[None]:
    """The garbage collector, asked for its objects, gives those only that are made from here on."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("old_objects_left_out")
def test_the_teachers_trajectory_takes_the_memory_of_one_step() -> None:
    """Neither tensors that are alive when the head is asked, nor what autograd saves, grow with the steps."""
    teacher, batch = make_detector().eval(), make_batch([1, 2])
    peaks = {}
    kept_for_backward: list[torch.Tensor] = []
    for steps in (3, 20):
        alive: list[int] = []

        def count(*_: Any, alive: list[int] = alive) -> None:
            alive.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))

        hook = teacher.head.register_forward_pre_hook(count)
        with torch.autograd.graph.saved_tensors_hooks(kept_for_backward.append, lambda kept: kept):
            taught(teacher, batch, KEYS, steps)
        hook.remove()
        assert len(alive) == steps
        peaks[steps] = max(alive)
        assert alive[-1] <= alive[2]
    assert peaks[20] <= peaks[3]
    assert kept_for_backward == []


def test_a_student_learns_in_one_step_what_its_teacher_samples_in_several() -> None:
    teacher, batch = opinionated(make_detector(seed=1)), make_batch([1, 2])
    student = copy.deepcopy(teacher).train()
    config = DistillConfig(kind="sampler", teacher_steps=4, top_k=10)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        loss = loss_of(student.distil(teacher, batch, 0, 0, config))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("teacher_switches", [{}, SWITCHED])
@pytest.mark.parametrize("student_switches", [{}, SWITCHED])
@pytest.mark.parametrize("config", [CONSISTENCY, FOUR_TO_TWO])
def test_teacher_and_student_may_carry_labels_or_not(
    config: DistillConfig, student_switches: dict[str, Any], teacher_switches: dict[str, Any]
) -> None:
    teacher, student = make_detector(seed=1, **teacher_switches).eval(), make_detector(**student_switches).train()
    student.check_teacher(teacher)
    loss = loss_of(student.distil(teacher, make_batch([1, 2]), 0, 0, config))
    loss.backward()
    assert torch.isfinite(loss)
    moved = [parameter.grad for name, parameter in student.named_parameters() if ".quality." not in name]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in moved)


def test_students_of_one_state_see_the_labels_that_they_predict_as_in_plain_training() -> None:
    teacher, student = (opinionated(make_detector(seed=seed, label_state=True)).train() for seed in (1, 0))
    batch = make_batch(list(range(8)))
    seen: list[torch.Tensor] = []
    student.head.register_forward_pre_hook(lambda _, given: seen.append(given[5]))
    student.distil(teacher, batch, 0, 0, CONSISTENCY)
    student(batch, 0, 0)
    first, distilled, again, plain = seen
    assert torch.equal(first, again) and torch.equal(distilled, plain)
    differ = (distilled != first).flatten(1).any(1)
    assert differ.any() and not differ.all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_dim": 16}, "it has model.hidden_dim 16, the student 32"),
        ({"num_proposals": 30}, "it has model.num_proposals 30, the student 20"),
        ({"timesteps": 100}, "it has model.timesteps 100, the student 1000"),
        ({"snr_scale": 1.0}, "it has model.snr_scale 1.0, the student 2.0"),
        ({"aniso_noise": {"sigma_w": 3.0}}, "it has model.aniso_noise sigma_w=3.0 sigma_h=1.0, the student"),
    ],
)
def test_a_teacher_of_another_size_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    teacher = saved(tmp_path / "teacher.pth", small_config(model=changes))
    config = small_config(lineage="small+student", distill=CONSISTENCY)
    with pytest.raises(UserError, match=f"teacher.pth cannot teach small\\+student: {told}") as refusal:
        train(config, tmp_path / "run", CLASSES, scenes, "", teacher=teacher, root=tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("toy_family")
def test_a_teacher_of_another_family_or_for_other_classes_is_refused(tmp_path: Path) -> None:
    config = small_config(lineage="small+student", distill=CONSISTENCY)
    refused = {
        saved(tmp_path / "toy.pth", toy_config(), ("car", "person")): "it is a toy, the student a diffusiondet",
        saved(tmp_path / "two.pth", small_config(), ("car", "dog")): "it knows car, dog, the data has car, person, dog",
        saved(tmp_path / "order.pth", small_config(), ("car", "dog", "person")): "it knows car, dog, person, the data",
    }
    for teacher, told in refused.items():
        with pytest.raises(UserError, match=rf"{teacher.name} cannot teach small\+student: {told}"):
            train(config, tmp_path / "run", CLASSES, scenes, "", teacher=teacher, root=tmp_path)
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        train(config, tmp_path / "run", CLASSES, scenes, "", teacher=tmp_path / "none.pth", root=tmp_path)


def test_a_family_that_cannot_be_distilled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch.setitem)
    monkeypatch.setattr(ToyDetector, "distil", Detector.distil)
    config = toy_config(distill=CONSISTENCY)
    trainer = Trainer(config, build_model(config, 2), build_model(config, 2))
    with pytest.raises(UserError, match="a ToyDetector cannot be distilled: take distill out of the recipe"):
        trainer.update(toy_batch(0), 0)


@pytest.mark.parametrize("config", [CONSISTENCY, FOUR_TO_TWO], ids=["consistency", "sampler"])
def test_a_resumed_distillation_ends_at_the_same_bytes_and_run_json_knows_the_teacher(
    config: DistillConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = saved(tmp_path / "teacher.pth", small_config(lineage="small+more", seed=7))
    run_config = small_config(lineage="small+student", distill=config)

    def interrupted(start: int, stop: int) -> Iterator[Batch]:
        yield from scenes(start, 3)
        raise KeyboardInterrupt

    def distil(name: str, batches: Any = scenes, **options: Any) -> dict[str, bytes]:
        given = {"parent": teacher, "teacher": teacher, "root": tmp_path, **options}
        train(run_config, tmp_path / name, CLASSES, batches, "", **given)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "run.json"}

    whole = distil("whole")
    with pytest.raises(KeyboardInterrupt):
        distil("resumed", interrupted)
    assert load_checkpoint(tmp_path / "resumed/work/last.pth")["iteration"] == 2
    assert distil("resumed") == whole
    record = json.loads((tmp_path / "resumed/run.json").read_text())
    assert record["timing"]["resumed"] == 1
    assert record["teacher"] == {
        "lineage": "small+more",
        "seed": 7,
        "checkpoint": str(teacher),
        "sha256": teacher.with_name("teacher.pth.sha256").read_text().split()[0],
        **config.model_dump(exclude={"enable", "teacher", "teacher_seed"}),
    }
    assert record["parent"]["checkpoint"] == str(teacher)

    with pytest.raises(KeyboardInterrupt):
        distil("other", interrupted)
    saved(teacher, small_config(lineage="small+more", seed=8))
    caplog.clear()
    other = distil("other", if_changed="fresh")
    assert "not going on with the interrupted training, because parent changed, and 1 more" in caplog.text
    assert other["model_final.pth"] != whole["model_final.pth"]


@pytest.mark.usefixtures("toy_family")
def test_without_a_teacher_run_json_says_none(tmp_path: Path) -> None:
    train(toy_config(), tmp_path, toy_detector.CLASSES, toy_batches, "", root=tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["teacher"] is None


@pytest.mark.parametrize("config", [CONSISTENCY, TWENTY_TO_ONE, FOUR_TO_TWO])
def test_the_smoke_of_a_distilling_recipe_learns_from_an_untrained_stand_in(
    config: DistillConfig, tmp_path: Path
) -> None:
    smoke(smoke_config(small_config(distill=config)), tmp_path / "smoke.tsv", CLASSES, make_batch([0, 1]))
    assert (tmp_path / "smoke.tsv").read_text().count("yes") == 3


def test_the_lesson_is_sampled_without_renewal_and_new_noise_whatever_the_teachers_own_sampler() -> None:
    """So proposals keep their identity from the first step to the last, and a key leads to one end."""
    teacher = opinionated(make_detector(sampler={"eta": 1.0, "box_renewal": True, "renewal_threshold": 0.9}))
    batch = make_batch([1, 2])
    whwh = batch.image_whwh
    quiet = BoxSampler(teacher.diffusion, SamplerConfig(eta=0.0, box_renewal=False), 20)
    with torch.no_grad():
        denoise = teacher.denoiser(teacher.encode(batch), torch.arange(2), whwh)
        ends = [list(each.trajectory(denoise, KEYS, whwh, Sampling(steps=5)))[-1] for each in (quiet, teacher.sampler)]
    lesson = taught(teacher, batch, KEYS, 5)
    assert torch.equal(lesson.boxes_xyxy[-1], ends[0].boxes_xyxy)
    assert torch.equal(lesson.logits[-1], ends[0].logits)
    assert not torch.allclose(lesson.boxes_xyxy[-1], ends[1].boxes_xyxy, atol=1.0)
