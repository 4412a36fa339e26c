"""Verbs that measure and look: evaluate, predict, show, show-bev, diagnose."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisebox import graph
from noisebox.cli.app import (
    Dataset,
    Lineage,
    Scale,
    Seed,
    Which,
    app,
    checkpoint_named,
    checkpoint_of,
    is_file,
    logged,
    say,
    training_of,
)
from noisebox.cli.launch import Processes, shared
from noisebox.errors import UserError
from noisebox.files import discard_folder, read_json
from noisebox.garbage import left_alone

if TYPE_CHECKING:
    from noisebox.config import RunConfig


@app.command()
def evaluate(
    lineage: Lineage, seed: Seed = 0, scale: Scale = None, dataset: Dataset = None, processes: Processes = None
) -> None:
    """Evaluate a checkpoint as its lineage is asked to be.

    With --scale or --dataset, that of the try of the same options; what comes of it lies in evaluation/ beside it.
    """
    from noisebox.config import load_experiment

    with shared(processes, scale), logged("evaluate", lineage, graph.try_name(seed, scale, dataset)):
        experiment = load_experiment()
        path = checkpoint_of(graph.Lineage.parse(lineage).name, seed, scale, dataset)
        again = training_of(lineage, seed, scale, dataset)

        for file in (path.with_name(Path(read).name) for read in graph.evaluation_inputs(lineage, seed)):
            if not file.is_file():
                raise UserError(
                    f"{file} does not exist, which goes beside the results: train it again, or fetch it with dvc pull"
                )

        with left_alone(stays=True):
            from noisebox.tasks import evaluate_run
            from noisebox.training.checkpoint import load_model

            model, config, checkpoint = load_model(path)  # and the imports of its family
        if (config.lineage, config.seed) != (lineage, seed):
            raise UserError(
                f"{path} is of {config.lineage} seed {config.seed}, not of {lineage} seed {seed}: train it again, or "
                "fetch it with dvc pull"
            )
        if config.scale != (scale or experiment.scale):
            raise UserError(
                f"{path} was trained at scale {config.scale!r}, but {graph.EXPERIMENT} now says {experiment.scale!r}: "
                f"train it again with: {again}"
            )
        _check_data(path, config, again)
        discard_folder(path.with_name(graph.FINISHED))  # an engine that asks for this has noted the training
        evaluate_run(model, config, path, experiment, checkpoint["classes"])
        say(f"{graph.evaluation_of(path.as_posix(), config.lineage, config.seed)}/results.tsv")


def _check_data(checkpoint: Path, config: "RunConfig", again: str) -> None:
    """Raises UserError where the dataset is not what the checkpoint was trained on: what goes beside the results would
    name other data than they are of. `again` is the command that trains it."""
    from noisebox.data.catalog import manifest_of, read_manifest

    manifest = manifest_of(config.dataset, graph.line_of(config.family))
    trained_on, here = read_json(checkpoint.with_name("run.json")).get("data_hash"), read_manifest(Path(), manifest)
    if trained_on and trained_on != here["hash"]:
        raise UserError(
            f"{checkpoint} was trained on {config.dataset!r} with hash {trained_on[:12]}, but {manifest} describes "
            f"{here['dataset']!r} with hash {here['hash'][:12]}: bring that data back, or train it again with: {again}"
        )


@app.command()
def predict(
    which: Which,
    images: Annotated[Path, typer.Option(help="An image file, or a folder of them.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.", show_default="predictions/<lineage>/seed<k>, of a file predictions/<its path>"
        ),
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 1,
    score: Annotated[float, typer.Option(help="What scores less is left out.", min=0, max=1)] = 0.3,
    eval_seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    batch: Annotated[int | None, typer.Option(help="Images at once.", min=1, show_default="as in evaluation")] = None,
    crops: Annotated[bool, typer.Option("--crops", help="Family yolc: look again where objects crowd.")] = False,
    visualize: Annotated[
        bool, typer.Option("--visualize", help="Family yolc: draw heatmap, crops, coarse and final boxes, too.")
    ] = False,
) -> None:
    """Detect in any images: COCO results and pictures.

    predictions.json is a list in COCO's results form, images.json names images and categories, and pictures/ shows
    every image with its boxes, looks/ what --visualize asks for, in place of those of an earlier prediction. An image
    of the validation split is detected as `noisebox evaluate` does.
    """
    path = checkpoint_named(which, seed)
    folder = out or Path("predictions") / (_place_of(path) if is_file(which) else f"{which}/seed{seed}")
    root, pictures = images if images.is_dir() else images.parent, folder / "pictures"
    if root.resolve().is_relative_to(pictures.resolve()):
        raise UserError(f"{images} lies in {pictures}, where the pictures go: choose another folder with --out")

    from noisebox.evaluation.predict import IMAGES, LOOKS, PREDICTIONS
    from noisebox.evaluation.predict import predict as run_predict
    from noisebox.report.aerial_pictures import write_pictures as write_looks
    from noisebox.report.predictions import write_pictures

    earlier = (folder / PREDICTIONS).exists()
    ways = {"crops": crops, "visualize": visualize}
    run_predict(path, images, folder, steps=steps, score=score, eval_seed=eval_seed, batch_size=batch, **ways)
    if earlier:
        shutil.rmtree(pictures, ignore_errors=True)
    drawn = write_pictures(folder / PREDICTIONS, folder / IMAGES, root, pictures)
    say(f"{folder / PREDICTIONS}, {folder / IMAGES}, and {len(drawn)} pictures in {pictures}")
    if visualize:
        say(f"{len(write_looks(folder / LOOKS))} pictures of what was seen in {folder / LOOKS}")


def _place_of(checkpoint: Path) -> Path:
    """What a checkpoint's predictions are called: its path below the project, or of one elsewhere its name."""
    path = Path(os.path.relpath(checkpoint))
    return (Path(path.name) if ".." in path.parts else path).with_suffix("")


@app.command()
def show(
    lineages: Annotated[list[str], typer.Argument(help="Shown side by side.", show_default=False)],
    seed: Seed = 0,
    images: Annotated[
        str,
        typer.Option(help="Of the validation split, ids or file names: 000001,000004.", show_default="the first ones"),
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("show"),
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 5,
    eval_seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
) -> None:
    """Draw detections beside truth, and how boxes denoise.

    Writes detections.png, and for each image <id>-steps.png, the boxes at every step, and <id>-film.png, the same as
    an animated PNG.
    """
    from noisebox.config import load_experiment

    checkpoints = {name: checkpoint_of(graph.Lineage.parse(name).name, seed) for name in lineages}
    files = {name: out / f"{name}.json" for name in checkpoints}
    first = load_experiment().pictures.images

    from noisebox.evaluation.trajectory import write_trajectories
    from noisebox.report.trajectory import write_show

    for name, path in checkpoints.items():
        chosen = images.split(",") if images else []
        write_trajectories(path, files[name], chosen, steps=steps, eval_seed=eval_seed, first=first)
    for written in write_show(files, out, Path()):
        say(str(written))


@app.command(name="show-bev")
def show_bev(
    lineages: Annotated[list[str], typer.Argument(help="Shown side by side.", show_default=False)],
    seed: Seed = 0,
    indices: Annotated[
        str | None,
        typer.Option(help="Validation images: --indices 0 10 20.", show_default="bev.pictures of the experiment"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("show"),
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps.", min=1, show_default="the most of bev.protocol")
    ] = None,
    eval_seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
) -> None:
    """Draw true and predicted maps of validation images.

    Writes sample_0000.png and so on, by the image's place in the split, counted from 0: camera image, depth ground
    truth, true map, and of each lineage the predicted map and where it is wrong.
    """
    from noisebox.config import load_experiment

    line = load_experiment().bev
    named = lineages if indices is None else [name for name in lineages if not name.isdecimal()]
    more = [name for name in lineages if name not in named]  # --indices takes one; the rest of its numbers come here
    places = line.pictures if indices is None else [_place(index) for index in (indices, *more)]
    if not named or not places:
        raise UserError("show-bev needs a lineage and an image: noisebox show-bev lss diffbev --indices 0 10 20")
    checkpoints = {name: checkpoint_of(graph.Lineage.parse(name).name, seed) for name in named}
    files = {name: out / f"{name}.npz" for name in checkpoints}

    from noisebox.evaluation.bev_maps import write_shown_maps
    from noisebox.report.bev_pictures import write_sheets

    for name, path in checkpoints.items():
        most = steps or max(line.protocol.sample_steps)
        write_shown_maps(path, files[name], places, steps=most, eval_seed=eval_seed)
    for written in write_sheets(files, out):
        say(str(written))


def _place(index: str) -> int:
    if not index.isdecimal():
        raise UserError(f"--indices takes whole numbers from 0 on, such as --indices 0 10 20, not {index!r}")
    return int(index)


@app.command()
def diagnose(
    lineage: Lineage,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.", min=1, show_default="the most measured")] = None,
) -> None:
    """Say why the mIoU of a map sticks.

    Prints what the labels and the predictions of its evaluation are made of, how classes are confused, the IoU of each,
    and a verdict: labels out of range, nothing labelled, collapsed, classes never predicted, or fine.

    Exit code 0: fine; 1: another verdict; 2: a mistake.
    """
    from noisebox.config import load_recipe
    from noisebox.report.bev_evaluations import read_confusion

    name = graph.Lineage.parse(lineage).name
    path = Path(graph.evaluation_folder(name, seed)) / "confusion.json"
    if not path.exists():
        if load_recipe(graph.Lineage.parse(name).recipe).family != "bev":
            raise UserError(f"{name} detects boxes; noisebox diagnose is for lineages of family bev")
        raise UserError(f"{path} does not exist; make it with: noisebox evaluate {name} --seed {seed}")
    confusion = read_confusion(path)
    steps, eval_seeds, counts = confusion.at(steps)

    from noisebox.evaluation.diagnosis import diagnose as run_diagnosis
    from noisebox.report.diagnosis import print_diagnosis
    from noisebox.report.markdown import listed, plural

    found = run_diagnosis(counts, confusion.classes, confusion.labels)
    under = f"eval seed{'s' if len(eval_seeds) > 1 else ''} {listed(eval_seeds)}"
    print_diagnosis(found, f"{name} seed{seed}, {plural(steps, 'sampling step')}, {under}")
    raise typer.Exit(0 if found.verdict == "fine" else 1)
