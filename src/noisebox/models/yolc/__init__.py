"""The YOLC family: `build` makes its detector from a configuration."""

from typing import TYPE_CHECKING, cast

from noisebox.config.yolc import YolcLossConfig
from noisebox.models.yolc.detector import Yolc

if TYPE_CHECKING:
    from noisebox.config import RunConfig


def build(config: "RunConfig", num_classes: int, fetch_weights: bool = True) -> Yolc:
    """The detector with fresh weights; see `noisebox.models.build_model`."""
    return Yolc(config.model, cast(YolcLossConfig, config.loss), num_classes, fetch_weights)
