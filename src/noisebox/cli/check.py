"""The verb that looks at a dataset before a training does: check."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisebox import graph
from noisebox.cli.app import app
from noisebox.errors import UserError

if TYPE_CHECKING:
    from noisebox.data.findings import Finding

NUSCENES = "Of a nuScenes root: "


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="A file of params/datasets/.", show_default=False)],
    root: Annotated[
        Path | None,
        typer.Argument(help="For nuscenes, a folder that holds samples/ and v1.0-...", show_default="the dataset's"),
    ] = None,
    more_cameras: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    images: Annotated[int, typer.Option(help="Images of each split that are decoded.", min=0)] = 32,
    every: Annotated[bool, typer.Option("--all", help="Decode all images.")] = False,
    version: Annotated[
        str | None, typer.Option(help=f"{NUSCENES}v1.0-mini, v1.0-trainval.", show_default="the only one")
    ] = None,
    cameras: Annotated[
        str | None, typer.Option(help=f"{NUSCENES}--cameras CAM_FRONT CAM_BACK.", show_default="CAM_FRONT")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help=f"{NUSCENES}labels are 0 to classes - 1, or 255.", min=1, max=255, show_default="any"),
    ] = None,
    label_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Of maps: height and width of a label map.", show_default="the same for all"),
    ] = None,
) -> None:
    """Check a dataset: files, annotations, some images.

    Prints a table: what it needs and where, what is missing and where it is to be had, what is in it. `noisebox check
    nuscenes ROOT` looks at any nuScenes root, at its tables, links, sweeps, images and labels.

    Exit code 2 when a training would fail.
    """
    if root is None:
        of_a_root = {"--version": version, "--cameras": cameras, "--classes": classes}
        if given := [option for option, value in of_a_root.items() if value is not None]:
            raise UserError(
                f"{' and '.join(given)} without a ROOT: what dataset {dataset!r} has, {graph.dataset_file(dataset)} "
                "says; change that, or name a folder, as in noisebox check nuscenes /data/nuscenes"
            )

        from noisebox.data.dataset_check import check_dataset

        _tell(check_dataset(dataset, images=None if every else images, label_hw=label_size), dataset)
        return
    if dataset != "nuscenes":
        raise UserError(f"{root} is one word too many: only nuscenes takes a root, {dataset} says its own paths")

    from noisebox.data.nuscenes_check import check_nuscenes

    chosen = list(dict.fromkeys([cameras or "CAM_FRONT", *(more_cameras or [])]))
    _tell(check_nuscenes(root, version, chosen, classes, label_size), str(root))


def _tell(findings: "Sequence[Finding]", subject: str) -> None:
    """Print a table of findings; raises UserError when one is an error."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"error": "bold red", "warning": "yellow", "ok": "green"}
    shown = Table()
    for title in ("", "where", "what", "what would fit"):
        shown.add_column(title, overflow="fold")
    for finding in findings:
        texts = (Text(text) for text in (finding.where, finding.what, finding.fits))
        shown.add_row(Text(finding.severity, colours[finding.severity]), *texts)
    Console().print(shown)
    if errors := sum(finding.severity == "error" for finding in findings):
        raise UserError(
            f"a training on {subject} would fail: {errors} error{'s' if errors > 1 else ''} in the table above"
        )
