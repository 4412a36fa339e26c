"""The table of families: what the `model`, `loss` and `distill` of a family are checked against, read on demand."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from noisebox.config.section import Count, Section

# One line a family: the module whose `FAMILY` says what its sections are.
SECTIONS = {
    "diffusiondet": "noisebox.config.diffusiondet",
    "detr": "noisebox.config.detr",
    "yolc": "noisebox.config.yolc",
    "bev": "noisebox.config.bev",
}


class TeacherConfig(Section):
    """Who teaches, in every family: the lineage or checkpoint (a path that ends in .pth) `teacher`, by default the
    lineage's parent; of the run's own train seed or of `teacher_seed`. Without `enable` nobody does."""

    enable: bool = True
    teacher: str | None = None
    teacher_seed: Count | None = None


@dataclass(frozen=True)
class Family:
    """The sections of one family; `distill` is None where it cannot be distilled. One that `looks_closer` wants the
    stored images in its batches, beside the resized ones. One that `shows_parts` may be trained on crops of images.
    `lopsided` says, of a model's section, why it cannot learn from mirror images; None where it can."""

    model: type[Section]
    loss: type[Section]
    distill: type[TeacherConfig] | None = None
    looks_closer: bool = False
    shows_parts: bool = False
    lopsided: Callable[[Any], str | None] = lambda model: None


def sections_of(family: str) -> Family:
    """The sections of a family, one of SECTIONS."""
    sections: Family = import_module(SECTIONS[family]).FAMILY
    return sections
