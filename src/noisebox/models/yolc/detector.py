"""YOLC (Liu et al. 2024, arXiv 2404.06180): look at the whole image, then again, closer, where objects crowd."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from noisebox.config import Sampling, Section
from noisebox.config.yolc import YolcConfig, YolcDistillConfig, YolcLossConfig
from noisebox.errors import UserError
from noisebox.models import Detector, size_monitors
from noisebox.models.clipping import clipped
from noisebox.models.yolc.crops import Crops, cut
from noisebox.models.yolc.decode import cells_of
from noisebox.models.yolc.distillation import check_teacher, distillation_terms
from noisebox.models.yolc.heatmap import heatmap_targets, peaks
from noisebox.models.yolc.losses import supervised_terms
from noisebox.models.yolc.lsm import crowded_regions
from noisebox.models.yolc.network import Network, Output
from noisebox.randomness import torch_generator
from noisebox.structures import Batch, Detections, Targets


class Sight(NamedTuple):
    """What was seen in one image, in pixels of the resized image: `heatmap` (H, W), the largest over the classes;
    `coarse`, the boxes of the whole image before they are refined; `regions_xyxy` (R, 4), where the second look went;
    `found`, the refined boxes of both looks, fused."""

    heatmap: Tensor
    coarse: Detections
    regions_xyxy: Tensor
    found: Detections


class Yolc(Detector):
    """A network that sees the whole image and, if asked, enlarged crops of its densest parts."""

    def __init__(self, config: YolcConfig, loss: YolcLossConfig, num_classes: int, fetch_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.loss = loss
        self.num_classes = num_classes
        self.network = Network(config, num_classes, fetch_weights)

    @property
    def deterministic(self) -> bool:
        return True

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"backbone": list(self.network.backbone.parameters())}

    def encode(self, batch: Batch) -> Output:
        output: Output = self.network(batch.images, batch.sizes_hw)
        return output

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        return self.supervised(self.encode(batch), batch, seed, step)

    def supervised(self, output: Output, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        """The loss of what the network said of a batch against ground truth, means over images, and BOX_MONITORS.

        The terms of one of its crops are added to those of an image, for a share `train_on_crops` of them: by the key
        (seed, "training crop", step, image id) it is drawn whether, and which of those that its ground truth gives.
        """
        heatmap = self._heatmap_targets(batch.targets, output)
        terms, boxes_xyxy = supervised_terms(self.network, output, batch.targets, heatmap, self.loss)
        sums = {name: term.sum() for name, term in terms.items()}
        if self.config.train_on_crops:
            regions = zip(self.regions(heatmap, batch), batch.image_ids, strict=True)
            share = self.config.train_on_crops
            crops = self.crops(batch, [_drawn(each, share, seed, step, image_id) for each, image_id in regions])
            if len(crops):
                closer, targets = self.network(crops.images, crops.sizes_hw), crops.targets(batch.targets)
                heatmap = self._heatmap_targets(targets, closer)
                terms, _ = supervised_terms(self.network, closer, targets, heatmap, self.loss)
                sums = {name: sums[name] + term.sum() for name, term in terms.items()}
        return {
            **{name: term / len(batch) for name, term in sums.items()},
            **size_monitors(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]),
        }

    def _heatmap_targets(self, targets: Sequence[Targets], output: Output) -> Tensor:
        height, width = output.heatmap.shape[-2:]
        return heatmap_targets(targets, self.num_classes, (height, width), self.loss.gaussian_overlap)

    def regions(
        self, heatmaps: Tensor, batch: Batch, limits: YolcConfig | YolcDistillConfig | None = None
    ) -> list[Tensor]:
        """Where objects crowd in each image by heatmaps (B, K, H, W) in [0, 1], within `limits` to number and size."""
        limits = limits or self.config
        most, least_side = limits.max_patches_per_img, limits.min_patch_size
        return crowded_regions(heatmaps, batch.sizes_hw, self.config.cluster_threshold, most, least_side)

    def crops(self, batch: Batch, regions: Sequence[Tensor]) -> Crops:
        """The crops of a batch at each image's regions (R, 4)."""
        return cut(batch, regions, self.config.crop_canvas)

    def check_sampling(self, sampling: Sampling) -> None:
        super().check_sampling(sampling.model_copy(update={"crops": False}))
        if sampling.steps > 1:
            raise UserError(f"{sampling.steps} sampling steps need a detector that denoises; yolc does not: ask for 1")

    def distil(self, teacher: Detector, batch: Batch, seed: int, step: int, config: Section) -> dict[str, Tensor]:
        return distillation_terms(self, cast(Yolc, teacher), batch, seed, step, cast(YolcDistillConfig, config))

    def check_teacher(self, teacher: Detector) -> None:
        check_teacher(self, cast(Yolc, teacher))

    def detect(
        self, encoded: Output, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        """As the interface says; nothing is random here, so every eval seed has the same."""
        self.check_sampling(sampling)
        images = self.found(self.look(encoded, batch, sampling.crops), batch)
        return [list(images) for _ in eval_seeds]

    def found(self, sights: Sequence[Sight], batch: Batch) -> list[Detections]:
        """What was found in each image of a batch, in pixels of the stored images."""
        return [
            _restore(sight.found, image_whwh, original_whwh)
            for sight, image_whwh, original_whwh in zip(sights, batch.image_whwh, batch.original_whwh, strict=True)
        ]

    @torch.no_grad()
    def look(self, encoded: Output, batch: Batch, crops: bool) -> list[Sight]:
        """What is seen in each image of a batch at one look, or with `crops` at two."""
        (coarse, refined), heatmaps = self._candidates(encoded, batch.sizes_hw), encoded.heatmap.sigmoid()
        found = [[each] for each in refined]
        regions = self.regions(heatmaps, batch) if crops else []
        closer = self.crops(batch, regions)
        if len(closer):
            _, seen = self._candidates(self.network(closer.images, closer.sizes_hw), closer.sizes_hw)
            for crop, (image, each) in enumerate(zip(closer.image.tolist(), seen, strict=True)):
                boxes_xyxy = closer.to_image(each.boxes_xyxy, crop)
                kept = closer.whole(boxes_xyxy, crop)
                found[image].append(Detections(boxes_xyxy[kept], each.scores[kept], each.labels[kept]))
        return [
            Sight(
                heatmap=heatmaps[image, :, :height, :width].amax(0),
                coarse=fuse([coarse[image]], (height, width), self.config),
                regions_xyxy=closer.regions_xyxy[closer.image == image],
                found=fuse(found[image], (height, width), self.config),
            )
            for image, (height, width) in enumerate(batch.sizes_hw.tolist())
        ]

    def _candidates(self, output: Output, sizes_hw: Tensor) -> tuple[list[Detections], list[Detections]]:
        """The boxes at each heatmap's highest peaks, coarse and refined."""
        scores, labels, pixels = peaks(output.heatmap, sizes_hw, self.config.max_detections)
        coarse, refined = (
            [Detections(*row) for row in zip(stage.boxes_xyxy, scores, labels, strict=True)]
            for stage in self.network.boxes_at(output, cells_of(pixels, output.grid_hw))
        )
        return coarse, refined


def fuse(parts: Sequence[Detections], size_hw: tuple[int, int], config: YolcConfig) -> Detections:
    """Detections of one image put together: clipped to it, and of those of one class that overlap by more than
    `nms_threshold` only the best; at most `max_detections`, in falling order of score."""
    boxes_xyxy = torch.cat([part.boxes_xyxy for part in parts])
    boxes_xyxy, has_area = clipped(boxes_xyxy, boxes_xyxy.new_tensor(size_hw).flip(0).repeat(2))
    scores = torch.cat([part.scores for part in parts])
    labels = torch.cat([part.labels for part in parts])
    real = (has_area & ~(scores <= 0)).nonzero()[:, 0]
    best = batched_nms(boxes_xyxy[real], scores[real], labels[real], config.nms_threshold)
    kept = real[best[: config.max_detections]]
    return Detections(boxes_xyxy[kept], scores[kept], labels[kept])


def _drawn(regions: Tensor, share: float, seed: int, step: int, image_id: int) -> Tensor:
    """One region (1, 4) of an image's (R, 4), for a share of the images; else, and of none, none."""
    generator = torch_generator(seed, "training crop", step, image_id)
    order = torch.randperm(len(regions), generator=generator)
    return regions[order[: int(torch.rand((), generator=generator) < share)]]


def _restore(found: Detections, image_whwh: Tensor, original_whwh: Tensor) -> Detections:
    """Boxes in pixels of the resized image, brought to those of the stored one and clipped to it."""
    boxes_xyxy, _ = clipped(found.boxes_xyxy * (original_whwh / image_whwh), original_whwh)
    return Detections(boxes_xyxy, found.scores, found.labels)
