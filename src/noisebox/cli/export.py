"""The verb that writes checkpoints in the form of other tools: export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noisebox.cli.app import Seed, Which, app, checkpoint_named, say


@app.command()
def export(
    which: Which,
    form: Annotated[
        Literal["diffusers", "torch-export", "onnx"], typer.Option("--format", help="Of what.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.", show_default=False)],
    seed: Seed = 0,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of a program's images.", show_default="as in evaluation"),
    ] = None,
) -> None:
    """Write a DiffusionDet for Diffusers, torch.export or ONNX.

    diffusers: a folder for DetectionPipeline.from_pretrained, which samples
    any number of steps. torch-export, onnx: a program of one sampling step,
    which needs no Noisebox: images and noise in, boxes, scores and labels
    out. It is held against the detector and timed, and the numbers are
    printed and kept in export.json.
    """
    path = checkpoint_named(which, seed)

    from noisebox.interop.export import export as run_export

    run_export(path, form, out, size, say)
