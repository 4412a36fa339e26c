"""The evaluation protocol: every eval seed at every step count on one checkpoint, in one job.

Each image's features are computed once and shared; all eval seeds go through the head as one batch. The files written
here are all that the report reads of a run: results, speed, some detections, and the run's own curve and provenance.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from noisebox import graph
from noisebox.config import ProtocolConfig, RunConfig
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
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Measurement:
    """What a protocol gave.

    `metrics` and `detections` are keyed by (eval seed, sample steps); `seconds_per_image` by sample steps: the
    encoder's share of one image plus one eval seed's share of the sampling.
    """

    metrics: dict[tuple[int, int], DetectionMetrics] = field(default_factory=dict)
    detections: dict[tuple[int, int], dict[int, Detections]] = field(default_factory=dict)
    seconds_per_image: dict[int, float] = field(default_factory=dict)


def measure(
    model: "Detector",
    split: CocoSplit,
    config: RunConfig,
    eval_seeds: Sequence[int],
    sample_steps: Sequence[int],
    progress: Progress | None = None,
) -> Measurement:
    """Run the protocol over a split; the model is left in the mode it came in."""
    keys = [(seed, steps) for steps in sample_steps for seed in eval_seeds]
    measured = Measurement(detections={key: {} for key in keys})
    encoding, sampling = 0.0, dict.fromkeys(sample_steps, 0.0)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(config.device, config.precision):
        for batch in evaluation_batches(split, config):
            on_device = batch.to(config.device)
            started = _now(config.device)
            encoded = model.encode(on_device)
            encoding += _now(config.device) - started
            for steps in sample_steps:
                started = _now(config.device)
                by_seed = model.detect(encoded, on_device, eval_seeds, steps)
                sampling[steps] += _now(config.device) - started
                for seed, found in zip(eval_seeds, by_seed, strict=True):
                    of_image = zip(batch.image_ids, found, strict=True)
                    measured.detections[seed, steps].update({image: each.cpu() for image, each in of_image})
            if progress:
                progress.advance(len(batch))
    model.train(was_training)
    for key in keys:
        measured.metrics[key] = coco_metrics(split, measured.detections[key])
    images = len(split.images)
    for steps in sample_steps:
        measured.seconds_per_image[steps] = encoding / images + sampling[steps] / (images * len(eval_seeds))
    return measured


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision context of a run: bf16 or fp16 products, or nothing for fp32."""
    return torch.autocast(device, dtype=PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def evaluate(
    model: "Detector", config: RunConfig, checkpoint: Path, protocol: ProtocolConfig, classes: list[str]
) -> None:
    """Evaluate one run's checkpoint and write graph.EVALUATION_FILES.

    Raises UserError when the checkpoint was trained for other classes than the dataset has.
    """
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
        measured = measure(model, split, config, protocol.eval_seeds, protocol.sample_steps, progress)
    folder = Path(graph.evaluation_folder(config.lineage, config.seed))
    evidence = {"ckpt": checkpoint.as_posix(), "ckpt_sha256": sha256(checkpoint)}
    _write_tsv(folder / "results.tsv", _result_rows(config, split, measured, evidence))
    _write_tsv(folder / "speed.tsv", _speed_rows(config, protocol, measured, evidence))
    write_json(folder / "detections.json", _pictured(split, protocol, measured))
    _pass_on(checkpoint.parent, folder)


def _result_rows(
    config: RunConfig, split: CocoSplit, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    rows = []
    for (eval_seed, steps), metrics in measured.metrics.items():
        scores = {name: f"{metrics.summary[name]:.4f}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
        per_class = {f"AP-{name}": f"{metrics.per_class[name]:.4f}" for name in split.classes}
        key = {"run": config.lineage, "train_seed": config.seed, "eval_seed": eval_seed, "sample_step": steps}
        rows.append({**key, **scores, **per_class, "images": len(split.images), **evidence})
    return rows


def _speed_rows(
    config: RunConfig, protocol: ProtocolConfig, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    device = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    return [
        {
            "run": config.lineage,
            "train_seed": config.seed,
            "sample_step": steps,
            "inference_s_per_img": f"{seconds:.6f}",
            "inference_fps": f"{1 / seconds:.3f}",
            "device": device,
            "threads": config.threads,
            "batch": config.eval_batch_size,
            "eval_seeds": len(protocol.eval_seeds),
            **evidence,
        }
        for steps, seconds in measured.seconds_per_image.items()
    ]


def _pictured(split: CocoSplit, protocol: ProtocolConfig, measured: Measurement) -> dict[str, Any]:
    """The first images' ground truth and detections, at the first eval seed and the most steps."""
    eval_seed, steps = protocol.eval_seeds[0], max(protocol.sample_steps)
    pictures = []
    for image in split.images[: protocol.pictures]:
        found = measured.detections[eval_seed, steps][image.id]
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
    return {"sample_step": steps, "eval_seed": eval_seed, "score_threshold": PICTURE_SCORE, "images": pictures}


def _rounded(box: list[float]) -> list[float]:
    return [round(side, 2) for side in box]


def _pass_on(run: Path, folder: Path) -> None:
    """The run's curve, and of its provenance what is the same every time, beside the results."""
    with atomic_path(folder / "training.csv") as temporary:
        shutil.copyfile(run / "metrics.csv", temporary)
    provenance = json.loads((run / "run.json").read_text(encoding="utf-8"))
    provenance.pop("timing", None)
    write_json(folder / "run.json", provenance)


def _write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, lineterminator="\n")
