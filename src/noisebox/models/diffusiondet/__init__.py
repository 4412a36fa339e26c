"""The DiffusionDet family: `build` makes its detector from a configuration."""

from typing import TYPE_CHECKING

from noisebox.models.diffusiondet.detector import DiffusionDet

if TYPE_CHECKING:
    from noisebox.config import RunConfig


def build(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> DiffusionDet:
    """The detector with fresh weights; see `noisebox.models.build_model`."""
    return DiffusionDet(config.model, config.loss, num_classes, fetch_weights)
