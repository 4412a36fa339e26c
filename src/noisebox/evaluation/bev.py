"""The evaluation of one BEV checkpoint in one job: maps at every count of sampling steps, under every eval seed.

Each image's features are computed once and shared. The files written here are all that the report, and `noisebox
diagnose`, read of a run.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from noisebox import graph, processes
from noisebox.config import ExperimentConfig, RunConfig, Sampling
from noisebox.config.experiment import BevLine
from noisebox.data.bev import BevSplit
from noisebox.data.bev_loader import BevSamples, depth_folder, evaluation_batches
from noisebox.evaluation.evidence import check_classes, check_fit, write_evidence
from noisebox.evaluation.measuring import Asked, asked_of, check_finite, timed_pass
from noisebox.evaluation.ongoing import Ongoing
from noisebox.evaluation.segmentation import (
    Counts,
    SegmentationMetrics,
    confusion,
    pixel_counts,
    predicted_names,
    segmentation_metrics,
)
from noisebox.files import atomic_path, write_json
from noisebox.machine import placed
from noisebox.models import Segmenter
from noisebox.progress import Progress
from noisebox.structures import BevBatch
from noisebox.tasks.bev import BevTask

log = logging.getLogger("noisebox")

Key = tuple[int, Sampling]
Maps = dict[int, np.ndarray[Any, np.dtype[np.uint8]]]


@dataclass
class Measurement:
    """What an evaluation gave: by (eval seed, sampling) the counts (256, K) of `pixel_counts`, the metrics, and of the
    images asked for the maps of predicted label values; `seconds_per_image` by sampling: the encoder's share of one
    image plus one eval seed's share of the sampling."""

    counts: dict[Key, Counts]
    metrics: dict[Key, SegmentationMetrics] = field(default_factory=dict)
    maps: dict[Key, Maps] = field(default_factory=dict)
    seconds_per_image: dict[Sampling, float] = field(default_factory=dict)


def measure(
    model: Segmenter,
    split: BevSplit,
    config: RunConfig,
    asked: Asked,
    progress: Progress | None = None,
    pictured: Sequence[int] = (),
    places: Sequence[int] | None = None,
    ongoing: Ongoing | None = None,
) -> Measurement:
    """Evaluate a model in every way asked on the images at `places` of a split, by default all; the maps of those
    `pictured` are kept. Each process takes a share of the batches, and all get the whole. The model is left in the mode
    it came in. What is `ongoing` is gone on with.

    Raises UserError naming the image when a map's scores are not finite: weights are damaged, or fp16 overflowed.
    """
    keys = [(seed, sampling) for sampling, eval_seeds in asked.items() for seed in eval_seeds]
    labels = config.model.labels
    names = predicted_names(split.classes, labels)
    measured = Measurement({key: np.zeros((256, len(names)), np.int64) for key in keys}, maps={key: {} for key in keys})

    def keep(batch: BevBatch, sampling: Sampling, logits: Tensor) -> None:
        for image_id, of_image in zip(batch.image_ids, logits.unbind(1), strict=True):
            where = f"image {split.frames[image_id].stem}, {sampling.steps} steps"
            check_finite([of_image], config, "scores of a map's cells", where)
        for seed, predicted in zip(asked[sampling], logits.argmax(2).cpu(), strict=True):
            measured.counts[seed, sampling] += pixel_counts(predicted, batch.labels, len(names))
            for image_id, map_ in zip(batch.image_ids, predicted, strict=True):
                if image_id in pictured:
                    stored = map_ + labels.values(len(split.classes)).start
                    measured.maps[seed, sampling][image_id] = stored.numpy().astype(np.uint8)

    def restore(kept: list[Any]) -> None:
        for key, (counts, maps) in zip(keys, kept, strict=True):
            measured.counts[key], measured.maps[key] = counts.numpy(), {k: map_.numpy() for k, map_ in maps.items()}

    def kept() -> list[Any]:
        maps = [{place: from_numpy(map_) for place, map_ in measured.maps[key].items()} for key in keys]
        return [(from_numpy(measured.counts[key]), of_key) for key, of_key in zip(keys, maps, strict=True)]

    ongoing = ongoing or Ongoing()
    taken = ongoing.begin(asked, restore, pictured=list(pictured))
    note = partial(ongoing.note, taken, kept)
    batches = evaluation_batches(split, config, places, shared=True, done=taken.batches)
    measured.seconds_per_image = timed_pass(model, batches, config, asked, model.segment, keep, taken, note, progress)
    measured.counts, measured.maps = _of_all(measured.counts, measured.maps)
    for key, counts in measured.counts.items():
        measured.metrics[key] = segmentation_metrics(confusion(counts, labels), names)
    return measured


def _of_all(counts: dict[Key, Counts], maps: dict[Key, Maps]) -> tuple[dict[Key, Counts], dict[Key, Maps]]:
    """The counts and maps of the images of all processes."""
    every = processes.gathered((counts, maps))
    summed = {key: sum((each[key] for each, _ in every[1:]), every[0][0][key]) for key in counts}
    return summed, {key: {place: map_ for _, each in every for place, map_ in each[key].items()} for key in maps}


def evaluate_run(
    model: Segmenter,
    task: BevTask,
    checkpoint: Path,
    experiment: ExperimentConfig,
    classes: list[str],
    ongoing: Ongoing,
) -> None:
    """What `noisebox evaluate` does: all that the experiment asks of the lineage."""
    evaluate(model, task.config, checkpoint, experiment.bev, task.val, classes, ongoing)


def evaluate(
    model: Segmenter,
    config: RunConfig,
    checkpoint: Path,
    line: BevLine,
    split: BevSplit,
    classes: list[str],
    ongoing: Ongoing | None = None,
) -> None:
    """Evaluate one run's checkpoint and write graph.BEV_EVALUATION_FILES. What is `ongoing` is gone on with.

    Raises UserError when the model cannot sample so, or was trained for other classes than the dataset has.
    """
    check_classes(checkpoint, classes, split.classes, config.dataset)
    eval_seeds = list(dict.fromkeys(line.protocol.eval_seeds))  # the cells of one that comes twice would count twice
    asked = asked_of(model, dict.fromkeys(line.protocol.asked(), eval_seeds))
    check_fit(model, checkpoint, asked)
    pictured = pictured_places(line, split)
    placed(model, config)
    with Progress(f"evaluate {config.lineage} seed{config.seed}", len(split.frames)) as progress:
        measured = measure(model, split, config, asked, progress, pictured, ongoing=ongoing)
    if not processes.first():
        return
    rows = partial(result_rows, config, split, measured)
    folder = write_evidence(config, checkpoint, asked, measured.seconds_per_image, rows)
    write_json(folder / "confusion.json", _confusions(config, split, measured))
    write_maps(folder / "maps.npz", config, split, pictured, measured)


def pictured_places(line: BevLine, split: BevSplit) -> tuple[int, ...]:
    """The places of the images that are shown, those that the split has."""
    there = tuple(place for place in dict.fromkeys(line.pictures) if place < len(split.frames))
    if len(there) < len(set(line.pictures)):
        log.warning(
            "%s has %d images, so not all that bev.pictures in %s names are shown",
            split.name, len(split.frames), graph.EXPERIMENT,
        )  # fmt: skip
    return there


def result_rows(
    config: RunConfig, split: BevSplit, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of results.tsv, one for each of `measured.metrics` and in its order, as they are printed."""
    rows = []
    for (eval_seed, sampling), metrics in measured.metrics.items():
        key = {"run": config.lineage, "train_seed": config.seed, "eval_seed": eval_seed, **sampling.columns()}
        per_class = {f"IoU-{name}": f"{value:.4f}" for name, value in metrics.per_class.items()}
        scores = {"mIoU": f"{metrics.miou:.4f}", "accuracy": f"{metrics.accuracy:.4f}", **per_class}
        rows.append({**key, **scores, "images": len(split.frames), **evidence})
    return rows


def measured_rows(
    model: Segmenter, split: BevSplit, config: RunConfig, asked: Asked, evidence: dict[str, str], label: str
) -> dict[Key, dict[str, Any]]:
    """The rows of results.tsv that a checkpoint gives, by (eval seed, sampling)."""
    with Progress(label, len(split.frames)) as progress:
        measured = measure(model, split, config, asked, progress)
    return dict(zip(measured.metrics, result_rows(config, split, measured, evidence), strict=True))


def _confusions(config: RunConfig, split: BevSplit, measured: Measurement) -> dict[str, Any]:
    """The counts, without the rows of label values that no cell has, and what the values mean."""
    rows = [
        {
            "eval_seed": eval_seed,
            "sample_step": sampling.steps,
            "cells": {str(value): counts[value].tolist() for value in np.flatnonzero(counts.sum(1)).tolist()},
        }
        for (eval_seed, sampling), counts in measured.counts.items()
    ]
    return {"classes": list(split.classes), "labels": config.model.labels.model_dump(), "counts": rows}


def write_maps(path: Path, config: RunConfig, split: BevSplit, pictured: Sequence[int], measured: Measurement) -> None:
    """Of each pictured image the camera image, depth ground truth (where it was made), true map, and the map predicted
    at the most sampling steps under the first eval seed; `facts` says which, and what the maps' values mean."""
    eval_seed, sampling = max(measured.metrics, key=lambda key: (key[1].steps, -key[0]))
    samples = BevSamples(split, config.model.labels.ignore_index, depth_folder(split.only(pictured)))
    arrays: dict[str, Any] = {}
    for place in pictured:
        sample = samples[place]
        arrays[f"image_{place}"] = sample.image.permute(1, 2, 0).numpy()
        arrays[f"depth_{place}"] = np.where(sample.mask.numpy(), sample.depth.numpy(), 0).astype(np.float16)
        arrays[f"truth_{place}"] = sample.labels.numpy()
        arrays[f"predicted_{place}"] = measured.maps[eval_seed, sampling][place]
    shown = {place: split.frames[place].stem for place in pictured}
    meaning = {"classes": list(split.classes), "labels": config.model.labels.model_dump()}
    facts = {"images": shown, "eval_seed": eval_seed, "sample_step": sampling.steps, **meaning}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
