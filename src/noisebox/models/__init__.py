"""The table of detector families, and the interface that training and evaluation know them by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from noisebox.randomness import isolated
from noisebox.structures import Batch, Detections

if TYPE_CHECKING:
    from noisebox.config import RunConfig

# One line a family: the module whose `build(config, num_classes, fetch_weights)` makes its detector.
FAMILIES = {"diffusiondet": "noisebox.models.diffusiondet"}


class Detector(nn.Module, ABC):
    """What every family offers. `forward` trains; `encode` and `detect` evaluate."""

    @abstractmethod
    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        """The weighted loss terms of one training step, scalars to be summed.

        Every random number is keyed by (seed, purpose, step, image id), so the terms do not depend on how a global
        batch is spread over devices or accumulation steps, but for the normalisation by the number of objects.
        """

    @abstractmethod
    def encode(self, batch: Batch) -> Any:
        """What is computed once per image and shared by all eval seeds and step counts, such as backbone features."""

    @abstractmethod
    def detect(
        self, encoded: Any, batch: Batch, eval_seeds: Sequence[int], sample_steps: int
    ) -> list[list[Detections]]:
        """Detections `[eval seed][image]`, at `sample_steps` refinement steps, in pixels of the stored images."""

    @abstractmethod
    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that `solver.backbone_multiplier` speaks of."""


def build_model(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> Detector:
    """The detector of `config.family`, its weights drawn by the key (seed, "weights").

    Without `fetch_weights` no pretrained weights are loaded, because a checkpoint will bring them; the architecture
    is the same.
    """
    family = import_module(FAMILIES[config.family])
    with isolated(config.seed, "weights"):
        model: Detector = family.build(config, num_classes, fetch_weights)
    return model
