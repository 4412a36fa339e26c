"""Gaussian diffusion of boxes: the cosine schedule, q(x_t | x_0) and its inversions, and the space boxes are noised in.

In that space a box is (cx, cy, w, h) relative to its image, mapped from [0, 1] to [-scale, scale]; `scale` sets the
signal-to-noise ratio (DiffusionDet, Chen et al. 2023, section 3.3).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert


def cosine_betas(timesteps: int, offset: float = 0.008) -> Tensor:
    """The `timesteps` noise variances (T,) float64, at most 0.999 (Nichol and Dhariwal 2021, equation 17)."""
    progress = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((progress + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)


class GaussianDiffusion(nn.Module):
    """The forward process over x of shape (N, P, D), with t (N,) int64 counted from 0 (least noise) to T - 1.

    `sigmas`, one for each of the D coordinates or one for all, make the noise anisotropic: coordinate d of x_t has
    sqrt(1 - alpha_bar) · sigma_d of noise. What is called noise below is standard normal whatever the sigmas.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sigmas: Tensor

    def __init__(self, timesteps: int, scale: float, sigmas: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.scale = scale
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float64), persistent=False)
        betas = cosine_betas(timesteps)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0), persistent=False)
        self.alpha_bars: list[float] = self.alphas_cumprod.tolist()  # the same without a wait for the device

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t given x_0 and standard normal noise (Ho et al. 2020, equation 4)."""
        signal, sigma = self._weights(t, x0.dtype)
        return signal * x0 + sigma * noise

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio of each coordinate at t, (N, D) float64: alpha_bar / ((1 - alpha_bar) sigma_d²)."""
        alpha_bar = self.alphas_cumprod[t][:, None]
        return alpha_bar / ((1 - alpha_bar) * self.sigmas**2)

    def predict_noise(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        signal, sigma = self._weights(t, x_t.dtype)
        return (x_t - signal * x0) / sigma

    def predict_x0(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_0 from which `noise` leads to x_t."""
        signal, sigma = self._weights(t, x_t.dtype)
        return (x_t - sigma * noise) / signal

    def _weights(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """How much of x_0 and how much noise is in x_t: (N, 1, 1) and (N, 1, D), rounded once from float64."""
        alpha_bar = self.alphas_cumprod[t][:, None, None]
        return alpha_bar.sqrt().to(dtype), ((1 - alpha_bar).sqrt() * self.sigmas).to(dtype)

    def clamp(self, x: Tensor) -> Tensor:
        """x within [-scale, scale]: box centres within the image, sizes between nothing and the whole image."""
        return x.clamp(-self.scale, self.scale)

    def from_boxes(self, boxes_xyxy: Tensor, image_whwh: Tensor) -> Tensor:
        """Boxes (N, P, 4) in pixels of images of size (N, 4) as x, not clamped."""
        relative: Tensor = box_convert(boxes_xyxy / image_whwh[:, None], "xyxy", "cxcywh")
        return (relative * 2 - 1) * self.scale

    def to_boxes(self, x: Tensor, image_whwh: Tensor) -> Tensor:
        """x (N, P, 4), clamped, as boxes (x1, y1, x2, y2) in pixels of images of size (N, 4)."""
        relative: Tensor = box_convert((self.clamp(x) / self.scale + 1) / 2, "cxcywh", "xyxy")
        return relative * image_whwh[:, None]
