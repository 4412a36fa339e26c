"""Maps from above: Lift, Splat, Shoot (Philion and Fidler 2020) and DiffBEV (Zou et al. 2023), in one page."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noisebox.config import Sampling
from noisebox.config.bev import BevConfig, BevLossConfig
from noisebox.errors import UserError
from noisebox.models import Segmenter
from noisebox.models.backbone import STRIDES, FeatureMaps
from noisebox.models.bev.criterion import class_targets, depth_loss, weighted_cross_entropy
from noisebox.models.bev.head import PyramidHead
from noisebox.models.bev.lift import Lift, frustum_cells, splat
from noisebox.randomness import KeyedRows
from noisebox.structures import BevBatch

# Bounds the memory of one pass in evaluation: so many pairs of an image and an eval seed are denoised together.
ROWS_PER_PASS = 32


class Encoded(NamedTuple):
    """What is computed once per image: `depth_logits` (B, D, h, w), the BEV feature `bev` (B, C, rows, columns), the
    `condition` of its denoiser (B, channels, h, w), of none without diffusion, and where it is among the conditions the
    `semantic` map (B, K, rows, columns), as logits."""

    depth_logits: Tensor
    bev: Tensor
    condition: Tensor
    semantic: Tensor | None


class BevSegmenter(Segmenter):
    """A backbone, a lift to the ground and a head; with `config.diffusion`, a denoiser between the two.

    Parameters that both have bear the same names, so DiffBEV can start from a trained baseline; what it adds says
    nothing at first.
    """

    class_weights: Tensor | None

    def __init__(self, config: BevConfig, loss: BevLossConfig, labelled: int, fetch_weights: bool = True) -> None:
        """`labelled`: how many classes the dataset names. Raises UserError when the loss does not fit them."""
        super().__init__()
        self.config, self.loss, self.labelled = config, loss, labelled
        self.num_classes = len(config.labels.values(labelled))
        weights = loss.class_weights
        if weights is not None and len(weights) != self.num_classes:
            raise UserError(f"loss.class_weights has {len(weights)} entries; {self.num_classes} classes are predicted")
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)
        strides = STRIDES[STRIDES.index(config.lift.stride) :]
        self.backbone = FeatureMaps(config.backbone, config.pretrained, fetch_weights, strides)
        self.lift = Lift(self.backbone.channels, config.hidden_dim, config.bev_channels, config.lift.bins)
        self.head = PyramidHead(config.bev_channels, config.head_channels, self.num_classes)
        self.diffusion = None
        if config.diffusion is not None:
            from noisebox.models.bev.diffusion import BevDiffusion  # diffusers takes seconds to import

            self.diffusion = BevDiffusion(config, config.diffusion, self.num_classes)

    @property
    def deterministic(self) -> bool:
        return self.diffusion is None

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"backbone": list(self.backbone.parameters())}

    def encode(self, batch: BevBatch) -> Encoded:
        images, lift, grid = batch.images, self.config.lift, self.config.grid
        sizes_hw = torch.tensor(images.shape[-2:], device=images.device).expand(len(batch), 2)
        depth_logits, context = self.lift(self.backbone(images, sizes_hw))
        cells = frustum_cells(batch.intrinsics, context.shape[-1], lift, grid)
        depth = depth_logits.softmax(1)
        bev = splat(depth, context, cells, grid)
        if self.diffusion is None:
            return Encoded(depth_logits, bev, bev[:, :0], None)
        wanted = self.diffusion.conditions
        semantic = self.head(bev) if "semantic" in wanted else None
        mass = splat(depth, torch.ones_like(context[:, :1]), cells, grid) if "depth" in wanted else None
        return Encoded(depth_logits, bev, self.diffusion.condition(bev, semantic, mass), semantic)

    def forward(self, batch: BevBatch, seed: int, step: int) -> dict[str, Tensor]:
        encoded, loss = self.encode(batch), self.loss
        targets = class_targets(batch.labels, batch.image_ids, self.labelled, self.config)
        terms: dict[str, Tensor] = {}
        bev = encoded.bev
        if self.diffusion is not None:
            noise = KeyedRows([(seed, (step, image_id)) for image_id in batch.image_ids], bev.device)
            denoised, error = self.diffusion.learn(bev, encoded.condition, noise)
            bev = self.diffusion.fuse(bev, denoised)
            terms["Ldiff"] = loss.diff_weight * error
        terms["Lwce"] = loss.wce_weight * weighted_cross_entropy(self.head(bev), targets, self.class_weights)
        if encoded.semantic is not None:
            semantic = weighted_cross_entropy(encoded.semantic, targets, self.class_weights)
            terms["Lsemantic"] = loss.semantic_weight * semantic
        if loss.depth_weight > 0:
            depth = depth_loss(encoded.depth_logits, batch.gt_depth, batch.gt_depth_mask, self.config.lift)
            terms["Ldepth"] = loss.depth_weight * depth
        return terms

    def check_sampling(self, sampling: Sampling) -> None:
        super().check_sampling(sampling)
        if self.diffusion is not None and sampling.steps > self.diffusion.timesteps:
            have = self.diffusion.timesteps
            raise UserError(f"{sampling.steps} sampling steps are more than the {have} of model.diffusion.timesteps")

    @torch.no_grad()
    def segment(self, encoded: Encoded, batch: BevBatch, eval_seeds: Sequence[int], sampling: Sampling) -> Tensor:
        self.check_sampling(sampling)
        if self.diffusion is None:
            logits: Tensor = self.head(encoded.bev)
            return logits.expand(len(eval_seeds), *logits.shape)
        rows = [(seed, image) for seed in eval_seeds for image in range(len(batch))]
        maps = []
        for start in range(0, len(rows), ROWS_PER_PASS):
            part = rows[start : start + ROWS_PER_PASS]
            images = torch.tensor([image for _, image in part], device=encoded.bev.device)
            noise = KeyedRows([(seed, (batch.image_ids[image],)) for seed, image in part], images.device)
            denoised = self.diffusion.sample(encoded.condition[images], noise, sampling.steps)
            maps.append(self.head(self.diffusion.fuse(encoded.bev[images], denoised)))
        together = torch.cat(maps)
        return together.view(len(eval_seeds), len(batch), *together.shape[1:])
