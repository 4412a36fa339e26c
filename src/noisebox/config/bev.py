"""The configuration of the BEV family: grid, lift, denoiser and diffusion of the model, and the weights of its loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from noisebox.config.families import Family
from noisebox.config.section import AboveZero, NotNegative, Positive, Section

Condition = Literal["feature", "semantic", "depth"]
LabelValue = Annotated[int, Field(ge=0, le=255)]


class BevGridConfig(Section):
    """The map on the ground, in the camera's frame (x right, z forward), metres: row 0 is the farthest row, column 0
    the leftmost column."""

    x_min: float = -25.0
    x_max: float = 25.0
    z_min: NotNegative = 1.0
    z_max: float = 50.0
    cell: AboveZero = 0.5

    @property
    def rows(self) -> int:
        return round((self.z_max - self.z_min) / self.cell)

    @property
    def columns(self) -> int:
        return round((self.x_max - self.x_min) / self.cell)

    @model_validator(mode="after")
    def _whole_cells(self) -> "BevGridConfig":
        for axis, low, high in (("x", self.x_min, self.x_max), ("z", self.z_min, self.z_max)):
            cells = (high - low) / self.cell
            if round(cells) < 1 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(f"{axis} from {low:g} to {high:g} m is no whole number of cells of {self.cell:g} m")
        return self


class LiftConfig(Section):
    """At which stride image features are lifted, and to which depths: bins of `step` metres from `near` to `far`."""

    stride: Literal[4, 8, 16, 32] = 16
    near: AboveZero = 1.0
    far: AboveZero = 50.0
    step: AboveZero = 1.0

    @property
    def bins(self) -> int:
        return round((self.far - self.near) / self.step)

    @model_validator(mode="after")
    def _whole_bins(self) -> "LiftConfig":
        bins = (self.far - self.near) / self.step
        if round(bins) < 1 or abs(bins - round(bins)) > 1e-6:
            raise ValueError(
                f"depth from {self.near:g} to {self.far:g} m is no whole number of bins of {self.step:g} m"
            )
        return self


class BevLabelsConfig(Section):
    """What the values in a label map mean, in mmsegmentation's terms: pixels of value `ignore_index` count nowhere;
    with `reduce_zero_label`, value 0 counts nowhere either and the first class that is predicted has value 1."""

    reduce_zero_label: bool = False
    ignore_index: LabelValue = 255

    def values(self, labelled: int) -> range:
        """The label value of each predicted class, where the dataset names `labelled` classes, value 0 the first."""
        return range(int(self.reduce_zero_label), labelled)


class DenoiserConfig(Section):
    """The size of the U-Net that denoises the BEV feature, pooled by `downsample`, and of the attention after it."""

    downsample: Literal[1, 2, 4, 8] = 2
    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256, 512)
    layers_per_block: Positive = 2
    attention_heads: Positive = 4


class BevDiffusionConfig(Section):
    """How the BEV feature is diffused (DiffBEV, Zou et al. 2023, arXiv 2303.08333).

    `conditions` guide the denoiser: the BEV `feature` itself, its `semantic` map, the `depth` distribution seen from
    above. `prediction` is what the denoiser says, and `Ldiff` measures: the noise (`epsilon`), the clean feature
    (`sample`), or the velocity between them (`v_prediction`, Salimans and Ho 2022). In any number of `timesteps` a
    `beta_schedule` adds so much noise that hardly anything else is left.
    """

    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = ("feature", "semantic", "depth")
    timesteps: Positive = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"

    @model_validator(mode="after")
    def _conditions_differ(self) -> "BevDiffusionConfig":
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"conditions names one more than once: {', '.join(self.conditions)}")
        return self


class BevConfig(Section):
    """Architecture of the BEV family: Lift, Splat, Shoot where `diffusion` is null, DiffBEV where it is given.

    `hidden_dim` is the width of the lift, `bev_channels` that of the BEV feature, `head_channels` those of the head's
    scales, finest first. `denoiser` is the size of what `diffusion` trains, and nothing without it.
    """

    backbone: str = "swin_tiny_patch4_window7_224"
    pretrained: bool = False
    hidden_dim: Positive = 256
    bev_channels: Positive = 64
    head_channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 128, 256)
    grid: BevGridConfig = BevGridConfig()
    lift: LiftConfig = LiftConfig()
    labels: BevLabelsConfig = BevLabelsConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    diffusion: BevDiffusionConfig | None = None

    @model_validator(mode="after")
    def _widths_agree(self) -> "BevConfig":
        heads = self.denoiser.attention_heads
        if self.diffusion and (self.bev_channels % 4 or self.bev_channels % heads):
            raise ValueError(
                f"bev_channels {self.bev_channels} must be a multiple of 4 and of denoiser.attention_heads {heads}"
            )
        return self


class BevLossConfig(Section):
    """Weights of the BEV family's loss terms. `class_weights` has one for each class that is predicted, in order; null
    gives all the same. `semantic_weight` is that of the semantic map which DiffBEV is conditioned on. `depth_weight` 0
    leaves depth ground truth aside."""

    wce_weight: AboveZero = 1.0
    class_weights: Annotated[tuple[NotNegative, ...], Field(min_length=1)] | None = None
    depth_weight: NotNegative = 1.0
    diff_weight: NotNegative = 1.0
    semantic_weight: NotNegative = 0.5


def _lopsided(model: BevConfig) -> str | None:
    """Why a map turned over is not what the mirrored camera sees: the camera is not above the middle of the grid."""
    low, high = model.grid.x_min, model.grid.x_max
    return None if low == -high else f"model.grid goes from x {low:g} to {high:g} m, not as far left as right"


FAMILY = Family(BevConfig, BevLossConfig, lopsided=_lopsided)
