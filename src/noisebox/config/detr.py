"""The sections of family `detr`: its model and its loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from noisebox.config.families import Family
from noisebox.config.section import AboveZero, NotNegative, Positive, Section


class DetrConfig(Section):
    """Architecture of DETR (Carion et al. 2020, arXiv 2005.12872): backbone, transformer, queries.

    The transformer sees the feature map at `stride`: the published 32, or a finer one, into which the coarser ones are
    put, for images that are small. Its width is `hidden_dim`, that of its feed-forward layers `dim_feedforward`. Each
    of the `num_queries` finds one object or none. There is no dropout.
    """

    backbone: str = "resnet50"
    pretrained: bool = False
    stride: Literal[4, 8, 16, 32] = 32
    hidden_dim: Annotated[int, Field(ge=4, multiple_of=4)] = 256
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    attention_heads: Positive = 8
    dim_feedforward: Positive = 2048
    num_queries: Positive = 100

    @model_validator(mode="after")
    def _heads_divide(self) -> "DetrConfig":
        if self.hidden_dim % self.attention_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of attention_heads {self.attention_heads}"
            )
        return self


class DetrLossConfig(Section):
    """Weights of the set-prediction loss and of its matching (Carion et al. 2020, section 3.1).

    A query that is matched with no object counts with `eos_coefficient` among the classes. `auxiliary_loss`: every
    layer of the decoder is matched and supervised, not only the last.
    """

    class_weight: NotNegative = 1.0
    l1_weight: NotNegative = 5.0
    giou_weight: NotNegative = 2.0
    eos_coefficient: AboveZero = 0.1
    auxiliary_loss: bool = True


FAMILY = Family(DetrConfig, DetrLossConfig, shows_parts=True)
