"""What the adapters share: the images and boxes of another framework as our batches, and a detector inside its model.

Randomness stays keyed: the seed is of the configuration, the step is what the framework's trainer counts, and images
have their dataset's ids.
"""

import hashlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from noisebox.config import RunConfig, Sampling, resolve
from noisebox.config.section import check_overrides
from noisebox.data.transforms import View, targets_in
from noisebox.errors import UserError
from noisebox.models import Detector, build_model
from noisebox.randomness import seed_of
from noisebox.structures import Batch, Detections, Targets
from noisebox.training.optim import train_mode

INSIDE = "detector."  # what the names of the detector's tensors begin with, inside a framework's model


def batch_of(
    images: Sequence[Tensor],
    image_ids: Sequence[Any],
    original_hw: Sequence[tuple[int, int]],
    targets: Sequence[Targets] | None = None,
) -> Batch:
    """The batch of images (3, h, w), RGB from 0 to 255, of any dtype, as a framework has resized them.

    `image_ids`: see `image_key`. `original_hw`: the size of each as stored. `targets`, in pixels of `images`, are
    clipped to them, and boxes without an extent dropped.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    padded = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    given = targets or [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))] * len(images)
    return Batch(
        images=padded if padded.dtype == torch.uint8 else padded.float() / 255,
        sizes_hw=torch.tensor(sizes),
        original_hw=torch.tensor(original_hw),
        image_ids=tuple(image_key(*each) for each in zip(image_ids, images, strict=True)),
        targets=tuple(targets_in(View(*size), target, size) for size, target in zip(sizes, given, strict=True)),
    )


def image_key(image_id: Any, image: Tensor) -> int:
    """The key of an image's randomness: its id if that is a number, else one made of its text; of an image without an
    id, one made of its pixels."""
    if isinstance(image_id, Integral):
        return int(image_id)
    if image_id is None:
        return seed_of(0, "image", hashlib.sha256(image.to("cpu", torch.uint8).numpy().tobytes()).hexdigest())
    return seed_of(0, "image", str(image_id))


def detector_config(lineage: str, scale: str, seed: int, root: Path, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration of lineage × scale for a detector that a framework trains; raises UserError as `resolve` does,
    and where the framework could not train it."""
    config = resolve(lineage, seed, scale, root, overrides=overrides)
    if config.distill:
        raise UserError(f"{lineage!r} learns from a teacher, which is done by `noisebox train` alone")
    if getattr(config.loss, "federated", None):
        raise UserError(
            f"{lineage!r} has loss.federated, which draws classes by their images in the training split, and that is "
            "known to `noisebox train` alone: override loss.federated by null"
        )
    if config.family == "bev":
        raise UserError(f"{lineage!r} is of family bev, which draws maps; a detector of boxes is needed")
    return config


class Adapted(nn.Module):
    """A detector inside a framework's model, whose state has its tensors under Noisebox's own names.

    It detects under `eval_seed` as `sampling` says, which has the keys of a `Sampling`. Without `fetch_weights` no
    pretrained weights are loaded, because a checkpoint will bring them. `others` go to the framework's class.
    """

    def __init__(
        self,
        config: RunConfig,
        num_classes: int,
        sampling: Mapping[str, Any],
        eval_seed: int,
        fetch_weights: bool,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.config, self.num_classes, self.eval_seed = config, num_classes, eval_seed
        self.sampling = check_overrides(Sampling, dict(sampling), "sampling")
        self.detector: Detector = build_model(config, num_classes, fetch_weights)
        self.detector.check_sampling(self.sampling)
        self.register_state_dict_post_hook(_to_own_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_own_names)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            train_mode(self.detector)
        return self

    def terms(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The weighted loss terms of a training step, and the monitors; see `noisebox.models.Model.forward`.

        Raises UserError at a label that the detector has no class for.
        """
        labels = torch.cat([target.labels for target in batch.targets])
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise UserError(
                f"a box has label {int(labels.max())}, counted from 0, but the detector has {self.num_classes} classes"
            )
        terms: dict[str, Tensor] = self.detector(self.placed(batch), self.config.seed, step)
        return terms

    @torch.no_grad()
    def detections(self, batch: Batch) -> list[Detections]:
        """What is found in each image, in pixels of the stored images."""
        placed = self.placed(batch)
        (found,) = self.detector.detect(self.detector.encode(placed), placed, [self.eval_seed], self.sampling)
        return found

    def placed(self, batch: Batch) -> Batch:
        """A batch where the detector is."""
        return batch.to(next(self.detector.parameters()).device)


def _to_own_names(_: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + INSIDE)]:
        state[prefix + name.removeprefix(prefix + INSIDE)] = state.pop(name)


def _from_own_names(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    for name in [name for name in state if name.startswith(prefix)]:
        inner = INSIDE + name.removeprefix(prefix)
        if inner in own:
            state[prefix + inner] = state.pop(name)
