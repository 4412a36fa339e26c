"""How one DiffusionDet learns from another, proposal by proposal: at one noisy state, or over whole trajectories.

Without renewal, ensemble and new noise a proposal keeps its identity along a trajectory, so what the teacher makes of
it in many steps is a target for the student's same proposal in few (after Salimans and Ho 2022, progressive
distillation).
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebox.config import Sampling
from noisebox.config.diffusiondet import DistillConfig, LossConfig, SamplerConfig
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey
from noisebox.errors import UserError
from noisebox.models.diffusiondet.head import HeadOutput, box_monitors
from noisebox.models.giou import giou_loss
from noisebox.processes import norm
from noisebox.randomness import seed_of
from noisebox.structures import Batch

if TYPE_CHECKING:
    from noisebox.models.diffusiondet.detector import DiffusionDet

DETERMINISTIC = SamplerConfig(eta=0.0, box_renewal=False, ensemble="none")
MUST_AGREE = ("hidden_dim", "num_heads", "num_proposals", "timesteps", "snr_scale", "aniso_noise")


def check_teacher(student: "DiffusionDet", teacher: "DiffusionDet") -> None:
    """Raises UserError, naming the size, unless both have the same proposals, diffusion and width."""
    for size in MUST_AGREE:
        own, other = getattr(student.config, size), getattr(teacher.config, size)
        if own != other:
            raise UserError(f"it has model.{size} {other}, the student {own}, and proposals are compared one by one")


def consistency_terms(
    student: "DiffusionDet", teacher: "DiffusionDet", batch: Batch, seed: int, step: int, config: DistillConfig
) -> dict[str, Tensor]:
    """Both look at the same noise at the same time, each with the labels that its own training shows it;
    `loss_consistency_box`, `loss_consistency_cls` and, weighted by `supervision`, the loss against ground truth."""
    with torch.no_grad():
        lesson = _look(teacher, batch, seed, step)
    output = _look(student, batch, seed, step)
    return _terms("consistency", student, output, lesson, batch, config)


def _look(detector: "DiffusionDet", batch: Batch, seed: int, step: int) -> HeadOutput:
    pyramid = detector.encode(batch)
    return detector.look(pyramid, batch, detector.training_proposals(pyramid, batch, seed, step))


def sampler_terms(
    student: "DiffusionDet", teacher: "DiffusionDet", batch: Batch, seed: int, step: int, config: DistillConfig
) -> dict[str, Tensor]:
    """The student samples `student_steps` steps from the noise that the teacher samples `teacher_steps` from, and each
    of its answers is held to the teacher's last: `loss_sampler_distill_box` and `loss_sampler_distill_cls`, means over
    the student's steps. Gradients stay within a step. With `supervision`, also the loss against ground truth."""
    keys = [RowKey(seed_of(seed, "distillation", step), image_id) for image_id in batch.image_ids]
    lesson = taught(teacher, batch, keys, config.teacher_steps)
    want_attention = config.supervision > 0 and student.loss.graph_topo_loss_weight > 0
    sums: dict[str, Tensor] = {}
    for output in _trajectory(student, batch, keys, config.student_steps, want_attention):
        terms = _terms("sampler_distill", student, output, lesson, batch, config)
        sums = {name: sums.get(name, 0) + term / config.student_steps for name, term in terms.items()}
    return sums


@torch.no_grad()
def taught(teacher: "DiffusionDet", batch: Batch, keys: list[RowKey], steps: int) -> HeadOutput:
    """Where the teacher's trajectory ends. Of the way there nothing is kept, so it takes one step's memory."""
    for output in _trajectory(teacher, batch, keys, steps):
        lesson = output
    return lesson


def _trajectory(
    detector: "DiffusionDet", batch: Batch, keys: list[RowKey], steps: int, want_attention: bool = False
) -> Iterator[HeadOutput]:
    """What all stages of a detector's head say at each step of sampling without renewal and new noise."""
    sampler = BoxSampler(detector.diffusion, DETERMINISTIC, detector.config.num_proposals, detector.labels)
    image_whwh = batch.image_whwh
    every_image = torch.arange(len(batch), device=image_whwh.device)
    latest: list[HeadOutput] = []

    def keep(output: HeadOutput) -> None:
        latest[:] = [output]

    head = partial(detector.head, want_attention=want_attention)
    denoise = detector.denoiser(detector.encode(batch), every_image, image_whwh, keep, head)
    for _ in sampler.trajectory(denoise, keys, image_whwh, Sampling(steps=steps)):
        yield latest[0]


def _terms(
    name: str, student: "DiffusionDet", output: HeadOutput, lesson: HeadOutput, batch: Batch, config: DistillConfig
) -> dict[str, Tensor]:
    """The student's stages held to the teacher's, a mean over stages, and to ground truth."""
    whwh, stages = batch.image_whwh, range(len(output.logits))
    held = [
        imitation(_stage(output, stage), _stage(lesson, stage), whwh, student.loss, config.top_k) for stage in stages
    ]
    box, cls = (torch.stack(parts).mean() for parts in zip(*held, strict=True))
    terms = {f"loss_{name}_box": config.box_weight * box, f"loss_{name}_cls": config.cls_weight * cls}
    if config.supervision > 0:
        losses = student.supervised(output, batch)
        terms |= {term: config.supervision * value for term, value in losses.items()}
    return {**terms, **box_monitors(output)}


def _stage(output: HeadOutput, stage: int) -> Prediction:
    return Prediction(output.logits[stage], output.boxes_xyxy[stage])


def imitation(
    prediction: Prediction, lesson: Prediction, image_whwh: Tensor, loss: LossConfig, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """How far the prediction is from the lesson, over the lesson's `top_k` most certain proposals, by default a
    fifth: boxes and classes.

    Boxes: L1 in units of the image and generalised IoU, weighted as in the ordinary loss; a mean over proposals of all
    processes, each weighing as much as the teacher is certain of it (its highest class score). Classes: the
    Kullback-Leibler divergence of each class's Bernoulli distribution, summed, per unit of certainty. Both are 0 where
    prediction and lesson agree.
    """
    proposals = lesson.logits.shape[1]
    certainty, best = lesson.logits.sigmoid().amax(-1).topk(min(top_k or max(1, proposals // 5), proposals))
    boxes, goals, logits, theirs = (
        values.gather(1, best[..., None].expand(-1, -1, values.shape[-1]))
        for values in (prediction.boxes_xyxy, lesson.boxes_xyxy, prediction.logits, lesson.logits)
    )
    total = norm(certainty.sum())
    l1 = ((boxes - goals).abs() / image_whwh[:, None]).sum(-1)
    # A goal without an area overlaps nothing, not even itself.
    giou = giou_loss(boxes, goals) * (goals[..., 2:] > goals[..., :2]).all(-1)
    box = (certainty * (loss.l1_weight * l1 + loss.giou_weight * giou)).sum() / total
    target = theirs.sigmoid()
    positive = target * (F.logsigmoid(theirs) - F.logsigmoid(logits))
    negative = (1 - target) * (F.logsigmoid(-theirs) - F.logsigmoid(-logits))
    return box, loss.class_weight * (positive + negative).sum() / total
