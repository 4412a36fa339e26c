"""Categorical diffusion of labels (D3PM, Austin et al. 2021): transitions, marginals, the posterior, and keyed draws.

There are K + 1 states: K classes and, numbered K, the mask or background. A step keeps a label with probability
1 - beta_t and draws it anew from the kernel's resting distribution pi otherwise: always state K (`mask`, absorbing), or
any state alike (`uniform`). From any time s to any later t, with keep = alphas_cumprod[t] / alphas_cumprod[s],

    Q = keep · I + (1 - keep) · 1 piᵀ,

because products of such matrices have that form again; so applying Q takes no matrix. The betas are those of the boxes:
labels and boxes lose their signal together. Time -1 stands for x_0.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.diffusion.gaussian import cosine_betas

# Draws compare whole numbers of this unit; it is finer than the 2**-24 between uniforms.
DRAW_UNIT = 2.0**-40


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (...) int64 from 0 to K as the distributions (..., K + 1) float32 that are sure of them."""
    return F.one_hot(labels, num_classes + 1).float()


def sample(distribution: Tensor, uniforms: Tensor) -> Tensor:
    """Labels (...) int64 drawn from `distribution` (..., C) by its inverse cumulative function at `uniforms` (...).

    Uniforms lie in [0, 1). Sums of whole numbers are exact, so a draw is the same on every device and in every batch,
    and a state without probability is never drawn.
    """
    cumulative = (distribution.double() / DRAW_UNIT).round().long().cumsum(-1)
    drawn = (uniforms.double() * cumulative[..., -1]).floor().long()
    return torch.searchsorted(cumulative, drawn[..., None], right=True)[..., 0]


class CategoricalDiffusion(nn.Module):
    """The process over K + 1 states. Times are tensors (), or (N,) for x of shape (N, P, K + 1), from -1 to T - 1."""

    betas: Tensor
    alphas_cumprod: Tensor
    resting: Tensor

    def __init__(self, timesteps: int, num_classes: int, kernel: Literal["mask", "uniform"]) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.num_classes = num_classes
        states = num_classes + 1
        alike = torch.full((states,), 1 / states, dtype=torch.float64)
        resting = alike if kernel == "uniform" else F.one_hot(torch.tensor(num_classes), states).double()
        betas = cosine_betas(timesteps)
        self.register_buffer("betas", betas, persistent=False)
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0), persistent=False)
        self.register_buffer("resting", resting, persistent=False)

    def one_step(self, t: Tensor) -> Tensor:
        """Q_t (..., K + 1, K + 1) float64 from t - 1 to t; row: the earlier state (the paper's section 3.1)."""
        return self._matrix(1 - self.betas[t])

    def transition(self, s: Tensor, t: Tensor) -> Tensor:
        """Q (..., K + 1, K + 1) float64 from s to t ≥ s: the product of the one-step matrices s + 1 … t."""
        return self._matrix(self._keep(s, t))

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0) for distributions x_0 (N, P, K + 1), a known label being a one-hot (the paper's equation 3)."""
        keep = self._keep(torch.full_like(t, -1), t)[..., None, None]
        return keep.to(x0) * x0 + ((1 - keep) * self.resting).to(x0)

    def posterior(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_s | x_t, x_0) at a time s ≤ t, for distributions x_t and x_0 (N, P, K + 1).

        One-hots give Bayes' rule (the paper's equation 3). A model's p(x_0 | x_t) as x_0 gives its reverse step, the
        normalised sum over x_0 of q(x_s, x_t | x_0) p(x_0 | x_t) (equation 4). A distribution over x_t gives the
        expectation over it. An x_t that x_0 does not allow stays as it is, which is the limit for a vanishing doubt
        about x_0.
        """
        # q(x_s) q(x_t | x_s) / q(x_t), where q(x_t | x_s) is keep + (1 - keep) pi for equal states and (1 - keep) pi
        # for others. Each of the quotients below is bounded; q(x_t) is 0 only where pi is.
        keep = self._keep(s, t)[..., None, None]
        resting = self.resting.to(x0)
        q_s, q_t = self.marginal(x0, s), self.marginal(x0, t)
        allowed = q_t >= torch.finfo(q_t.dtype).tiny
        stays = torch.where(allowed, keep.to(x0) * q_s / q_t, 1)
        jumps = (1 - keep).to(x0) * torch.where(resting > 0, resting / q_t, 0)
        return x_t * stays + (x_t * jumps).sum(-1, keepdim=True) * q_s

    def _keep(self, s: Tensor, t: Tensor) -> Tensor:
        """The probability that no step from s to t draws anew, float64."""
        signal_s, signal_t = (torch.where(time < 0, 1, self.alphas_cumprod[time]) for time in (s, t))
        return signal_t / signal_s

    def _matrix(self, keep: Tensor) -> Tensor:
        keep = keep[..., None, None]
        return keep * torch.eye(self.num_classes + 1, dtype=keep.dtype, device=keep.device) + (1 - keep) * self.resting
