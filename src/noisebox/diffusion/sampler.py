"""Sampling of boxes: DDIM steps with box renewal, quality guidance, an ensemble over the steps, and suppression of
duplicates.

The sampler is given a denoiser (boxes, t and labels in, class logits and better boxes out) and knows nothing else of
the detector. A row is one image under one eval seed; rows share nothing, so any rows may be sampled together. A
proposal keeps its place along the trajectory: renewal replaces in place, and without renewal nothing is ever permuted.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from noisebox.config import GuidanceConfig, Sampling
from noisebox.config.diffusiondet import DiffusionDetConfig, SamplerConfig
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.diffusion.labels import LabelProcess, label_process
from noisebox.diffusion.suppression import kept_boxes
from noisebox.errors import UserError
from noisebox.randomness import KeyedRows, NoiseRows

NO_QUALITY_HEAD = (
    "quality guidance needs a detector with a quality head, which this one lacks: train it with a recipe that sets "
    "model.quality_head, such as qhead, or leave the guidance scale at 0"
)


class Prediction(NamedTuple):
    """What the denoiser says of N rows: `logits` (N, P, K), `boxes_xyxy` (N, P, 4) in pixels of the resized image, and
    with a quality head `quality` (N, P), the logit of each box's IoU with its object."""

    logits: Tensor
    boxes_xyxy: Tensor
    quality: Tensor | None = None


class RowKey(NamedTuple):
    """What a row's noise depends on, beside its purpose and the sampling step."""

    eval_seed: int
    image_id: int


class Noisy(NamedTuple):
    """Where N rows of P proposals are on their way: boxes `x_t` (N, P, 4) in the space of the diffusion and, where
    proposals carry labels, their state `labels` (N, P, K + 1)."""

    x_t: Tensor
    labels: Tensor | None = None


class ScoredBoxes(NamedTuple):
    """`boxes_xyxy` (..., D, 4) in pixels of the resized image, `scores` (..., D), `labels` (..., D) int64."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor


# Noisy boxes (N, P, 4) in pixels, times t (N,) and, where proposals carry labels, their state (N, P, K + 1).
Denoise = Callable[[Tensor, Tensor, Tensor | None], Prediction]


def sampling_times(timesteps: int, steps: int) -> list[tuple[int, int]]:
    """The pairs (t, next t) of `steps` evenly spread DDIM steps from T - 1 down to -1, which stands for x_0.

    Raises UserError when the schedule has fewer than `steps` timesteps.
    """
    if steps > timesteps:
        raise UserError(f"{steps} sample steps do not fit a schedule of {timesteps} timesteps")
    times = [timesteps * index // steps - 1 for index in range(steps, -1, -1)]
    return list(itertools.pairwise(times))


class BoxSampler:
    """DDIM (Song et al. 2021) over boxes with the additions of DiffusionDet (Chen et al. 2023, section 3.4), and beside
    each box, where `labels` is given, the diffusion of its label."""

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        config: SamplerConfig,
        num_proposals: int,
        labels: LabelProcess | None = None,
    ) -> None:
        self.diffusion = diffusion
        self.config = config
        self.num_proposals = num_proposals
        self.labels = labels

    def trajectory(
        self, denoise: Denoise, keys: Sequence[RowKey], image_whwh: Tensor, sampling: Sampling
    ) -> Iterator[Prediction]:
        """The denoiser's prediction at each step, for N rows of images of size `image_whwh` (N, 4).

        Guidance needs a denoiser that predicts the quality. No gradient passes from one step to the next.
        """
        noisy = self.start(self.noise(keys, 0, image_whwh.device))
        for step, times in enumerate(sampling_times(self.diffusion.timesteps, sampling.steps)):
            t = torch.full((len(keys),), times[0], dtype=torch.int64, device=image_whwh.device)
            noisy = self.guided(denoise, noisy, t, times, image_whwh, sampling.guidance)
            prediction = denoise(self.diffusion.to_boxes(noisy.x_t, image_whwh), t, noisy.labels)
            yield prediction
            if times[1] < 0:
                return
            x0 = self.diffusion.from_boxes(prediction.boxes_xyxy.detach(), image_whwh)
            noise = self.noise(keys, step, image_whwh.device)
            noisy = self.step(noisy, x0, prediction.logits.detach(), times, noise)

    def noise(self, keys: Sequence[RowKey], step: int, device: torch.device) -> KeyedRows:
        """The noise of the rows at a sampling step, counted from 0; the start's is that of step 0."""
        return KeyedRows([(key.eval_seed, (key.image_id, step)) for key in keys], device)

    def start(self, noise: NoiseRows) -> Noisy:
        """What sampling starts from."""
        x_t = self._gaussian(noise, "sampler start")
        return Noisy(x_t, self.labels.start(self.num_proposals, noise) if self.labels else None)

    def step(self, noisy: Noisy, x0: Tensor, logits: Tensor, times: tuple[int, int], noise: NoiseRows) -> Noisy:
        """From the first of `times` to the second, which is earlier, or -1 for x_0.

        `x0` (N, P, 4), not clamped, and the class `logits` (N, P, K) are what the denoiser says of `noisy`. With box
        renewal, proposals without a strong class start anew, but for the step to x_0.
        """
        time, next_time = times
        x_t, labels = self._ddim_step(noisy.x_t, self.diffusion.clamp(x0), times, noise), noisy.labels
        if self.labels and labels is not None:
            labels = self.labels.advance(labels, logits, time, next_time, noise)
        if self.config.box_renewal and next_time >= 0:
            strong = logits.sigmoid().amax(-1, keepdim=True) > self.config.renewal_threshold
            x_t = torch.where(strong, x_t, self._gaussian(noise, "sampler renewal"))
            if self.labels and labels is not None:
                labels = torch.where(strong, labels, self.labels.start(self.num_proposals, noise, "label renewal"))
        return Noisy(x_t, labels)

    def sample(
        self, denoise: Denoise, keys: Sequence[RowKey], image_whwh: Tensor, sampling: Sampling
    ) -> list[ScoredBoxes]:
        """What is found in each of N rows, on the CPU: per-class NMS over the ensemble's steps, scores falling.

        `ensemble: public` leaves the last of several steps out, as the public code does.
        """
        trajectory = self.trajectory(denoise, keys, image_whwh, sampling)
        return self.merged([self.strongest(prediction) for prediction in trajectory])

    def merged(self, visited: Sequence[ScoredBoxes]) -> list[ScoredBoxes]:
        """What `sample` finds, of the `strongest` of each step."""
        kept = {"all": visited, "public": visited[:-1] or visited, "none": visited[-1:]}[self.config.ensemble]
        merged = ScoredBoxes(*(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True)))
        if merged.scores.is_cuda:
            return self._suppress_together(merged)
        return [self._suppress(ScoredBoxes(*row)) for row in zip(*merged, strict=True)]

    def _ddim_step(self, x_t: Tensor, x0: Tensor, times: tuple[int, int], noise: NoiseRows) -> Tensor:
        """x at the second of `times`, from x_t at the first: the predicted x_0 and the noise that it implies, and new
        noise as `eta` says (Song et al. 2021, equations 12 and 16)."""
        time, next_time = times
        if next_time < 0:
            return x0
        alpha_bar, next_alpha_bar = self.diffusion.alpha_bars[time], self.diffusion.alpha_bars[next_time]
        fresh = self.config.eta * math.sqrt((1 - alpha_bar / next_alpha_bar) * (1 - next_alpha_bar) / (1 - alpha_bar))
        direction = math.sqrt(max(0.0, 1 - next_alpha_bar - fresh**2))
        t = torch.full((len(x_t),), time, device=x_t.device)
        implied = self.diffusion.sigmas.to(x_t.dtype) * self.diffusion.predict_noise(x_t, t, x0)
        x_next = math.sqrt(next_alpha_bar) * x0 + direction * implied
        return x_next + fresh * self._gaussian(noise, "sampler step") if fresh > 0 else x_next

    def guided(
        self,
        denoise: Denoise,
        noisy: Noisy,
        t: Tensor,
        times: tuple[int, int],
        image_whwh: Tensor,
        guidance: GuidanceConfig,
    ) -> Noisy:
        """The rows where the guidance of the step between `times` has led them, if it guides there; `t` (N,) is the
        first of these."""
        if guidance.scale == 0 or (guidance.mode == "final" and times[1] >= 0):
            return noisy
        return noisy._replace(x_t=self._climb(denoise, noisy.x_t, t, noisy.labels, image_whwh, guidance))

    def _climb(
        self,
        denoise: Denoise,
        x_t: Tensor,
        t: Tensor,
        state: Tensor | None,
        image_whwh: Tensor,
        guidance: GuidanceConfig,
    ) -> Tensor:
        """x_t moved uphill on the log of the predicted quality: Langevin steps without their noise, because the best
        box is wanted and not a sample."""
        for _ in range(guidance.langevin_steps):
            with torch.enable_grad():
                x = x_t.detach().requires_grad_()
                prediction = denoise(self.diffusion.to_boxes(x, image_whwh), t, state)
                if prediction.quality is None:
                    raise UserError(NO_QUALITY_HEAD)
                (gradient,) = torch.autograd.grad(F.logsigmoid(prediction.quality).sum(), x)
            if guidance.normalise:
                gradient = F.normalize(gradient, dim=-1)
            if guidance.topk is not None:
                scores = prediction.logits.detach().amax(-1)
                best = scores.topk(min(guidance.topk, self.num_proposals)).indices
                gradient = gradient * torch.zeros_like(scores).scatter_(-1, best, 1.0)[..., None]
            x_t = x_t + guidance.scale * gradient
        return x_t

    def _gaussian(self, noise: NoiseRows, purpose: str) -> Tensor:
        """Noise (N, P, 4) with the standard deviations of the diffusion."""
        return noise.normal(purpose, (self.num_proposals, 4)) * self.diffusion.sigmas.float()

    def strongest(self, prediction: Prediction) -> ScoredBoxes:
        """The P highest class scores of each row with their boxes; a proposal may appear under several classes."""
        num_classes = prediction.logits.shape[-1]
        scores, index = prediction.logits.sigmoid().flatten(1).topk(self.num_proposals)
        proposal = (index // num_classes)[..., None].expand(-1, -1, 4)
        return ScoredBoxes(prediction.boxes_xyxy.gather(1, proposal), scores, index % num_classes)

    def _suppress(self, row: ScoredBoxes) -> ScoredBoxes:
        # batched_nms keeps the classes apart by an offset that presumes coordinates of at least 0; of many classes, or
        # far boxes, float32 would lose the boxes' own digits in it.
        shifted = row.boxes_xyxy.double() - row.boxes_xyxy.min()
        kept = batched_nms(shifted, row.scores.double(), row.labels, self.config.nms_threshold)
        return ScoredBoxes(row.boxes_xyxy[kept], row.scores[kept], row.labels[kept])

    def _suppress_together(self, rows: ScoredBoxes) -> list[ScoredBoxes]:
        """As `_suppress` of each row, but the host waits for the GPU a few times only, not for every row."""
        scores, order = rows.scores.sort(dim=1, descending=True, stable=True)
        boxes_xyxy = rows.boxes_xyxy.gather(1, order[..., None].expand(-1, -1, 4))
        labels = rows.labels.gather(1, order)
        kept = kept_boxes(boxes_xyxy, labels, self.config.nms_threshold)
        counts = kept.sum(1).tolist()
        parts = (torch.split(part[kept].cpu(), counts) for part in (boxes_xyxy, scores, labels))
        return [ScoredBoxes(*row) for row in zip(*parts, strict=True)]


def box_sampler(config: DiffusionDetConfig, num_classes: int) -> BoxSampler:
    """The sampler that a model's configuration asks for, with processes of its own for boxes and labels."""
    sigmas = (1.0, 1.0, config.aniso_noise.sigma_w, config.aniso_noise.sigma_h)
    diffusion = GaussianDiffusion(config.timesteps, config.snr_scale, sigmas)
    return BoxSampler(diffusion, config.sampler, config.num_proposals, label_process(config, num_classes))
