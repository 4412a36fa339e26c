"""The evaluation of one YOLC checkpoint: as every detector of boxes, and of some images all that it saw in them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from noisebox import graph, processes
from noisebox.config import ExperimentConfig, RunConfig
from noisebox.data.coco import CocoSplit, ImageRecord
from noisebox.data.loader import evaluation_batches
from noisebox.evaluation.boxes import evaluate, measured_rows
from noisebox.evaluation.measuring import autocast
from noisebox.evaluation.ongoing import Ongoing
from noisebox.evaluation.protocol import counted
from noisebox.files import atomic_path
from noisebox.models.yolc.detector import Sight, Yolc
from noisebox.progress import Progress
from noisebox.structures import Batch, Detections
from noisebox.tasks.detection import DetectionTask

__all__ = ["evaluate_run", "measured_rows", "write_every_look"]  # rows of results are those of any detector

Arrays = dict[str, np.ndarray[Any, Any]]


def evaluate_run(
    model: Yolc,
    task: DetectionTask,
    checkpoint: Path,
    experiment: ExperimentConfig,
    classes: list[str],
    ongoing: Ongoing,
) -> None:
    """What `noisebox evaluate` does: all that the experiment asks of the lineage."""
    config, line = task.config, experiment.aerial
    evaluate(model, config, checkpoint, line.asked(), line.pictures, task.val, classes, ongoing)
    if not processes.first():
        return
    folder = Path(graph.evaluation_of(checkpoint.as_posix(), config.lineage, config.seed))
    write_looks(folder / "looks.npz", model, config, task.val, task.val.images[: line.pictures], crops=any(line.crops))


def write_looks(
    path: Path, model: Yolc, config: RunConfig, split: CocoSplit, shown: Sequence[ImageRecord], crops: bool
) -> None:
    """Write such as `looks.npz`: of some of the split's images, by their places in `shown`, what one look saw, or with
    `crops` two.

    `image_0` (H, W, 3) uint8 as the model saw it; all else is in its pixels. `heatmap_0` (H, W) float16 in [0, 1], the
    largest over the classes; `crops_0` (R, 4), where the second look went; of the boxes `truth`, `coarse` (one look,
    before they are refined) and `final` (refined, of both looks) each `coarse_0` (N, 4) and `coarse_labels_0` (N,), and
    but for the truth `coarse_scores_0` (N,), falling. `facts` is JSON: the images' file names, the classes, `crops`.
    """
    place = {record.id: index for index, record in enumerate(shown)}
    arrays: Arrays = {}
    for image_id, seen, _ in _looks(model, config, replace(split, images=tuple(shown)), crops) if shown else ():
        arrays |= {f"{name}_{place[image_id]}": array for name, array in seen.items()}
    _write(path, arrays, [record.file_name for record in shown], split, crops)


def write_every_look(
    folder: Path, model: Yolc, config: RunConfig, split: CocoSplit, crops: bool, progress: Progress
) -> dict[int, Detections]:
    """Write of each image of a split alone what `write_looks` does, as `<file name>.npz`; returns by image id what was
    found in the same look, as `noisebox.evaluation.protocol.measure` keeps it."""
    files = {record.id: record.file_name for record in split.images}
    every: dict[int, Detections] = {}
    for image_id, seen, found in _looks(model, config, split, crops):
        file = files[image_id]
        _write(folder / f"{file}.npz", {f"{name}_0": array for name, array in seen.items()}, [file], split, crops)
        every[image_id] = counted(found)
        progress.advance()
    return every


def _looks(model: Yolc, config: RunConfig, split: CocoSplit, crops: bool) -> Iterator[tuple[int, Arrays, Detections]]:
    """Of each image of a split its id, what was seen in it, under the names of `write_looks` without the image's place,
    and what was found there, in pixels of the stored image."""
    model.eval()
    for batch in evaluation_batches(split, config):
        with torch.no_grad(), autocast(config.device, config.precision):
            on_device = batch.to(config.device)
            sights = model.look(model.encode(on_device), on_device, crops)
            found = model.found(sights, on_device)
        for row, image_id in enumerate(batch.image_ids):
            yield image_id, _arrays(batch, row, sights[row]), found[row].cpu()


def _write(path: Path, arrays: Arrays, files: Sequence[str], split: CocoSplit, crops: bool) -> None:
    facts = json.dumps({"images": list(files), "classes": list(split.classes), "crops": crops})
    every = {**arrays, "facts": np.frombuffer(facts.encode(), np.uint8)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **cast(Any, every))


def _arrays(batch: Batch, row: int, sight: Sight) -> Arrays:
    """What was seen in one image of a batch."""
    height, width = batch.sizes_hw[row].tolist()
    image = batch.images[row, :, :height, :width].permute(1, 2, 0)
    truth = batch.targets[row]
    return {
        "image": image.numpy(),
        "heatmap": sight.heatmap.cpu().numpy().astype(np.float16),
        "crops": sight.regions_xyxy.cpu().numpy(),
        "truth": truth.boxes_xyxy.numpy(),
        "truth_labels": truth.labels.numpy(),
        **_boxes("coarse", sight.coarse.cpu()),
        **_boxes("final", sight.found.cpu()),
    }


def _boxes(name: str, found: Detections) -> Arrays:
    return {
        name: found.boxes_xyxy.numpy(),
        f"{name}_labels": found.labels.numpy(),
        f"{name}_scores": found.scores.float().numpy(),
    }
