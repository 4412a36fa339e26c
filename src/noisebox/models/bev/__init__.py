"""The BEV family, Lift-Splat-Shoot and DiffBEV: `build` makes its segmenter from a configuration."""

from typing import TYPE_CHECKING

from noisebox.models.bev.segmenter import BevSegmenter

if TYPE_CHECKING:
    from noisebox.config import RunConfig


def build(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> BevSegmenter:
    """The segmenter with fresh weights; see `noisebox.models.build_model`. `num_classes`: those that the dataset names,
    the zero label included."""
    return BevSegmenter(config.model, config.loss, num_classes, fetch_weights)
