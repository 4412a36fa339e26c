"""The table of families, and the interfaces that training and evaluation know their models by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisebox.config import Sampling
from noisebox.errors import UserError
from noisebox.processes import rows_of_all
from noisebox.randomness import isolated
from noisebox.structures import Batch, BevBatch, Detections

if TYPE_CHECKING:
    from noisebox.config import RunConfig

# One line a family: the module whose `build(config, num_classes, fetch_weights)` makes its model.
FAMILIES = {
    "diffusiondet": "noisebox.models.diffusiondet",
    "detr": "noisebox.models.detr",
    "yolc": "noisebox.models.yolc",
    "bev": "noisebox.models.bev",
}

NO_CROPS = "crops need a detector that finds where objects crowd, of family yolc"

# Monitors that a detector of boxes offers: how large, in pixels, the boxes are that it predicts in training.
BOX_MONITORS = ("median_box_width", "median_box_height")


def size_monitors(sizes_wh: Tensor) -> dict[str, Tensor]:
    """BOX_MONITORS: the medians of sizes (M, 2) in pixels, of the boxes of all processes; nan where there are none."""
    ordered = rows_of_all(sizes_wh.detach()).sort(0).values  # PyTorch does not promise the same median twice on GPUs
    medians = ordered[(len(ordered) - 1) // 2] if len(ordered) else ordered.new_full((2,), torch.nan)
    return dict(zip(BOX_MONITORS, medians, strict=True))


class Model(nn.Module, ABC):
    """What every family offers: `forward` trains, `encode` and `answer` evaluate. A batch is that of the family's
    task."""

    @abstractmethod
    def forward(self, batch: Any, seed: int, step: int) -> dict[str, Tensor]:
        """The weighted loss terms of one training step, named `loss_…`, or `L…` after a paper's symbol: scalars
        to be summed. Other names are monitors: written to metrics.csv, not minimised.

        Every random number is keyed by (seed, purpose, step, image id), so the terms do not depend on how a
        batch is spread over accumulation steps, but for the normalisation by the number of objects. Over processes
        that number is the same, see `processes.norm`: the mean of their terms is the term of the whole batch.
        """

    @abstractmethod
    def encode(self, batch: Any) -> Any:
        """What is computed once per image and shared by all eval seeds and step counts, such as backbone features."""

    @abstractmethod
    def answer(self, batch: Any) -> list[Tensor]:
        """What evaluation would get for a batch at one step under eval seed 0, as plain tensors: two models that give
        the same are the same."""

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that the multipliers of the solver speak of: `backbone` for `solver.backbone_multiplier`, and
        so on; a part may be empty. All other parameters have the plain rate."""

    def compiled(self) -> list[nn.Module]:
        """The modules that `solver.compile` compiles, each by itself; by default those that the model is made of."""
        return list(self.children())

    @property
    def deterministic(self) -> bool:
        """Whether it draws no noise, and so says the same under every eval seed and at every count of steps."""
        return False

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises UserError, in one sentence, when the model cannot sample so."""
        if sampling.crops:
            raise UserError(NO_CROPS)
        if sampling.guidance.scale > 0:
            raise UserError(f"guidance scale {sampling.guidance.scale} needs a detector with a quality head")

    def distil(self, teacher: Any, batch: Any, seed: int, step: int, config: Any) -> dict[str, Tensor]:
        """The terms of one training step in which this model learns from a frozen teacher of its family, as `forward`;
        `config` is the family's section `distill`."""
        raise UserError(f"a {type(self).__name__} cannot be distilled: take distill out of the recipe")

    def check_teacher(self, teacher: Any) -> None:
        """Raises UserError, saying what does not fit, when this model cannot learn from `teacher` of its family."""


class Detector(Model):
    """Finds boxes."""

    @abstractmethod
    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]: ...

    @abstractmethod
    def encode(self, batch: Batch) -> Any: ...

    @abstractmethod
    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        """Detections `[eval seed][image]`, sampled as asked, in pixels of the stored images.

        Raises UserError as `check_sampling` does.
        """

    def answer(self, batch: Batch) -> list[Tensor]:
        (images,) = self.detect(self.encode(batch), batch, [0], Sampling(steps=1))
        return [tensor for image in images for tensor in (image.boxes_xyxy, image.scores, image.labels)]


class Segmenter(Model):
    """Draws maps of the ground."""

    @abstractmethod
    def forward(self, batch: BevBatch, seed: int, step: int) -> dict[str, Tensor]: ...

    @abstractmethod
    def encode(self, batch: BevBatch) -> Any: ...

    @abstractmethod
    def segment(self, encoded: Any, batch: BevBatch, eval_seeds: Sequence[int], sampling: Sampling) -> Tensor:
        """Logits (eval seeds, B, classes, rows, columns), sampled as asked.

        Raises UserError as `check_sampling` does.
        """

    def answer(self, batch: BevBatch) -> list[Tensor]:
        return [self.segment(self.encode(batch), batch, [0], Sampling(steps=1))]


def build_model(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> Any:
    """The model of `config.family`, its weights drawn by the key (seed, "weights"): a Detector or a Segmenter, as its
    task needs.

    Without `fetch_weights` no pretrained weights are loaded, because a checkpoint will bring them; the architecture
    is the same.
    """
    family = import_module(FAMILIES[config.family])
    with isolated(config.seed, "weights"):
        model: Model = family.build(config, num_classes, fetch_weights)
    return model
