"""What every evaluation writes, whatever its task: tables, and the run's own curve and provenance beside them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from noisebox import graph
from noisebox.config import RunConfig, Sampling
from noisebox.errors import UserError
from noisebox.evaluation.measuring import Asked
from noisebox.files import atomic_path, read_json, sha256, write_json
from noisebox.models import Model


def check_fit(model: Model, checkpoint: Path, asked: Asked) -> None:
    """Raises UserError when a checkpoint's model cannot be sampled in one of the ways asked."""
    for sampling in asked:
        try:
            model.check_sampling(sampling)
        except UserError as error:
            raise UserError(f"{checkpoint} cannot be sampled as {graph.EXPERIMENT} asks: {error}") from None


def check_classes(checkpoint: Path, trained: Sequence[str], given: Sequence[str], dataset: str) -> None:
    """Raises UserError when a checkpoint was trained for other classes than the dataset has."""
    if list(trained) != list(given):
        raise UserError(
            f"{checkpoint} was trained for the classes {', '.join(trained)}, but dataset {dataset!r} has "
            f"{', '.join(given)}: train it again, or evaluate on the dataset it was made for"
        )


def speed_rows(
    config: RunConfig, asked: Asked, seconds_per_image: Mapping[Sampling, float], evidence: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows of speed.tsv, one for each way to sample."""
    device = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    return [
        {
            "run": config.lineage,
            "train_seed": config.seed,
            **sampling.columns(),
            "inference_s_per_img": f"{seconds:.6f}",
            "inference_fps": f"{1 / seconds:.3f}",
            "device": device,
            "threads": config.threads,
            "batch": config.eval_batch_size,
            "eval_seeds": len(asked[sampling]),
            **evidence,
        }
        for sampling, seconds in seconds_per_image.items()
    ]


def write_evidence(
    config: RunConfig,
    checkpoint: Path,
    asked: Asked,
    seconds_per_image: Mapping[Sampling, float],
    rows: Callable[[dict[str, str]], list[dict[str, Any]]],
) -> Path:
    """Write what every evaluation has: results.tsv, whose `rows` are told the checkpoint that they stand on, speed.tsv,
    the run's curve and provenance. Returns the folder."""
    folder = Path(graph.evaluation_of(checkpoint.as_posix(), config.lineage, config.seed))
    evidence = {"ckpt": checkpoint.as_posix(), "ckpt_sha256": sha256(checkpoint)}
    write_tsv(folder / "results.tsv", rows(evidence))
    write_tsv(folder / "speed.tsv", speed_rows(config, asked, seconds_per_image, evidence))
    pass_on(checkpoint, folder)
    return folder


def pass_on(checkpoint: Path, folder: Path) -> None:
    """The run's curve and provenance beside the results, with the checkpoint's size and the time of its making in place
    of the run's timings: the same training is passed on in the same words."""
    run = checkpoint.parent
    with atomic_path(folder / "training.csv") as temporary:
        shutil.copyfile(run / "metrics.csv", temporary)
    provenance = read_json(run / "run.json")
    written = provenance.pop("timing", {}).get("written")
    write_json(
        folder / "run.json", {**provenance, "checkpoint": {"size": checkpoint.stat().st_size, "written": written}}
    )


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, lineterminator="\n")
