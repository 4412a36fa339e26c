"""DiffBEV (Zou et al. 2023, arXiv 2303.08333): the BEV feature denoised under conditions, and fused back.

What is diffused is a picture of the BEV feature: pooled, each cell normalised over its channels. The U-Net and the
noise scheduler are diffusers'. Scheduler arithmetic is float32, also under autocast.
"""

import math

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from noisebox.config.bev import BevConfig, BevDiffusionConfig, DenoiserConfig
from noisebox.randomness import KeyedRows

# What the denoiser says of a normalised feature is held to this many standard deviations.
LARGEST = 3.0

# The first and the last beta of linear schedules, which are made for so many timesteps. In fewer, each must be as much
# larger: else little noise would be added in all, and sampling begin at more than training ever showed.
BETAS, MADE_FOR = (1e-4, 0.02), 1000
LARGEST_BETA = 0.999  # as in squaredcos_cap_v2


class BevDiffusion(nn.Module):
    """The denoiser, its schedule, and the attention that brings what it found back into the BEV feature."""

    def __init__(self, config: BevConfig, diffusion: BevDiffusionConfig, num_classes: int) -> None:
        super().__init__()
        self.conditions = frozenset(diffusion.conditions)
        self.timesteps, self.prediction = diffusion.timesteps, diffusion.prediction
        self.channels = config.bev_channels
        self.pool = config.denoiser.downsample
        multiple = self.pool * 2 ** (len(config.denoiser.channels) - 1)
        self.grid_hw = (config.grid.rows, config.grid.columns)
        self.latent_hw = tuple(math.ceil(side / multiple) * multiple // self.pool for side in self.grid_hw)
        channels = {"feature": config.bev_channels, "semantic": num_classes, "depth": 1}
        given = sum(channels[name] for name in self.conditions)
        self.unet = _unet(config.bev_channels, given, config.denoiser)
        first, last = (min(beta * (MADE_FOR / self.timesteps), LARGEST_BETA) for beta in BETAS)
        self.scheduler = DDIMScheduler(
            num_train_timesteps=self.timesteps,
            beta_start=first,
            beta_end=last,
            beta_schedule=diffusion.beta_schedule,
            prediction_type=self.prediction,
            clip_sample_range=LARGEST,
            # From pure noise, so that a single step begins there too.
            timestep_spacing="trailing",
        )
        self.fusion = Fusion(config.bev_channels, config.denoiser.attention_heads, self.latent_hw)

    def latent(self, bev: Tensor) -> Tensor:
        """What is diffused (B, C, h, w), of `bev` (B, C, rows, columns)."""
        pooled = self._pooled(bev).permute(0, 2, 3, 1)
        return F.layer_norm(pooled, pooled.shape[-1:]).permute(0, 3, 1, 2)

    def condition(self, bev: Tensor, semantic_logits: Tensor | None, depth_mass: Tensor | None) -> Tensor:
        """What guides the denoiser (B, channels, h, w).

        `bev`: (B, C, rows, columns). `semantic_logits`: (B, classes, rows, columns). `depth_mass`: (B, 1, rows,
        columns), the sum of depth probabilities over each cell, whose logarithm is shown. Those that are not among the
        configured conditions may be None.
        """
        shown = []
        if "feature" in self.conditions:
            shown.append(self.latent(bev))
        if "semantic" in self.conditions and semantic_logits is not None:
            shown.append(self._pooled(semantic_logits.softmax(1)))
        if "depth" in self.conditions and depth_mass is not None:
            shown.append(self._pooled(depth_mass.log1p()))
        return torch.cat(shown, dim=1)

    def learn(self, bev: Tensor, condition: Tensor, noise: KeyedRows) -> tuple[Tensor, Tensor]:
        """One step of training at a random time: the denoised feature (B, C, h, w), and the mean squared error of what
        the denoiser predicts (for the noise, Ho et al. 2020, equation 14).

        `bev`: (B, C, rows, columns); `condition`: (B, channels, h, w); `noise`: a row for each image. The denoiser
        learns the feature as it is: its error moves no weight of what made the feature, other than by the condition.
        """
        clean = self.latent(bev.detach())
        t = (noise.uniform("timestep", ()).double() * self.timesteps).long()
        added = noise.normal("bev noise", clean.shape[1:])
        noisy = self.scheduler.add_noise(clean, added, t)
        predicted = self._predict(noisy, condition, t)
        targets = {"epsilon": added, "sample": clean, "v_prediction": self.scheduler.get_velocity(clean, added, t)}
        return self.clean_estimate(noisy, predicted, t), F.mse_loss(predicted, targets[self.prediction])

    def clean_estimate(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean feature (N, C, h, w) that a prediction for `noisy` at times `t` (N,) means, held to LARGEST."""
        signal: Tensor = self.scheduler.alphas_cumprod.to(t.device)[t][:, None, None, None]
        if self.prediction == "epsilon":
            estimate = (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()
        elif self.prediction == "v_prediction":
            estimate = signal.sqrt() * noisy - (1 - signal).sqrt() * predicted
        else:
            estimate = predicted
        return estimate.clamp(-LARGEST, LARGEST)

    def sample(self, condition: Tensor, noise: KeyedRows, steps: int) -> Tensor:
        """The denoised feature (N, C, h, w) after `steps` steps of DDIM (Song et al. 2021, eta 0) from pure noise.

        `condition`: (N, channels, h, w); `noise`: a row for each.
        """
        self.scheduler.set_timesteps(steps)
        x = estimate = noise.normal("bev noise", (self.channels, *self.latent_hw))
        for t in self.scheduler.timesteps.tolist():
            predicted = self._predict(x, condition, torch.full((len(x),), t, device=x.device))
            x, estimate = self.scheduler.step(predicted, t, x, return_dict=False)
        return estimate

    def fuse(self, bev: Tensor, denoised: Tensor) -> Tensor:
        """`bev` (N, C, rows, columns) and what attention finds for it in `denoised` (N, C, h, w), which is nothing at
        first."""
        found = F.interpolate(
            self.fusion(self.latent(bev), denoised), scale_factor=self.pool, mode="bilinear", align_corners=False
        )
        return bev + found[..., : self.grid_hw[0], : self.grid_hw[1]]

    def _predict(self, noisy: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = self.unet(torch.cat((noisy, condition), dim=1), t, return_dict=False)[0]
        return predicted.float()

    def _pooled(self, maps: Tensor) -> Tensor:
        """Maps of the grid (B, channels, rows, columns) as (B, channels, h, w), 0 beyond the grid."""
        height, width = (side * self.pool for side in self.latent_hw)
        return F.avg_pool2d(F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2])), self.pool)


class Fusion(nn.Module):
    """Cross-attention: each cell of the BEV feature asks all cells of the denoised one, both knowing their places.

    The last layer is zero at first, so that adding its output to a trained model changes nothing.
    """

    places: Tensor

    def __init__(self, channels: int, heads: int, latent_hw: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.output = nn.Conv2d(channels, channels, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)
        places = get_2d_sincos_pos_embed(channels, latent_hw, base_size=latent_hw[0])
        self.register_buffer("places", places.float(), persistent=False)

    def forward(self, bev: Tensor, denoised: Tensor) -> Tensor:
        """(N, C, h, w) from two of that shape."""
        asking, asked = (maps.flatten(2).transpose(1, 2) for maps in (bev, denoised))
        found, _ = self.attention(asking + self.places, asked + self.places, asked, need_weights=False)
        output: Tensor = self.output(found.transpose(1, 2).reshape(bev.shape))
        return output.float()


def _unet(channels: int, condition_channels: int, config: DenoiserConfig) -> UNet2DModel:
    """Convolutions at every scale, self-attention at the coarsest; the conditions enter beside the noisy feature."""
    scales = len(config.channels)
    return UNet2DModel(
        in_channels=channels + condition_channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",) * scales,
        up_block_types=("UpBlock2D",) * scales,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        norm_num_groups=math.gcd(32, *config.channels),
        attention_head_dim=math.gcd(32, config.channels[-1]),
    )
