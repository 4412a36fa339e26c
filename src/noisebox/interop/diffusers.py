"""A trained DiffusionDet as a pipeline of Diffusers: images in, boxes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from noisebox.config import GuidanceConfig, ImageConfig, RunConfig, Sampling
from noisebox.config.diffusiondet import DiffusionDetConfig, LossConfig
from noisebox.config.section import check_section
from noisebox.data.loader import image_batches
from noisebox.diffusion.sampler import Noisy, Prediction, RowKey, ScoredBoxes
from noisebox.diffusion.scheduler import GeneratorRows, Generators, HybridDiffusionScheduler
from noisebox.errors import UserError
from noisebox.models.diffusiondet.detector import DiffusionDet, restored
from noisebox.models.diffusiondet.pooling import Pyramid
from noisebox.pixels import rgb_pixels
from noisebox.randomness import NoiseRows
from noisebox.structures import Batch, Detections

ImageInput = Image.Image | NDArray[Any] | Tensor | Sequence[Image.Image | NDArray[Any] | Tensor]

KINDS_OF_IMAGES = (
    "images are PIL images, numpy arrays (H, W, 3) or tensors (3, H, W), or a list or batch of them; pixels are uint8, "
    "or real numbers from 0 to 1"
)


@dataclass
class DetectionPipelineOutput(BaseOutput):  # type: ignore[misc]
    """What was found, an entry for each image, scores falling: `boxes` (D, 4), x1, y1, x2, y2 in pixels of the image as
    given; `scores` (D,); `labels` (D,) int64, counted from 0; `class_names`, D words. On the CPU."""

    boxes: list[Tensor]
    scores: list[Tensor]
    labels: list[Tensor]
    class_names: list[list[str]]


class DiffusionDetModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A DiffusionDet with its classes, as Diffusers saves and loads models; `model` is its DiffusionDetConfig."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, model: dict[str, Any], classes: Sequence[str]) -> None:
        """Weights are not fetched. Raises UserError when `model` does not fit this version of the code."""
        super().__init__()
        config = check_section(DiffusionDetConfig, dict(model), Path("config.json"), "model")
        self.detector = DiffusionDet(config, LossConfig(), len(classes), fetch_weights=False)

    @classmethod
    def of(cls, detector: DiffusionDet, classes: Sequence[str]) -> Self:
        """With the weights of a trained detector."""
        model: Self = cls(model=detector.config.model_dump(mode="json"), classes=list(classes))
        model.detector.load_state_dict(detector.state_dict())
        model.eval()
        return model

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As ModelMixin's, but each weight in memory of its own: in that of the file they lie at odd places, where
        products are rounded otherwise."""
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return loaded

    def encode(self, images: Tensor, sizes_hw: Tensor) -> Pyramid:
        """What is computed once per image: `images` (B, 3, H, W) in [0, 1], sizes without padding `sizes_hw` (B, 2)."""
        return Pyramid.of(self.detector.backbone(images, sizes_hw))

    def forward(
        self, pyramid: Pyramid, boxes_xyxy: Tensor, t: Tensor, image_whwh: Tensor, label_state: Tensor | None = None
    ) -> Prediction:
        """The denoiser, a row for each image of the pyramid: noisy boxes (B, P, 4) in pixels, times (B,), the sizes
        `image_whwh` (B, 4), and label states (B, P, K + 1) in; class logits, better boxes in pixels and, with a quality
        head, their quality out."""
        every_image = torch.arange(len(boxes_xyxy), device=boxes_xyxy.device)
        return self.detector.denoiser(pyramid, every_image, image_whwh)(boxes_xyxy, t, label_state)


class DetectionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Finds objects in images of any size: what `noisebox predict` and `noisebox evaluate` find for the same noise.

    `short_edge` and `max_edge` say how images are resized; `batch_size` images of one resized size are computed
    together.
    """

    model_cpu_offload_seq = "detector"

    def __init__(
        self,
        detector: DiffusionDetModel,
        scheduler: HybridDiffusionScheduler,
        short_edge: int = 800,
        max_edge: int = 1333,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.register_modules(detector=detector, scheduler=scheduler)
        self.register_to_config(short_edge=short_edge, max_edge=max_edge, batch_size=batch_size)

    @classmethod
    def of_model(cls, detector: DiffusionDet, config: RunConfig, classes: Sequence[str]) -> Self:
        """Of a trained detector and the configuration of its run: it samples and resizes as its evaluation does."""
        return cls(
            DiffusionDetModel.of(detector, classes),
            HybridDiffusionScheduler.of_model(detector.config, len(classes)),
            config.image.eval_short_edge,
            config.image.max_edge,
            config.eval_batch_size,
        )

    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput,
        num_inference_steps: int = 1,
        generator: Generators | None = None,
        eval_seed: int = 0,
        image_ids: Sequence[int] | None = None,
        guidance: GuidanceConfig | Mapping[str, Any] | None = None,
        threshold: float = 0.0,
        return_dict: bool = True,
    ) -> DetectionPipelineOutput | tuple[Any, ...]:
        """Detect in `images`, sampling `num_inference_steps` steps; what scores below `threshold` is left out.

        Noise comes of `generator`, one torch.Generator or a list with one for each image. Without, it is that of
        Noisebox's evaluations, keyed by `eval_seed` and the image's id; `image_ids` has one for each image, by default
        its place. So nothing is drawn from global generators. `guidance` has the keys of GuidanceConfig.

        Raises UserError when an image or an option does not fit.
        """
        pixels = pixels_of(images)
        ids = list(range(len(pixels)) if image_ids is None else image_ids)
        if len(ids) != len(pixels):
            raise UserError(f"image_ids= has {len(ids)} ids for {len(pixels)} images: give one per image")
        if isinstance(generator, Sequence) and len(generator) != len(pixels):
            raise UserError(f"generator= is a list of {len(generator)} for {len(pixels)} images: give one per image")
        if self.detector.dtype != torch.float32:
            raise UserError(
                f"the weights are {self.detector.dtype}: load them without torch_dtype, and call the pipeline within "
                "torch.autocast"
            )
        way = Sampling(steps=1, guidance=_guidance(guidance))
        self.detector.detector.check_sampling(way)
        self.scheduler.set_timesteps(num_inference_steps, self._execution_device)
        found: dict[int, Detections] = {}
        sizing = ImageConfig(eval_short_edge=self.config.short_edge, max_edge=self.config.max_edge)
        batches = list(image_batches(pixels, ids, sizing, self.config.batch_size))
        with self.progress_bar(total=len(batches) * num_inference_steps) as bar:
            for places, batch in batches:
                noise = _Noise(self.scheduler, generator, places, eval_seed, batch.image_ids, self._execution_device)
                sampled = self._sampled(batch.to(self._execution_device), noise, way.guidance, bar)
                found |= dict(zip(places, restored(sampled, batch.image_whwh, batch.original_whwh), strict=True))
        return self._output([found[place] for place in range(len(pixels))], threshold, return_dict)

    def _sampled(self, batch: Batch, noise: "_Noise", guidance: GuidanceConfig, bar: Any) -> list[ScoredBoxes]:
        """Detections in a batch, boxes in pixels of the resized images."""
        scheduler, detector = self.scheduler, self.detector
        image_whwh = batch.image_whwh
        pyramid = detector.encode(batch.images, batch.sizes_hw)

        def denoise(boxes_xyxy: Tensor, t: Tensor, labels: Tensor | None) -> Prediction:
            said: Prediction = detector(pyramid, boxes_xyxy, t, image_whwh, labels)
            return said

        noisy, visited = scheduler.start(noise.of_step(0)), []
        for step, time in enumerate(scheduler.timesteps):
            t = time.expand(len(batch))
            noisy = scheduler.sampler.guided(denoise, noisy, t, scheduler.times(time), image_whwh, guidance)
            given = scheduler.scale_model_input(noisy.x_t, time)
            said = denoise(scheduler.to_boxes(given, image_whwh), t, noisy.labels)
            visited.append(scheduler.sampler.strongest(said))
            x0 = scheduler.from_boxes(said.boxes_xyxy, image_whwh)
            stepped = scheduler.step(x0, time, noisy.x_t, said.logits, noisy.labels, noise=noise.of_step(step))
            noisy = Noisy(stepped.prev_sample, stepped.prev_label_state)
            bar.update()
        merged: list[ScoredBoxes] = scheduler.sampler.merged(visited)
        return merged

    def _output(
        self, found: Sequence[Detections], threshold: float, return_dict: bool
    ) -> DetectionPipelineOutput | tuple[Any, ...]:
        kept = [each.at_least(threshold) for each in found]
        names = [[self.detector.config.classes[label] for label in each.labels.tolist()] for each in kept]
        boxes, scores, labels = ([getattr(each, name) for each in kept] for name in ("boxes_xyxy", "scores", "labels"))
        return DetectionPipelineOutput(boxes, scores, labels, names) if return_dict else (boxes, scores, labels, names)


class _Noise:
    """The noise of a batch at each step: that of the caller's generators, or keyed by eval seed and image id."""

    def __init__(
        self,
        scheduler: HybridDiffusionScheduler,
        generator: Generators | None,
        places: Sequence[int],
        eval_seed: int,
        image_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        chosen = [generator[place] for place in places] if isinstance(generator, Sequence) else generator
        self._drawn = None if chosen is None else GeneratorRows(chosen, len(places), device)
        self._sampler, self._device = scheduler.sampler, device
        self._keys = [RowKey(eval_seed, image_id) for image_id in image_ids]

    def of_step(self, step: int) -> NoiseRows:
        return self._drawn or self._sampler.noise(self._keys, step, self._device)


def _guidance(given: GuidanceConfig | Mapping[str, Any] | None) -> GuidanceConfig:
    if isinstance(given, GuidanceConfig):
        return given
    return check_section(GuidanceConfig, dict(given or {}), Path("guidance"))


def pixels_of(images: ImageInput) -> list[Tensor]:
    """Images as (3, H, W) uint8, RGB; an EXIF orientation of a PIL image is followed. Real numbers are rounded to steps
    of 1/255.

    Raises UserError, naming the image by its place, for what is no such image.
    """
    if isinstance(images, np.ndarray | Tensor):
        images = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, Sequence) or isinstance(images, str) or not images:
        raise UserError(f"no image was given: {KINDS_OF_IMAGES}")
    return [_pixels(image, place) for place, image in enumerate(images)]


def _pixels(image: Any, place: int) -> Tensor:
    if isinstance(image, Image.Image):
        try:
            image = rgb_pixels(ImageOps.exif_transpose(image))
        except (ValueError, OSError) as error:
            raise UserError(f"image {place} cannot be read ({error})") from None
    tensor = torch.tensor(image).movedim(-1, 0) if isinstance(image, np.ndarray) and image.ndim == 3 else image
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        shown = f"has shape {tuple(image.shape)}" if hasattr(image, "shape") else f"is a {type(image).__name__}"
        raise UserError(f"image {place} {shown}: {KINDS_OF_IMAGES}")
    if tensor.dtype == torch.uint8:
        return tensor.cpu()
    if not tensor.is_floating_point() or not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise UserError(f"image {place} has pixels of other values: {KINDS_OF_IMAGES}")
    return (tensor.float() * 255).round().to(torch.uint8).cpu()
