"""The evaluation of one checkpoint in one job: every way to sample that the protocols ask for, under its eval seeds.

Each image's features are computed once and shared; all eval seeds go through the head as one batch. The files written
here are all that the report reads of a run: results, speed, some detections, and the run's own curve and provenance.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch.nn.functional import one_hot

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.data.catalog import open_split
from noisebox.data.coco import CocoSplit
from noisebox.data.loader import evaluation_batches
from noisebox.errors import UserError
from noisebox.evaluation.detection import DetectionMetrics, coco_metrics
from noisebox.files import atomic_path, sha256, write_json
from noisebox.progress import Progress
from noisebox.structures import Detections

if TYPE_CHECKING:
    from noisebox.models import Detector

PICTURE_SCORE = 0.05
COUNTED = 100  # detections an image and class that COCO's metrics look at
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


Asked = Mapping[Sampling, Sequence[int]]  # each way to sample, with the eval seeds to run it under


@dataclass
class Measurement:
    """What an evaluation gave.

    `metrics` and `detections` are keyed by (eval seed, sampling); of the detections of an image and class only the
    COUNTED best are kept, as no metric looks at more. `seconds_per_image` by sampling: the encoder's share of one image
    plus one eval seed's share of the sampling.
    """

    metrics: dict[tuple[int, Sampling], DetectionMetrics] = field(default_factory=dict)
    detections: dict[tuple[int, Sampling], dict[int, Detections]] = field(default_factory=dict)
    seconds_per_image: dict[Sampling, float] = field(default_factory=dict)


def measure(
    model: "Detector", split: CocoSplit, config: RunConfig, asked: Asked, progress: Progress | None = None
) -> Measurement:
    """Evaluate a model on a split in every way asked; the model is left in the mode it came in."""
    keys = [(seed, sampling) for sampling, eval_seeds in asked.items() for seed in eval_seeds]
    measured = Measurement(detections={key: {} for key in keys})
    encoding, sampled = 0.0, dict.fromkeys(asked, 0.0)
    was_training = model.training
    model.eval()
    # Not inference mode: what is encoded in it could not take part in the gradients that guidance climbs.
    with torch.no_grad(), autocast(config.device, config.precision):
        for batch in evaluation_batches(split, config):
            on_device = batch.to(config.device)
            started = _now(config.device)
            encoded = model.encode(on_device)
            encoding += _now(config.device) - started
            for sampling, eval_seeds in asked.items():
                started = _now(config.device)
                by_seed = model.detect(encoded, on_device, eval_seeds, sampling)
                sampled[sampling] += _now(config.device) - started
                for seed, found in zip(eval_seeds, by_seed, strict=True):
                    of_image = zip(batch.image_ids, found, strict=True)
                    measured.detections[seed, sampling].update({image: counted(each.cpu()) for image, each in of_image})
            if progress:
                progress.advance(len(batch))
    model.train(was_training)
    for key in keys:
        measured.metrics[key] = coco_metrics(split, measured.detections[key])
    images = len(split.images)
    for sampling, seconds in sampled.items():
        measured.seconds_per_image[sampling] = encoding / images + seconds / (images * len(asked[sampling]))
    return measured


def counted(found: Detections) -> Detections:
    """The COUNTED best of each class, still in falling order of score; COCO's metrics are the same without the rest.

    An ensemble over many steps finds thousands of boxes an image, and an evaluation holds all its ways at once.
    """
    if len(found.scores) <= COUNTED:
        return found
    rank = one_hot(found.labels).cumsum(0).gather(1, found.labels[:, None])[:, 0]
    kept = rank <= COUNTED
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision context of a run: bf16 or fp16 products, or nothing for fp32."""
    return torch.autocast(device, dtype=PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def evaluate(
    model: "Detector", config: RunConfig, checkpoint: Path, asked: Asked, pictured_images: int, classes: list[str]
) -> None:
    """Evaluate one run's checkpoint and write graph.EVALUATION_FILES, with detections of the first `pictured_images`.

    Raises UserError when the model cannot sample so, or was trained for other classes than the dataset has.
    """
    for sampling in asked:
        try:
            model.check_sampling(sampling)
        except UserError as error:
            raise UserError(f"{checkpoint} cannot be sampled as {graph.EXPERIMENT} asks: {error}") from None
    torch.set_num_threads(config.threads)
    split = open_split(config.dataset, "val")
    if list(split.classes) != classes:
        raise UserError(
            f"{checkpoint} was trained for the classes {', '.join(classes)}, but dataset {config.dataset!r} has "
            f"{', '.join(split.classes)}: train it again, or evaluate on the dataset it was made for"
        )
    label = f"evaluate {config.lineage} seed{config.seed}"
    model.to(config.device)
    with Progress(label, len(split.images)) as progress:
        measured = measure(model, split, config, asked, progress)
    folder = Path(graph.evaluation_folder(config.lineage, config.seed))
    evidence = {"ckpt": checkpoint.as_posix(), "ckpt_sha256": sha256(checkpoint)}
    _write_tsv(folder / "results.tsv", result_rows(config, split, measured, evidence))
    _write_tsv(folder / "speed.tsv", _speed_rows(config, asked, measured, evidence))
    write_json(folder / "detections.json", _pictures(split, pictured_images, asked, measured))
    _pass_on(checkpoint, folder)


def _sampling_cells(sampling: Sampling) -> dict[str, Any]:
    """A way to sample as columns: without guidance 0, `none`, 0, 0; `guidance_topk` 0 lets every proposal move."""
    guidance, cells = sampling.guidance, {"sample_step": sampling.steps}
    if guidance.scale == 0:
        return {**cells, "guidance_scale": 0.0, "guidance_mode": "none", "guidance_steps": 0, "guidance_topk": 0}
    return {
        **cells,
        "guidance_scale": guidance.scale,
        "guidance_mode": guidance.mode,
        "guidance_steps": guidance.langevin_steps,
        "guidance_topk": guidance.topk or 0,
    }


def result_rows(
    config: RunConfig, split: CocoSplit, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of results.tsv, one for each of `measured.metrics` and in its order, with AP as it is printed."""
    rows = []
    for (eval_seed, sampling), metrics in measured.metrics.items():
        scores = {name: f"{metrics.summary[name]:.4f}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
        per_class = {f"AP-{name}": f"{metrics.per_class[name]:.4f}" for name in split.classes}
        key = {"run": config.lineage, "train_seed": config.seed, "eval_seed": eval_seed, **_sampling_cells(sampling)}
        rows.append({**key, **scores, **per_class, "images": len(split.images), **evidence})
    return rows


def _speed_rows(
    config: RunConfig, asked: Asked, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    device = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    return [
        {
            "run": config.lineage,
            "train_seed": config.seed,
            **_sampling_cells(sampling),
            "inference_s_per_img": f"{seconds:.6f}",
            "inference_fps": f"{1 / seconds:.3f}",
            "device": device,
            "threads": config.threads,
            "batch": config.eval_batch_size,
            "eval_seeds": len(asked[sampling]),
            **evidence,
        }
        for sampling, seconds in measured.seconds_per_image.items()
    ]


def _pictured(asked: Asked) -> tuple[int, Sampling]:
    """What the pictures show: without guidance, the sampling asked of the most eval seeds, of those the one of most
    steps, at its first eval seed. So lineages asked for more by some protocol are still shown alike."""
    unguided = [sampling for sampling in asked if sampling.guidance.scale == 0] or list(asked)
    sampling = max(unguided, key=lambda sampling: (len(asked[sampling]), sampling.steps))
    return asked[sampling][0], sampling


def _pictures(split: CocoSplit, images: int, asked: Asked, measured: Measurement) -> dict[str, Any]:
    """The first images' ground truth and detections."""
    eval_seed, sampling = _pictured(asked)
    pictures = []
    for image in split.images[:images]:
        found = measured.detections[eval_seed, sampling][image.id]
        truth = zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True)
        detected = zip(found.boxes_xyxy.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        pictures.append(
            {
                "id": image.id,
                "file": image.path.as_posix(),
                "width": image.width,
                "height": image.height,
                "ground_truth": [{"box_xyxy": _rounded(box), "label": split.classes[label]} for box, label in truth],
                "detections": [
                    {"box_xyxy": _rounded(box), "label": split.classes[label], "score": round(score, 4)}
                    for box, label, score in detected
                    if score >= PICTURE_SCORE
                ],
            }
        )
    facts = {"sample_step": sampling.steps, "eval_seed": eval_seed, "score_threshold": PICTURE_SCORE}
    return {**facts, "images": pictures}


def _rounded(box: list[float]) -> list[float]:
    return [round(side, 2) for side in box]


def _pass_on(checkpoint: Path, folder: Path) -> None:
    """The run's curve and provenance beside the results, with the checkpoint's size and the time of its making in place
    of the run's timings: the same training is passed on in the same words."""
    run = checkpoint.parent
    with atomic_path(folder / "training.csv") as temporary:
        shutil.copyfile(run / "metrics.csv", temporary)
    provenance = json.loads((run / "run.json").read_text(encoding="utf-8"))
    written = provenance.pop("timing", {}).get("written")
    write_json(
        folder / "run.json", {**provenance, "checkpoint": {"size": checkpoint.stat().st_size, "written": written}}
    )


def _write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, lineterminator="\n")
