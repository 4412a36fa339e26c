"""Noisebox's detectors in Detectron2: importing this module puts them among its meta-architectures, and the datasets
that the environment variable EXTRA_COCO_DATASETS lists into its catalogue.

A configuration chooses one by `MODEL.META_ARCHITECTURE: NoiseboxDetector` and the keys of `add_noisebox_config`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from noisebox.config import overrides_of
from noisebox.data.detectron2 import register_extra
from noisebox.errors import UserError
from noisebox.interop.adapter import Adapted, batch_of, detector_config
from noisebox.structures import Batch, Detections, Targets
from noisebox.training import optim
from noisebox.training.step import is_loss

TO_RGB = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}  # by INPUT.FORMAT

register_extra()


def add_noisebox_config(cfg: CfgNode) -> None:
    """Add `MODEL.NOISEBOX`, with the keys below and their defaults, to a configuration.

    RECIPE × SCALE, below ROOT/params/, are the detector; RECIPE may be a lineage, whose weights MODEL.WEIGHTS brings.
    OVERRIDES, a list of KEY=VALUE, changes keys of it, as `noisebox train --set` does. It detects in SAMPLE_STEPS under
    EVAL_SEED. The train seed is Detectron2's SEED, or 0 where that is negative; the rates are those of its SOLVER.
    """
    cfg.MODEL.NOISEBOX = CfgNode()
    cfg.MODEL.NOISEBOX.ROOT = "."
    cfg.MODEL.NOISEBOX.RECIPE = "baseline"
    cfg.MODEL.NOISEBOX.SCALE = "paper"
    cfg.MODEL.NOISEBOX.OVERRIDES = []
    cfg.MODEL.NOISEBOX.NUM_CLASSES = 80
    cfg.MODEL.NOISEBOX.SAMPLE_STEPS = 1
    cfg.MODEL.NOISEBOX.EVAL_SEED = 0


@META_ARCH_REGISTRY.register()
class NoiseboxDetector(Adapted):
    """A detector of Noisebox that takes and gives what Detectron2's own do."""

    def __init__(self, cfg: CfgNode) -> None:
        """Raises UserError naming file or key and what fits."""
        own, form = cfg.MODEL.NOISEBOX, cfg.INPUT.FORMAT
        if form not in TO_RGB:
            raise UserError(f"INPUT.FORMAT is {form!r}; it must be one of: {', '.join(TO_RGB)}")
        try:
            overrides = overrides_of(own.OVERRIDES)
        except UserError as error:
            raise UserError(f"MODEL.NOISEBOX.OVERRIDES: {error}") from None
        super().__init__(
            detector_config(own.RECIPE, own.SCALE, max(0, cfg.SEED), Path(own.ROOT), overrides),
            own.NUM_CLASSES,
            {"steps": own.SAMPLE_STEPS},
            own.EVAL_SEED,
            fetch_weights=not cfg.MODEL.WEIGHTS,
        )
        self.to_rgb = TO_RGB[form]

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """`batched_inputs`, an entry an image: `image` (3, h, w) in the channels of INPUT.FORMAT, from 0 to 255,
        resized; `image_id`; `height` and `width` as stored; in training `instances` with `gt_boxes` and `gt_classes`.

        In training the loss terms at the step that the trainer's storage counts, to which the monitors are told. Else
        for each image its `instances` with `pred_boxes`, `scores` and `pred_classes`, in pixels of the stored image.
        """
        batch = self._batch(batched_inputs)
        if not self.training:
            found = zip(self.detections(batch), batch.original_hw.tolist(), strict=True)
            return [{"instances": to_instances(each, size)} for each, size in found]
        storage = get_event_storage()
        terms = self.terms(batch, storage.iter)
        storage.put_scalars(**{name: float(value) for name, value in terms.items() if not is_loss(name)})
        return {name: value for name, value in terms.items() if is_loss(name)}

    def _batch(self, inputs: Sequence[dict[str, Any]]) -> Batch:
        images = [entry["image"][self.to_rgb] for entry in inputs]
        return batch_of(
            images,
            [entry.get("image_id", entry.get("file_name")) for entry in inputs],
            [
                (entry.get("height", image.shape[-2]), entry.get("width", image.shape[-1]))
                for entry, image in zip(inputs, images, strict=True)
            ],
            [_targets(entry["instances"]) for entry in inputs] if self.training else None,
        )


def build_optimizer(cfg: CfgNode, model: NoiseboxDetector) -> torch.optim.Optimizer:
    """The AdamW of Noisebox's training, for the `build_optimizer` of a trainer, whose schedule then scales all rates.

    BASE_LR, WEIGHT_DECAY and CLIP_GRADIENTS are those of SOLVER, the multipliers of a detector's parts the recipe's.
    Beside Detectron2's own ways to clip, CLIP_TYPE may be `full_model`: CLIP_VALUE bounds the whole gradient's norm.
    """
    rates = {"base_lr": cfg.SOLVER.BASE_LR, "lr_factor": 1.0, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    built = optim.build_optimizer(model.detector, model.config.solver.model_copy(update=rates))
    optim.set_learning_rate(built, cfg.SOLVER.BASE_LR)
    # A fused step takes the gradients scaled as they are under AMP, so that what clips them would see them too large.
    optimizer = torch.optim.AdamW([{**group, "fused": False} for group in built.param_groups])
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        every = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def bound(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(every, clip.CLIP_VALUE)

        optimizer.register_step_pre_hook(bound)
        return optimizer
    clipped: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return clipped


def _targets(instances: Instances) -> Targets:
    return Targets(instances.gt_boxes.tensor.float(), instances.gt_classes.long())


def to_instances(found: Detections, image_hw: Sequence[int]) -> Instances:
    """Detections in an image of so many rows and columns, in Detectron2's form."""
    instances = Instances(tuple(image_hw))
    instances.pred_boxes = Boxes(found.boxes_xyxy)
    instances.scores = found.scores
    instances.pred_classes = found.labels
    return instances
