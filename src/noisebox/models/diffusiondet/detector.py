"""DiffusionDet (Chen et al. 2023): detection as denoising of boxes, in one page."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noisebox.config import DiffusionDetConfig, LossConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.sampler import BoxSampler, Prediction, RowKey, ScoredBoxes
from noisebox.models import Detector
from noisebox.models.backbone import Backbone
from noisebox.models.diffusiondet.criterion import set_prediction_loss
from noisebox.models.diffusiondet.head import DynamicHead
from noisebox.models.diffusiondet.matcher import PaddedTargets
from noisebox.models.diffusiondet.pooling import Pyramid
from noisebox.randomness import normal, numpy_generator, torch_generator
from noisebox.structures import Batch, Detections, Targets

# Bounds the memory of one pass of the head in evaluation: about 0.25 MB a proposal at the published width.
PROPOSALS_PER_PASS = 8192

WHOLE_IMAGE_CXCYWH = (0.5, 0.5, 1.0, 1.0)


class DiffusionDet(Detector):
    """A backbone that sees each image once, and a head that turns noisy boxes into better ones, once or many times."""

    def __init__(
        self, config: DiffusionDetConfig, loss: LossConfig, num_classes: int, fetch_weights: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.loss = loss
        self.backbone = Backbone(config.backbone, config.hidden_dim, config.pretrained, fetch_weights)
        self.head = DynamicHead(config, num_classes)
        self.diffusion = GaussianDiffusion(config.timesteps, config.snr_scale)
        self.sampler = BoxSampler(self.diffusion, config.sampler, config.num_proposals)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the network and its feature pyramid, which are one backbone in the public code as well."""
        return list(self.backbone.parameters())

    def encode(self, batch: Batch) -> Pyramid:
        return Pyramid.of(self.backbone(batch.images, batch.sizes_hw))

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        image_whwh = _whwh(batch.sizes_hw)
        x_t, t = self.noisy_boxes(batch, seed, step)
        every_image = torch.arange(len(batch), device=t.device)
        logits, boxes = self.head(self.encode(batch), self.diffusion.to_boxes(x_t, image_whwh), t, every_image)
        return set_prediction_loss(logits, boxes, PaddedTargets.of(batch.targets), image_whwh, self.loss)

    def noisy_boxes(self, batch: Batch, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """What the head is trained on: ground truth among random boxes, diffused to a random time (section 3.3).

        Returns x_t (B, P, 4) and t (B,), drawn per image by the key (seed, purpose, step, image id). An image without
        objects starts from one box that covers it; of more objects than proposals, a random choice is shown.
        """
        count, device = self.config.num_proposals, batch.images.device
        times, noises, placeholders, shown = [], [], [], []
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            times.append(int(numpy_generator(seed, "timestep", step, image_id).integers(self.config.timesteps)))
            noises.append(normal((count, 4), seed, "box noise", step, image_id))
            placeholder = normal((count, 4), seed, "placeholder boxes", step, image_id) / 6 + 0.5
            placeholder[:, 2:].clamp_(min=1e-4)
            if len(target.labels) == 0:
                placeholder[0] = torch.tensor(WHOLE_IMAGE_CXCYWH)
            placeholders.append((placeholder * 2 - 1) * self.config.snr_scale)
            if len(target.labels) > count:
                order = torch.randperm(len(target.labels), generator=torch_generator(seed, "shown", step, image_id))
                chosen = order[:count].to(device)
                target = Targets(target.boxes_xyxy[chosen], target.labels[chosen])
            shown.append(target)
        t = torch.tensor(times, device=device)
        x0 = torch.stack(placeholders).to(device)
        objects = PaddedTargets.of(shown)
        slots = objects.valid.shape[1]
        known = self.diffusion.from_boxes(objects.boxes_xyxy, _whwh(batch.sizes_hw))
        x0[:, :slots] = torch.where(objects.valid[..., None], known, x0[:, :slots])
        return self.diffusion.q_sample(x0, t, torch.stack(noises).to(device)), t

    @torch.no_grad()
    def detect(
        self, encoded: Pyramid, batch: Batch, eval_seeds: Sequence[int], sample_steps: int
    ) -> list[list[Detections]]:
        rows = [(seed, image) for seed in eval_seeds for image in range(len(batch))]
        at_once = max(1, PROPOSALS_PER_PASS // self.config.num_proposals)
        found: list[Detections] = []
        for start in range(0, len(rows), at_once):
            found += self._detect_rows(encoded, batch, rows[start : start + at_once], sample_steps)
        return [found[start : start + len(batch)] for start in range(0, len(rows), len(batch))]

    def _detect_rows(
        self, pyramid: Pyramid, batch: Batch, rows: Sequence[tuple[int, int]], sample_steps: int
    ) -> list[Detections]:
        """Detections of rows (eval seed, index of the image in the batch), sampled together."""
        images = torch.tensor([image for _, image in rows], device=batch.images.device)
        keys = [RowKey(seed, batch.image_ids[image]) for seed, image in rows]

        def denoise(boxes_xyxy: Tensor, t: Tensor) -> Prediction:
            logits, boxes = self.head(pyramid, boxes_xyxy, t, images)
            return Prediction(logits[-1], boxes[-1])

        image_whwh = _whwh(batch.sizes_hw)[images]
        original_whwh = _whwh(batch.original_hw)[images]
        sampled = self.sampler.sample(denoise, keys, image_whwh, sample_steps)
        return [_restore(*row) for row in zip(sampled, image_whwh, original_whwh, strict=True)]


def _restore(found: ScoredBoxes, image_whwh: Tensor, original_whwh: Tensor) -> Detections:
    """Boxes brought to the stored image's pixels and clipped to it; those left without an area are dropped."""
    boxes = (found.boxes_xyxy * (original_whwh / image_whwh)).clamp(min=0).minimum(original_whwh)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    return Detections(boxes[kept], found.scores[kept], found.labels[kept])


def _whwh(sizes_hw: Tensor) -> Tensor:
    """(N, 2) heights and widths as (N, 4) float32 widths, heights, widths, heights: what boxes are divided by."""
    return sizes_hw.flip(-1).repeat(1, 2).float()
