"""How boxes are denoised: on chosen validation images, what the denoiser is given at each step and what it says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import open_split
from noisebox.data.coco import CocoSplit, ImageRecord
from noisebox.data.loader import evaluation_batches
from noisebox.diffusion.sampler import Prediction, RowKey, sampling_times
from noisebox.errors import UserError, what_fits
from noisebox.evaluation.boxes import pictures
from noisebox.evaluation.measuring import asked_of, autocast
from noisebox.evaluation.predict import load_detector, runnable
from noisebox.evaluation.protocol import measure
from noisebox.files import write_json
from noisebox.machine import placed
from noisebox.models.diffusiondet.detector import DiffusionDet
from noisebox.progress import Progress
from noisebox.structures import Batch

FEW = 5  # images that a message names


def write_trajectories(
    checkpoint: Path, path: Path, chosen: Sequence[str], *, steps: int = 5, eval_seed: int = 0, first: int = 6
) -> None:
    """Write what an evaluation's `detections.json` holds, of the `chosen` validation images (ids or file names; by
    default the `first` ones), and beside it `classes` and each image's `trajectory`.

    A trajectory has for each step the time `t`, the P noisy boxes `given` to the denoiser, and what it makes of each:
    `boxes_xyxy`, and of its classes the one of the highest score, in `labels` and `scores`. Boxes are in pixels of the
    stored image; a box has its place in every list of every step. Of a detector that draws no noise, trajectories have
    no steps.

    Raises UserError when an image is not of the split, or the checkpoint detects no boxes, or draws noise but denoises
    no boxes.
    """
    model, config, _ = load_detector(checkpoint)
    if not isinstance(model, DiffusionDet) and not model.deterministic:
        raise UserError(f"{checkpoint} is a {type(model).__name__}, which denoises no boxes: show a diffusion detector")
    manifest = graph.data_manifest(graph.line_of(config.family))
    split = chosen_images(open_split(config.dataset, "val", manifest_file=manifest), chosen or None, first)
    config = runnable(config, config.eval_batch_size)
    sampling = Sampling(steps=steps)
    asked = asked_of(model, {sampling: [eval_seed]})
    placed(model, config)
    with Progress(f"show {config.lineage} seed{config.seed}", len(split.images)) as progress:
        measured = measure(model, split, config, asked, progress)
    paths = trajectories(model, split, config, eval_seed, sampling) if isinstance(model, DiffusionDet) else {}
    content = pictures(split, len(split.images), asked, measured)
    images = [{**image, "trajectory": paths.get(image["id"], [])} for image in content["images"]]
    write_json(path, {**content, "classes": list(split.classes), "images": images})


def chosen_images(split: CocoSplit, chosen: Sequence[str] | None, first: int) -> CocoSplit:
    """The split with the `chosen` images only, in that order; each by its id, or by its file name with or without the
    folders and the suffix. What is an id and a name stands for the id; of images of one name the first has it. With
    None, the split's `first` images.

    Raises UserError when the split has no such image.
    """
    if chosen is None:
        return replace(split, images=split.images[:first])
    named: dict[str, ImageRecord] = {str(image.id): image for image in split.images}
    for image in split.images:
        file = PurePosixPath(image.file_name)
        for name in (image.file_name, file.name, file.stem):
            named.setdefault(name, image)
    for name in chosen:
        if name not in named:
            fits = what_fits(name, [image.file_name for image in split.images[:FEW]], "its first images are")
            raise UserError(f"{split.name} has no image {name!r}; {fits}")
    return replace(split, images=tuple(dict.fromkeys(named[name] for name in chosen)))


def trajectories(
    model: DiffusionDet, split: CocoSplit, config: RunConfig, eval_seed: int, sampling: Sampling
) -> dict[int, list[dict[str, Any]]]:
    """By image id the steps of its trajectory, as `write_trajectories` says; boxes in pixels of the stored image."""
    found: dict[int, list[dict[str, Any]]] = {}
    model.eval()
    with torch.no_grad(), autocast(config.device, config.precision):
        for batch in evaluation_batches(split, config):
            found |= _of_batch(model, batch.to(config.device), eval_seed, sampling)
    return found


def _of_batch(model: DiffusionDet, batch: Batch, eval_seed: int, sampling: Sampling) -> dict[int, list[dict[str, Any]]]:
    image_whwh = batch.image_whwh
    denoise = model.denoiser(model.encode(batch), torch.arange(len(batch), device=image_whwh.device), image_whwh)
    given = image_whwh.new_zeros(0)

    def watched(boxes_xyxy: Tensor, t: Tensor, labels: Tensor | None) -> Prediction:
        nonlocal given
        given = boxes_xyxy.detach()
        return denoise(boxes_xyxy, t, labels)

    to_stored = (batch.original_whwh / image_whwh)[:, None]
    keys = [RowKey(eval_seed, image_id) for image_id in batch.image_ids]
    times = [time for time, _ in sampling_times(model.diffusion.timesteps, sampling.steps)]
    steps: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in batch.image_ids}
    # Guidance asks the denoiser several times a step; the last time is what the prediction was made of.
    for time, said in zip(times, model.sampler.trajectory(watched, keys, image_whwh, sampling), strict=True):
        scores, labels = said.logits.float().sigmoid().max(-1)
        columns = (given * to_stored, said.boxes_xyxy * to_stored, scores, labels)
        rows = zip(batch.image_ids, *(column.tolist() for column in columns), strict=True)
        for image_id, noisy, boxes, score, label in rows:
            steps[image_id].append({"t": time, "given": noisy, "boxes_xyxy": boxes, "scores": score, "labels": label})
    return steps
