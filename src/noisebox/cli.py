"""Every command of `noisebox`, thin: parse, call, print.

Imports wait until a verb runs, and torch until its input is known to be good, so that a mistake is told at once.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noisebox import graph
from noisebox.errors import UserError
from noisebox.interrupt import Interrupted, listen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Noisebox: reproducible experiments for detectors that denoise, distil and refine.",
)
check_app = typer.Typer(no_args_is_help=True, help="Check a user's own dataset.")
app.add_typer(check_app, name="check")
Lineage = Annotated[str, typer.Argument(help="Recipes joined by '+', such as baseline+finetune.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Train seed.", min=0)]


@app.command()
def data(
    lines: Annotated[
        list[str] | None, typer.Argument(help="detection, aerial, bev.", show_default="the experiment's")
    ] = None,
) -> None:
    """Make or check the datasets of the chosen scale."""
    from noisebox.config import load_experiment, load_scale
    from noisebox.data.catalog import pinned_hash_differs, prepare_dataset
    from noisebox.progress import Progress

    experiment = load_experiment()
    for line in lines or experiment.data:
        with logged("data", line):
            dataset = load_scale(experiment.scale).dataset_of(line)
            with Progress(f"data {dataset}") as progress:
                manifest = prepare_dataset(dataset, progress=progress.at, manifest_file=graph.data_manifest(line))
            if warning := pinned_hash_differs(dataset):
                say(f"warning: {warning}")
            counts = ", ".join(f"{split} {facts['images']} images" for split, facts in manifest["splits"].items())
            say(f"{dataset}: {counts}; data hash {manifest['hash'][:12]}")


@check_app.command("nuscenes")
def check_nuscenes(
    root: Annotated[Path, typer.Argument(help="The folder that holds samples/ and v1.0-...", show_default=False)],
    more_cameras: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    version: Annotated[str | None, typer.Option(help="v1.0-mini, v1.0-trainval.", show_default="the only one")] = None,
    cameras: Annotated[str, typer.Option(help="Channels: --cameras CAM_FRONT CAM_BACK.")] = "CAM_FRONT",
    classes: Annotated[
        int | None, typer.Option(help="Labels are 0 to classes - 1, or 255.", min=1, max=255, show_default="any")
    ] = None,
    label_size: Annotated[tuple[int, int], typer.Option(help="Height and width of a label map.")] = (98, 100),
) -> None:
    """Check a nuScenes root: tables, files, labels.

    Prints a table of findings. Exit code 2 when a training would fail.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from noisebox.data.nuscenes_check import check_nuscenes as run_check

    findings = run_check(root, version, list(dict.fromkeys([cameras, *(more_cameras or [])])), classes, label_size)
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
            f"a training on {root} would fail: {errors} error{'s' if errors > 1 else ''} in the table above"
        )


@app.command(name="depth-gt")
def depth_gt(
    nuscenes_root: Annotated[
        Path | None, typer.Option(help="The folder that holds samples/.", show_default="the scale's BEV dataset")
    ] = None,
    version: Annotated[str, typer.Option(help="v1.0-mini, v1.0-trainval.")] = "v1.0-trainval",
    output_dir: Annotated[Path, typer.Option(help="Files go to <split>_depth/ below.")] = Path("depth_gt"),
    more_cameras: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    split: Annotated[str, typer.Option(help="train, val, or another of splits.json.")] = "train",
    cameras: Annotated[str, typer.Option(help="Channels: --cameras CAM_FRONT CAM_BACK.")] = "CAM_FRONT",
    height: Annotated[int, typer.Option(help="Of the depth image, in pixels.")] = 600,
    width: Annotated[int, typer.Option(help="Of the depth image, in pixels.")] = 800,
    min_depth: Annotated[float, typer.Option(help="In metres.")] = 1.0,
    max_depth: Annotated[float, typer.Option(help="In metres.")] = 50.0,
    workers: Annotated[int | None, typer.Option(help="Threads.", min=1, show_default="one per core")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look at the files that are there; make none.")] = False,
) -> None:
    """Make depth ground truth from lidar sweeps, or check it.

    Writes <output dir>/<split>_depth/<image>.npz for every image of the split; run again, it makes what is missing.
    With --check it writes <split>_depth_report.tsv and, for some images, <split>_depth_pictures/<image>.png.

    Without --nuscenes-root it is a stage of the graph: the BEV dataset of the experiment's scale, its own size and
    depths, and files in depth_gt/<split>/.
    """
    if nuscenes_root is None:
        if more_cameras:
            raise UserError(
                f"{' '.join(more_cameras)!r} is one word too many: a stage of the graph takes its cameras from the "
                "dataset; a split is named by --split"
            )
        _depth_stage(split, workers, check)
        return

    from noisebox.data.depth import DepthSettings, make_depth_gt
    from noisebox.data.nuscenes import read_nuscenes

    settings = DepthSettings(height, width, min_depth, max_depth)
    chosen = list(dict.fromkeys([cameras, *(more_cameras or [])]))
    frames = read_nuscenes(nuscenes_root, version, chosen).frames(split)
    folder = output_dir / f"{split}_depth"
    if not check:
        made = make_depth_gt(frames, folder, settings, workers)
        say(f"{folder}: {len(made)} files made, {len(frames) - len(made)} were there")
        return

    from noisebox.data.depth_check import write_depth_report

    report, pictures = output_dir / f"{split}_depth_report.tsv", output_dir / f"{split}_depth_pictures"
    for camera in write_depth_report(frames, folder, settings, report, pictures, workers).itertuples():
        say(
            f"{camera.camera}: {camera.files} files of {height} × {width}, valid ratio {camera.valid_ratio:.4f} "
            f"({camera.valid_ratio_min:.4f} to {camera.valid_ratio_max:.4f}), "
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


@app.command()
def smoke(recipe: Annotated[str, typer.Argument(help="A file of params/recipes/.", show_default=False)]) -> None:
    """Train a recipe for a few iterations and check it."""
    from noisebox.config import load_experiment, resolve, smoke_config
    from noisebox.tasks import open_task

    with logged("smoke", recipe):
        config = smoke_config(resolve(recipe, 0, load_experiment().scale, smoke=True))
        task = open_task(config)

        from noisebox.training.smoke import smoke as run_smoke

        run_smoke(config, Path(graph.smoke_tsv(recipe)), task.classes, task.batch(0))


@app.command()
def train(
    lineage: Lineage,
    seed: Seed = 0,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    iters: Annotated[int | None, typer.Option(help="Iterations.", min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images, in place of iterations.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images an iteration, or auto: all that fit.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts that a batch is computed in.", min=1)] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Longest gradient; 0: any.", min=0)] = None,
    subset_size: Annotated[int | None, typer.Option(help="Train on so many images.", min=1)] = None,
    subset_seed: Annotated[int | None, typer.Option(help="Another seed draws others.", min=0)] = None,
    overfit: Annotated[bool | None, typer.Option("--overfit", help="Train and evaluate on the first ones.")] = None,
    resize_schedule: Annotated[str | None, typer.Option(help="[[epoch, short edge], ...], from epoch 1.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Through torch.compile.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of any key; repeatable.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/..., with options tries/...")
    ] = None,
    if_changed: Annotated[
        Literal["refuse", "resume", "fresh"],
        typer.Option(help="What to do with an interrupted training of other settings, code or data."),
    ] = "refuse",
    profile: Annotated[bool, typer.Option("--profile", help="Trace a few steps instead; no run is touched.")] = False,
    profile_steps: Annotated[int, typer.Option(help="Steps to trace.", min=1)] = 5,
) -> None:
    """Train a lineage with one seed, or go on with a killed run.

    Options stand over what params/ say. A training with any is none of the
    graph's, so it goes to tries/<lineage>/seed<k>/.

    A killed training is gone on with. Where something changed meanwhile that
    its result depends on, it is refused: --if-changed resume goes on with
    the new one, --if-changed fresh starts anew.

    With --profile, a few steps from fresh weights are traced into
    traces/<lineage>/seed<k>.json.gz, for ui.perfetto.dev, and the ten
    costliest operations are printed.
    """
    from noisebox.config import AUTO, load_experiment, overrides_of, resolve, teacher_of
    from noisebox.tasks import open_task

    named = {
        "precision": precision, "solver.max_iter": iters, "solver.epochs": epochs, "solver.batch_size": batch_size,
        "solver.accumulate": accumulate, "solver.clip_norm": clip_norm, "solver.subset_size": subset_size,
        "solver.subset_seed": subset_seed, "solver.overfit": overfit, "solver.compile": compile,
        "image.resize_schedule": resize_schedule,
    }  # fmt: skip
    typed = [f"{key}={value}" for key, value in named.items() if value is not None]
    overrides = overrides_of([*typed, *(settings or [])])
    which = f"seed{seed}"
    folder = graph.try_folder(lineage, which) if overrides else graph.run_folder(lineage, seed)
    run = output_dir or Path(folder)
    with logged("try" if overrides else "train", lineage, which):
        config = resolve(lineage, seed, load_experiment().scale, overrides=overrides)
        if overrides or output_dir:
            said = ", ".join(f"{key} {value}" for key, value in overrides.items())
            say(f"{lineage} {which} goes to {run}{', with ' if said else ''}{said}")
        parent = graph.Lineage.parse(lineage).parent
        start = _checkpoint(parent.name, seed) if parent else None
        mentor = teacher_of(lineage, seed)
        teacher = Path(mentor) if mentor else None
        task = open_task(config)
        if config.solver.batch_size == AUTO:
            from noisebox.training.batch_size import with_largest_batch

            task = with_largest_batch(task, run)
            say(f"batch_size auto: {task.config.solver.batch_size}")

        if profile:
            from noisebox.training.profiling import WARM_UP, profile_training

            trace = Path(graph.trace_file(lineage, seed))
            stream = task.batches(0, WARM_UP + profile_steps)
            say(profile_training(task.config, task.classes, stream, trace, profile_steps, teacher))
            say(f"{trace}: open it in ui.perfetto.dev")
            return

        from noisebox.training.loop import train as run_training

        run_training(
            task.config,
            run,
            task.classes,
            task.batches,
            task.data_hash,
            metric=task.metric,
            validate=task.validate,
            parent=start,
            teacher=teacher,
            images=task.images,
            if_changed=if_changed,
        )


@app.command()
def overfit(
    recipe: Annotated[str, typer.Argument(help="A file of params/recipes/.", show_default=False)],
    images: Annotated[int, typer.Option(help="How many to learn by heart.", min=1)] = 10,
    iters: Annotated[int, typer.Option(help="Iterations.", min=1)] = 400,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of any key; repeatable.")] = None,
) -> None:
    """See whether a recipe can learn a few images by heart.

    Trains on the first images without augmentation or shuffling, evaluates
    on the same, and says what to check where it did not learn them: then
    targets, losses or decoding are wrong, or it needs longer.

    Exit code 0: it knows them (AP50, or mIoU of a map, of at least 90);
    1: it does not; 2: a mistake.
    """
    from noisebox.config import load_experiment, overrides_of, resolve
    from noisebox.tasks import open_task

    with logged("overfit", recipe):
        overrides = {"solver.overfit": True, "solver.subset_size": images, "solver.max_iter": iters}
        overrides |= overrides_of(settings or [])
        config = resolve(recipe, 0, load_experiment().scale, smoke=True, overrides=overrides)
        task = open_task(config.model_copy(update={"distill": None}))

        from noisebox.training.overfit import advice
        from noisebox.training.overfit import overfit as run_overfit

        memory = run_overfit(task, Path(graph.try_folder(recipe, "overfit")))
        reached = f"{memory.metric} {memory.value:.1f} on the {task.images} images shown"
        say(
            f"{recipe}: {reached}, {memory.enough:g} is enough" if memory.learnt else f"{recipe}: only {reached}; check"
        )
        for line in [] if memory.learnt else advice(memory, task):
            say(f"- {line}")
    raise typer.Exit(0 if memory.learnt else 1)


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="A file of params/searches/.", show_default=False)],
    processes: Annotated[int, typer.Option(help="How many trials run at once.", min=1)] = 1,
    companion: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run a budget search: many short trainings that differ in a few keys.

    Writes reports/searches/<name>.csv. Killed and run again, it goes on where
    it stopped; run from several terminals, they share the trials.
    """
    from noisebox.config import load_experiment
    from noisebox.config.search import Search

    with logged("search", file.stem, *([f"companion{companion}"] if companion else [])):
        found = Search(file, load_experiment().scale)
        keys = list(found.ranges())  # and with them every trial, so that a mistake is told now

        from noisebox.search.processes import companions
        from noisebox.search.table import ProgressTable
        from noisebox.search.trials import run_search

        table = ProgressTable(keys)
        with companions(file, processes - 1):
            trials = run_search(found, table.told)
        table.finish(trials)
        say(graph.search_csv(found.name))


@app.command()
def adopt(
    file: Annotated[Path, typer.Argument(help="A file of params/searches/, searched.", show_default=False)],
    best: Annotated[int, typer.Option(help="How many of the best.", min=1)] = 1,
) -> None:
    """Make the best of a search recipes: params/recipes/<search>_best1.yaml and so on."""
    from noisebox.config import load_experiment
    from noisebox.search.adopt import adopt as run_adopt

    for line in run_adopt(file, best, load_experiment().scale):
        say(line)


@app.command()
def evaluate(lineage: Lineage, seed: Seed = 0) -> None:
    """Evaluate a checkpoint: all that the protocols ask of its lineage."""
    from noisebox.config import load_experiment

    with logged("evaluate", lineage, f"seed{seed}"):
        experiment = load_experiment()
        path = _checkpoint(graph.Lineage.parse(lineage).name, seed)

        from noisebox.tasks import evaluate_run
        from noisebox.training.checkpoint import load_model

        model, config, checkpoint = load_model(path)
        if config.scale != experiment.scale:
            raise UserError(
                f"{path} was trained at scale {config.scale!r}, but {graph.EXPERIMENT} now says {experiment.scale!r}: "
                f"train it again with: noisebox train {lineage} --seed {seed}"
            )
        evaluate_run(model, config, path, experiment, checkpoint["classes"])


@app.command()
def report(
    search: Annotated[
        str | None, typer.Option(help="Write reports/searches/<name>.md instead.", show_default=False)
    ] = None,
) -> None:
    """Write reports/summary.md with tables, plots and pictures."""
    if search is not None:
        _report_search(search)
        return

    import gc

    # Nearly all that a report makes lives to its end, and looking for garbage among it costs a sixth of the time.
    gc.disable()

    from noisebox.config import load_experiment
    from noisebox.report.summary import write_report

    with logged("report"):
        for path in write_report(load_experiment(), Path()):
            say(str(path))


def _report_search(name: str) -> None:
    """The page of a budget search."""
    from noisebox.report.searches import write_search_report

    with logged("report", name):
        for path in write_search_report(name, Path()):
            say(str(path))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The repository, or a deliverable.")] = Path(),
    rows: Annotated[
        int | None,
        typer.Option(help="Rows of results to evaluate again.", min=0, show_default="3, if the data is here"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows.", min=0)] = 0,
) -> None:
    """Check every file of the manifest, and results anew.

    Every file that is here is held to its sha256 in results_manifest.tsv,
    that of reports/ or of a deliverable, where none may be missing. Some
    rows of results.tsv, and those that differ from them in the eval seed
    alone, are evaluated again from their checkpoints and must come out to
    the printed digits. Where the dataset is not here, that is said and left
    out, unless --rows asks for it.

    Exit code 0: nothing differs; 1: something does, each told in a line;
    2: a mistake, or it could not be checked.
    """
    from noisebox.progress import Progress
    from noisebox.report.manifest import check

    with Progress(f"verify {folder}") as progress:
        checked = check(folder, progress.at)
    said, mismatches = checked.said, checked.mismatches
    if rows != 0:
        from noisebox.evaluation.verify import ROWS, evaluate_again

        again = evaluate_again(folder, checked.sound, ROWS if rows is None else rows, seed)
        mismatches = [*mismatches, *again.mismatches]
        if again.left_out and rows is not None and not mismatches:
            raise UserError(again.left_out[0])
        said = [*said, f"{again.rows} rows of results evaluated again"]
        said += [f"not evaluated again: {reason}" for reason in again.left_out]
    for line in [*said, *mismatches]:
        say(line)
    raise typer.Exit(1 if mismatches else 0)


@app.command()
def freeze(
    name: Annotated[str, typer.Argument(help="Of the folder below deliverables/.", show_default=False)],
    lineages: Annotated[str, typer.Option(help="What to deliver: --lineages baseline baseline+geofeat.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Copy lineages into a deliverable that stands alone.

    Checkpoints, results, resolved configurations and the description of the
    dataset go to deliverables/<name>/, with a manifest of their own and a
    README.md: how to check them, evaluate them again, share them with DVC.
    """
    from noisebox.report.freeze import freeze as run_freeze

    folder = run_freeze(name, list(dict.fromkeys([lineages, *(more or [])])))
    say(f"{folder}; check it with: noisebox verify {folder}")


@app.command()
def table(
    spec: Annotated[Path, typer.Argument(help="A YAML or JSON file with columns and rows.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for the .md, .tsv and .tex.", show_default=False)] = None,
) -> None:
    """Make a results table from a file that describes it.

    Prints Markdown; with --out it writes Markdown, TSV and LaTeX, named like
    the file. Such a file:

    \b
        caption: Street world
        columns: [AP, AP_std, AP-car, FPS, steps]
        rows:
          - {lineage: baseline, sample_step: 5, name: ours}
          - lineage: baseline+qhead
            guidance: {scale: 0.1, mode: all}
            train_seeds: [0, 1]     # by default the experiment's
            eval_seeds: [0, 1]      # by default all that there are
          - name: theirs
            source: Chen et al. 2023, table 1
            values: {AP: "46.80", steps: 1}

    Columns: steps, s_per_img, FPS, AP, AP50, AP75, APs, APm, APl, AP-<class>;
    of AP also _std, _low and _high: over train seeds, the population standard
    deviation and the ends of the 95 % interval. What is missing is a dash,
    and the reason stands below the table.
    """
    from noisebox.config import load_experiment
    from noisebox.report.spec import as_markdown, make_table, write_table

    made = make_table(spec, load_experiment)
    if out is None:
        say(as_markdown(made).rstrip())
    else:
        for path in write_table(made, out, spec.stem):
            say(str(path))


@app.command()
def prune(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Free the disk of last.pth and best.pth that DVC holds.

    Of finished runs, last.pth and best.pth (in the BEV line best_mIoU.pth)
    go, if their bytes are in DVC's cache or in a remote; so does what killed
    processes left, if no training can go on from it. All else stays,
    model_final.pth always.

    `dvc status` then calls these files deleted. That is no loss: `dvc
    checkout` brings them back (`dvc pull`, if only a remote has them), and
    `dvc repro` does so rather than train again. Snakemake does not miss
    them. DVC's cache keeps its copy; emptying that is for `dvc gc`.
    """
    from noisebox.prune import plan_of, remove, size_in_words

    plan = plan_of(Path())
    for line in plan.kept:
        say(f"kept: {line}")
    for item in plan.items:
        say(f"{size_in_words(item.size):>9}  {item.path} ({item.why})")
    if not plan.items:
        say("nothing to prune")
    elif yes or typer.confirm(f"Delete these {len(plan.items)}, and free {size_in_words(plan.size)}?"):
        for line in remove(plan):
            say(line)


@app.command()
def bench(
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Of train, protocol, steps, matcher, attention, distillation, crops, loader, depth, report, counting: "
            "--parts train protocol.",
            show_default="train protocol, or with --crops train crops",
        ),
    ] = None,
    depth: Annotated[str, typer.Option(help="Backbone: 18, 50 (ResNet), or any backbone name.")] = "18",
    hidden: Annotated[int, typer.Option(help="Channels of pyramid and head.", min=8)] = 256,
    dim_dynamic: Annotated[int, typer.Option(help="Channels of the dynamic convolution.", min=1)] = 64,
    heads: Annotated[int, typer.Option(help="Stages of the head.", min=1)] = 6,
    feedforward: Annotated[int, typer.Option(help="Width of the feed-forward layers.", min=1)] = 2048,
    proposals: Annotated[int, typer.Option(help="Boxes per image.", min=1)] = 100,
    classes: Annotated[int, typer.Option(help="Object classes.", min=1)] = 3,
    size: Annotated[tuple[int, int], typer.Option(help="Image height and width.")] = (128, 160),
    batch: Annotated[int, typer.Option(help="Images per training iteration.", min=1)] = 4,
    boxes: Annotated[int, typer.Option(help="Objects per image.", min=0)] = 6,
    steps: Annotated[
        int | None, typer.Option(help="Sampling step counts: --steps 1 5 20.", show_default="1 5 20")
    ] = None,
    crops: Annotated[
        int | None,
        typer.Option(help="Time YOLC, at so many crops an image: --crops 1 2 4.", show_default="DiffusionDet"),
    ] = None,
    crop_canvas: Annotated[float, typer.Option(help="Sides of a crop's canvas to the image's.", min=0.01, max=1)] = 1.0,
    seeds: Annotated[int, typer.Option(help="Eval seeds.", min=1)] = 5,
    images: Annotated[int, typer.Option(help="Images per evaluation pass.", min=1)] = 8,
    train_iters: Annotated[int, typer.Option(help="Training iterations timed.", min=1)] = 6,
    repeats: Annotated[int, typer.Option(help="How often all else is timed.", min=1)] = 3,
    items: Annotated[
        int | None,
        typer.Option(
            help="Images, frames, runs of loader, depth, report, counting.", min=1, show_default="each its own"
        ),
    ] = None,
    stored: Annotated[tuple[int, int], typer.Option(help="Height and width of the loader's files.")] = (480, 640),
    workers: Annotated[int, typer.Option(help="Processes of the loader, beside one alone.", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the products.")] = "fp32",
    amp: Annotated[bool, typer.Option("--amp", help="The same as --precision bf16.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Through torch.compile, as solver.compile.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for the numbers; - prints them, and no table.")] = None,
    growth: Annotated[bool, typer.Option("--growth", help="Time each part as one size grows.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what --growth writes.")] = Path("reports/bench"),
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two files of --json: nothing is timed.", show_default=False)
    ] = None,
) -> None:
    """Time training, sampling, data, counting and the report.

    Prints a table: medians after a warm-up, with the shortest and the longest run; images a second; and the share of
    the rate that a large matrix product reaches on the same machine in the same precision. On a GPU the peak memory is
    that of the part, on a CPU that of the process so far.

    With --growth, growth.tsv says what grows with what and how fast: the exponent k of cost ~ size^k, fitted over the
    sizes; growth.png and growth.svg draw it. With --compare, the ratios of what two results have in common.
    """
    from rich.console import Console

    if compare:
        from noisebox.bench.compare import compare as run_compare
        from noisebox.bench.compare import table as ratio_table

        ratios, differences = run_compare(*compare)
        Console().print(ratio_table(ratios, *compare))
        for line in differences or ["same settings, hardware and packages"]:
            say(line)
        return

    from noisebox.bench.settings import BenchSettings

    numbers = tuple(int(word) for word in more or [] if word.isdecimal())
    words = [parts, *(word for word in more or [] if not word.isdecimal())] if parts else more or []
    settings = BenchSettings(
        depth=depth, hidden=hidden, dim_dynamic=dim_dynamic, heads=heads, feedforward=feedforward, proposals=proposals,
        classes=classes, size=size, batch=batch, boxes=boxes, seeds=seeds, images=images, train_iters=train_iters,
        repeats=repeats, items=items, stored=stored, workers=workers,
        steps=(steps, *numbers) if steps is not None and crops is None else (1, 5, 20),
        crops=(crops, *numbers) if crops is not None else (), crop_canvas=crop_canvas,
        threads=threads, device=device, precision="bf16" if amp else precision, compile=compile,
    )  # fmt: skip
    if growth:
        from noisebox.bench.growth import write_growth

        for path in write_growth(parts and words, settings, out):
            say(str(path))
        return

    from noisebox.bench.run import bench as run_bench
    from noisebox.bench.run import table as bench_table

    result = run_bench(words if parts else ["train", "crops" if settings.crops else "protocol"], settings)
    _hand_over(result, json)
    if json != Path("-"):
        Console().print(bench_table(result))


def _hand_over(result: dict[str, Any], path: Path | None) -> None:
    """Write numbers as JSON to a file, or print them where the file is `-`."""
    import json

    from noisebox.files import write_json

    if path == Path("-"):
        say(json.dumps(result, indent=1))
    elif path:
        write_json(path, result)


@app.command()
def predict(
    which: Annotated[
        str,
        typer.Argument(metavar="LINEAGE|CHECKPOINT", help="A lineage, or the path of a .pth file.", show_default=False),
    ],
    images: Annotated[Path, typer.Option(help="An image file, or a folder of them.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="predictions/<lineage>/seed<k>")
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
    every image with its boxes. An image of the validation split is detected as `noisebox evaluate` does.
    """
    path = Path(which) if which.endswith(".pth") else _checkpoint(graph.Lineage.parse(which).name, seed)
    folder = out or Path("predictions") / (path.stem if which.endswith(".pth") else f"{which}/seed{seed}")

    from noisebox.evaluation.predict import IMAGES, LOOKS, PREDICTIONS
    from noisebox.evaluation.predict import predict as run_predict
    from noisebox.report.aerial_pictures import write_pictures as write_looks
    from noisebox.report.predictions import write_pictures

    ways = {"crops": crops, "visualize": visualize}
    run_predict(path, images, folder, steps=steps, score=score, eval_seed=eval_seed, batch_size=batch, **ways)
    root = images if images.is_dir() else images.parent
    pictures = write_pictures(folder / PREDICTIONS, folder / IMAGES, root, folder / "pictures")
    say(f"{folder / PREDICTIONS}, {folder / IMAGES}, and {len(pictures)} pictures in {folder / 'pictures'}")
    if visualize:
        say(f"{len(write_looks(folder / LOOKS))} pictures of what was seen in {folder / LOOKS}")


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
    """Draw detections beside ground truth, and how boxes are denoised.

    Writes detections.png, and for each image <id>-steps.png, the boxes at every step, and <id>-film.png, the same as
    an animated PNG.
    """
    from noisebox.config import load_experiment

    checkpoints = {name: _checkpoint(graph.Lineage.parse(name).name, seed) for name in lineages}
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
    checkpoints = {name: _checkpoint(graph.Lineage.parse(name).name, seed) for name in named}
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
    from noisebox.report.bev_evaluations import read_confusion

    name = graph.Lineage.parse(lineage).name
    path = Path(graph.evaluation_folder(name, seed)) / "confusion.json"
    if not path.exists():
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


@app.command()
def sync() -> None:
    """After `dvc pull`: tell Snakemake what is up to date."""
    from noisebox.engines import sync as run_sync

    for line in run_sync(Path()):
        say(line)


@app.command()
def merge() -> None:
    """After a `git merge` with conflicts in what the engines write.

    Settles dvc.lock, data.dvc and the report's files, and stages them for
    the commit. Stages of both sides stay, and nothing is made again that
    was made from what the merge holds. Conflicts in other files, such as
    params/experiment.yaml, come first and are yours.
    """
    from noisebox.merge import merge as run_merge

    for line in run_merge(Path()):
        say(line)


@app.command()
def record(
    outputs: Annotated[list[str] | None, typer.Argument(help="Outputs just made.", show_default=False)] = None,
) -> None:
    """Tell DVC what Snakemake made; runs by itself."""
    from noisebox.engines import record as run_record

    for line in run_record(Path(), outputs or sys.stdin.read().split("\n")):
        say(line)


def _checkpoint(lineage: str, seed: int) -> Path:
    """The checkpoint of a run that must be there."""
    path = Path(graph.checkpoint(lineage, seed))
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with: noisebox train {lineage} --seed {seed}")
    return path


def say(line: str) -> None:
    """One line to standard output."""
    typer.echo(line)


@contextmanager
def logged(verb: str, *subject: str) -> Iterator[None]:
    """Keep what a verb logs in `logs/<verb>/<subject>.log` as well; a mistake or a bug ends up there too."""
    logger = logging.getLogger("noisebox")
    logger.setLevel(logging.INFO)
    file, console = _log_file(Path(graph.log_file(verb, *subject))), logging.StreamHandler(sys.stderr)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(file)
    logger.addHandler(console)
    try:
        yield
    except (Exception, Interrupted) as error:
        told = isinstance(error, UserError | Interrupted)
        said, trace = (str(error), None) if told else ("a bug:", sys.exc_info())
        file.handle(logger.makeRecord("noisebox", logging.ERROR, "", 0, said, (), trace))
        raise
    finally:
        for handler in (file, console):
            logger.removeHandler(handler)
        console.flush()
        with suppress(OSError):
            file.close()


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, where logging would print a traceback for every line: it is on standard error
    as well."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _log_file(path: Path) -> logging.Handler:
    from noisebox.files import unwritable

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _LogFile(path, mode="w", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from None


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit code 2, a signal's end is one
    with the code that shells give it."""
    listen()
    try:
        app(standalone_mode=True)
    except Interrupted as end:
        sys.stderr.write(f"noisebox: {end}\n")
        raise
    except UserError as error:
        sys.stderr.write(f"noisebox: {error}\n")
        sys.exit(2)
