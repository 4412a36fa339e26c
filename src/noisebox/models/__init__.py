"""The table of detector families, and the interface that training and evaluation know them by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from noisebox.config import DistillConfig, Sampling
from noisebox.errors import UserError
from noisebox.randomness import isolated
from noisebox.structures import Batch, Detections

if TYPE_CHECKING:
    from noisebox.config import RunConfig

# One line a family: the module whose `build(config, num_classes, fetch_weights)` makes its detector.
FAMILIES = {"diffusiondet": "noisebox.models.diffusiondet"}

# Monitors that a detector of boxes offers: how large, in pixels, the boxes are that it predicts in training.
BOX_MONITORS = ("median_box_width", "median_box_height")


class Detector(nn.Module, ABC):
    """What every family offers. `forward` trains; `encode` and `detect` evaluate."""

    @abstractmethod
    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        """The weighted loss terms of one training step, named `loss_…`: scalars to be summed. Other names are
        monitors: written to metrics.csv, not minimised.

        Every random number is keyed by (seed, purpose, step, image id), so the terms do not depend on how a global
        batch is spread over devices or accumulation steps, but for the normalisation by the number of objects.
        """

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """What is computed once per image and shared by all eval seeds and step counts, such as backbone features."""

    @abstractmethod
    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        """Detections `[eval seed][image]`, sampled as asked, in pixels of the stored images.

        Raises UserError as `check_sampling` does.
        """

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that the multipliers of the solver speak of: `backbone` for `solver.backbone_multiplier`, and
        so on; a part may be empty. All other parameters have the plain rate."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises UserError, in one sentence, when the detector cannot sample so."""
        if sampling.guidance.scale > 0:
            raise UserError(f"guidance scale {sampling.guidance.scale} needs a detector with a quality head")

    def distil(
        self, teacher: "Detector", batch: Batch, seed: int, step: int, config: DistillConfig
    ) -> dict[str, Tensor]:
        """The terms of one training step in which this detector learns from a frozen teacher, as `forward`."""
        raise UserError(f"a {type(self).__name__} cannot be distilled: take distill out of the recipe")

    def check_teacher(self, teacher: "Detector") -> None:
        """Raises UserError, saying what does not fit, when this detector cannot learn from `teacher` of its family."""


def build_model(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> Detector:
    """The detector of `config.family`, its weights drawn by the key (seed, "weights").

    Without `fetch_weights` no pretrained weights are loaded, because a checkpoint will bring them; the architecture
    is the same.
    """
    family = import_module(FAMILIES[config.family])
    with isolated(config.seed, "weights"):
        model: Detector = family.build(config, num_classes, fetch_weights)
    return model
