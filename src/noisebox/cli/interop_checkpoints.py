"""Verbs that take public weights in and give ours out: import-checkpoint, export-checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from noisebox.cli.app import Seed, Which, app, checkpoint_named, is_file, say


@app.command(name="import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Weights: .pth, or .pkl of a model zoo.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write.", show_default="imported/<name>.pth")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names joined by commas, a dataset, or a COCO file that declares them.", show_default="class0, ..."
        ),
    ] = None,
    proposals: Annotated[int, typer.Option(help="Boxes per image.", min=1)] = 500,
    attention_heads: Annotated[int, typer.Option(help="NHEADS of the original.", min=1)] = 8,
    sampling_ratio: Annotated[int, typer.Option(help="POOLER_SAMPLING_RATIO of the original.", min=1)] = 2,
    snr_scale: Annotated[float, typer.Option(help="SNR_SCALE of the original.", min=1e-6)] = 2.0,
    pixel_mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="PIXEL_MEAN of the original.", show_default="123.675 116.28 103.53, in RGB"),
    ] = None,
    pixel_std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="PIXEL_STD of the original.", show_default="58.395 57.12 57.375, in RGB"),
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="Its INPUT.FORMAT is BGR.")] = False,
    size: Annotated[tuple[int, int], typer.Option(help="Its MIN_SIZE_TEST and MAX_SIZE_TEST.", min=1)] = (800, 1333),
    stride_in_3x3: Annotated[
        bool, typer.Option("--stride-in-3x3", help="Its STRIDE_IN_1X1 is False, although it looks like Caffe's.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="What in the file holds the weights, such as ema_state.", show_default="model")
    ] = None,
    backbone_only: Annotated[
        bool, typer.Option("--backbone-only", help="Take only the backbone, for trainings to start from.")
    ] = False,
) -> None:
    """Make a checkpoint of public DiffusionDet weights.

    The network is told by the tensors (ResNet or Swin Transformer, sizes of
    the head, classes); options give what they cannot say. What became of each
    tensor is listed beside the checkpoint, in <name>.tensors.tsv.

    A backbone alone, such as torchvision-R-50.pkl, becomes a checkpoint that
    noisebox train --start can start from.
    """
    target = out or Path("imported") / f"{file.stem or 'weights'}.pth"

    from noisebox.interop.checkpoints import Untold
    from noisebox.interop.checkpoints import import_checkpoint as run_import

    untold = Untold(
        classes=classes, proposals=proposals, attention_heads=attention_heads, sampling_ratio=sampling_ratio,
        snr_scale=snr_scale, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr, size=size,
        stride_in_3x3=stride_in_3x3,
    )  # fmt: skip
    made = run_import(file, target, untold, key, backbone_only)
    say(f"{file}: tensors {made.translation}; listed in {made.table}")
    if made.config is None:
        keys = {"backbone": made.backbone, "pretrained": "true"} | {
            name: "[" + ",".join(f"{value:g}" for value in colour) + "]" for name, colour in untold.pixels().items()
        }
        settings = " ".join(f"--set model.{name}={value}" for name, value in keys.items())
        say(f"{made.path} is a {made.backbone} to start from: noisebox train LINEAGE --start {made.path} {settings}")
        return
    config = made.config
    say(
        f"{made.path} is a DiffusionDet on {made.backbone}: {len(made.classes)} classes, {config.num_heads} stages of "
        f"width {config.hidden_dim}, {config.num_proposals} proposals"
    )
    say(f"try it: noisebox predict {made.path} --images FOLDER")


@app.command(name="export-checkpoint")
def export_checkpoint(
    which: Which,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write.", show_default="exported/<lineage>-seed<k>.pth, of a file exported/<its name>"
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make public DiffusionDet weights of a checkpoint.

    Detectron2's checkpointer loads the file into the public DiffusionDet.
    Printed are the keys and values that its configuration needs for that.
    """
    path = checkpoint_named(which, seed)
    target = out or Path("exported") / (f"{path.stem}.pth" if is_file(which) else f"{which}-seed{seed}.pth")

    from noisebox.interop.checkpoints import export_checkpoint as run_export

    made = run_export(path, target)
    say(f"{made.path}: tensors {made.translation}; listed in {made.table}")
    say("Detectron2's configuration must have:")
    for key, value in zip(made.settings[::2], made.settings[1::2], strict=True):
        say(f"  {key} {value!r}" if " " in value else f"  {key} {value}")
    for note in made.notes:
        say(f"note: {note}")
