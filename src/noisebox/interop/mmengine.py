"""Noisebox in MMEngine: importing this module registers its detectors, datasets and metric, for a Runner to build.

A configuration names it under `custom_imports`; docs/mmengine_street.py is one.
"""

import copyreg
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer, MessageHub, print_log
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils.data import Dataset

from noisebox.config import AUTO
from noisebox.data.loader import EvaluationBatches, TrainingBatches
from noisebox.errors import UserError
from noisebox.evaluation.detection import coco_metrics
from noisebox.evaluation.protocol import counted
from noisebox.interop.adapter import Adapted, batch_of, detector_config
from noisebox.structures import Batch, Detections, Targets
from noisebox.tasks.detection import DetectionTask
from noisebox.training.checkpoint import load_checkpoint, load_weights


def _as_plain_numbers(history: HistoryBuffer) -> tuple[Any, ...]:
    log, count = (values.tolist() for values in history.data)
    return HistoryBuffer, (log, count, history.max_length)


# A Runner's checkpoint holds its log, by default with methods, which torch refuses to load since it takes weights only.
copyreg.pickle(HistoryBuffer, _as_plain_numbers)
NUMBERS: list[Any] = [np.dtype, type(np.dtype(np.float64)), np.float64(0).__reduce__()[0]]
torch.serialization.add_safe_globals([HistoryBuffer, *NUMBERS])


@MODELS.register_module()
class NoiseboxDetector(Adapted, BaseModel):  # type: ignore[misc]
    """A detector of Noisebox: `recipe` (or lineage) × `scale` below `root`/params/, with `overrides` by dotted keys.

    `weights`, a checkpoint of Noisebox or Detectron2, is what it starts from.
    """

    def __init__(
        self,
        recipe: str,
        scale: str,
        num_classes: int,
        seed: int = 0,
        root: str = ".",
        overrides: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        eval_seed: int = 0,
        weights: str | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        """Raises UserError naming file or key and what fits."""
        super().__init__(
            detector_config(recipe, scale, seed, Path(root), overrides or {}),
            num_classes,
            sampling or {"steps": 1},
            eval_seed,
            fetch_weights=weights is None,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if weights is not None:
            report = load_weights(self.detector, load_checkpoint(Path(weights)), weights)
            print_log(f"starts from {weights}: {report}", "current")

    def forward(
        self,
        inputs: Sequence[Tensor] | Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[BaseDataElement] | list[Tensor]:
        """`inputs`: B images (3, h, w), RGB from 0 to 255, resized; or all in one tensor, padded at the right and
        bottom. `data_samples`: for each its `img_id`, `img_shape` (h, w) and `ori_shape` as stored, and for a loss its
        `gt_instances` with `bboxes`, in pixels of the resized image, and `labels`; `ignored_instances` are crowds.

        Mode `loss` gives the terms at the iteration that the Runner counts; those without `loss` in their name are
        monitors. `predict` gives the samples with `pred_instances` (`bboxes` in pixels of the stored image, `scores`,
        `labels`); `tensor` what one step of sampling gives under eval seed 0, as plain tensors.
        """
        samples = data_samples or [BaseDataElement() for _ in inputs]
        batch = _batch(inputs, samples, mode == "loss")
        if mode == "loss":
            return self.terms(batch, int(MessageHub.get_current_instance().get_info("iter", 0)))
        if mode == "tensor":
            return self.detector.answer(self.placed(batch))
        for sample, found in zip(samples, self.detections(batch), strict=True):
            sample.pred_instances = InstanceData(bboxes=found.boxes_xyxy, scores=found.scores, labels=found.labels)
        return list(samples)


@DATASETS.register_module()
class NoiseboxDataset(Dataset[dict[str, Any]]):
    """What a run of `recipe` × `scale` is shown of its dataset, image by image.

    `split: train` is the endless stream that `noisebox train` takes its batches from, as long as the solver's
    iterations need: in order, and in batches of `solver.batch_size`, it is the same training, however often it was
    interrupted. `split: val` has each image once, as evaluation shows it.
    """

    def __init__(
        self,
        recipe: str,
        scale: str,
        split: str,
        seed: int = 0,
        root: str = ".",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises UserError naming file or key and what fits."""
        task = _task(recipe, scale, seed, root, overrides)
        solver = task.config.solver
        if split not in ("train", "val"):
            raise UserError(f"split is {split!r}; it must be one of: train, val")
        if solver.batch_size == AUTO:
            raise UserError("solver.batch_size is auto, which `noisebox train` alone can find: override it by a number")
        self.training, self.batch_size = split == "train", solver.batch_size
        self.metainfo = {"classes": list(task.classes)}
        self._stream = TrainingBatches(task.train, task.config)
        self._images = EvaluationBatches(task.val, task.config.model_copy(update={"eval_batch_size": 1}))
        self._length = solver.iterations * solver.batch_size if self.training else len(self._images)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> dict[str, Any]:
        """`inputs`: an image (3, h, w) uint8, RGB. `data_samples`: the rest, see `NoiseboxDetector.forward`."""
        if not self.training:
            return _sample(self._images[place])
        step, row = divmod(place, self.batch_size)
        return _sample(self._stream.rows(step, [row]))


@METRICS.register_module()
class NoiseboxAP(BaseMetric):  # type: ignore[misc]
    """COCO's metrics as `noisebox evaluate` counts them, AP first, on the validation split of `recipe` × `scale`."""

    default_prefix = "noisebox"

    def __init__(
        self,
        recipe: str,
        scale: str,
        seed: int = 0,
        root: str = ".",
        overrides: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """`others` go to BaseMetric."""
        super().__init__(**others)
        self.split = _task(recipe, scale, seed, root, overrides).val

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep what was predicted for images, `pred_instances` by `img_id`."""
        for sample in data_samples:
            found = sample["pred_instances"]
            detections = Detections(found["bboxes"], found["scores"], found["labels"])
            self.results.append((sample["img_id"], counted(detections.cpu())))

    def compute_metrics(self, results: list[tuple[int, Detections]]) -> dict[str, float]:
        """The summary, from 0 to 100."""
        return coco_metrics(self.split, dict(results)).summary


def _task(recipe: str, scale: str, seed: int, root: str, overrides: Mapping[str, Any] | None) -> DetectionTask:
    return DetectionTask(detector_config(recipe, scale, seed, Path(root), overrides or {}), Path(root))


def _batch(inputs: Sequence[Tensor] | Tensor, samples: Sequence[BaseDataElement], with_targets: bool) -> Batch:
    sizes = [sample.get("img_shape", image.shape[-2:])[:2] for image, sample in zip(inputs, samples, strict=True)]
    return batch_of(
        [image[:, :height, :width] for image, (height, width) in zip(inputs, sizes, strict=True)],
        [sample.get("img_id") for sample in samples],
        [tuple(sample.get("ori_shape", size)[:2]) for sample, size in zip(samples, sizes, strict=True)],
        [_targets(sample) for sample in samples] if with_targets else None,
    )


def _targets(sample: BaseDataElement) -> Targets:
    objects, crowds = sample.gt_instances, sample.get("ignored_instances")
    targets = Targets(objects.bboxes.float().cpu(), objects.labels.cpu())
    if crowds is None:
        return targets
    return replace(targets, crowds_xyxy=crowds.bboxes.float().cpu(), crowd_labels=crowds.labels.cpu())


def _sample(batch: Batch) -> dict[str, Any]:
    """The one image of a batch, in MMEngine's form."""
    (height, width), original = batch.sizes_hw[0].tolist(), batch.original_hw[0].tolist()
    (target,) = batch.targets
    shown = {"img_id": batch.image_ids[0], "img_shape": (height, width), "ori_shape": tuple(original)}
    sample = BaseDataElement(metainfo=shown)
    sample.gt_instances = InstanceData(bboxes=target.boxes_xyxy, labels=target.labels)
    sample.ignored_instances = InstanceData(bboxes=target.crowds_xyxy, labels=target.crowd_labels)
    return {"inputs": batch.images[0, :, :height, :width].contiguous(), "data_samples": sample}
