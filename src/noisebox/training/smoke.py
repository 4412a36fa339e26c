"""The smoke run of a recipe: a few steps, a finite and falling loss, a checkpoint that comes back the same.

The same images, noise and rate at every step make the loss a function of the weights alone, so it must fall if
gradients reach them; warm-up, decay and freezing, which could keep it where it is, are left out.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from noisebox.config import RunConfig
from noisebox.errors import UserError
from noisebox.files import write_text
from noisebox.models import Model, build_model
from noisebox.progress import Progress
from noisebox.structures import Examples
from noisebox.training.checkpoint import load_model, save_checkpoint
from noisebox.training.step import Trainer, summed


def smoke(config: RunConfig, out: Path, classes: Sequence[str], batch: Examples) -> None:
    """Run the checks on one batch and write `smoke.tsv` (recipe, check, value, ok) to `out`.

    `config` is one of `smoke_config`. Raises UserError naming the check that failed; nothing is written then.
    """
    trainer = Trainer(config, build_model(config, len(classes)), stand_in_teacher(config, len(classes)))
    iterations = config.smoke.iterations
    losses = []
    with Progress(f"smoke {config.lineage}", iterations) as progress:
        for _ in range(iterations):
            losses.append(summed(trainer.update(batch, step=0)))
            progress.advance(1, loss=losses[-1])
    quarter = iterations // 4
    first, last = math.fsum(losses[:quarter]) / quarter, math.fsum(losses[-quarter:]) / quarter
    same = _comes_back(trainer, config, classes, batch)
    rows = [
        ("finite_loss", f"{iterations} of {iterations}", True),  # the trainer stops at one that is not
        ("falling_loss", f"{first:.6g} to {last:.6g}", last < first),
        ("checkpoint", "same outputs after loading" if same else "other outputs after loading", same),
    ]
    for check, value, ok in rows:
        if not ok:
            raise UserError(f"smoke run of recipe {config.lineage!r}: check {check} failed ({value})")
    table = [("recipe", "check", "value", "ok"), *((config.lineage, check, value, "yes") for check, value, _ in rows)]
    write_text(out, "".join("\t".join(row) + "\n" for row in table))


def stand_in_teacher(config: RunConfig, num_classes: int) -> Model | None:
    """For a recipe that distils: an untrained detector of other weights, which can be learned from like any other."""
    if config.distill is None:
        return None
    mentor: Model = build_model(config.model_copy(update={"seed": config.seed + 1}), num_classes)
    return mentor


def _comes_back(trainer: Trainer, config: RunConfig, classes: Sequence[str], batch: Examples) -> bool:
    """Whether a checkpoint of the detector, saved and loaded, answers exactly the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_final.pth"
        described = {"config": config.model_dump(mode="json"), "classes": list(classes)}
        weights = trainer.detector.state_dict()
        save_checkpoint(path, {"model": weights, **described, "iteration": config.smoke.iterations})
        loaded, _, _ = load_model(path)
    device = trainer.accelerator.device
    with torch.no_grad():
        before, after = (model.to(device).eval().answer(batch.to(device)) for model in (trainer.detector, loaded))
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
