"""The evaluation of one detector's checkpoint in one job, and the files that it writes.

They are all that the report reads of a run: results, speed, some detections, what lies behind the AP, and the run's own
curve and provenance.
"""

from functools import partial
from pathlib import Path
from typing import Any

from noisebox import processes
from noisebox.config import ExperimentConfig, RunConfig, Sampling
from noisebox.data.coco import CocoSplit
from noisebox.evaluation.breakdown import breakdown
from noisebox.evaluation.evidence import check_classes, check_fit, write_evidence
from noisebox.evaluation.measuring import Asked, asked_of
from noisebox.evaluation.ongoing import Ongoing
from noisebox.evaluation.protocol import Measurement, measure
from noisebox.files import write_json
from noisebox.machine import placed
from noisebox.models import Detector
from noisebox.progress import Progress
from noisebox.tasks.detection import DetectionTask

PICTURE_SCORE = 0.05


def evaluate_run(
    model: Detector,
    task: DetectionTask,
    checkpoint: Path,
    experiment: ExperimentConfig,
    classes: list[str],
    ongoing: Ongoing,
) -> None:
    """What `noisebox evaluate` does: all that the experiment asks of the lineage."""
    config = task.config
    asked = asked_of(model, experiment.asked_of(config.lineage))
    evaluate(model, config, checkpoint, asked, experiment.pictures.images, task.val, classes, ongoing)


def evaluate(
    model: Detector,
    config: RunConfig,
    checkpoint: Path,
    asked: Asked,
    pictured_images: int,
    split: CocoSplit,
    classes: list[str],
    ongoing: Ongoing | None = None,
) -> None:
    """Evaluate one run's checkpoint and write graph.EVALUATION_FILES, with detections of the first `pictured_images`
    and the breakdown of all, both of one way to sample. What is `ongoing` is gone on with.

    Raises UserError when the model cannot sample so, or was trained for other classes than the dataset has.
    """
    check_fit(model, checkpoint, asked)
    check_classes(checkpoint, classes, split.classes, config.dataset)
    placed(model, config)
    label = f"evaluate {config.lineage} seed{config.seed}"
    with Progress(label, len(split.images)) as progress:
        measured = measure(model, split, config, asked, progress, ongoing)
    if not processes.first():
        return
    sampling = shown(asked)
    every = [measured.detections[seed, sampling] for seed in asked[sampling]]
    facts = {"sample_step": sampling.steps, "eval_seeds": list(asked[sampling])}
    behind = {**facts, **breakdown(split, every)}
    shown_images = pictures(split, pictured_images, asked, measured)
    # Written once all is known, so that a kill hardly ever leaves files of two evaluations side by side.
    rows = partial(result_rows, config, split, measured)
    folder = write_evidence(config, checkpoint, asked, measured.seconds_per_image, rows)
    write_json(folder / "detections.json", shown_images)
    write_json(folder / "breakdown.json", behind)


def result_rows(
    config: RunConfig, split: CocoSplit, measured: Measurement, evidence: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of results.tsv, one for each of `measured.metrics` and in its order, with AP as it is printed."""
    rows = []
    printed = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(split.federated.groups if split.federated else ())]
    for (eval_seed, sampling), metrics in measured.metrics.items():
        scores = {name: f"{metrics.summary[name]:.4f}" for name in printed}
        per_class = {f"AP-{name}": f"{metrics.per_class[name]:.4f}" for name in split.classes}
        key = {"run": config.lineage, "train_seed": config.seed, "eval_seed": eval_seed, **sampling.columns()}
        rows.append({**key, **scores, **per_class, "images": len(split.images), **evidence})
    return rows


def measured_rows(
    model: Detector, split: CocoSplit, config: RunConfig, asked: Asked, evidence: dict[str, str], label: str
) -> dict[tuple[int, Sampling], dict[str, Any]]:
    """The rows of results.tsv that a checkpoint gives, by (eval seed, sampling)."""
    with Progress(label, len(split.images)) as progress:
        measured = measure(model, split, config, asked, progress)
    return dict(zip(measured.metrics, result_rows(config, split, measured, evidence), strict=True))


def shown(asked: Asked) -> Sampling:
    """What pictures and breakdown are of: without guidance, the sampling asked of the most eval seeds, of those the one
    of most steps, with crops rather than without. So lineages asked for more by some protocol are still shown alike."""
    unguided = [sampling for sampling in asked if sampling.guidance.scale == 0] or list(asked)
    return max(unguided, key=lambda sampling: (len(asked[sampling]), sampling.steps, sampling.crops))


def pictures(split: CocoSplit, images: int, asked: Asked, measured: Measurement) -> dict[str, Any]:
    """The first images' ground truth and detections, under the first eval seed."""
    sampling = shown(asked)
    eval_seed = asked[sampling][0]
    entries = []
    for image in split.images[:images]:
        found = measured.detections[eval_seed, sampling][image.id]
        single = ~image.crowd  # a crowd is no object; an ignored region would be one of every class
        truth = zip(image.boxes_xyxy[single].tolist(), image.labels[single].tolist(), strict=True)
        detected = zip(found.boxes_xyxy.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        entries.append(
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
    return {**facts, "images": entries}


def _rounded(box: list[float]) -> list[float]:
    return [round(side, 2) for side in box]
