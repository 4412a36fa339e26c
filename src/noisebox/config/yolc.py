"""The schema of the YOLC family: its architecture, its loss, and how one detector of it teaches another."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from noisebox.config.families import Family, TeacherConfig
from noisebox.config.section import AboveZero, Fraction, NotNegative, Positive, Section

# More crops cost more than they find.
Patches = Annotated[int, Field(ge=1, le=6)]


class YolcConfig(Section):
    """Architecture of YOLC (Liu et al. 2024, arXiv 2404.06180), and how it looks twice.

    `hidden_dim` is the width of the feature map at stride 4, `heatmap_channels` that of each class at stride 2. Where
    the heatmap passes `cluster_threshold` there is something; around the densest places lie the crops: at most
    `max_patches_per_img`, no side under `min_patch_size` pixels of the resized image. A crop is cut from the image as
    stored, and fills a canvas of `crop_canvas` times the resized image's height and width. `train_on_crops`: this share
    of the training images is also shown as one of their own crops. Of what both looks find, `max_detections` are kept
    after non-maximum suppression.
    """

    backbone: str = "hrnet_w32"
    pretrained: bool = False
    hidden_dim: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    heatmap_channels: Positive = 8
    cluster_threshold: Fraction = 0.1
    max_patches_per_img: Patches = 4
    min_patch_size: Positive = 64
    crop_canvas: Annotated[float, Field(gt=0, le=1)] = 1.0
    train_on_crops: Fraction = 1.0
    nms_threshold: Fraction = 0.6
    max_detections: Positive = 300


class YolcLossConfig(Section):
    """Weights of the loss against ground truth; `gwd_weight` and `l1_weight` hold for coarse and refined boxes.

    A heatmap's target falls off so far from an object's centre as boxes displaced that far still overlap by
    `gaussian_overlap` (CornerNet, Law and Deng 2018). `gwd_tau`: tau of the Gaussian Wasserstein loss.
    """

    heatmap_weight: NotNegative = 1.0
    gwd_weight: NotNegative = 2.0
    l1_weight: NotNegative = 0.5
    gaussian_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.3
    gwd_tau: Annotated[float, Field(ge=1)] = 1.0


class YolcDistillConfig(TeacherConfig):
    """How a student learns from a frozen teacher beside the ground truth: the lineage or the checkpoint `teacher`, by
    default the parent, of the run's own train seed or of `teacher_seed`.

    The whole image teaches heatmap and coarse boxes, crops teach refined boxes. The crops are those of the teacher's
    heatmap, or without `use_teacher_crop` of the student's. Heatmaps are compared by the mean squared error (`mse`) or
    by the Kullback-Leibler divergence at `temperature` (`kl`), means over all classes and pixels: nearly all are empty,
    so these are some 1e-4, and their weight is large. Boxes are compared in units of the grid's cells, 4 pixels.
    """

    kd_weight_global_hm: NotNegative = 1.0
    kd_weight_global_coarse: NotNegative = 1.0
    kd_weight_local_refine: NotNegative = 1.0
    use_teacher_crop: bool = True
    max_patches_per_img: Patches = 4
    min_patch_size: Positive = 64
    heatmap_loss: Literal["mse", "kl"] = "mse"
    temperature: AboveZero = 1.0

    @model_validator(mode="after")
    def _temperature_is_used(self) -> "YolcDistillConfig":
        if self.temperature != 1 and self.heatmap_loss != "kl":
            raise ValueError(
                f"temperature {self.temperature} acts on heatmap_loss kl alone: choose kl, or leave it at 1"
            )
        return self


FAMILY = Family(YolcConfig, YolcLossConfig, YolcDistillConfig, looks_closer=True)
