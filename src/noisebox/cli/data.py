"""Verbs that make data: data, depth-gt."""

from pathlib import Path
from typing import Annotated, Any

import typer

from noisebox import graph
from noisebox.cli.app import app, logged, not_empty, say
from noisebox.errors import UserError


@app.command()
def data(
    lines: Annotated[
        list[str] | None, typer.Argument(help="detection, aerial, bev.", show_default="the experiment's")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A file of params/datasets/, for tries, in place of all that.", callback=not_empty),
    ] = None,
) -> None:
    """Make or check the datasets of the chosen scale."""
    from noisebox.config import load_experiment, load_scale
    from noisebox.data.catalog import pinned_hash_differs, prepare_dataset
    from noisebox.progress import Progress

    if dataset and lines:
        raise UserError(f"--dataset {dataset} stands in place of {' '.join(lines)}: give one or the other")
    experiment = load_experiment()
    for subject in [dataset] if dataset else lines or experiment.data:
        with logged("data", subject):
            name = dataset or load_scale(experiment.scale).dataset_of(subject)
            file = graph.try_manifest(name) if dataset else graph.data_manifest(subject)
            with Progress(f"data {name}") as progress:
                manifest = prepare_dataset(name, progress=progress.at, manifest_file=file)
            if warning := pinned_hash_differs(name):
                say(f"warning: {warning}")
            counts = ", ".join(f"{split} {facts['images']} images" for split, facts in manifest["splits"].items())
            say(f"{name}: {counts}; data hash {manifest['hash'][:12]}")


@app.command(name="depth-gt")
def depth_gt(
    nuscenes_root: Annotated[
        Path | None, typer.Option(help="The folder that holds samples/.", show_default="the scale's BEV dataset")
    ] = None,
    version: Annotated[str | None, typer.Option(help="v1.0-mini, v1.0-trainval.", show_default="v1.0-trainval")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Files go to <split>_depth/ below.", show_default="depth_gt")
    ] = None,
    more_cameras: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    split: Annotated[str, typer.Option(help="train, val, or of a root another of splits.json.")] = "train",
    cameras: Annotated[
        str | None, typer.Option(help="Channels: --cameras CAM_FRONT CAM_BACK.", show_default="CAM_FRONT")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Of the depth image, in pixels.", show_default="600")] = None,
    width: Annotated[int | None, typer.Option(help="Of the depth image, in pixels.", show_default="800")] = None,
    min_depth: Annotated[float | None, typer.Option(help="In metres.", show_default="1.0")] = None,
    max_depth: Annotated[float | None, typer.Option(help="In metres.", show_default="50.0")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads.", min=1, show_default="one per core")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look at the files that are there; make none.")] = False,
) -> None:
    """Make depth ground truth from lidar sweeps, or check it.

    Writes <output dir>/<split>_depth/<image>.npz for every image of the split; run again, it makes what is missing.
    With --check it writes <split>_depth_report.tsv and, for some images, <split>_depth_pictures/<image>.png.

    Without --nuscenes-root it is a stage of the graph: the BEV dataset of the experiment's scale, its own size and
    depths, and files in depth_gt/<split>/.
    """
    sizes: dict[str, Any] = {"height": height, "width": width, "min_depth": min_depth, "max_depth": max_depth}
    if nuscenes_root is None:
        of_a_root = {"version": version, "output_dir": output_dir, "cameras": cameras, **sizes}
        if given := [f"--{name.replace('_', '-')}" for name, value in of_a_root.items() if value is not None]:
            raise UserError(
                f"{' and '.join(given)} without --nuscenes-root: a stage of the graph takes all that from the "
                "dataset's file and writes to depth_gt/; name a root, or leave that out"
            )
        if more_cameras:
            raise UserError(
                f"{' '.join(more_cameras)!r} is one word too many: a stage of the graph takes its cameras from the "
                "dataset; a split is named by --split"
            )
        _depth_stage(split, workers, check)
        return

    from noisebox.data.depth import DepthSettings, make_depth_gt
    from noisebox.data.nuscenes import read_nuscenes

    settings = DepthSettings(**{name: value for name, value in sizes.items() if value is not None})
    chosen = list(dict.fromkeys([cameras or "CAM_FRONT", *(more_cameras or [])]))
    frames = read_nuscenes(nuscenes_root, version or "v1.0-trainval", chosen).frames(split)
    output_dir = output_dir or Path("depth_gt")
    folder = output_dir / f"{split}_depth"
    if not check:
        made = make_depth_gt(frames, folder, settings, workers)
        say(f"{folder}: {len(made)} files made, {len(frames) - len(made)} were there")
        return

    from noisebox.data.depth_check import write_depth_report

    report, pictures = output_dir / f"{split}_depth_report.tsv", output_dir / f"{split}_depth_pictures"
    for camera in write_depth_report(frames, folder, settings, report, pictures, workers).itertuples():
        say(
            f"{camera.camera}: {camera.files} files of {settings.height} × {settings.width}, "
            f"valid ratio {camera.valid_ratio:.4f} ({camera.valid_ratio_min:.4f} to {camera.valid_ratio_max:.4f}), "
            f"depth {camera.depth_min:.2f} to {camera.depth_max:.2f} m, mean {camera.depth_mean:.2f} m"
        )
    say(f"{report}, and pictures in {pictures}")


def _depth_stage(split: str, workers: int | None, check: bool) -> None:
    """Depth ground truth of the experiment's BEV dataset."""
    from noisebox.config import load_experiment, load_scale
    from noisebox.data.catalog import open_split
    from noisebox.data.depth_stage import check_depth, make_depth

    with logged("depth_gt", split):
        dataset = load_scale(load_experiment().scale).dataset_of("bev")
        opened = open_split(dataset, split, manifest_file=graph.data_manifest("bev"))
        if check:
            for path in check_depth(opened, split, workers=workers):
                say(str(path))
        else:
            ratio = make_depth(opened, split, workers=workers)
            say(f"{graph.depth_folder(split)}: {len(opened.frames)} files, {100 * ratio:.2f} % of pixels have a return")
