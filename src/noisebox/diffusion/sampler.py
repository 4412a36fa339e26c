"""Sampling of boxes: DDIM steps with box renewal, an ensemble over the steps, and suppression of duplicates.

The sampler is given a denoiser (boxes and t in, class logits and better boxes out) and knows nothing else of the
detector. A row is one image under one eval seed; rows share nothing, so any rows may be sampled together. A proposal
keeps its place along the trajectory: renewal replaces in place, and without renewal nothing is ever permuted.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from noisebox.config import SamplerConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.errors import UserError
from noisebox.randomness import normal


class Prediction(NamedTuple):
    """What the denoiser says of N rows: `logits` (N, P, K), `boxes_xyxy` (N, P, 4) in pixels of the resized image."""

    logits: Tensor
    boxes_xyxy: Tensor


class RowKey(NamedTuple):
    """What a row's noise depends on, beside its purpose and the sampling step."""

    eval_seed: int
    image_id: int


class ScoredBoxes(NamedTuple):
    """`boxes_xyxy` (..., D, 4) in pixels of the resized image, `scores` (..., D), `labels` (..., D) int64."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor


Denoise = Callable[[Tensor, Tensor], Prediction]


def sampling_times(timesteps: int, steps: int) -> list[tuple[int, int]]:
    """The pairs (t, next t) of `steps` evenly spread DDIM steps from T - 1 down to -1, which stands for x_0.

    Raises UserError when the schedule has fewer than `steps` timesteps.
    """
    if steps > timesteps:
        raise UserError(f"{steps} sample steps do not fit a schedule of {timesteps} timesteps")
    times = [timesteps * index // steps - 1 for index in range(steps, -1, -1)]
    return list(itertools.pairwise(times))


class BoxSampler:
    """DDIM (Song et al. 2021) over boxes with the additions of DiffusionDet (Chen et al. 2023, section 3.4)."""

    def __init__(self, diffusion: GaussianDiffusion, config: SamplerConfig, num_proposals: int) -> None:
        self.diffusion = diffusion
        self.config = config
        self.num_proposals = num_proposals

    def trajectory(
        self, denoise: Denoise, keys: Sequence[RowKey], image_whwh: Tensor, steps: int
    ) -> Iterator[Prediction]:
        """The denoiser's prediction at each of `steps` steps, for N rows of images of size `image_whwh` (N, 4)."""
        alphas_cumprod = self.diffusion.alphas_cumprod.tolist()
        x_t = self._noise("sampler start", keys, 0, image_whwh)
        for step, (time, next_time) in enumerate(sampling_times(self.diffusion.timesteps, steps)):
            t = torch.full((len(keys),), time, dtype=torch.int64, device=x_t.device)
            prediction = denoise(self.diffusion.to_boxes(x_t, image_whwh), t)
            yield prediction
            if next_time < 0:
                return
            x0 = self.diffusion.clamp(self.diffusion.from_boxes(prediction.boxes_xyxy, image_whwh))
            noise = self.diffusion.predict_noise(x_t, t, x0)
            sigma = self._sigma(alphas_cumprod[time], alphas_cumprod[next_time])
            direction = math.sqrt(max(0.0, 1 - alphas_cumprod[next_time] - sigma**2))
            x_t = math.sqrt(alphas_cumprod[next_time]) * x0 + direction * noise
            if sigma > 0:
                x_t = x_t + sigma * self._noise("sampler step", keys, step, image_whwh)
            if self.config.box_renewal:
                strong = prediction.logits.sigmoid().amax(-1, keepdim=True) > self.config.renewal_threshold
                x_t = torch.where(strong, x_t, self._noise("sampler renewal", keys, step, image_whwh))

    def sample(self, denoise: Denoise, keys: Sequence[RowKey], image_whwh: Tensor, steps: int) -> list[ScoredBoxes]:
        """What is found in each of N rows: per-class NMS over the ensemble's steps, scores falling.

        `ensemble: public` leaves the last of several steps out, as the public code does.
        """
        visited = [self._strongest(prediction) for prediction in self.trajectory(denoise, keys, image_whwh, steps)]
        kept = {"all": visited, "public": visited[:-1] or visited, "none": visited[-1:]}[self.config.ensemble]
        merged = ScoredBoxes(*(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True)))
        return [self._suppress(ScoredBoxes(*row)) for row in zip(*merged, strict=True)]

    def _sigma(self, alpha_bar: float, next_alpha_bar: float) -> float:
        """The noise that a step adds anew (Song et al. 2021, equation 16)."""
        return self.config.eta * math.sqrt((1 - alpha_bar / next_alpha_bar) * (1 - next_alpha_bar) / (1 - alpha_bar))

    def _noise(self, purpose: str, keys: Sequence[RowKey], step: int, like: Tensor) -> Tensor:
        """Standard normal (N, P, 4) on the device of `like`, each row by its own key."""
        shape = (self.num_proposals, 4)
        rows = [normal(shape, key.eval_seed, purpose, key.image_id, step) for key in keys]
        return torch.stack(rows).to(like.device)

    def _strongest(self, prediction: Prediction) -> ScoredBoxes:
        """The P highest class scores of each row with their boxes; a proposal may appear under several classes."""
        num_classes = prediction.logits.shape[-1]
        scores, index = prediction.logits.sigmoid().flatten(1).topk(self.num_proposals)
        proposal = (index // num_classes)[..., None].expand(-1, -1, 4)
        return ScoredBoxes(prediction.boxes_xyxy.gather(1, proposal), scores, index % num_classes)

    def _suppress(self, row: ScoredBoxes) -> ScoredBoxes:
        # batched_nms keeps the classes apart by an offset that presumes coordinates of at least 0.
        shifted = row.boxes_xyxy - row.boxes_xyxy.min()
        kept = batched_nms(shifted, row.scores, row.labels, self.config.nms_threshold)
        return ScoredBoxes(row.boxes_xyxy[kept], row.scores[kept], row.labels[kept])
