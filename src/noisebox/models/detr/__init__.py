"""The DETR family: `build` makes its detector from a configuration."""

from typing import TYPE_CHECKING

from noisebox.models.detr.detector import Detr

if TYPE_CHECKING:
    from noisebox.config import RunConfig


def build(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> Detr:
    """The detector with fresh weights; see `noisebox.models.build_model`."""
    return Detr(config.model, config.loss, num_classes, fetch_weights)
