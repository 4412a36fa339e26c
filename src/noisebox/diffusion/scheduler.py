"""The diffusion of boxes and labels as a scheduler of Diffusers; its steps are those of `BoxSampler`.

Only who wants Diffusers' interface imports this: trainings and evaluations go without the seconds that it takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from noisebox.config.diffusiondet import DiffusionDetConfig
from noisebox.config.section import check_section
from noisebox.diffusion.sampler import Noisy, box_sampler, sampling_times
from noisebox.errors import UserError
from noisebox.randomness import NoiseRows

Generators = torch.Generator | Sequence[torch.Generator]


class GeneratorRows(NoiseRows):
    """Noise for N rows that a caller's generators draw, one after the other: one generator for all rows, or one for
    each. What a draw is for does not matter."""

    def __init__(self, generators: Generators | None, rows: int, device: torch.device | str) -> None:
        """Without generators nothing can be drawn. Raises UserError when there are neither one nor `rows` of them."""
        self.generators = generators
        self.rows = rows
        self.device = device
        if isinstance(generators, Sequence) and len(generators) != rows:
            raise UserError(f"generator= is a list of {len(generators)} for {rows} images: give one, or one per image")

    def __len__(self) -> int:
        return self.rows

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return self._drawn(torch.randn, shape)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return self._drawn(torch.rand, shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        given = self.generators
        if given is None:
            raise UserError("noise is drawn here: give generator=, a torch.Generator, or noise= of your own")
        if isinstance(given, torch.Generator):
            return draw((self.rows, *shape), generator=given, device=given.device).to(self.device)
        return torch.stack([draw(shape, generator=each, device=each.device).to(self.device) for each in given])


@dataclass
class HybridSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """`prev_sample` (N, P, 4): the boxes one step on, in the space of the diffusion; `prev_label_state` (N, P, K + 1)
    or None: their labels; `pred_original_sample` (N, P, 4): the clamped x_0 of the step."""

    prev_sample: Tensor
    prev_label_state: Tensor | None
    pred_original_sample: Tensor


class HybridDiffusionScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DDIM over boxes, and beside each box, where `label_state` is on, the diffusion of its label (D3PM or Gaussian).

    The settings are those of `DiffusionDetConfig` and its sections `sampler` and `aniso_noise`, under these names;
    `num_train_timesteps` is its `timesteps`. Boxes are diffused as (cx, cy, w, h) mapped to [-snr_scale, snr_scale]:
    `from_boxes` and `to_boxes` lead there and back. The prediction type is x_0.

    Raises UserError, naming the key, when the settings do not fit each other.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        num_proposals: int = 500,
        num_classes: int = 1,
        snr_scale: float = 2.0,
        sigma_w: float = 1.0,
        sigma_h: float = 1.0,
        eta: float = 1.0,
        box_renewal: bool = True,
        renewal_threshold: float = 0.5,
        ensemble: str = "all",
        nms_threshold: float = 0.5,
        label_state: bool = False,
        label_d3pm: bool = False,
        label_kernel: str = "mask",
        use_distribution: bool = False,
        label_training: str = "sampled",
    ) -> None:
        given = {**self.config, "timesteps": num_train_timesteps}
        model: dict[str, Any] = {key: given[key] for key in _OWN}
        model["sampler"] = {key: given[key] for key in _SAMPLER}
        model["aniso_noise"] = {"sigma_w": sigma_w, "sigma_h": sigma_h}
        settings = check_section(DiffusionDetConfig, model, Path(type(self).__name__))
        self.sampler = box_sampler(settings, num_classes)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._next: dict[int, int] = {time: time - 1 for time in range(num_train_timesteps)}

    @classmethod
    def of_model(cls, config: DiffusionDetConfig, num_classes: int) -> Self:
        """The scheduler that samples as a detector of this configuration does."""
        given = config.model_dump(mode="json")
        settings = {key: given[key] for key in _OWN if key != "timesteps"} | given["sampler"] | given["aniso_noise"]
        scheduler: Self = cls(num_train_timesteps=config.timesteps, num_classes=num_classes, **settings)
        return scheduler

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> Tensor:
        """What standard normal noise is multiplied by at the start: the deviations of cx, cy, w, h, or one for all."""
        return self.sampler.diffusion.sigmas.float()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Spread so many steps over the schedule, from its last time on; the step after the last leads to x_0.

        Raises UserError when the schedule has not so many times.
        """
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps must be 1 or more, not {num_inference_steps}")
        times = sampling_times(len(self), num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor([time for time, _ in times], device=device)
        self._next = dict(times)

    def times(self, timestep: int | Tensor) -> tuple[int, int]:
        """A time of `timesteps` and the one after it, -1 after the last. Raises UserError for any other time."""
        time = int(timestep)
        if time not in self._next:
            raise UserError(f"timestep {time} is none of the scheduler's: call set_timesteps, then take its timesteps")
        return time, self._next[time]

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample as it is: this schedule preserves the variance."""
        return sample

    def from_boxes(self, boxes_xyxy: Tensor, image_whwh: Tensor) -> Tensor:
        """Boxes (N, P, 4) in pixels of images of size (N, 4) in the space of the diffusion, not clamped."""
        return self.sampler.diffusion.from_boxes(boxes_xyxy, image_whwh)

    def to_boxes(self, sample: Tensor, image_whwh: Tensor) -> Tensor:
        """A sample (N, P, 4), clamped, as boxes (x1, y1, x2, y2) in pixels of images of size (N, 4)."""
        return self.sampler.diffusion.to_boxes(sample, image_whwh)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (N, P, 4) at `timesteps` (N,) of x_0 and standard normal noise (Ho et al. 2020, equation 4)."""
        self._move(original_samples.device)
        return self.sampler.diffusion.q_sample(original_samples, timesteps, noise)

    def add_label_noise(
        self, labels: Tensor, timesteps: Tensor, generator: Generators | None = None, noise: NoiseRows | None = None
    ) -> Tensor:
        """The state (N, P, K + 1) at `timesteps` (N,) of `labels` (N, P) int64, K for a proposal without an object.

        Raises UserError without a label state.
        """
        if self.sampler.labels is None:
            raise UserError("add_label_noise needs a scheduler with label_state=True")
        self._move(labels.device)
        rows = GeneratorRows(generator, len(labels), labels.device) if noise is None else noise
        return self.sampler.labels.noised(labels, timesteps, rows)

    def start(self, noise: NoiseRows) -> Noisy:
        """What sampling starts from: boxes, and with a label state the state of labels that nothing is known of."""
        self._move(noise.device)
        return self.sampler.start(noise)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        logits: Tensor | None = None,
        label_state: Tensor | None = None,
        generator: Generators | None = None,
        noise: NoiseRows | None = None,
        return_dict: bool = True,
    ) -> HybridSchedulerOutput | tuple[Any, ...]:
        """One step of DDIM from `timestep`: boxes, labels, and renewal of proposals that found nothing.

        `model_output` (N, P, 4) is the predicted x_0, `sample` x_t. Class `logits` (N, P, K) are what box renewal and
        labels go by; `label_state` (N, P, K + 1) is the state at `timestep`. New noise comes of `generator`, one or a
        list of N, or of `noise`. The step after the last time leads to x_0 itself.

        Raises UserError when one of these is missing or does not fit.
        """
        times = self.times(timestep)
        if sample.shape[1] != self.sampler.num_proposals:
            raise UserError(f"the sample has {sample.shape[1]} proposals, the scheduler {self.sampler.num_proposals}")
        if logits is None and (self.config.box_renewal or label_state is not None):
            raise UserError("box renewal and labels go by class scores: give logits=, or set box_renewal to False")
        if (label_state is None) != (self.sampler.labels is None):
            raise UserError("label_state= goes with a scheduler that has label_state=True, and only with such a one")
        self._move(sample.device)
        rows = GeneratorRows(generator, len(sample), sample.device) if noise is None else noise
        scores = model_output.new_empty(0) if logits is None else logits
        x_t, state = self.sampler.step(Noisy(sample, label_state), model_output, scores, times, rows)
        if not return_dict:
            return (x_t, state)
        return HybridSchedulerOutput(x_t, state, self.sampler.diffusion.clamp(model_output))

    def _move(self, device: torch.device | str) -> None:
        """Take the schedule to where the samples are."""
        self.sampler.diffusion.to(device)
        if self.sampler.labels is not None:
            self.sampler.labels.to(device)


# The keys of DiffusionDetConfig, and of its section `sampler`, that the scheduler has under the same names.
_OWN = (
    *("timesteps", "num_proposals", "snr_scale", "label_state", "label_d3pm", "label_kernel", "use_distribution"),
    "label_training",
)
_SAMPLER = ("eta", "box_renewal", "renewal_threshold", "ensemble", "nms_threshold")
