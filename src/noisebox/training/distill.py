"""Distillation in training: a frozen teacher stands beside the student; the family says how the one learns."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from noisebox.config import RunConfig
from noisebox.config.families import TeacherConfig
from noisebox.errors import UserError
from noisebox.models import Model
from noisebox.structures import Examples
from noisebox.training.checkpoint import load_model


class Lesson(nn.Module):
    """What the trainer calls in place of the student. The teacher is not part of it as a module, so that nothing
    trains, wraps, saves or switches it."""

    def __init__(self, student: Model, teacher: Model, config: TeacherConfig) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self._teacher = (teacher.eval().requires_grad_(False),)

    def forward(self, batch: Examples, seed: int, step: int) -> dict[str, Tensor]:
        """The student's terms, as those of `Model.forward`."""
        return self.student.distil(self._teacher[0], batch, seed, step, self.config)


def load_teacher(path: Path, config: RunConfig, student: Model, classes: Sequence[str]) -> tuple[Model, RunConfig]:
    """The detector of a checkpoint, as a teacher for `student`, and the configuration it was trained by.

    Raises UserError when it is of another family, knows other classes, or cannot be compared proposal by proposal.
    """
    teacher, its_config, state = load_model(path)
    refusal = f"{path} cannot teach {config.lineage}"
    if its_config.family != config.family:
        raise UserError(f"{refusal}: it is a {its_config.family}, the student a {config.family}")
    if list(state["classes"]) != list(classes):
        raise UserError(f"{refusal}: it knows {', '.join(state['classes'])}, the data has {', '.join(classes)}")
    try:
        student.check_teacher(teacher)
    except UserError as error:
        raise UserError(f"{refusal}: {error}") from None
    return teacher, its_config
