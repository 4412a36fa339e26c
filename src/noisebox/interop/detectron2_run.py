"""A training or an evaluation as one of Detectron2's configurations asks for it, into its OUTPUT_DIR."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from noisebox import graph, processes
from noisebox.config import RunConfig
from noisebox.config.resolve import combined
from noisebox.data.catalog import prepare_for_try
from noisebox.errors import UserError
from noisebox.evaluation.evidence import write_tsv
from noisebox.evaluation.measuring import asked_of
from noisebox.files import sha256, write_text
from noisebox.interop.checkpoints import import_checkpoint
from noisebox.interop.detectron2_config import SCALE, Detectron2Config
from noisebox.interop.detectron2_keys import is_imagenet
from noisebox.interop.detectron2_logs import METRICS
from noisebox.interop.names import OWN_BACKBONE
from noisebox.machine import placed
from noisebox.models import build_model
from noisebox.tasks import measured_rows
from noisebox.tasks.detection import DetectionTask
from noisebox.training.checkpoint import load_checkpoint, load_weights
from noisebox.training.folder import claimed, reopen
from noisebox.training.loop import IfChanged, train_task


def opened(asked: Detectron2Config, overrides: Mapping[str, Any]) -> DetectionTask:
    """The task of a configuration, settled; `overrides` are dotted keys of a run.

    Raises UserError when weights or data are missing, or the data has another number of classes.
    """
    lineage = graph.Lineage.parse(asked.name)
    config = combined(lineage, asked.seed, SCALE, asked.scale, [asked.recipe], overrides=overrides)
    for path in (start_of(asked), teacher_of(config)):
        if path and not path.exists():
            raise UserError(f"{path} does not exist; it must be a checkpoint of noisebox or Detectron2")
    prepare_for_try(config.dataset, config.family)
    task = DetectionTask(_with_layout(config, asked))
    classes = len(task.classes)
    if asked.num_classes not in (None, classes):
        raise UserError(
            f"MODEL.DiffusionDet.NUM_CLASSES is {asked.num_classes}, but dataset {config.dataset!r} has {classes}: "
            f"{', '.join(task.classes[:5])}{' …' if classes > 5 else ''}"
        )
    return task


def start_of(asked: Detectron2Config) -> Path | None:
    """The checkpoint to start from; None where that is nothing, or the name of a backbone that timm has."""
    named = is_imagenet(asked.weights) and not Path(asked.weights).exists()
    return Path(asked.weights) if asked.weights and not named else None


def with_own_weights(asked: Detectron2Config) -> Detectron2Config:
    """The configuration with weights of ours: a file in the public names becomes `start.pth` in its OUTPUT_DIR.

    Raises UserError where the file cannot be read, or holds what would compute something else here.
    """
    start = start_of(asked)
    if start is None or not start.exists() or _is_ours(start):
        return asked
    return replace(asked, weights=str(import_checkpoint(start, asked.output_dir / "start.pth").path))


def _is_ours(path: Path) -> bool:
    """By its names: a backbone that was imported, and what a framework of others trained, have no configuration."""
    try:
        weights = load_checkpoint(path).get("model")
    except UserError:
        return False
    return isinstance(weights, dict) and any(str(name).startswith(OWN_BACKBONE) for name in weights)


def teacher_of(config: RunConfig) -> Path | None:
    """The checkpoint to learn from; None where nobody teaches."""
    return Path(config.distill.teacher) if config.distill else None


def _with_layout(config: RunConfig, asked: Detectron2Config) -> RunConfig:
    """The configuration with the normalisation that the checkpoint's backbone has: one of ours says whether it was
    pretrained, one of Detectron2 was."""
    start = start_of(asked)
    if start is None:
        return config
    own = load_checkpoint(start).get("config")
    pretrained = own.get("model", {}).get("pretrained", True) if isinstance(own, dict) else True
    return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": pretrained})})


def take_up(run: Path) -> None:
    """Let a training that is finished in the folder `run` be gone on with, as one that was interrupted is."""
    with claimed(run):
        if processes.first():
            reopen(run, graph.best_checkpoint("detection"))


def train(asked: Detectron2Config, task: DetectionTask, if_changed: IfChanged) -> None:
    """Train into `asked.output_dir`, or go on with the training that is there; recipe.yaml and scale.yaml beside the
    run's files say what the configuration came to.

    Raises UserError as `noisebox.training.loop.train` does.
    """
    run = asked.output_dir
    train_task(task, run, parent=start_of(asked), teacher=teacher_of(task.config), if_changed=if_changed)
    for name, section in (("recipe", asked.recipe), ("scale", asked.scale)) if processes.first() else ():
        values = section.model_dump(mode="json", exclude_defaults=True)
        write_text(run / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


def evaluate(asked: Detectron2Config, task: DetectionTask) -> dict[str, Any]:
    """Evaluate `asked.weights` on the validation split, sampled as the configuration says under its SEED, each process
    a share of it, and write `results.tsv` into `asked.output_dir`; returns its one row.

    Raises UserError when the weights do not fill the model.
    """
    start, config = start_of(asked), task.config
    if start is None:
        raise UserError(
            f"--eval-only evaluates MODEL.WEIGHTS, the path of a checkpoint, and {asked.weights or 'nothing'!r} has no "
            "detector"
        )
    model = build_model(config, len(task.classes), fetch_weights=False)
    checkpoint = load_checkpoint(start)
    report = load_weights(model, checkpoint, start)
    if report.new:
        raise UserError(f"{start} does not fill the model of the configuration, as after a training: {report}")
    ways = {asked.sampling: [asked.seed]}
    try:
        model.check_sampling(asked.sampling)
    except UserError as error:
        raise UserError(f"{start} cannot be sampled as the configuration says: {error}") from None
    evidence = {"ckpt": start.as_posix(), "ckpt_sha256": sha256(start)}
    told = config.model_copy(update=_descent(checkpoint))
    with processes.company():
        rows = measured_rows(
            placed(model, config).eval(), task.val, told, asked_of(model, ways), evidence, f"evaluate {start}"
        )
    if processes.first():
        write_tsv(asked.output_dir / "results.tsv", list(rows.values()))
    (row,) = rows.values()
    return row


def _descent(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage and train seed that a checkpoint of ours tells; another tells nothing."""
    own = checkpoint.get("config")
    return {key: own[key] for key in ("lineage", "seed") if key in own} if isinstance(own, dict) else {}


def copypaste(row: Mapping[str, Any]) -> list[str]:
    """A row of results.tsv in the lines that Detectron2 prints to be copied."""
    return [
        "copypaste: Task: bbox",
        f"copypaste: {','.join(METRICS)}",
        f"copypaste: {','.join(row[name] for name in METRICS)}",
    ]
