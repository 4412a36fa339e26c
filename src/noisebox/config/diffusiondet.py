"""The sections of family `diffusiondet`: its model, its loss, and how its students learn."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from noisebox.config.families import Family, TeacherConfig
from noisebox.config.run import IMAGENET_MEAN, IMAGENET_STD, Colour, ColourSpread
from noisebox.config.section import AboveZero, Fraction, NotNegative, Positive, Section


class SamplerConfig(Section):
    """How boxes are sampled at inference (DDIM, Song et al. 2021; DiffusionDet, Chen et al. 2023, section 3.4)."""

    eta: Fraction = 1.0
    box_renewal: bool = True
    renewal_threshold: Fraction = 0.5
    ensemble: Literal["all", "public", "none"] = "all"
    nms_threshold: Fraction = 0.5


class GeoFeatConfig(Section):
    """Proposal geometry added to proposal features: in full at every time (`constant`), or less and less from t = 0 to
    nothing at T (`fade`)."""

    enabled: bool = False
    schedule: Literal["constant", "fade"] = "constant"


class GeoBiasConfig(Section):
    """Geometry added to the logits of proposal self-attention, times `scale`; with `topk`, each proposal attends to
    itself and its nearest others only, k in all."""

    kind: Literal["none", "distance", "iou", "mlp"] = "none"
    scale: NotNegative = 1.0
    topk: Positive | None = None


class AnisoNoiseConfig(Section):
    """Standard deviations of the noise on box width and height, relative to that on the centre."""

    sigma_w: AboveZero = 1.0
    sigma_h: AboveZero = 1.0


class DiffusionDetConfig(Section):
    """Architecture of DiffusionDet: backbone, feature pyramid, dynamic head, diffusion of boxes.

    `pixel_mean` and `pixel_std` are what red, green and blue, from 0 to 1, are normalised by.
    `freeze_at` leaves the backbone's first stages as they are: 1 the stem, 2 also the stage at stride 4, up to 5, all.

    The switches after `snr_scale` are off by default. `label_state`: each proposal carries a label, or none of the K
    classes, embedded and added to its feature; alone it is the head's own last prediction (self-conditioning, Chen et
    al. 2023, Analog Bits), with `label_d3pm` it is diffused by `label_kernel`. `use_distribution`: the state is a
    distribution; training samples one label of it (`label_training: sampled`) or takes the expected embedding
    (`expected`), evaluation always takes the expected one.
    """

    backbone: str = "resnet50"
    pretrained: bool = False
    pixel_mean: Colour = IMAGENET_MEAN
    pixel_std: ColourSpread = IMAGENET_STD
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    hidden_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 256
    dim_dynamic: Positive = 64
    num_heads: Positive = 6
    dim_feedforward: Positive = 2048
    attention_heads: Positive = 8
    num_cls: Positive = 1
    num_reg: Positive = 3
    pooler_resolution: Positive = 7
    sampling_ratio: Positive = 2
    num_proposals: Positive = 500
    timesteps: Positive = 1000
    snr_scale: AboveZero = 2.0
    label_state: bool = False
    label_d3pm: bool = False
    label_kernel: Literal["mask", "uniform", "gaussian"] = "mask"
    use_distribution: bool = False
    label_training: Literal["sampled", "expected"] = "sampled"
    geo_feat: GeoFeatConfig = GeoFeatConfig()
    geo_bias: GeoBiasConfig = GeoBiasConfig()
    self_attn: Literal["mha", "sdpa"] = "mha"
    disable_self_attn: bool = False
    aniso_noise: AnisoNoiseConfig = AnisoNoiseConfig()
    quality_head: bool = False
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _switches_agree(self) -> "DiffusionDetConfig":
        if self.hidden_dim % self.attention_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of attention_heads {self.attention_heads}"
            )
        if self.label_d3pm and not self.label_state:
            raise ValueError("label_d3pm diffuses the label state: set label_state to true as well")
        if self.use_distribution and not (self.label_d3pm and self.label_kernel != "gaussian"):
            raise ValueError("use_distribution needs label_d3pm with label_kernel mask or uniform")
        if self.label_training == "expected" and not self.use_distribution:
            raise ValueError("label_training expected needs use_distribution")
        if self.disable_self_attn and self.geo_bias != GeoBiasConfig():
            raise ValueError("geo_bias acts on the self-attention that disable_self_attn takes away: choose one")
        return self


class FederatedConfig(Section):
    """The classes that count in an image: those of its objects and, until they are `classes` in all, others, drawn
    without replacement in proportion to the number of training images that have them, to the power `power`. Where there
    are no more classes than that, all count but those that no image has."""

    classes: Positive = 50
    power: NotNegative = 0.5


class LossConfig(Section):
    """Weights of the set-prediction loss and its dynamic-k matching (OTA, Ge et al. 2021).

    `cls_loss: qfl` is the quality focal loss (Li et al. 2020) with exponent `qfl_beta`. A box's loss is weighted by
    its IoU with its object to the power `box_loss_iou_weight_power`. `graph_topo_loss_weight` holds the last stage's
    attention against which proposals share an object. `federated` (Gupta et al. 2019, LVIS; Zhou et al. 2021,
    probabilistic two-stage detection) has the classification loss count some classes alone, for datasets of many.
    """

    class_weight: NotNegative = 2.0
    l1_weight: NotNegative = 5.0
    giou_weight: NotNegative = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NotNegative = 2.0
    cls_loss: Literal["focal", "qfl"] = "focal"
    qfl_beta: NotNegative = 2.0
    box_loss_iou_weight_power: NotNegative = 0.0
    graph_topo_loss_weight: NotNegative = 0.0
    quality_weight: NotNegative = 1.0
    ota_k: Positive = 5
    deep_supervision: bool = True
    federated: FederatedConfig | None = None


class DistillConfig(TeacherConfig):
    """How a student learns from a frozen teacher.

    `consistency`: both see the same noise at the same time. `sampler`: the teacher samples `teacher_steps` steps (eta
    0, no renewal, no ensemble), and the student learns the outcome in its `student_steps` steps from the same noise.
    Only the teacher's `top_k` most certain proposals count, by default a fifth of them (the published 100 of 500).
    `supervision` weighs the loss against ground truth.
    """

    kind: Literal["consistency", "sampler"]
    teacher_steps: Positive = 1
    student_steps: Positive = 1
    top_k: Positive | None = None
    box_weight: NotNegative = 1.0
    cls_weight: NotNegative = 1.0
    supervision: NotNegative = 0.0

    @model_validator(mode="after")
    def _steps_fall(self) -> "DistillConfig":
        if self.student_steps > self.teacher_steps:
            raise ValueError(f"student_steps {self.student_steps} must not exceed teacher_steps {self.teacher_steps}")
        if self.kind == "consistency" and self.teacher_steps > 1:
            raise ValueError("kind consistency compares single predictions: leave teacher_steps at 1")
        return self


FAMILY = Family(DiffusionDetConfig, LossConfig, DistillConfig, shows_parts=True)
