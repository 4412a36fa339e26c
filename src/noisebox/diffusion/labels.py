"""What each proposal carries as its label, in training and from step to step of sampling.

A label state (N, P, K + 1) float32 weighs the embeddings of K classes and of state K (no object, or the mask): one-hot
for a label, a distribution for a belief, any real numbers for the Gaussian process. How it comes about depends on the
purpose alone (`noised` in training, `start` and `advance` in sampling), never on a module's mode.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from noisebox.config.diffusiondet import DiffusionDetConfig
from noisebox.diffusion.categorical import CategoricalDiffusion, one_hot, sample
from noisebox.diffusion.gaussian import GaussianDiffusion
from noisebox.randomness import NoiseRows


def distribution_of(logits: Tensor) -> Tensor:
    """Sigmoid class logits (..., K) as distributions (..., K + 1) float32, detached.

    Classes keep their sigmoids while these sum to at most 1, and share the whole in proportion otherwise; state K gets
    what is left.
    """
    scores = logits.detach().float().sigmoid()
    classes = scores / scores.sum(-1, keepdim=True).clamp(min=1)
    return torch.cat((classes, (1 - classes.sum(-1, keepdim=True)).clamp(min=0)), dim=-1)


class LabelProcess(nn.Module, ABC):
    """How label states begin, are noised, and follow the head's predictions; without parameters.

    `noise` is that of the N rows. In sampling each step has its own.
    """

    # Whether training makes the state from the head's own first answer, by `advance`.
    self_conditioned: bool = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def start(self, proposals: int, noise: NoiseRows, purpose: str = "label start") -> Tensor:
        """The state of new proposals, which know nothing yet: (N, proposals, K + 1)."""

    @abstractmethod
    def noised(self, labels: Tensor, t: Tensor, noise: NoiseRows) -> Tensor:
        """The training state at times t (N,) of `labels` (N, P) int64, K for a proposal that belongs to no object."""

    @abstractmethod
    def advance(self, state: Tensor, logits: Tensor, t: int, next_t: int, noise: NoiseRows) -> Tensor:
        """The state at `next_t` < `t` (-1: x_0), given that at `t` and the head's class `logits` (N, P, K) there."""


class SelfConditionedLabels(LabelProcess):
    """The class that the head is surest of and holds likelier than not, else state K (self-conditioning: Chen et al.
    2023, Analog Bits, section 3.2)."""

    self_conditioned = True

    def start(self, proposals: int, noise: NoiseRows, purpose: str = "label start") -> Tensor:
        unknown = torch.full((len(noise), proposals), self.num_classes, device=noise.device)
        return one_hot(unknown, self.num_classes)

    def noised(self, labels: Tensor, t: Tensor, noise: NoiseRows) -> Tensor:
        return self.start(labels.shape[1], noise)

    def advance(self, state: Tensor, logits: Tensor, t: int, next_t: int, noise: NoiseRows) -> Tensor:
        score, label = logits.detach().sigmoid().max(-1)
        return one_hot(torch.where(score > 0.5, label, self.num_classes), self.num_classes)


class CategoricalLabels(LabelProcess):
    """D3PM (Austin et al. 2021). States are drawn labels; with `carry_distribution`, sampling carries their
    distribution instead, and with `expected_training` so does training."""

    def __init__(self, diffusion: CategoricalDiffusion, carry_distribution: bool, expected_training: bool) -> None:
        super().__init__(diffusion.num_classes)
        self.diffusion = diffusion
        self.carry_distribution = carry_distribution
        self.expected_training = expected_training

    def start(self, proposals: int, noise: NoiseRows, purpose: str = "label start") -> Tensor:
        resting = self.diffusion.resting.float().repeat(len(noise), proposals, 1)
        return resting if self.carry_distribution else self._drawn(resting, noise, purpose)

    def noised(self, labels: Tensor, t: Tensor, noise: NoiseRows) -> Tensor:
        marginal = self.diffusion.marginal(one_hot(labels, self.num_classes), t)
        return marginal if self.expected_training else self._drawn(marginal, noise, "label noise")

    def advance(self, state: Tensor, logits: Tensor, t: int, next_t: int, noise: NoiseRows) -> Tensor:
        times = (torch.full((), time, device=state.device) for time in (t, next_t))
        earlier = self.diffusion.posterior(state, distribution_of(logits), *times)
        return earlier if self.carry_distribution else self._drawn(earlier, noise, "label step")

    def _drawn(self, distribution: Tensor, noise: NoiseRows, purpose: str) -> Tensor:
        labels = sample(distribution, noise.uniform(purpose, (distribution.shape[1],)))
        return one_hot(labels, self.num_classes)


class GaussianLabels(LabelProcess):
    """Distributions over x_0, mapped to [-scale, scale] as the boxes are, under Gaussian diffusion; DDIM steps without
    new noise (Song et al. 2021, equation 12)."""

    def __init__(self, diffusion: GaussianDiffusion, num_classes: int) -> None:
        super().__init__(num_classes)
        self.diffusion = diffusion

    def start(self, proposals: int, noise: NoiseRows, purpose: str = "label start") -> Tensor:
        return noise.normal(purpose, (proposals, self.num_classes + 1))

    def noised(self, labels: Tensor, t: Tensor, noise: NoiseRows) -> Tensor:
        x0 = self._mapped(one_hot(labels, self.num_classes))
        return self.diffusion.q_sample(x0, t, noise.normal("label noise", tuple(x0.shape[1:])))

    def advance(self, state: Tensor, logits: Tensor, t: int, next_t: int, noise: NoiseRows) -> Tensor:
        x0 = self._mapped(distribution_of(logits))
        if next_t < 0:
            return x0
        now, then = (torch.full((len(state),), time, device=state.device) for time in (t, next_t))
        return self.diffusion.q_sample(x0, then, self.diffusion.predict_noise(state, now, x0))

    def _mapped(self, distribution: Tensor) -> Tensor:
        return (distribution * 2 - 1) * self.diffusion.scale


def label_process(config: DiffusionDetConfig, num_classes: int) -> LabelProcess | None:
    """The process that the switches of `config` ask for; None without a label state."""
    if not config.label_state:
        return None
    if not config.label_d3pm:
        return SelfConditionedLabels(num_classes)
    if config.label_kernel == "gaussian":
        return GaussianLabels(GaussianDiffusion(config.timesteps, config.snr_scale), num_classes)
    diffusion = CategoricalDiffusion(config.timesteps, num_classes, config.label_kernel)
    return CategoricalLabels(diffusion, config.use_distribution, config.label_training == "expected")
