"""`noisebox train --config-file`: Detectron2's command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from typer.core import TyperCommand

from noisebox.cli.app import logged, say, with_auto_batch
from noisebox.cli.launch import in_turn, launched, shared
from noisebox.errors import UserError


class OverridableCommand(TyperCommand):
    """A verb that, after --config-file, takes KEY VALUE pairs, in which a value such as -1 is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = any(word.partition("=")[0] == "--config-file" for word in args)
        return super().parse_args(ctx, args)


def train_config(
    config_file: Path,
    pairs: Sequence[str],
    overrides: dict[str, Any],
    eval_only: bool,
    num_gpus: int,
    if_changed: Literal["refuse", "resume", "fresh"],
) -> None:
    """Train or evaluate as a configuration of Detectron2 with KEY VALUE `pairs` says; `overrides` are of our own
    keys."""
    from noisebox.interop.detectron2_config import load_config

    asked = load_config(config_file, pairs)
    if num_gpus > 1 and launched() == 1:
        _check_devices(num_gpus, asked.scale.device)
    with shared(num_gpus if num_gpus > 1 else launched()), logged("detectron2", config_file.stem):
        for note in asked.notes:
            say(f"note: {note}")

        from noisebox.interop.detectron2_run import copypaste, evaluate, opened, take_up, train, with_own_weights
        from noisebox.training.folder import keep_foreign

        if not eval_only:
            in_turn(lambda: keep_foreign(asked.output_dir))
        asked = in_turn(lambda: with_own_weights(asked))
        task = in_turn(lambda: opened(asked, overrides))
        if eval_only:
            row = evaluate(asked, task)
            for line in copypaste(row):
                say(line)
            say(f"{asked.output_dir / 'results.tsv'}")
            return
        if asked.sampling.steps > 1 or asked.sampling.guidance.scale:
            say("note: a training measures itself at one sampling step without guidance; --eval-only samples as asked")
        if if_changed != "fresh":
            take_up(asked.output_dir)
        train(asked, with_auto_batch(task, asked.output_dir), if_changed)
        say(f"{asked.output_dir / 'model_final.pth'}")


def _check_devices(count: int, device: str) -> None:
    import torch

    if device == "cuda" and torch.cuda.device_count() < count:
        raise UserError(f"--num-gpus {count} needs as many GPUs, and {torch.cuda.device_count()} can be seen here")
