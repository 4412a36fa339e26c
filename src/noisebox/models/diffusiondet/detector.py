"""DiffusionDet (Chen et al. 2023): detection as denoising of boxes, in one page."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from noisebox.config import Sampling
from noisebox.config.diffusiondet import DiffusionDetConfig, DistillConfig, LossConfig
from noisebox.diffusion.sampler import (
    NO_QUALITY_HEAD,
    Denoise,
    Prediction,
    RowKey,
    ScoredBoxes,
    box_sampler,
    sampling_times,
)
from noisebox.errors import UserError
from noisebox.models import NO_CROPS, Detector
from noisebox.models.backbone import Backbone
from noisebox.models.clipping import clipped
from noisebox.models.diffusiondet.criterion import set_prediction_loss
from noisebox.models.diffusiondet.distillation import check_teacher, consistency_terms, sampler_terms
from noisebox.models.diffusiondet.head import DynamicHead, HeadOutput, box_monitors
from noisebox.models.diffusiondet.matcher import PaddedTargets
from noisebox.models.diffusiondet.pooling import Pyramid
from noisebox.models.diffusiondet.replay import ReplayedHead
from noisebox.randomness import KeyedRows, torch_generator
from noisebox.structures import Batch, Detections

# Bounds the memory of one pass of the head in evaluation: about 0.25 MB a proposal at the published width, and some
# ten times that with guidance, whose gradient needs what all stages computed. On a GPU, with fewer at once the host
# would take longer to launch the passes than the GPU to run them.
PROPOSALS_PER_PASS = {"cpu": 8192, "cuda": 20_480}
GUIDED_PROPOSALS_PER_PASS = 1024

WHOLE_IMAGE_CXCYWH = (0.5, 0.5, 1.0, 1.0)


class DiffusionDet(Detector):
    """A backbone that sees each image once, and a head that turns noisy boxes into better ones, once or many times."""

    def __init__(
        self, config: DiffusionDetConfig, loss: LossConfig, num_classes: int, fetch_weights: bool = True
    ) -> None:
        """Raises UserError when the loss asks for what the model does not have."""
        super().__init__()
        if config.disable_self_attn and loss.graph_topo_loss_weight > 0:
            raise UserError("loss.graph_topo_loss_weight needs the attention that model.disable_self_attn takes away")
        self.config = config
        self.loss = loss
        self.num_classes = num_classes
        self.backbone = Backbone(
            config.backbone, config.hidden_dim, config.pretrained, fetch_weights, config.pixel_mean, config.pixel_std
        )
        self.backbone.freeze(config.freeze_at)
        self.head = DynamicHead(config, num_classes)
        self._replayed = ReplayedHead(self.head)
        self.sampler = box_sampler(config, num_classes)
        self.diffusion, self.labels = self.sampler.diffusion, self.sampler.labels

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Network and feature pyramid are one backbone, as in the public code."""
        head = list(self.head.named_parameters())
        return {
            "backbone": list(self.backbone.parameters()),
            "geo_feat": [parameter for name, parameter in head if ".geo_feat." in name],
            "quality_head": [parameter for name, parameter in head if ".quality." in name],
        }

    def compiled(self) -> list[nn.Module]:
        """The backbone, and the head's stages, which are alike, so that one compilation serves all."""
        return [self.backbone, *self.head.head_series]

    def encode(self, batch: Batch) -> Pyramid:
        return Pyramid.of(self.backbone(batch.images, batch.sizes_hw))

    def forward(self, batch: Batch, seed: int, step: int) -> dict[str, Tensor]:
        pyramid = self.encode(batch)
        output = self.look(pyramid, batch, self.training_proposals(pyramid, batch, seed, step))
        return {**self.supervised(output, batch), **box_monitors(output)}

    def training_proposals(self, pyramid: Pyramid, batch: Batch, seed: int, step: int) -> "NoisyProposals":
        """The noisy proposals that training shows the head, some with the labels that it sees in them itself."""
        noisy = self.noisy_proposals(batch, seed, step)
        if self.labels and self.labels.self_conditioned:
            return self._self_conditioned(pyramid, batch, noisy, seed, step)
        return noisy

    def look(self, pyramid: Pyramid, batch: Batch, noisy: "NoisyProposals") -> HeadOutput:
        """What the head says of the noisy proposals of a training batch."""
        image_whwh = batch.image_whwh
        boxes_xyxy = self.diffusion.to_boxes(noisy.x_t, image_whwh)
        every_image = torch.arange(len(batch), device=noisy.t.device)
        want_attention = self.loss.graph_topo_loss_weight > 0
        output: HeadOutput = self.head(
            pyramid, boxes_xyxy, noisy.t, every_image, image_whwh, noisy.labels, want_attention
        )
        return output

    def supervised(self, output: HeadOutput, batch: Batch) -> dict[str, Tensor]:
        """The loss of what the head said against ground truth."""
        return set_prediction_loss(output, PaddedTargets.of(batch.targets), batch.image_whwh, self.loss)

    def noisy_proposals(self, batch: Batch, seed: int, step: int) -> "NoisyProposals":
        """What the head is trained on: ground truth among random boxes, diffused to a random time (section 3.3).

        Drawn per image by the key (seed, purpose, step, image id). An image without objects starts from one box that
        covers it; of more objects than proposals, a random choice is shown.
        """
        count, device = self.config.num_proposals, batch.images.device
        noise = KeyedRows([(seed, (step, image_id)) for image_id in batch.image_ids], device)
        t = (noise.uniform("timestep", ()).double() * self.config.timesteps).long()
        placeholders = noise.normal("placeholder boxes", (count, 4)) / 6 + 0.5
        placeholders[..., 2:].clamp_(min=1e-4)
        shown = []
        for row, (image_id, target) in enumerate(zip(batch.image_ids, batch.targets, strict=True)):
            if len(target.labels) == 0:
                placeholders[row, 0] = torch.tensor(WHOLE_IMAGE_CXCYWH)
            if len(target.labels) > count:
                order = torch.randperm(len(target.labels), generator=torch_generator(seed, "shown", step, image_id))
                chosen = order[:count].to(device)
                target = replace(target, boxes_xyxy=target.boxes_xyxy[chosen], labels=target.labels[chosen])
            shown.append(target)
        x0 = (placeholders * 2 - 1) * self.config.snr_scale
        objects = PaddedTargets.of(shown)
        slots = objects.valid.shape[1]
        known = self.diffusion.from_boxes(objects.boxes_xyxy, batch.image_whwh)
        x0[:, :slots] = torch.where(objects.valid[..., None], known, x0[:, :slots])
        x_t = self.diffusion.q_sample(x0, t, noise.normal("box noise", (count, 4)))
        if self.labels is None:
            return NoisyProposals(x_t, t, None)
        labels = torch.full(x_t.shape[:2], self.num_classes, device=device)
        labels[:, :slots] = torch.where(objects.valid, objects.labels, labels[:, :slots])
        return NoisyProposals(x_t, t, self.labels.noised(labels, t, noise))

    def _self_conditioned(
        self, pyramid: Pyramid, batch: Batch, noisy: "NoisyProposals", seed: int, step: int
    ) -> "NoisyProposals":
        """For a random half of the images, the labels that the head itself sees in the noisy proposals."""
        if self.labels is None or noisy.labels is None:
            return noisy
        noise = KeyedRows([(seed, (step, image_id)) for image_id in batch.image_ids], noisy.t.device)
        with torch.no_grad():
            first = self.look(pyramid, batch, noisy).logits[-1]
        torch.clear_autocast_cache()  # casts made without gradient: PyTorch up to 2.9 would take them where one is due
        own = self.labels.advance(noisy.labels, first, 0, -1, noise)
        chosen = noise.uniform("self-conditioning", (1, 1)) < 0.5
        return noisy._replace(labels=torch.where(chosen, own, noisy.labels))

    def distil(self, teacher: Detector, batch: Batch, seed: int, step: int, config: DistillConfig) -> dict[str, Tensor]:
        learn = consistency_terms if config.kind == "consistency" else sampler_terms
        return learn(self, cast(DiffusionDet, teacher), batch, seed, step, config)

    def check_teacher(self, teacher: Detector) -> None:
        check_teacher(self, cast(DiffusionDet, teacher))

    def check_sampling(self, sampling: Sampling) -> None:
        sampling_times(self.config.timesteps, sampling.steps)  # or raises
        if sampling.guidance.scale > 0 and not self.config.quality_head:
            raise UserError(NO_QUALITY_HEAD)
        if sampling.crops:
            raise UserError(NO_CROPS)

    @torch.no_grad()
    def detect(
        self, encoded: Pyramid, batch: Batch, eval_seeds: Sequence[int], sampling: Sampling
    ) -> list[list[Detections]]:
        rows = [(seed, image) for seed in eval_seeds for image in range(len(batch))]
        unguided = PROPOSALS_PER_PASS[batch.images.device.type]
        proposals = GUIDED_PROPOSALS_PER_PASS if sampling.guidance.scale > 0 else unguided
        at_once = max(1, proposals // self.config.num_proposals)
        found: list[Detections] = []
        for start in range(0, len(rows), at_once):
            found += self._detect_rows(encoded, batch, rows[start : start + at_once], sampling)
        return [found[start : start + len(batch)] for start in range(0, len(rows), len(batch))]

    def _detect_rows(
        self, pyramid: Pyramid, batch: Batch, rows: Sequence[tuple[int, int]], sampling: Sampling
    ) -> list[Detections]:
        """Detections of rows (eval seed, index of the image in the batch), sampled together."""
        images = torch.tensor([image for _, image in rows], device=batch.images.device)
        keys = [RowKey(seed, batch.image_ids[image]) for seed, image in rows]
        image_whwh = batch.image_whwh[images]
        denoise = self.denoiser(pyramid, images, image_whwh, head=self._replayed)
        sampled = self.sampler.sample(denoise, keys, image_whwh, sampling)
        return restored(sampled, image_whwh, batch.original_whwh[images])

    def denoiser(
        self,
        pyramid: Pyramid,
        image_index: Tensor,
        image_whwh: Tensor,
        listen: Callable[[HeadOutput], None] = lambda _: None,
        head: Callable[..., HeadOutput] | None = None,
    ) -> Denoise:
        """The head's last stage as the sampler's denoiser, for rows of these images; `listen` hears all stages. `head`
        is another way to the same head."""

        def denoise(boxes_xyxy: Tensor, t: Tensor, labels: Tensor | None) -> Prediction:
            said: HeadOutput = (head or self.head)(pyramid, boxes_xyxy, t, image_index, image_whwh, labels)
            listen(said)
            quality = None if said.quality is None else said.quality[-1]
            return Prediction(said.logits[-1], said.boxes_xyxy[-1], quality)

        return denoise


class NoisyProposals(NamedTuple):
    """`x_t` (N, P, 4) at times `t` (N,), and where proposals carry labels, their state (N, P, K + 1)."""

    x_t: Tensor
    t: Tensor
    labels: Tensor | None


def restored(found: Sequence[ScoredBoxes], image_whwh: Tensor, original_whwh: Tensor) -> list[Detections]:
    """What was found in N rows in pixels of the stored images; both sizes are (N, 4), boxes on the CPU."""
    return [_restore(*row) for row in zip(found, image_whwh.cpu(), original_whwh.cpu(), strict=True)]


def _restore(found: ScoredBoxes, image_whwh: Tensor, original_whwh: Tensor) -> Detections:
    """Boxes brought to the stored image's pixels and clipped to it; those left without an area are dropped."""
    boxes, kept = clipped(found.boxes_xyxy * (original_whwh / image_whwh), original_whwh)
    return Detections(boxes[kept], found.scores[kept], found.labels[kept])
